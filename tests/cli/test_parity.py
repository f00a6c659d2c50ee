from __future__ import annotations

import pytest

pytest.importorskip("torch")

from hilm.models.onevision import load_onevision
from hilm.reel.encoder import encode_archive
from hilm.weights import open_checkpoint
from tests.parity.conftest import pair  # noqa: F401 - a fixture
from tests.parity.media import write_picture


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


@pytest.fixture(scope="module")
def scaled(pair, tmp_path_factory):  # noqa: F811 - the fixture
    """The packed encoder with one projection scaled by two percent, and a reel of it."""
    folder = tmp_path_factory.mktemp("scaled")
    model = load_onevision(pair / "padded", packed=True)
    model.encoder.layers[1].self_attn.proj.weight.data.mul_(1.02)
    model.save_pretrained(folder / "other")
    with open_checkpoint(folder / "other") as checkpoint:
        encode_archive(checkpoint, folder / "other.reel.mp4", preview=False)
    return folder


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("", 3),
        ("--require compatible", 0),
        ("--require floor", 3),
        ("--k 1e9 --k-token 1e9 --k-free 1e9", 0),
        ("--k 1e9 --k-token 1e9", 3),
        ("--k-free 1e9 --k-token 1e9", 3),
        ("--k-free 1e9 --k 1e9", 3),
        ("--require compatible --layer 1", 0),
        ("--precision float32 --mode local", 3),
        ("--precision deployed --blocks encoder.layers", 3),
        ("--min-sqnr 20", 0),
        ("--min-sqnr 60", 3),
        ("--blocks nowhere", 2),
        ("--memory-limit 1", 2),
        ("--layer x", 2),
    ],
)
def test_what_is_asked_for_decides(hilm, pair, scaled, house, line, code):  # noqa: F811 - the fixture
    write_picture(house / "big.png", 280, 280)
    sides = [f"{pair}/packed", f"{scaled}/other"]
    ran = hilm("parity", "run", *sides, "--no-audit", "--input", "a=big.png", "--json", *line.split())
    assert ran.code == code, ran.err
    if code == 3 and "sqnr" not in line and "1e9" not in line:
        assert ran.document["first_divergence"]["stage"] == "layer.1"


def test_weights_of_a_reel(hilm, pair, scaled):  # noqa: F811 - the fixture
    words = ["parity", "run", f"{scaled}/other", "--input", f"a={pair}/1.png"]
    reel = f"reel:{scaled}/other.reel.mp4"
    assert hilm(*words, f"{pair}/packed", "--candidate-weights", reel).code == 0
    assert hilm(*words, f"{pair}/packed").code == 3
    assert hilm(*words, f"{pair}/packed", "--reference-weights", f"{pair}/packed").code == 0
    ran = hilm(*words, f"{pair}/packed", "--candidate-weights", "reel:nowhere")
    assert (ran.code, "nowhere" in ran.err) == (2, True)
