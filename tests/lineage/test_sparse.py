from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from hilm.lineage.merges import sentence_of
from hilm.lineage.sparse import TENSORS, VALUES, find_sparse_merge, read_values, sampled_names
from hilm.weights import open_checkpoint
from tests.lineage.kinship import ties
from tests.tiny import bert_like, write_model

COUNT = 32_768
RNG = np.random.default_rng(3)
BASE = (0.05 * RNG.standard_normal(COUNT)).astype(np.float32)
SHARED = RNG.standard_t(4, COUNT)
TASKS = [(0.003 * (0.4 * SHARED + 0.9 * RNG.standard_t(4, COUNT))).astype(np.float32) for _ in range(5)]
FAMILY = np.stack([BASE, *(BASE + t for t in TASKS)]).astype(np.float32)


def ties_of(*parents, density=0.3, factor=1.0):
    """Of children of the base, by their numbers in the family."""
    merged = ties({"": BASE}, *({"": TASKS[k - 1]} for k in parents), density=density)[""]
    return (BASE + np.float32(factor) * (merged - BASE)).astype(np.float32)


def dare_of(*parents, drop, weights):
    kept = np.random.default_rng(8).random((len(parents), COUNT)) >= drop
    changes = (w * TASKS[k - 1] * m / (1 - drop) for k, w, m in zip(parents, weights, kept, strict=True))
    return (BASE + sum(changes)).astype(np.float32)


@pytest.mark.parametrize("parents", [(1, 4), (2, 3, 5)])
@pytest.mark.parametrize(("density", "factor"), [(0.2, 1.0), (0.3, 0.6), (1.0, 1.0)])
def test_parents_base_and_factor_of_ties(parents, density, factor):
    found = find_sparse_merge(ties_of(*parents, density=density, factor=factor), FAMILY)
    assert (found.kind, found.base, sorted(found.parents), found.weights) == ("ties", 0, [*parents], None)
    assert found.factors == pytest.approx([factor] * len(parents), abs=1e-3)
    assert found.residual < 0.01


@pytest.mark.parametrize(("drop", "weights"), [(0.5, (0.6, 0.4)), (0.8, (0.5, 0.5)), (0.7, (0.3, 0.4, 0.3))])
def test_weights_of_dare(drop, weights):
    parents = range(1, 1 + len(weights))
    found = find_sparse_merge(dare_of(*parents, drop=drop, weights=weights), FAMILY)
    assert (found.kind, found.base, sorted(found.parents)) == ("dare", 0, [*parents])
    stated = dict(zip(found.parents, found.weights, strict=True))
    assert [stated[k] for k in parents] == pytest.approx(weights, abs=0.03)
    factors = dict(zip(found.parents, found.factors, strict=True))
    assert [factors[k] for k in parents] == pytest.approx([w / (1 - drop) for w in weights], abs=1e-3)


def test_merges_in_half_precision():
    half = FAMILY.astype(ml_dtypes.bfloat16).astype(np.float32)
    merged = ties({"": half[0]}, *({"": m - half[0]} for m in half[1:3]))[""]
    found = find_sparse_merge(merged.astype(ml_dtypes.bfloat16).astype(np.float32), half)
    assert (found.kind, found.base, sorted(found.parents)) == ("ties", 0, [1, 2])


def test_neither_children_nor_parents_of_merges_are_merges():
    merges = [ties_of(1, 2), ties_of(1, 2, density=0.5), dare_of(1, 2, drop=0.8, weights=(0.5, 0.5))]
    everything = np.stack([*FAMILY, *merges])
    for number in range(len(FAMILY)):
        assert find_sparse_merge(everything[number], np.delete(everything, number, axis=0)) is None
    for number in range(len(FAMILY), len(everything)):
        found = find_sparse_merge(everything[number], np.delete(everything, number, axis=0))
        assert (found.base, sorted(found.parents)) == (0, [1, 2])


def test_without_base_or_with_too_few_values_nothing_is_claimed():
    child = ties_of(1, 2)
    assert find_sparse_merge(child, FAMILY[1:]) is None
    assert find_sparse_merge(child[:50], FAMILY[:, :50]) is None
    assert find_sparse_merge(child, FAMILY[:1]) is None
    assert find_sparse_merge(BASE, np.stack([BASE, *FAMILY])) is None


def test_a_few_values_of_tensors_spread_over_the_model(tmp_path):
    tensors = bert_like(1)
    next(values for name, values in tensors.items() if ".layer.0." in name and values.ndim > 1)[:] = np.inf
    with open_checkpoint(write_model(tmp_path / "model", tensors)) as checkpoint:
        names = sampled_names(checkpoint)
        values = read_values(checkpoint, names)
    assert 8 < len(names) <= TENSORS
    assert len(values) <= TENSORS * VALUES
    assert np.isfinite(values).all()


def test_in_words():
    found = find_sparse_merge(ties_of(1, 2), FAMILY)
    assert (
        sentence_of(found, "m", ["a", "b"], "o") == "m is a TIES merge of a and b: of what they changed of o"
    )
