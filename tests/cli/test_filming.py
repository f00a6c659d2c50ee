from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import pytest

from hilm.cli.filming import decoded, encoded, find_reel, verified
from tests.servers import Server
from tests.tiny import bert_like, write_model

REEL = {
    "model": "bert",
    "reel": "store/reels/bert.reel.mp4",
    "mode": "archive",
    "parameters": 22_713_216,
    "bits_per_weight": 25.913,
    "bytes": 73_572_352,
    "nmse": 0.0,
    "seconds": 3.2,
}


def test_encode_shows_a_line_a_model_and_each_reel_once():
    sample = {**REEL, "mode": "sample", "reel": "store/reels/sample.reel.mp4", "nmse": None}
    document = {"models": [REEL, {**sample, "model": "a"}, {**sample, "model": "b"}], "failed": []}
    lines = click.unstyle(encoded(document)).splitlines()
    assert lines[1].split() == ["bert", "archive", "22.7", "M", "70.2", "MiB", "25.91", "0", "3.20", "s"]
    assert lines[2].split()[-3] == "-"
    assert lines[4:] == ["", "store/reels/bert.reel.mp4", "store/reels/sample.reel.mp4"]


@pytest.mark.parametrize(
    ("proof", "text"), [(True, "same bits as filmed"), (False, "NOT the bits that were filmed"), (None, "-")]
)
def test_decode_says_whether_the_bits_are_the_same(proof, text):
    assert text in decoded({"out": "there", "tensors": 103, "sha256_ok": proof})


def test_verify_names_everything_that_is_wrong():
    document = {"ok": False, "checked": 103, "bad": ["a.weight", "b\x1b"], "max_abs": 0.5, "nmse": 0.01}
    assert click.unstyle(verified(document)).splitlines() == [
        "BAD: 103 checked, 2 bad",
        "largest difference 0.5, NMSE 0.01",
        "  a.weight",
        "  b\ufffd",
    ]


def test_verify_without_a_checkpoint_measures_no_difference():
    document = {"ok": True, "checked": 1, "bad": [], "max_abs": None, "nmse": None}
    assert click.unstyle(verified(document)) == "ok: 1 checked, 0 bad"


def test_a_reel_can_be_a_path(tmp_path):
    path = tmp_path / "bert.reel.mp4"
    path.touch()
    assert find_reel(str(path), tmp_path / "store") == path


def test_a_reel_verifies_and_decodes_to_the_same_weights(hilm, house):
    ran = hilm("encode", "base", "--json")
    assert (ran.code, ran.document["failed"]) == (0, [])
    reel = ran.document["models"][0]
    assert (reel["mode"], reel["nmse"]) == ("archive", 0)
    for target in ("base", reel["reel"]):
        assert hilm("verify", target, "--against", "base").code == 0
        ran = hilm("decode", target, f"restored-{len(target)}", "--json")
        assert (ran.code, ran.document["sha256_ok"]) == (0, True)


def test_a_damaged_reel_is_exit_3(hilm, house):
    path = Path(hilm("encode", "stranger", "--json").document["models"][0]["reel"])
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    (house / "damaged.reel.mp4").write_bytes(data)
    assert hilm("verify", "damaged.reel.mp4").code == 3


def test_a_limit_makes_a_sample(hilm):
    ran = hilm("encode", "--models", "base", "tuned", "--max-params", "300", "--json")
    assert [reel["mode"] for reel in ran.document["models"]] == ["sample", "sample"]


def test_one_bad_model_is_a_warning_and_only_bad_ones_an_error(hilm):
    ran = hilm("encode", "base", "nowhere", "--json")
    assert ran.code == 0
    assert [entry["model"] for entry in ran.document["failed"]] == ["nowhere"]
    assert ran.err.startswith("warning: nowhere: ")
    ran = hilm("encode", "nowhere", "--json")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: nowhere: ")
    ran = hilm("encode", "org/nowhere", "--json")
    assert (ran.code, ran.out) == (5, "")  # it may be on the Hub, which is out of reach


def test_an_indexed_model_has_no_reel(hilm, house):
    hilm("index", "base", "--name", "kept")
    ran = hilm("decode", "kept", "out")
    assert ran.code == 2


def test_a_tensor_is_fetched_from_a_url(hilm, house, monkeypatch):
    reel = hilm("encode", "base", "--json").document["models"][0]["reel"]
    name = "embeddings.word_embeddings.weight"
    with Server({"/x": Path(reel).read_bytes()}) as server:
        monkeypatch.delenv("HF_HUB_OFFLINE")
        ran = hilm("get", server.url("/x"), name, "--rows", "2:5", "-o", "rows.npy", "--json")
        assert (ran.code, ran.document["requests"], ran.document["shape"]) == (0, 3, [3, 64])
        assert np.array_equal(np.load("rows.npy"), bert_like(1, layers=2)[name][2:5])
        assert "requests" in hilm("get", server.url("/x"), name).out
        assert hilm("decode", server.url("/x"), "one", "--tensor", name).code == 0
        assert hilm("get", server.url("/nothing"), name).code == 5
    assert hilm("get", "base", name, "--json").document["requests"] is None
    for wrong in (["--rows", "5"], ["--rows", "9:2"], ["-o", "x.txt"]):
        ran = hilm("get", "base", name, *wrong)
        assert (ran.code, ran.out) == (2, "")


def test_a_delta_from_command_to_command(hilm):
    place = "--storage-dir", "store"
    assert (
        hilm("encode", "tuned", "--base", "base", *place, "--json").document["models"][0]["mode"] == "delta"
    )
    assert hilm("verify", "tuned", *place, "--against", "tuned").code == 0
    assert hilm("decode", "tuned", "out", *place).code == 0
    shown = hilm("show", "tuned", "--chain", "--json", *place).document
    assert [link["mode"] for link in shown["chain"]] == ["delta", "checkpoint"]
    assert "checkpoint" in hilm("show", "tuned", "--chain", *place).out
    elsewhere = "--storage-dir", "elsewhere"
    refused = hilm("decode", shown["reel"], "no", *elsewhere)
    assert (refused.code, "--base MODEL" in refused.err) == (2, True)
    assert hilm("decode", shown["reel"], "no", *elsewhere, "--base", "stranger").code == 3
    assert hilm("verify", shown["reel"], *elsewhere, "--base", "stranger").code == 3
    assert hilm("decode", shown["reel"], "yes", *elsewhere, "--base", "base").code == 0
    assert hilm("encode", "tuned", "--mode", "delta", *place).code == 2


def test_rounding_to_few_bits_is_warned_of(hilm, house):
    ran = hilm("encode", "base", "--mode", "small", "--bits", "2", "--keep", "*word*", "--json")
    assert (ran.code, ran.document["models"][0]["mode"]) == (0, "small")
    few = ran.document["models"][0]["bits_per_weight"] < 3
    assert ("warning" in ran.err) == few
    assert hilm("encode", "base", "--mode", "small", "--bits", "9").code == 2
    assert hilm("encode", "base", "--bits", "4").code == 2
    back = hilm("decode", "base", "out")
    assert "rounded, NMSE" in back.out


def test_the_price_of_a_video_is_said_before_it_is_written(house, hilm):
    weights = np.random.default_rng(0).standard_normal((300, 300)).astype(np.float32)
    write_model(house / "wide", {"w": weights})
    ran = hilm("encode", "wide", "--carrier", "utvideo", "--storage-dir", "store", "--json", "--no-preview")
    assert ran.code == 0, ran.err
    assert "bits per weight where packed costs" in ran.err
    assert "tensors in flat layout: 1" in ran.err
    assert ran.document["models"][0]["carrier"] == "utvideo"
    reel = ran.document["models"][0]["reel"]
    assert hilm("verify", reel, "--against", "wide", "--json").document["ok"]
    Path(reel).with_suffix(".avi").unlink()
    missing = hilm("verify", reel)
    assert missing.code == 2
    assert "is not beside the reel" in missing.err
    tiny = hilm("encode", "base", "--carrier", "vp9", "--storage-dir", "store")
    assert (tiny.code, "has nothing that a video carries" in tiny.err) == (2, True)
    assert not list((house / "store" / "reels").glob("base*"))
