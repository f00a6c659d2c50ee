from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilm.lineage.profile import BITS, FIELDS, FORMS, ProfileAccumulator, find_codebook, find_lattice


def normal(rows, columns, stream=0):
    return np.random.default_rng(stream).standard_normal((rows, columns), dtype=np.float32)


def profile(matrix, step=None):
    accumulator = ProfileAccumulator(*matrix.shape)
    for row in range(0, len(matrix), step or len(matrix)):
        block = matrix[row : row + (step or len(matrix))]
        accumulator.update(block.ravel(), row * matrix.shape[1])
    return accumulator.finish()


def quantised(matrix, bits, group, *, symmetric):
    cut = matrix.reshape(-1, group or matrix.shape[1])
    low = 0.0 if symmetric else cut.min(axis=1, keepdims=True)
    steps = 2 ** (bits - 1) - 1 if symmetric else 2**bits - 1
    scale = (
        np.abs(cut).max(axis=1, keepdims=True) if symmetric else cut.max(axis=1, keepdims=True) - low
    ) / steps
    return (np.rint((cut - low) / scale) * scale + low).reshape(matrix.shape).astype(np.float32)


def slow_error(sample, bits, group, *, symmetric):
    """Lattice error straight from the definition."""
    squares = []
    for row in sample.astype(np.float64):
        for start in range(0, row.size, group or row.size):
            w = row[start : start + (group or row.size)]
            if symmetric:
                u = w / np.abs(w).max()
                t = u * (2 ** (bits - 1) - 1)
            else:
                u = (w - w.min()) / (w.max() - w.min())
                t = u * (2**bits - 1)
            kept = (np.abs(t) >= 0.5) & (np.abs(u) < 1 - 1e-4) & (np.abs(u) > 1e-4)
            squares.extend((t - np.rint(t))[kept] ** 2)
    return np.sqrt(np.mean(squares)) if len(squares) >= 256 else np.nan


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 200), st.integers(4, 300), st.integers(0, 99))
def test_moments_equal_the_slow_form(rows, columns, stream):
    matrix = normal(rows, columns, stream) + np.float32(0.2)
    matrix[normal(rows, columns, stream + 100) > 0.5] = 0
    found = profile(matrix)
    taken = sorted({j * rows // 64 for j in range(64)})
    sample = matrix[taken].astype(np.float64)
    d = sample - sample.mean()
    std = sample.std()
    zeros = (sample == 0)[:, : columns // 4 * 4].reshape(-1, 4).sum(axis=1)
    expected = {
        "mean": sample.mean(),
        "std": std,
        "skewness": (d**3).mean() / std**3 if std else 0.0,
        "kurtosis": (d**4).mean() / std**4 if std else 0.0,
        "max_abs": np.abs(sample).max(),
        "zeros": (sample == 0).mean(),
        "sparse_groups": (zeros >= 2).mean(),
        "sampled": sample.size,
    }
    for name, value in expected.items():
        assert found.value(name) == pytest.approx(value, rel=1e-5, abs=1e-6), name


def test_only_64_rows_and_4096_columns_count():
    matrix = normal(130, 4200)
    outside = matrix.copy()
    outside[:, 4096:] = 7
    outside[1] = 7  # row 1 is not among floor(130 j / 64)
    np.testing.assert_array_equal(profile(matrix).fields, profile(outside).fields)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300))
def test_any_cut_between_rows_gives_the_same(rows, step):
    matrix = normal(rows, 40)
    whole, cut = profile(matrix), profile(matrix, step)
    np.testing.assert_array_equal(whole.fields, cut.fields)


@pytest.mark.parametrize("stream", [1, 2])
def test_lattice_errors_equal_the_slow_form(stream):
    matrix = quantised(normal(64, 128, stream), 4, 64, symmetric=True) + np.float32(0.02) * normal(64, 128, 7)
    found = profile(matrix)
    for bits in BITS:
        errors = [slow_error(matrix, bits, g, symmetric=s) for g, s in FORMS]
        assert found.value(f"lattice_{bits}") == pytest.approx(np.nanmin(errors), abs=2e-4)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("group", "symmetric"), FORMS)
def test_quantised_matrices_are_recognised(bits, group, symmetric):
    matrix = quantised(normal(96, 512, bits), bits, group, symmetric=symmetric) * np.float32(0.02)
    found = find_lattice([profile(matrix)])
    if (bits, symmetric) == (2, True):  # -1, 0, 1: every level is an end of the scale
        assert found is None
        assert find_codebook([profile(matrix)]) == 16
        return
    assert (found.bits, found.group, found.symmetric) == (bits, group, symmetric)
    assert found.error < 0.02


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", [(64, 64), (384, 384), (100, 5000)])
def test_continuous_values_are_not_quantised(dtype, shape):
    matrix = (normal(*shape) * 0.02).astype(dtype).astype(np.float32)
    found = profile(matrix)
    assert find_lattice([found]) is None
    assert find_codebook([found]) is None
    errors = [found.value(f"lattice_{b}") for b in BITS]
    assert np.nanmin(errors) > 0.25


def test_pruned_values_are_not_quantised():
    matrix = normal(128, 256)
    matrix[np.abs(matrix) < np.median(np.abs(matrix))] = 0
    found = profile(matrix)
    assert found.value("zeros") == pytest.approx(0.5, abs=0.02)
    assert find_lattice([found]) is None
    assert find_codebook([found]) is None


def test_two_of_four_sparsity():
    matrix = normal(64, 128).reshape(-1, 4)
    matrix[:, 1:3] = 0
    assert profile(matrix.reshape(64, 128)).value("sparse_groups") == 1.0
    assert profile(normal(64, 128)).value("sparse_groups") == 0.0


def test_codebook_of_sixteen_uneven_levels():
    book = np.sort(np.random.default_rng(1).uniform(-1, 1, 16)).astype(np.float32)
    book[0], book[15] = -1, 1
    matrix = book[np.random.default_rng(2).integers(0, 16, (128, 256))] * np.exp(normal(128, 1))
    assert find_lattice([profile(matrix)]) is None
    assert find_codebook([profile(matrix)]) == 16


def test_the_median_matrix_decides():
    plain, coarse = profile(normal(96, 256)), profile(quantised(normal(96, 256), 4, 0, symmetric=True))
    assert find_lattice([plain, coarse, coarse]).bits == 4
    assert find_lattice([plain, plain, coarse]) is None
    assert find_lattice([]) is None
    assert find_codebook([]) is None


@pytest.mark.parametrize("value", [0.0, 2.5])
def test_constant_matrices_have_neither(value):
    found = profile(np.full((80, 80), value, np.float32))
    assert find_lattice([found]) is None
    assert find_codebook([found]) is None
    assert found.value("std") == 0.0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_survived(value):
    matrix = normal(64, 64)
    matrix[0, 0] = value
    found = profile(matrix)
    assert np.isnan(found.value("std"))
    assert find_lattice([found]) is None


def test_sixteen_fields():
    assert len(FIELDS) == 16
    found = profile(normal(64, 64))
    assert (found.fields.dtype, found.fields.shape) == (np.float32, (16,))
