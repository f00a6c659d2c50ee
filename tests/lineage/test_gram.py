from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilm.errors import UsageError
from hilm.lineage import gram
from hilm.lineage.gram import Anchors, GramAccumulator
from hilm.lineage.signs import seed, signs, words
from hilm.lineage.sketch import energy, fixed

ALL = np.ones(64, np.bool_)


def published(tag, count):
    """The u-tensor that published vectors are made of."""
    return ((words(seed(tag), 0, count) >> np.uint64(40)) / 2.0**24 - 0.5).astype(np.float32)


def normal(rows, columns, stream=0):
    return np.random.default_rng(stream).standard_normal((rows, columns), dtype=np.float32)


def anchors(rows, present=ALL):
    return Anchors.from_rows("ids-64/1", rows, present)


def take(at, matrix, side="columns", step=None):
    accumulator = GramAccumulator(at, *matrix.shape, side)
    for row in range(0, len(matrix), step or len(matrix)):
        accumulator.update(matrix[row : row + (step or len(matrix))].ravel(), row * matrix.shape[1])
    return accumulator.finish()


def slow(rows, matrix, present=ALL):
    """The definition, in float64, over the present anchors only."""
    kept = np.flatnonzero(present)
    a = rows[kept].astype(np.float64)
    a -= a.mean(axis=0)
    a /= np.linalg.norm(a, axis=1, keepdims=True)
    j = np.eye(len(kept)) - 1 / len(kept)
    b = a @ matrix.astype(np.float64).T
    upper = np.triu_indices(len(kept), 1)
    r, own = (j @ b @ b.T @ j)[upper], (j @ a @ a.T @ j)[upper]
    r -= (r @ own) / (own @ own) * own
    full = np.zeros((64, 64))
    full[kept[upper[0]], kept[upper[1]]] = r / np.linalg.norm(r)
    return full[np.triu_indices(64, 1)]


def test_published_gram():
    at = anchors(published("test/A", 64 * 48).reshape(64, 48))
    found = take(at, published("test/W", 96 * 48).reshape(96, 48))
    np.testing.assert_allclose(found[:4], [-0.034720, 0.009043, -0.019628, 0.038421], atol=5e-7)
    form = gram.fold(fixed(found))
    assert form[:8].tolist() == [-65, -8, 33, -48, -59, -62, -8, -26]
    assert energy(form) == 1071823


def test_words_are_one_list_of_64():
    assert len(gram.WORDS) == len(set(gram.WORDS)) == 64
    assert (gram.WORDS[0], gram.WORDS[9], gram.WORDS[63]) == ("the", "house", "code")


@settings(max_examples=30, deadline=None)
@given(st.integers(16, 90), st.integers(16, 90), st.integers(0, 99), st.integers(1, 90))
def test_equals_the_slow_form_on_both_sides(rows, width, stream, step):
    rows_of_anchors, matrix = normal(64, width, 1000 + stream), normal(rows, width, stream)
    at = anchors(rows_of_anchors)
    expected = slow(rows_of_anchors, matrix)
    np.testing.assert_allclose(take(at, matrix, "columns", step), expected, atol=2e-5)
    turned = np.ascontiguousarray(matrix.T)
    np.testing.assert_allclose(take(at, turned, "rows", step), expected, atol=2e-5)


@pytest.mark.parametrize("side", ["columns", "rows"])
def test_same_blocks_same_bits(side):
    at, matrix = anchors(normal(64, 96, 1)), normal(96, 96, 2)
    np.testing.assert_array_equal(take(at, matrix, side, 32), take(at, matrix, side, 32))


def test_missing_anchors_are_left_out():
    rows, matrix = normal(64, 48, 1), normal(100, 48, 2)
    present = ALL.copy()
    present[[0, 5, 63]] = False
    at = anchors(rows, present)
    assert at.mask == 1 << 0 | 1 << 5 | 1 << 63
    np.testing.assert_allclose(take(at, matrix), slow(rows, matrix, present), atol=2e-5)
    rows[[0, 5, 63]] = np.nan
    np.testing.assert_array_equal(anchors(rows).directions, at.directions)


def test_anchors_are_centred_unit_rows():
    rows = normal(64, 48, 1) + np.float32(3)
    centred = rows - rows.astype(np.float64).mean(axis=0)
    at = anchors(rows)
    expected = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    np.testing.assert_allclose(at.directions, expected, atol=1e-6)
    assert (at.mask, at.width, at.number, at.directions.dtype) == (0, 48, 3, np.float32)


def test_survives_rotation_and_hidden_permutation():
    random = np.random.default_rng(3)
    rows, matrix = normal(64, 64, 1), normal(256, 64, 2)
    rotation = np.linalg.qr(random.standard_normal((64, 64)))[0].astype(np.float32)
    moved = (matrix @ rotation)[random.permutation(256)]
    base = take(anchors(rows), matrix)
    assert base @ take(anchors(rows @ rotation), moved) >= 0.9999
    assert base @ take(anchors(rows @ rotation), np.ascontiguousarray(moved.T), "rows") >= 0.9999
    assert abs(base @ take(anchors(rows), normal(256, 64, 4))) < 0.3


def test_orthogonal_and_identity_leave_no_gram():
    at = anchors(normal(64, 64, 1))
    rotation = np.linalg.qr(np.random.default_rng(2).standard_normal((64, 64)))[0].astype(np.float32)
    for side in ("columns", "rows"):
        assert take(at, np.eye(64, dtype=np.float32), side) is None
        assert take(at, rotation, side) is None
        assert take(at, np.zeros((64, 64), np.float32), side) is None


@pytest.mark.parametrize("side", ["columns", "rows"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_a_value_that_is_not_finite_leaves_no_gram(side, value):
    matrix = normal(64, 64, 2)
    matrix[3] = value
    assert take(anchors(normal(64, 64, 1)), matrix, side) is None


def test_wrong_widths_and_kinds_are_refused():
    at = anchors(normal(64, 48))
    with pytest.raises(UsageError, match="width 48"):
        GramAccumulator(at, 48, 64, "columns")
    with pytest.raises(UsageError, match="tokens"):
        Anchors.from_rows("tokens", normal(64, 48), ALL)


def test_fold_adds_signed_halves():
    total = np.random.default_rng(4).integers(-(2**32), 2**32, 2016)
    signed = np.concatenate([total, np.zeros(32, np.int64)]) * signs(seed("hilm.lineage/gramfold/1"), 2048)
    halves = signed[:1024] + signed[1024:]
    np.testing.assert_array_equal(gram.fold(total), np.rint(127 * halves / np.abs(halves).max()))
