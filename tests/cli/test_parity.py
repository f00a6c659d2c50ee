from __future__ import annotations

import pytest

pytest.importorskip("torch")

from hilm.models.onevision import load_onevision
from tests.parity.conftest import pair  # noqa: F401 - a fixture


def test_a_run_of_a_pair(hilm, pair):  # noqa: F811 - the fixture
    files = ["--input", f"a={pair}/1.png", "--input", f"v={pair}/1.mp4", "--num-frames", "2"]
    ran = hilm("parity", "run", f"{pair}/padded", f"{pair}/packed", *files, "--json", "--html", "p.html")
    assert ran.code == 0
    assert (ran.document["verdict"], ran.document["first_divergence"]) == ("pass", None)
    assert {"stages", "floor"} <= ran.document.keys()
    ran = hilm("parity", "run", f"{pair}/padded", f"{pair}/packed", *files, "--mode", "free")
    assert (ran.code, "at precision floor: not measured" in ran.out) == (0, True)


def test_other_weights_end_with_exit_code_3(hilm, pair, house):  # noqa: F811 - the fixture
    model = load_onevision(pair / "padded", packed=True)
    model.encoder.layers[1].self_attn.proj.weight.data.mul_(1.02)
    model.save_pretrained(house / "other")
    words = ["parity", "run", f"{pair}/padded", "other", "--input", f"a={pair}/1.png"]
    ran = hilm(*words, "--json")
    assert (ran.code, ran.document["first_divergence"]["stage"]) == (3, "audit")
    ran = hilm(*words, "--no-audit", "--junit", "p.xml")
    assert ran.code == 3
    assert "first divergence: layer.1 / attn" in ran.out
    assert (house / "p.xml").read_text().startswith("<?xml")


def test_a_dump_and_a_selftest(hilm, pair, house):  # noqa: F811 - the fixture
    file = ["--input", f"a={pair}/1.png"]
    assert hilm("parity", "dump", f"{pair}/padded", "dump", *file).code == 0
    assert hilm("parity", "run", "dump", f"{pair}/packed", *file).code == 0
    assert hilm("parity", "run", f"{pair}/packed", "dump", *file).code == 0
    ran = hilm("parity", "selftest", f"{pair}/padded", "--precision", "float32", "--json")
    assert {"caught", "planted", "faults"} <= ran.document.keys()
    assert hilm("parity", "selftest", "dump").code == 2
    assert hilm("parity", "run", "module:nowhere:x", "dump", *file).code == 2
