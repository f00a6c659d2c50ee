from __future__ import annotations

import click

from hilm.cli.reporting import reported

LOSS = {"nmse": 0.0054, "max_abs": 0.02, "cosine": 0.9973}
OWN = {"weights": 100, "bits_per_weight": 3.79, **LOSS, "gap": 0.03}
Q4_K = {**OWN, "bits_per_weight": 4.5, "gap": 0.72, "saved": 0.69}
BETTER = {**OWN, "bits_per_weight": 3.7, "gap": -0.06, "saved": -0.09}
EXACT = {"weights": 9, "bits_per_weight": 28.5, "gap": None}
REEL = {
    "reel": "there/x.reel.mp4",
    "mode": "small",
    "bytes": 2048,
    "bits_per_weight": 4.1,
    "rounded": {"tensors": 1, **OWN, "others": {"q4_k": Q4_K, "better": BETTER}},
    "exact": {"tensors": 1, **EXACT, "others": {"zipnn": {**EXACT, "bits_per_weight": 27.9, "saved": -0.6}}},
    "tensors": [{"name": "a\x1b", "shape": [10, 10], "dtype": "F32", "coder": "tcq", **OWN, "others": {}}],
}


def lines(**changes):
    return click.unstyle(reported({"reels": [REEL | changes], "picture": None})).splitlines()


def test_losses_are_printed_too():
    text = lines()
    assert text[0] == "x.reel.mp4  small, 2.0 KiB, 4.1 bits/weight with all files but the film"
    assert text[3].split() == ["hilm", "3.79", "0.0054", "0.02", "0.9973", "0.03"]
    assert text[4].endswith("-0.06  hilm 0.090 LARGER")
    assert text[5].endswith("0.72  hilm 0.690 smaller")
    assert text[9].split() == ["zipnn", "27.9", "hilm", "0.600", "LARGER"]
    assert text[-1].split()[:3] == ["a\ufffd", "10x10", "tcq"]


def test_what_there_is_none_of_is_left_out_and_long_tables_are_cut():
    text = lines(rounded=None, tensors=REEL["tensors"] * 25)
    assert not [line for line in text if "rounded" in line]
    assert text[-1] == "… and 5 more (--json lists all)"


def test_a_report_from_command_to_command(hilm, house):
    assert hilm("encode", "base", "--mode", "small", "--no-preview").code == 0
    ran = hilm("report", "base", "--picture", "rates.png")
    assert (ran.code, ran.out.splitlines()[-1]) == (0, "drawn in rates.png")
    assert "smaller" in ran.out
    assert (house / "rates.png").is_file()
    document = hilm("report", "base", "--no-others", "--json").document
    assert document["reels"][0]["rounded"]["others"] == {}
    assert hilm("report", "base", "--against", "stranger").code == 3
    missing = hilm("report")
    assert (missing.code, missing.err.startswith("error: no reel")) == (2, True)
