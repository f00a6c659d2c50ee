from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilm.lineage import sketch
from hilm.lineage.signs import seed, signs, words
from hilm.lineage.sketch import SketchAccumulator


def published(tag, count):
    """The u-tensor that published vectors are made of."""
    return ((words(seed(tag), 0, count) >> np.uint64(40)) / 2.0**24 - 0.5).astype(np.float32)


def slow_sums(matrix, key):
    """Signed run sums, straight from the definition."""
    size = matrix.size
    centred = matrix.astype(np.float64) - matrix.astype(np.float64).mean(axis=0)
    signed = centred.ravel() * signs(seed("hilm.lineage/sketch/1|" + key), size)
    runs = np.zeros(1024)
    for i, value in enumerate(signed.tolist()):
        runs[1024 * i // size] += value
    return runs


def take(matrix, *, key=None, cuts=()):
    accumulator = SketchAccumulator(*matrix.shape, key or sketch.matrix_key(*matrix.shape))
    flat = matrix.ravel()
    bounds = [0, *sorted(cuts), flat.size]
    for start, stop in itertools.pairwise(bounds):
        accumulator.update(flat[start:stop], start)
    return accumulator.finish()


def normal(rows, columns, stream=0):
    return np.random.default_rng(stream).standard_normal((rows, columns), dtype=np.float32)


@pytest.mark.parametrize(
    ("shape", "head", "energy", "code"),
    [
        (
            (64, 64),
            [27, -35, -51, 46, 61, -33, -28, -33],
            1749994,
            "76816318457cf8c8ccfd645b87f215c49a6c91b6250427d6890a0b35828ad978",
        ),
        (
            (300, 257),
            [11, -49, 42, 25, -15, -11, -21, -29],
            1545277,
            "4e9aa62d5c3aadda20cd093659059fa412719499ed67cfd78a144b3af69f2f89",
        ),
    ],
)
def test_published_sketches(shape, head, energy, code):
    found = take(published("test/W", shape[0] * shape[1]).reshape(shape))
    form = sketch.quantise(sketch.fixed(found.vector))
    assert form[:8].tolist() == head
    assert sketch.energy(form) == energy
    assert sketch.code(form).astype("<u8").tobytes().hex() == code


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 700), st.integers(0, 99))
def test_equals_the_slow_form(rows, columns, stream):
    matrix = normal(rows, columns, stream) + np.float32(0.3)
    expected = slow_sums(matrix, "any")
    found = take(matrix, key="any")
    if rows == 1:
        assert found is None  # nothing is left of one row without its mean
        return
    norm = math.sqrt(expected @ expected)
    np.testing.assert_allclose(found.vector, expected / norm, rtol=0, atol=1e-12)
    assert found.norm == pytest.approx(norm, rel=1e-12)
    assert found.weight_norm == pytest.approx(np.linalg.norm(matrix.astype(np.float64)), rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_cut_gives_the_same_bits(data):
    rows, columns = data.draw(st.integers(2, 60)), data.draw(st.integers(1, 3000))
    matrix = normal(rows, columns)
    cuts = data.draw(st.lists(st.integers(0, matrix.size), max_size=8))
    np.testing.assert_array_equal(take(matrix).vector, take(matrix, cuts=cuts).vector)


def test_one_value_at_a_time():
    matrix = normal(23, 65)
    np.testing.assert_array_equal(take(matrix).vector, take(matrix, cuts=range(matrix.size)).vector)


def test_is_linear_before_normalisation():
    w, low_rank = normal(96, 130), (normal(96, 4, 1) @ normal(4, 130, 2)).astype(np.float32)
    sums = take((w.astype(np.float64) + 0.25 * low_rank).astype(np.float32))
    a, b = take(w), take(low_rank)
    combined = a.norm * a.vector + 0.25 * b.norm * b.vector
    np.testing.assert_allclose(sums.norm * sums.vector, combined, atol=1e-5)  # float32 storage of the sum
    exact = np.round(w * 64) / 64, np.round(low_rank * 64) / 64  # these add without rounding
    a, b, both = take(exact[0]), take(exact[1]), take(exact[0] + np.float32(0.25) * exact[1])
    np.testing.assert_allclose(
        both.norm * both.vector, a.norm * a.vector + 0.25 * b.norm * b.vector, atol=1e-9
    )


def test_scale_does_not_matter():
    matrix = normal(64, 80)
    assert take(matrix).vector @ take(matrix * np.float32(37.7)).vector >= 1 - 1e-9


@pytest.mark.parametrize("value", [0.0, 0.37, 1e-30])
def test_constant_columns_leave_no_sketch(value):
    assert take(np.tile(np.float32(value) * np.arange(70, dtype=np.float32), (50, 1))) is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_leaves_no_sketch(value):
    matrix = normal(40, 40)
    matrix[3, 5] = value
    assert take(matrix) is None


def test_independent_matrices_are_uncorrelated():
    totals = []
    for stream in range(60):
        vectors = [take(normal(48, 64, 1000 * stream + i)).vector for i in range(4)]
        totals.append(sketch.quantise(sum(sketch.fixed(v) for v in vectors)))
    z = [sketch.z1(sketch.cosine(a, b)) for i, a in enumerate(totals) for b in totals[:i]]
    assert abs(np.mean(z)) < 0.1
    assert 0.95 < np.std(z) < 1.05


def test_shared_column_means_are_no_relation():
    offset = 5 * normal(1, 64, 9)
    a, b = take(normal(48, 64, 1) + offset), take(normal(48, 64, 2) + offset)
    assert abs(sketch.z1(a.vector @ b.vector)) < 5


def test_fixed_sums_do_not_depend_on_order():
    vectors = [take(normal(20, 60, i)).vector for i in range(7)]
    forward = sum(sketch.fixed(v) for v in vectors)
    assert np.array_equal(forward, sum(sketch.fixed(v) for v in reversed(vectors)))


def test_levels_nest():
    total = sketch.fixed(take(normal(64, 64)).vector)
    assert np.array_equal(sketch.level(total, 5), total)
    assert np.array_equal(sketch.level(total, 4), total.reshape(256, 4).sum(axis=1))
    assert np.array_equal(sketch.level(total, 3), sketch.level(total, 4).reshape(64, 4).sum(axis=1))


@pytest.mark.parametrize("bits", [256, 1024])
def test_code_is_the_sign_of_a_hadamard_transform(bits):
    form = np.random.default_rng(5).integers(-127, 128, 1024).astype(np.int8)
    hadamard = np.array([[1]])
    while len(hadamard) < bits:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    signed = signs(seed("hilm.lineage/bits/1"), 1024).astype(np.int64) * form
    y = hadamard @ signed.reshape(bits, 1024 // bits).sum(axis=1)
    found = sketch.code(form, bits)
    assert found.dtype == np.uint64
    assert [int(found[j // 64]) >> (j % 64) & 1 for j in range(bits)] == (y > 0).astype(int).tolist()


def test_code_agreement_estimates_the_angle():
    random = np.random.default_rng(6)
    a, b = random.standard_normal((2, 1024))
    for c in (0.0, 0.5, 0.9, 1.0):
        mixed = c * a + math.sqrt(1 - c * c) * b
        forms = [sketch.quantise(sketch.fixed(v / np.linalg.norm(v))) for v in (a, mixed)]
        agreement = sketch.code_cosine(sketch.code(forms[0], 1024), sketch.code(forms[1], 1024))
        assert agreement == pytest.approx(2 / math.pi * math.asin(c), abs=0.1)


def test_zero_forms():
    zero = sketch.quantise(np.zeros(1024, np.int64))
    assert not zero.any()
    assert sketch.cosine(zero, zero) == 0.0


def test_integer_cosine_is_exact():
    a = np.full(1024, -127, np.int8)
    assert sketch.energy(a) == 1024 * 127 * 127
    assert sketch.cosine(a, a) == 1.0
    assert sketch.cosine(a, (-a).astype(np.int8)) == -1.0
