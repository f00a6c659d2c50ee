from __future__ import annotations

import numpy as np

from hilm.reel.decoder import Reel
from hilm.reel.delta_base import CheckpointBase
from hilm.reel.pictures import drawables
from hilm.weights import open_checkpoint
from tests.reel.archives import encode, every_dtype
from tests.tiny import stored, write_model


def same(a, b):
    facts = [(d.name, d.dtype, d.shape, d.sampled) for d in (a, b)]
    return facts[0] == facts[1] and np.array_equal(a.values, b.values, equal_nan=True)


def test_a_checkpoint_and_its_reel_give_the_same_pictures(tmp_path):
    large = np.random.default_rng(0).standard_normal((600, 700)).astype(np.float32)
    model = write_model(tmp_path / "m", every_dtype() | {"large": stored(large)})
    encode(model, tmp_path / "x.mp4")
    with open_checkpoint(model) as checkpoint, Reel.open(tmp_path / "x.mp4") as reel:
        drawn, again = list(drawables(checkpoint)), {d.name: d for d in drawables(reel)}
        (one,) = drawables(checkpoint, frozenset({"large"}))
    assert {d.name for d in drawn} == set(again)
    assert all(same(d, again[d.name]) for d in drawn)
    assert {d.name for d in drawn if d.sampled} == {
        n for n, t in checkpoint.stored.items() if t.numel > 512**2
    }
    assert one.sampled
    assert same(one, again["large"])
    assert np.isin(one.values, large).all()


def test_of_a_tensor_that_the_base_has_the_difference_is_drawn(tmp_path):
    rng = np.random.default_rng(0)
    old, new = (rng.standard_normal((20, 30)).astype(np.float32) for _ in range(2))
    base = write_model(tmp_path / "base", {"w": stored(old)})
    model = write_model(tmp_path / "m", {"w": stored(new), "v": stored(new)})
    with open_checkpoint(model) as checkpoint, open_checkpoint(base) as opened:
        drawn = {d.name: d for d in drawables(checkpoint, base=CheckpointBase(opened))}
    assert np.array_equal(drawn["w"].values.reshape(new.shape), new - old)
    assert np.array_equal(drawn["v"].values.reshape(new.shape), new)
    assert (drawn["w"].dtype, drawn["v"].dtype) == ("F32 minus base", "F32")
