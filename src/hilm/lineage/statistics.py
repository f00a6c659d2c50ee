"""Tail probabilities, null distributions and the levels of evidence built on them.

The initial nulls come from the prototype's zoo of 19 independent bases: GPT-2, BERT, Llama and Qwen2 shapes
in four seeds each, MiniLM-L6-v2, a twin of it trained from scratch, and a copy with shuffled values. They are
small models, so the floors of :meth:`Null.tail` matter more than the fitted figures.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Level = Literal["established", "probable", "weak", "none"]

P_FLOOR = 1e-300  # nothing smaller is reported: it would underflow, and no assumption holds that far out
LEVELS: tuple[tuple[float, Level], ...] = ((1e-6, "established"), (1e-3, "probable"), (0.05, "weak"))
SKETCH_DIMENSIONS = 1024
UNITS_NULL_MEAN, UNITS_NULL_SD = (
    0.63,
    1.61,
)  # z of matched units over 248 independent pairs of the prototype's zoo
TAIL_SHARE = 0.1
FEW_PAIRS = 200


def normal_tail(z: float) -> float:
    """Probability that a standard normal exceeds z, never below :data:`P_FLOOR`."""
    return max(0.5 * math.erfc(z / math.sqrt(2)), P_FLOOR)


def student_tail(t: float, freedom: float) -> float:
    """Probability that Student's t with that many degrees of freedom exceeds t.

    Half the regularised incomplete beta function I_x(f/2, 1/2) at x = f/(f + t²), by its continued fraction.
    """
    half = 0.5 * _incomplete_beta(0.5 * freedom, 0.5, freedom / (freedom + t * t))
    return max(half if t > 0 else 1.0 - half, P_FLOOR)


def _incomplete_beta(a: float, b: float, x: float) -> float:
    if x >= 1.0:
        return 1.0
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast on the other side only
        return 1.0 - _incomplete_beta(b, a, 1.0 - x)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(log_front) / a * _beta_fraction(a, b, x)


def _beta_fraction(a: float, b: float, x: float) -> float:
    """Lentz's evaluation of the continued fraction of the incomplete beta function."""
    c, d = 1.0, 1.0 / (1.0 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1.0 / (1.0 + term * d)
            c = 1.0 + term / c
            value *= c * d
        if abs(c * d - 1.0) < 1e-15:  # a few units in the last place of a double
            break
    return value


@dataclass(frozen=True, slots=True)
class Tail:
    """Generalised Pareto: ``threshold`` is exceeded by y with chance 0.1 · (1 + shape·y/scale)^(-1/shape)."""

    threshold: float
    shape: float
    scale: float

    def probability(self, value: float) -> float:
        """Chance of a value at least this large; ``value`` must not lie below the threshold."""
        y = (value - self.threshold) / self.scale
        log_survival = -y if self.shape == 0 else -math.log1p(self.shape * y) / self.shape
        return TAIL_SHARE * math.exp(log_survival)


def fit_tail(ordered: Sequence[float]) -> Tail:
    """Fit the upper tenth of ascending values by the probability-weighted moments of Hosking and Wallis."""
    threshold = float(np.quantile(ordered, 1 - TAIL_SHARE))
    excess = np.array(ordered[bisect_left(ordered, threshold) :]) - threshold
    ranks = (np.arange(1, len(excess) + 1) - 0.35) / len(excess)
    mean, weighted = float(excess.mean()), float((excess * (1 - ranks)).mean())
    if mean <= 0:
        return Tail(threshold, 0.0, math.ulp(abs(threshold) + 1))
    shape = 2.0 - mean / (mean - 2 * weighted) if mean > 2 * weighted else 0.0
    if shape <= 0:
        return Tail(threshold, 0.0, mean)
    return Tail(threshold, shape, 2 * mean * weighted / (mean - 2 * weighted))


@dataclass(frozen=True, slots=True)
class Null:
    """Anchored-Gram cosines of model pairs known to be independent.

    Attributes:
        pairs: How many pairs the table rests on.
        mean: Their mean cosine.
        sd: Their standard deviation.
        ordered: The cosines themselves, ascending; empty where only the moments are known.
    """

    pairs: int
    mean: float
    sd: float
    ordered: tuple[float, ...] = ()

    @classmethod
    def of(cls, cosines: Iterable[float]) -> Null:
        """Tabulate the cosines of independent pairs; at least two, not all equal."""
        ordered = tuple(sorted(cosines))
        return cls(len(ordered), float(np.mean(ordered)), float(np.std(ordered, ddof=1)), ordered)

    def z(self, cosine: float) -> float:
        """Standard deviations above the mean."""
        return (cosine - self.mean) / self.sd

    def tail(self, cosine: float) -> float:
        """Chance of such a cosine between independent models.

        A table cannot vouch for more than it has seen: never below 0.001 / pairs, and with fewer than 200
        pairs never below 1 / (pairs + 1).
        """
        floor = 1e-3 / self.pairs if self.pairs >= FEW_PAIRS else 1 / (self.pairs + 1)
        return min(1.0, max(self._raw_tail(cosine), floor))

    def _raw_tail(self, cosine: float) -> float:
        if not self.ordered:
            return normal_tail(self.z(cosine))
        tail = fit_tail(self.ordered)
        if cosine >= tail.threshold:
            return tail.probability(cosine)
        above = len(self.ordered) - bisect_left(self.ordered, cosine)
        return (above + 1) / (len(self.ordered) + 1)


# All pairs of the 19 bases, mean 0.02; where embeddings share more, as in 1,000 synthetic pairs
# (benchmarks/zoo_strangers.py), it is 0.06. The wider of all estimates of the sd.
GRAM_NULL = Null(pairs=171, mean=0.06, sd=0.05)


def units_tail(z: float, controls: int) -> float:
    """Chance of such a matched-units score between independent models, given at least 2 control pairs."""
    return student_tail((z - UNITS_NULL_MEAN) / UNITS_NULL_SD, controls - 1)


def joint(probabilities: Sequence[float]) -> float:
    """Best of m probabilities, corrected for having had m chances; 1 without any."""
    return min(1.0, len(probabilities) * min(probabilities)) if probabilities else 1.0


def adjust(probability: float, candidates: int) -> float:
    """Correct for having searched that many candidates (Bonferroni)."""
    return min(1.0, probability * max(1, candidates))


def level(adjusted: float) -> Level:
    """Name of the evidence a corrected probability amounts to."""
    return next((name for bound, name in LEVELS if adjusted <= bound), "none")


def critical_cosine(candidates: int, statistics: int = 2) -> float:
    """Smallest sign-sketch cosine that would have been established among that many candidates."""
    return -NormalDist().inv_cdf(LEVELS[0][0] / (statistics * max(1, candidates))) / math.sqrt(
        SKETCH_DIMENSIONS
    )
