"""Reels of an earlier release decode to what they did then, by the package and by the reference decoder."""

from __future__ import annotations

import hashlib
import json

import pytest

from hilm.reel.carrier import CARRIERS
from hilm.reel.decoder import Reel
from hilm.reel.head import Coder
from hilm.reel.records import Kind
from hilm.reel.verification import verify_reel
from tests.reel.make_golden import GOLDEN, reference

EXPECTED = json.loads((GOLDEN / "expected.json").read_text())
"""Reel → tensor → SHA-256 of its stored bytes."""


def decoded(name):
    """Every tensor, by the package."""
    path = GOLDEN / f"{name}.reel.mp4"
    with Reel.open(path) as reel, Reel.open(GOLDEN / "archive.reel.mp4") as base:
        if reel.mode == "delta":
            reel.stand_on(base)
        assert verify_reel(reel).ok
        if reel.samples:
            return {"sample": reel.sample_values(reel.samples[0]).tobytes()}
        return {tensor: reel.words(tensor).tobytes() for tensor in reel.tensors}


@pytest.mark.parametrize("read", [reference, decoded])
@pytest.mark.parametrize("name", EXPECTED)
def test_golden_reels_decode_to_the_same_bits_for_ever(name, read):
    assert {key: hashlib.sha256(raw).hexdigest() for key, raw in read(name).items()} == EXPECTED[name]


def test_every_coder_and_carrier_has_a_golden_reel():
    coders, carriers = set(), set()
    for name in EXPECTED:
        with Reel.open(GOLDEN / f"{name}.reel.mp4") as reel:
            carriers.add(reel.file.manifest["carrier"])
            index = reel.file.index
            if "tcq" in name and reel.file.carrier:
                assert "layout_gain" in reel.tensors["w"]
            heads = [n for n, kind in enumerate(index["kind"].tolist()) if kind == Kind.HEAD]
            coders |= {reel.file.record(n)[0] for n in heads}
    assert coders == set(Coder)
    assert carriers == {"packed", *CARRIERS}
