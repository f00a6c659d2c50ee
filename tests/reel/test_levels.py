from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hilm.reel.levels import lean, level, reconstruct

BIAS = np.array([[-128, 5, 127], [3, -7, 0]], np.int8)


def test_levels_from_a_written_table():
    found = {(m, q): level(np.int64(m), 2, np.int64(q), BIAS) for m in range(5) for q in (0, 1)}
    assert found == {
        (0, 0): 0, (1, 0): 512 - 128, (2, 0): 1024 + 5, (3, 0): 1536 + 127, (4, 0): 2048 + 127,
        (0, 1): 0, (1, 1): 256 + 3, (2, 1): 768 - 7, (3, 1): 1280, (4, 1): 1792,
    }  # fmt: skip
    assert [level(np.int64(m), 1, np.int64(0), BIAS) for m in range(4)] == [0, 128, 517, 895]


@given(st.lists(st.integers(-(1 << 31) + 1, (1 << 31) - 1), min_size=1, max_size=20), st.floats(1e-12, 1e12))
def test_values_are_one_product_rounded_twice(indices, step):
    ids = np.arange(len(indices)).astype(np.uint8)
    out = np.empty(len(indices), np.float32)
    reconstruct(np.array(indices), ids, 2, BIAS, step, out)
    for k, q, found in zip(indices, ids.tolist(), out, strict=True):
        part = (1 if k > 0 else -1) * int(level(np.int64(abs(k)), 2, np.int64(q & 1), BIAS))
        product = float(part * Fraction(step))  # correctly rounded
        assert found == np.float32(product)


def test_lean_is_measured_away_from_zero():
    values = np.array([2.5, -2.5, 0.9, 7.0, -8.5, 0.3])
    indices = np.array([1, -1, 1, 4, -4, 0], np.int32)
    sums = lean(values, indices, np.array([0, 0, 1, 0, 0, 1], np.uint8), 2)
    np.testing.assert_allclose(sums[0], [[1.0, 2], [0, 0], [-0.5, 2]], atol=1e-12)
    np.testing.assert_allclose(sums[1], [[-0.1, 1], [0, 0], [0, 0]], atol=1e-12)
    np.testing.assert_allclose(lean(values, indices, np.zeros(6, np.uint8), 1)[0, 0], [2.9, 3], atol=1e-12)
