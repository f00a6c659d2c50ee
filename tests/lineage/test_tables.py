from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from hilm.lineage import tables
from hilm.lineage.anatomy import dissect
from hilm.lineage.profile import ProfileAccumulator
from hilm.weights.checkpoint import open_checkpoint


@pytest.fixture
def stored(tmp_path):
    """A checkpoint of one tensor, open, and its matrices."""
    checkpoints = []

    def save(tensor):
        save_file({"embed_tokens.weight": np.ascontiguousarray(tensor)}, tmp_path / "m.safetensors")
        checkpoints.append(open_checkpoint(tmp_path / "m.safetensors"))
        return checkpoints[-1], dissect(checkpoints[-1]).matrices

    yield save
    for checkpoint in checkpoints:
        checkpoint.close()


def normal(*shape):
    return np.random.default_rng(40).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("transposed", [False, True])
def test_token_rows(stored, transposed):
    table, ids = normal(300, 24), [299, 0, 7, 7, 120]
    checkpoint, (matrix,) = stored(table.T if transposed else table)
    rows = tables.token_rows(checkpoint, matrix, ids)
    assert rows.dtype == np.float32
    assert rows.flags.c_contiguous
    assert np.array_equal(rows, table[ids])


@pytest.mark.parametrize("run", [1, 7 * 40, 1 << 22])
def test_runs_of_rows_are_the_matrix(stored, monkeypatch, run):
    monkeypatch.setattr(tables, "RUN_VALUES", run)
    stack = normal(3, 50, 40)
    checkpoint, matrices = stored(stack)
    for matrix, expected in zip(matrices, stack, strict=True):
        runs = list(tables.row_runs(checkpoint, matrix))
        assert [start for start, _ in runs] == list(range(0, 50, max(1, run // 40)))
        assert np.array_equal(np.concatenate([rows for _, rows in runs]), expected)


@pytest.mark.parametrize(("rows", "side"), [(64, 16), (65, 16), (64, 1000)])
def test_corner(stored, rows, side):
    matrix = normal(rows, 40)
    checkpoint, _ = stored(matrix)
    start = max(0, (rows - side) // 2)
    expected = matrix[start : start + side, :side].astype(np.float64)
    assert np.array_equal(tables.read_corner(checkpoint, "embed_tokens.weight", side), expected)


@pytest.mark.parametrize("rows", [20, 900])
def test_profile_equals_one_of_all_rows(stored, rows):
    stack = normal(2, rows, 40)
    checkpoint, matrices = stored(stack)
    for matrix, values in zip(matrices, stack, strict=True):
        accumulator = ProfileAccumulator(rows, 40)
        accumulator.update(values.ravel(), 0)
        profile = tables.read_profile(checkpoint, matrix)
        assert np.array_equal(profile.fields, accumulator.finish().fields, equal_nan=True)


def sinusoid(rows, columns):
    angles = np.arange(rows)[:, None] / 10000 ** (2 * np.arange(columns // 2) / columns)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


@pytest.mark.parametrize("columns", [16, 512, 4096])
def test_sines_and_cosines_are_a_fixed_table(columns):
    table = sinusoid(128, columns)
    assert tables.is_fixed_table(table)
    assert tables.is_fixed_table(table.reshape(128, 2, -1).transpose(0, 2, 1).reshape(128, -1))  # interleaved


def test_learned_tables_are_not_fixed():
    learned = normal(128, 64)
    learned *= np.sqrt(32) / np.linalg.norm(learned, axis=1, keepdims=True)
    assert abs(learned).max() > 1.001
    assert not tables.is_fixed_table(learned)
    assert not tables.is_fixed_table(0.9 * sinusoid(128, 64))


@pytest.mark.parametrize("value", [0.9, np.nan, np.inf])
def test_one_other_value_and_the_table_is_not_fixed(value):
    table = sinusoid(128, 64)
    table[90, 3] = value
    assert not tables.is_fixed_table(table)


@given(first=st.integers(0, 10**6), length=st.integers(1, 10**6), count=st.integers(2, 500))
def test_even_picks(first, length, count):
    last = first + length - 1
    picks = tables.evenly(first, last, count)
    assert len(picks) == min(count, length)
    assert (picks[0], picks[-1]) == (first, last)
    steps = np.diff(picks)
    assert len(steps) == 0 or 1 <= steps.min() <= steps.max() <= steps.min() + 1


@given(items=st.lists(st.integers(), max_size=40), count=st.integers(1, 50))
def test_spread(items, count):
    chosen = tables.spread(items, count)
    assert len(chosen) == min(count, len(items))
    assert chosen == items if count >= len(items) else chosen[0] == items[0]
