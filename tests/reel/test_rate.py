from __future__ import annotations

import math

import numpy as np
import pytest

from hilm.errors import EmptySelection, UsageError
from hilm.reel.decoder import Reel
from hilm.reel.encoder import encode_small
from hilm.reel.rate import LIKE, Rounding, find_quantizer
from hilm.weights.checkpoint import open_checkpoint
from tests.tiny import bert_like, stored, write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("rate") / "model", bert_like(width=128, vocabulary=3000))


def settle(model, **wishes):
    """The step found, and what rounding everything with it costs and loses."""
    with open_checkpoint(model) as checkpoint:
        rounding = Rounding(**wishes)
        step = find_quantizer(checkpoint, rounding, 1).step
        out = model.parent / "x.reel.mp4"
        report = encode_small(checkpoint, out, rounding, preview=False, threads=1)
    with Reel.open(out) as reel:
        rounded = [t for t in reel.tensors.values() if "error" in t]
        assert reel.file.manifest["settings"]["st"] == step
    return step, sum(t["bits"] for t in rounded) / sum(math.prod(t["shape"]) for t in rounded), report.nmse


@pytest.mark.parametrize("bits", [2, 3.5, 7])
def test_bits_asked_for_are_about_those_spent(model, bits):
    step, spent, _ = settle(model, bits=bits)
    assert abs(spent - bits) < 0.04  # one step of the grid is 0.016
    assert math.log2(step) * 64 == pytest.approx(round(math.log2(step) * 64))


@pytest.mark.parametrize(
    "wish", [{"error": 0.001}, {"like": "q8_0"}, {"like": "int4", "quantiser": "ecsq"}, {}]
)
def test_the_error_asked_for_is_about_that_made(model, wish):
    aim = wish.get("error") or LIKE[wish.get("like", "q4_k")]
    assert settle(model, **wish)[2] == pytest.approx(aim, rel=0.03)


@pytest.mark.parametrize(
    "wish",
    [
        {"bits": 1.49}, {"bits": 8.1}, {"bits": math.nan}, {"error": 0.2}, {"error": 0}, {"error": -1},
        {"bits": 3, "error": 0.01}, {"bits": 3, "like": "nf4"}, {"like": "q3_k"},
        {"quantiser": "vq"}, {"effort": 3},
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_refused(wish):
    with pytest.raises(UsageError):
        Rounding(**wish)


def test_matrices_of_floats_are_rounded_unless_kept(tmp_path):
    rng = np.random.default_rng(0)
    shapes = {
        "a.weight": (32, 40),
        "b.weight": (31, 400),
        "c.weight": (400, 31),
        "d.bias": (4000,),
        "e.conv": (32, 4, 3, 3),
    }
    tensors = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    tensors |= {"f.int": rng.integers(0, 9, (50, 50)), "g.half": stored(tensors["a.weight"], "BF16")}
    tensors["h.byte"] = "F8_E4M3", (64, 64), bytes(4096)
    with open_checkpoint(write_model(tmp_path / "m", tensors)) as checkpoint:
        names = {name for name, info in checkpoint.tensors.items() if Rounding().applies(info)}
        assert names == {"a.weight", "e.conv", "g.half"}
        kept = Rounding(keep=("*.weight", "g*"))
        assert {name for name, info in checkpoint.tensors.items() if kept.applies(info)} == {"e.conv"}
        with pytest.raises(EmptySelection, match="no matrix"):
            find_quantizer(checkpoint, Rounding(keep=("*",)), 1)
