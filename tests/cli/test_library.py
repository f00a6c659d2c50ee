from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from hilm.cli.library import described, listed, remove, valued


def test_list_shows_reels_and_fingerprints():
    model = {"model": "bert", "parameters": 10, "mode": "archive", "bytes": 2048, "bits_per_weight": 25.9}
    bare = {**model, "model": "gpt", "mode": None, "bytes": None, "bits_per_weight": None}
    lines = click.unstyle(listed({"models": [model, bare]})).splitlines()
    assert lines[1].split() == ["bert", "10", "archive", "2.0", "KiB", "25.9"]
    assert lines[2].split() == ["gpt", "10", "fingerprint", "only", "-", "-"]


def test_an_empty_store_says_how_to_fill_it():
    assert "hilm encode MODEL" in listed({"models": []})


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("reel_bytes", 2048, "2.0 KiB"),
        ("bytes", {"reels": 2048, "catalog": 0}, "reels 2.0 KiB, catalog 0 B"),
        ("seconds", 1.5, "1.50 s"),
        ("p_value", 0.0, "< 1e-300"),
        ("parameters", 22_713_216, "22.7 M"),
        ("share", 0.123456, "0.1235"),
        ("complete", True, "yes"),
        ("complete", False, "no"),
        ("reel", None, "-"),
        ("names", ["a", "b\x1b"], "a, b\ufffd"),
    ],
)
def test_a_key_tells_the_unit(key, value, text):
    assert valued(key, value) == text


def test_show_writes_a_line_a_key():
    assert click.unstyle(described({"model": "a", "total_bytes": 1})) == "model        a\ntotal bytes  1 B"


def test_a_model_comes_is_shown_and_goes(hilm, house):
    assert hilm("list", "--json").document == {"models": []}
    hilm("encode", "base", "--name", "kept")
    assert [model["model"] for model in hilm("list", "--json").document["models"]] == ["kept"]
    assert "kept" in hilm("list").out
    assert hilm("stats").code == 0
    assert hilm("show", "kept", "--sheet", "kept.png").code == 0
    assert (house / "kept.png").read_bytes().startswith(b"\x89PNG")
    assert hilm("rm", "kept", "--yes").code == 0
    assert hilm("show", "kept").code == 2
    assert hilm("list", "--json").document == {"models": []}


def test_storage_dir_is_a_store_of_its_own(hilm):
    hilm("index", "base", "--storage-dir", "experiment_1")
    assert len(hilm("list", "--storage-dir", "experiment_1", "--json").document["models"]) == 1
    assert hilm("list", "--json").document == {"models": []}


def test_rm_asks_at_a_terminal(monkeypatch):
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda stream: True)
    ran = CliRunner().invoke(remove, ["kept"], input="n\n")
    assert ran.exit_code == 1
    assert ran.stdout.strip() == ""
    assert "forget kept and delete its reel?" in ran.stderr


def test_several_models_make_a_film(hilm, house):
    ran = hilm("show", "base", "tuned", "--film", "both.mp4", "--difference", "--json")
    assert (ran.code, len(ran.document["frames"])) == (0, 2)
    assert (house / "both.mp4").stat().st_size > 1000
    for wrong in (["base", "tuned"], ["base", "--tensor", "x"], ["base", "tuned", "--sheet", "x.png"]):
        assert hilm("show", *wrong).code == 2


def test_a_reel_is_shown_as_a_table(hilm):
    reel = hilm("encode", "base", "--json").document["models"][0]["reel"]
    lines = click.unstyle(hilm("show", reel).out).splitlines()
    assert any(line.split()[:2] == ["embeddings.word_embeddings.weight", "F32"] for line in lines)
    assert "--json lists all" in lines[-1]


def test_show_draws_a_heat_map_of_a_path(hilm, house):
    ran = hilm("show", "base", "--picture", "base.png", "--figure", "max", "--json")
    assert (ran.code, ran.document["picture"], ran.document["figure"]) == (0, "base.png", "max")
    assert (house / "base.png").read_bytes().startswith(b"\x89PNG")
    assert hilm("show", "base", "--picture", "x.png", "--figure", "median").code == 2
