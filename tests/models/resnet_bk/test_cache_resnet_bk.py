from __future__ import annotations

import pytest
import torch

from hilm.models.resnet_bk import ResNetBKCache
from tests.models.resnet_bk.tiny import logits, model, tokens


def after(made, ids, cache=None):
    """The state after some tokens."""
    cache = ResNetBKCache(made.config) if cache is None else cache
    logits(made, ids, past_key_values=cache)
    return cache


def same(one, other):
    return all(
        torch.equal(a, b)
        for left, right in zip(one.layers, other.layers, strict=True)
        for a, b in zip(left.state, right.state, strict=True)
    )


def test_the_size_does_not_depend_on_the_length():
    made = model()
    sizes = {after(made, tokens(1, length)).state_bytes for length in (1, 40, 700)}
    assert sizes == {2 * (4 * 16 + 16 * 8)}  # pairs: 2 layers of 4 float64 channels and 16 float32 values


def test_an_unused_cache_is_empty():
    cache = ResNetBKCache(model().config)
    assert (cache.state_bytes, cache.get_seq_length(), cache.get_max_length()) == (0, 0, -1)
    assert cache.get_mask_sizes(3, 0) == (3, 0)
    cache.reorder_cache(torch.tensor([0]))
    cache.crop(0)


def test_cropping_takes_tokens_back_over_several_calls():
    made, ids = model(use_birman_schwinger=True), tokens(2, 30)
    cache = after(made, ids[:, :10])
    cache.activate_past_recording()
    after(made, ids[:, 10:15], cache)
    after(made, ids[:, 15:30], cache)
    cache.crop(-18)
    assert cache.get_seq_length() == 12
    expected = after(made, ids[:, :12], None)
    for layer, other in zip(cache.layers, expected.layers, strict=True):
        for a, b in zip(layer.state, other.state, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert cache.get_mask_sizes(1, 0) == (13, 0)


def test_a_fresh_cache_crops_back_to_nothing():
    made = model()
    cache = ResNetBKCache(made.config)
    cache.activate_past_recording()
    after(made, tokens(1, 5), cache).crop(-5)
    assert cache.get_seq_length() == 0
    assert all((values == 0).all() for layer in cache.layers for values in layer.state)


def test_what_was_not_recorded_cannot_be_taken_back():
    made = model()
    cache = after(made, tokens(1, 300))
    with pytest.raises(RuntimeError, match="0 are recorded"):
        cache.crop(-1)
    cache.activate_past_recording()
    after(made, tokens(1, 300), cache)
    with pytest.raises(RuntimeError, match="256 are recorded"):
        cache.crop(-257)
    with pytest.raises(ValueError, match="negative"):
        cache.crop(3)


def test_rows_are_chosen_and_repeated():
    made, ids = model(), tokens(3, 9)
    cache = after(made, ids)
    cache.reorder_cache(torch.tensor([2, 2, 0]))
    torch.testing.assert_close(cache.layers[0].state[0], after(made, ids[[2, 2, 0]]).layers[0].state[0])
    cache.batch_select_indices(torch.tensor([0]))
    cache.batch_repeat_interleave(2)
    torch.testing.assert_close(cache.layers[1].state[1], after(made, ids[[2, 2]]).layers[1].state[1])


def test_reset_and_offload():
    made, ids = model(), tokens(1, 9)
    cache = after(made, tokens(1, 20, seed=5))
    cache.reset()
    assert same(after(made, ids, cache), after(made, ids))
    for layer in cache.layers:
        layer.offload()
        layer.prefetch()
    assert same(cache, after(made, ids))
