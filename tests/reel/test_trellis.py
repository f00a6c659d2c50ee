from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilm.reel import trellis
from hilm.reel.manifest import CODING
from tests.reel.reference_decoder import NEXT

HALF = 14
VALUES = {  # index: value of quantiser 0 and of quantiser 1, in steps
    -3: (-6, -5), -2: (-4, -3), -1: (-2, -1), 0: (0, 0), 1: (2, 1), 2: (4, 3), 3: (6, 5)
}  # fmt: skip


def value(k, q):
    return 2 * k - q * (k > 0) + q * (k < 0)


def cost(path, values, classes, rates):
    """Cost of a sequence of indices, step by step."""
    state, total = 0, 0.0
    for k, v, c in zip(path, values, classes, strict=True):
        q = state % 2
        total += (v - value(k, q)) ** 2 + rates[2 * c + q, k + HALF]
        state = NEXT[state][k % 2]
    return total


def find(values, classes, rates):
    indices = np.empty(len(values), np.int32)
    total = trellis.search(np.array(values, np.float64), np.array(classes, np.uint8), rates, indices)
    return total, indices


def test_the_tables_are_those_of_the_format():
    assert [list(pair) for pair in trellis.NEXT] == NEXT == CODING["next"]
    assert {k: (value(k, 0), value(k, 1)) for k in VALUES} == VALUES
    union = {v for pair in VALUES.values() for v in pair}
    assert union == set(range(-6, 7))


@given(
    st.lists(st.floats(-3, 3), min_size=1, max_size=5), st.integers(0, 1 << 30), st.sampled_from([0, 0.33, 3])
)
@settings(max_examples=60, deadline=None)
def test_no_other_sequence_is_cheaper(values, seed, weight):
    """Every sequence whose indices lie within two of the candidates is tried."""
    rng = np.random.default_rng(seed)
    flat = np.sort(rng.exponential(2, (4, HALF + 1)))  # rates grow with the magnitude, as learnt ones do
    rates = weight * np.concatenate([flat[:, :0:-1], flat], axis=1)
    classes = rng.integers(0, 2, len(values)).tolist()
    total, indices = find(values, classes, rates)
    assert total == pytest.approx(cost(indices.tolist(), values, classes, rates), abs=1e-9)
    best = min(
        cost(path, values, classes, rates) for path in itertools.product(range(-3, 4), repeat=len(values))
    )
    assert total <= best + 1e-9


def test_a_path_of_another_parity_does_not_pass_for_a_cheaper_one():
    """Without rates every integer within reach is hit; alone, each quantiser misses half of them."""
    rates = np.zeros((2, 2 * HALF + 1))
    rng = np.random.default_rng(0)
    values = rng.normal(0, 3, 2000).clip(-20, 20)
    total, indices = find(values, np.zeros(2000), rates)
    assert total / 2000 < np.mean((values - 2 * np.rint(values / 2)) ** 2) * 0.7
    assert total == pytest.approx(cost(indices.tolist(), values, [0] * 2000, rates))


def test_ids_name_class_and_quantiser():
    rng = np.random.default_rng(1)
    indices = rng.integers(-5, 6, 500).astype(np.int32)
    classes = rng.integers(0, 8, 500).astype(np.uint8)
    ids, state = np.empty(500, np.uint8), 0
    trellis.walk(indices, classes, ids)
    for k, c, found in zip(indices.tolist(), classes.tolist(), ids.tolist(), strict=True):
        assert found == 2 * c + state % 2
        state = NEXT[state][k % 2]
