"""Moments and extremes of values, by role of the tensor, in one pass over blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(slots=True)
class Moments:
    """Running figures of finite values; ``nonfinite`` counts NaN and ±inf, which enter nothing else."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    low: float = math.inf
    high: float = -math.inf
    zeros: int = 0
    nonfinite: int = 0

    def update(self, values: NDArray[np.float32]) -> None:
        """Add float32 values; sums are float64."""
        total, squares, low, high, zeros, nonfinite = _measure(values)
        self.count += len(values) - nonfinite
        self.total += total
        self.squares += squares
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.zeros += zeros
        self.nonfinite += nonfinite

    def summary(self) -> dict[str, Any]:
        """The figures as JSON: mean, std (population), min and max are None where there is no value."""
        if not self.count:
            figures: dict[str, Any] = dict.fromkeys(("mean", "std", "min", "max"))
        else:
            mean = self.total / self.count
            variance = max(self.squares / self.count - mean * mean, 0.0)
            figures = {"mean": mean, "std": math.sqrt(variance), "min": self.low, "max": self.high}
        parameters = self.count + self.nonfinite
        return {"parameters": parameters, **figures, "zeros": self.zeros, "nonfinite": self.nonfinite}


class RoleStatistics:
    """Figures per layer type: ``update`` with every run of values, then read ``summary``."""

    def __init__(self) -> None:
        self.by_role: dict[str, Moments] = {}

    def update(self, role: str, values: NDArray[np.float32]) -> None:
        """Add values of a tensor of this layer type."""
        self.by_role.setdefault(role, Moments()).update(values)

    def summary(self) -> dict[str, dict[str, Any]]:
        """Role → figures."""
        return {role: moments.summary() for role, moments in sorted(self.by_role.items())}


@njit(cache=True, nogil=True)
def _measure(values: NDArray[np.float32]) -> tuple[float, float, float, float, int, int]:
    total = squares = 0.0
    low, high = np.inf, -np.inf
    zeros = nonfinite = 0
    for start in range(0, len(values), 256):  # short runs let the compiler keep four sums apart
        piece = values[start : start + 256]
        s = q = 0.0
        for x in piece:
            wide = np.float64(x)
            if not np.isfinite(wide):
                nonfinite += 1
                continue
            s += wide
            q += wide * wide
            low = min(low, wide)
            high = max(high, wide)
            zeros += wide == 0.0
        total += s
        squares += q
    return total, squares, low, high, zeros, nonfinite
