from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from hilm.errors import InputError
from hilm.lineage.anatomy import dissect
from hilm.lineage.assignment import align, assign
from hilm.weights.checkpoint import open_checkpoint


def best_by_trying_everything(scores):
    if scores.shape[0] > scores.shape[1]:
        scores = scores.T
    rows = range(scores.shape[0])
    return max(scores[rows, list(chosen)].sum() for chosen in permutations(range(scores.shape[1]), len(rows)))


@settings(deadline=None)  # the first call compiles
@given(rows=st.integers(1, 7), columns=st.integers(1, 7), seed=st.integers(0, 10**6), ties=st.booleans())
def test_equals_trying_everything(rows, columns, seed, ties):
    scores = np.random.default_rng(seed).normal(size=(rows, columns))
    if ties:
        scores = np.round(scores)
    chosen_rows, chosen_columns = assign(scores)
    assert len(set(chosen_rows)) == len(set(chosen_columns)) == min(rows, columns)
    assert (np.diff(chosen_rows) > 0).all()
    assert scores[chosen_rows, chosen_columns].sum() == pytest.approx(best_by_trying_everything(scores))


@pytest.mark.parametrize("shape", [(1, 300), (120, 120), (90, 200), (200, 90)])
def test_equals_scipy_when_large(shape):
    optimize = pytest.importorskip("scipy.optimize")
    scores = np.random.default_rng(7).normal(size=shape)
    rows, columns = assign(scores)
    expected = scores[optimize.linear_sum_assignment(scores, maximize=True)].sum()
    assert scores[rows, columns].sum() == pytest.approx(expected, rel=1e-12)


def test_empty_and_malformed():
    rows, columns = assign(np.empty((0, 5)))
    assert len(rows) == len(columns) == 0
    with pytest.raises(InputError):
        assign(np.zeros(3))
    with pytest.raises(InputError):
        assign(np.array([[np.nan]]))


@pytest.fixture
def pairs(tmp_path):
    """Names of the tensors that two checkpoints have in common, as align sees them."""

    def found(a, b):
        save_file(a, tmp_path / "a.safetensors")
        save_file(b, tmp_path / "b.safetensors")
        with (
            open_checkpoint(tmp_path / "a.safetensors") as x,
            open_checkpoint(tmp_path / "b.safetensors") as y,
        ):
            return {(p.a.name, p.b.name) for p in align(x, y, dissect(x), dissect(y))}

    return found


def tensors(seed, count=5, shape=(32, 48)):
    rng = np.random.default_rng(seed)
    return {f"t{i}": rng.normal(size=shape).astype(np.float32) for i in range(count)}


def test_values_decide_where_names_moved(pairs):
    base = tensors(0)
    moved = {f"t{(i + 2) % 5}": w + np.float32(0.1) for i, w in enumerate(base.values())}
    assert pairs(base, moved) == {(f"t{i}", f"t{(i + 2) % 5}") for i in range(5)}


def test_names_decide_where_values_say_nothing(pairs):
    assert pairs(tensors(0), tensors(1)) == {(f"t{i}", f"t{i}") for i in range(5)}
    assert pairs(tensors(0), {f"u{i}": w for i, w in enumerate(tensors(1).values())}) == set()


def test_gains_near_one_follow_their_names_unless_copied(pairs):
    rng = np.random.default_rng(2)
    gains = {f"t{i}": rng.normal(1, 0.02, 64).astype(np.float32) for i in range(4)}
    others = {n: rng.normal(1, 0.02, 64).astype(np.float32) for n in gains}
    assert pairs(gains, others) == {(n, n) for n in gains}
    shifted = {"t0": gains["t1"], "t1": gains["t2"]}
    assert pairs(gains, shifted) == {("t1", "t0"), ("t2", "t1")}


@pytest.mark.parametrize("seed", range(5))
def test_gains_all_but_equal_are_told_apart(pairs, seed):
    rng = np.random.default_rng(seed)
    gains = {f"t{i}": rng.normal(1, 1e-4, 64).astype(np.float32) for i in range(6)}
    order = rng.permutation(6)
    moved = {f"u{n}": gains[f"t{i}"] for n, i in enumerate(order)}
    assert pairs(gains, moved) == {(f"t{i}", f"u{n}") for n, i in enumerate(order)}


def test_copies_share_a_partner_and_tables_their_rows(pairs):
    base = tensors(0, 2)
    assert pairs(base, base | {"again": base["t1"]}) == {("t0", "t0"), ("t1", "t1"), ("t1", "again")}
    assert pairs(base, {"t0": base["t0"][:20], "t1": base["t1"][:, :20].copy()}) == {("t0", "t0")}
