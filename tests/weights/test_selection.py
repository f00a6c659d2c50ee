from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilm.errors import UsageError
from hilm.weights import open_checkpoint
from hilm.weights.roles import classify
from hilm.weights.selection import BATCH, RUN, Selection
from hilm.weights.streamer import as_runs
from hilm.weights.tensor import BLOCK_VALUES, Span, TensorInfo
from tests.tiny import stored, write_model


def tensors(sizes):
    return tuple(
        TensorInfo(f"t{i}", "F32", (n,), Span(0, 0, 4 * n), classify("t")) for i, n in enumerate(sizes)
    )


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=20), st.integers(1, 30_000))
def test_exactly_n_values_spread_over_all_tensors(sizes, limit):
    selection = Selection.spread(tensors(sizes), limit)
    assert selection.total == min(limit, sum(sizes))
    filled = sum(n > 0 for n in sizes)
    assert sum(c > 0 for c in selection.counts) == min(filled, selection.total)
    for index, size in enumerate(sizes):
        assert 0 <= selection.counts[index] <= size
        positions = selection.positions(index)
        if positions is None:
            assert selection.counts[index] == size
            continue
        assert len(positions) == selection.counts[index]
        assert (np.diff(positions) > 0).all()
        if len(positions):
            assert positions[0] >= 0
            assert positions[-1] < size


def test_runs_are_even_and_at_most_sixty_four_long():
    selection = Selection.spread(tensors([1_000_000]), 10_000)
    runs = as_runs(selection.positions(0))
    lengths = [b - a for a, b in runs]
    gaps = [b[0] - a[0] for a, b in pairwise(runs)]
    assert max(lengths) <= RUN
    assert max(gaps) - min(gaps) <= RUN


def test_shares_follow_sizes():
    counts = Selection.spread(tensors([10, 1000, 100_000]), 10_101).counts
    assert counts[0] < counts[1] < counts[2]
    assert counts[2] / counts[1] == pytest.approx(100, rel=0.1)


def test_no_sample_of_nothing():
    with pytest.raises(UsageError):
        Selection.spread(tensors([5]), 0)


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_sampled_values_are_those_at_their_positions(tmp_path, dtype):
    drawn = np.random.default_rng(3).standard_normal((70, 90)).astype(np.float32)
    half = stored(drawn.astype(np.float16)) if dtype == "F16" else stored(drawn, dtype)
    folder = write_model(tmp_path, {"a": half, "b": half, "empty": stored(np.empty(0, np.float32))})
    with open_checkpoint(folder) as checkpoint:
        selection = Selection.of(checkpoint, 1000)
        truth = checkpoint.values("a")
        for piece in selection.read(checkpoint):
            np.testing.assert_array_equal(piece.values, truth[piece.positions])
        assert len(selection.values(checkpoint)) == 1000
        everything = Selection.of(checkpoint)
        np.testing.assert_array_equal(everything.values(checkpoint), np.concatenate([truth, truth]))


@pytest.mark.parametrize("limit", [1, 999_999, 1_000_064])
def test_a_sample_of_any_size_comes_in_bounded_pieces(tmp_path, limit):
    """Nearly all of a tensor must not be read as one; tensors selected whole follow from their start."""
    values = np.random.default_rng(4).standard_normal(1_000_000).astype(np.float32)
    with open_checkpoint(write_model(tmp_path, {"w": values, "one": values[:65]})) as checkpoint:
        selection = Selection.of(checkpoint, limit)
        found = {"w": [], "one": []}
        for piece in selection.read(checkpoint):
            assert len(piece.values) <= BATCH
            assert piece.start == sum(map(len, found[piece.info.name]))
            found[piece.info.name].append(piece.values)
            assert piece.last == (sum(map(len, found[piece.info.name])) == piece_count(selection, piece))
        for index, info in enumerate(selection.tensors):
            positions = selection.positions(index)
            expected = checkpoint.values(info.name)[slice(None) if positions is None else positions]
            np.testing.assert_array_equal(np.concatenate([values[:0], *found[info.name]]), expected)
        assert all(stop - start <= BLOCK_VALUES for i in range(2) for _, start, stop in selection._runs(i))


def piece_count(selection, piece):
    return selection.counts[selection.tensors.index(piece.info)]
