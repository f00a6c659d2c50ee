from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilm.lineage.statistics import (
    GRAM_NULL,
    P_FLOOR,
    Null,
    adjust,
    critical_cosine,
    fit_tail,
    joint,
    level,
    normal_tail,
    student_tail,
    units_tail,
)


def integral_of_student_density(t, freedom):
    """The same tail by brute force: midpoint rule over u = 1 / x from t to infinity."""
    u = (np.arange(400_000) + 0.5) / 400_000 / t
    front = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
    return float(np.mean(front * (1 + 1 / (u * u * freedom)) ** (-(freedom + 1) / 2) / (u * u))) / t


@pytest.mark.parametrize("freedom", [1, 2.5, 11, 29, 300])
@pytest.mark.parametrize("t", [0.1, 1.0, 3.0, 8.0])
def test_student_tail_is_the_integral_of_its_density(t, freedom):
    assert student_tail(t, freedom) == pytest.approx(integral_of_student_density(t, freedom), rel=1e-6)


@given(t=st.floats(-40, 40), freedom=st.floats(1, 1e4))
def test_student_tail_is_symmetric(t, freedom):
    assert student_tail(t, freedom) + student_tail(-t, freedom) == pytest.approx(1.0)


def test_student_tail_equals_scipy_far_out():
    stats = pytest.importorskip("scipy.stats")
    for t, freedom in [(10.8, 11), (10.8, 29), (75.0, 29), (30.0, 5), (5.0, 1000)]:
        assert student_tail(t, freedom) == pytest.approx(stats.t.sf(t, freedom), rel=1e-10)


def test_normal_tail():
    assert normal_tail(0) == 0.5
    assert normal_tail(4.8916) == pytest.approx(5e-7, rel=1e-3)
    assert normal_tail(32) == pytest.approx(5.5e-225, rel=0.01)
    assert normal_tail(1e6) == P_FLOOR


@pytest.mark.parametrize("shape", [0.0, 0.2, 0.4])
def test_pareto_fit_recovers_a_known_tail(shape):
    uniform = np.random.default_rng(3).random(200_000)
    values = -np.log(uniform) if shape == 0 else (uniform**-shape - 1) / shape  # generalised Pareto, scale 1
    tail = fit_tail(sorted(values))
    assert tail.shape == pytest.approx(shape, abs=0.03)
    beyond = float(np.quantile(values, 0.999))
    assert tail.probability(beyond) == pytest.approx(1e-3, rel=0.1)


def test_pareto_fit_of_a_bounded_tail_falls_back_to_exponential():
    assert fit_tail(sorted(np.random.default_rng(5).random(5000))).shape == 0.0


@given(size=st.integers(2, 400), seed=st.integers(0, 1000))
def test_null_tail_decreases_and_respects_its_floor(size, seed):
    null = Null.of(np.random.default_rng(seed).normal(0.02, 0.05, size))
    tails = [null.tail(c) for c in np.linspace(-0.3, 1.0, 60)]
    assert all(a >= b for a, b in pairwise(tails))
    assert tails[0] > 0.99
    assert tails[-1] >= (1e-3 / size if size >= 200 else 1 / (size + 1))


def test_initial_gram_null_never_establishes_anything():
    assert level(joint([1.0, GRAM_NULL.tail(1.0)])) == "weak"
    assert GRAM_NULL.z(0.31) == pytest.approx(5.0)


def test_p_values_of_independent_pairs_are_conservative():
    rng = np.random.default_rng(11)
    null = Null.of(rng.normal(0.02, 0.05, 2000))
    p = np.array([null.tail(c) for c in rng.normal(0.02, 0.05, 1000)])
    for nominal in (0.5, 0.1, 0.01):
        assert (p <= nominal).mean() <= nominal + 4 * math.sqrt(nominal * (1 - nominal) / 1000)


@pytest.mark.parametrize(
    ("candidates", "z"), [(1, 4.89), (10**3, 6.11), (10**6, 7.13), (2 * 10**6, 7.23), (2 * 10**7, 7.53)]
)
def test_critical_cosine_is_the_smallest_that_is_established(candidates, z):
    cosine = critical_cosine(candidates)
    assert 32 * cosine == pytest.approx(z, abs=0.006)
    p = joint([normal_tail(32 * (cosine + 1e-4)), 1.0])
    assert level(adjust(p, candidates)) == "established"
    p = joint([normal_tail(32 * (cosine - 1e-4)), 1.0])
    assert level(adjust(p, candidates)) == "probable"


def test_levels_and_corrections():
    assert [level(p) for p in (1e-6, 1e-3, 0.05, 0.06)] == ["established", "probable", "weak", "none"]
    assert joint([]) == 1.0
    assert joint([0.9, 0.4, 0.2]) == pytest.approx(0.6)
    assert adjust(1e-9, 100) == pytest.approx(1e-7)
    assert adjust(0.5, 100) == 1.0
    assert units_tail(18.0, 31) < 1e-10
    assert units_tail(5.3, 31) > 1e-3
