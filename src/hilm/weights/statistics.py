"""Moments, extremes, outliers and histograms of every tensor, in one pass, folded by layer type or block.

No figure depends on how the values were cut into chunks: a tensor's sums run in 32 lanes, by position modulo
32; values are counted in 4096 fixed bins (sign and an eighth of an octave: the upper 12 bits of a float32);
and sums over tensors are rounded once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
from numba import njit

from hilm.weights.roles import classify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from hilm.weights.roles import Role

    Key = TypeVar("Key")

OUTLYING = 6.0
"""Standard deviations of its tensor that an outlier is away from the mean."""

_LANES = 32
_PIECE = 1 << 16  # values that stay in cache between the loops over them
_BINS, _BIN_BITS = 1 << 12, np.uint32(20)  # a bin ignores so many bits
_SEEN, _ZEROS, _LOW, _HIGH = range(_BINS, _BINS + 4)  # further counts behind the bins
_SIGN, _INFINITE = np.int32(31), np.int32(0x7F800000)
_LOWEST, _HIGHEST, _0 = np.int32(-0x80000000), np.int32(0x7FFFFFFF), np.float32(0)
_OCTAVE, _BIAS, _FINITE = 8, 127, 255  # bins of an octave; exponent 0 is stored as 127, infinity's as 255


def _edges() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bottom and top of every bin; NaN where there are no finite values."""
    finite = _FINITE * _OCTAVE
    near, far = np.full((2, _BINS // 2), np.nan)
    edges = (np.arange(finite + 1, dtype=np.uint32) << _BIN_BITS).view(np.float32)  # 0 to inf
    near[:finite], far[:finite] = edges[:-1], edges[1:]
    return np.concatenate([near, -far]), np.concatenate([far, -near])


_BOTTOMS, _TOPS = _edges()


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured of one or several tensors; NaN and ±inf are counted and enter nothing else.

    Attributes:
        count: Finite values.
        total: Their sum.
        squares: Sum of their squares.
        low: Smallest; inf without any.
        high: Largest; -inf without any.
        zeros: How many are 0.
        nonfinite: How many values are NaN or infinite.
        outliers: Values in bins that lie wholly beyond mean ± 6 standard deviations of their own tensor. A
            bin is at most an eighth as wide as its values: about a mean of 0, all beyond 6.75 count.
        histogram: Exponent k → how many magnitudes are in [2^k, 2^(k+1)); -127 has all below 2^-126 but 0.
    """

    count: int
    total: float
    squares: float
    low: float
    high: float
    zeros: int
    nonfinite: int
    outliers: int
    histogram: dict[int, int]

    @classmethod
    def merge(cls, parts: Iterable[Figures]) -> Self:
        """Figures of several tensors together, in whatever order they come."""
        parts = list(parts)
        bins = sorted({exponent for part in parts for exponent in part.histogram})
        return cls(
            count=sum(part.count for part in parts),
            total=math.fsum(part.total for part in parts),
            squares=math.fsum(part.squares for part in parts),
            low=min(part.low for part in parts),
            high=max(part.high for part in parts),
            zeros=sum(part.zeros for part in parts),
            nonfinite=sum(part.nonfinite for part in parts),
            outliers=sum(part.outliers for part in parts),
            histogram={k: sum(part.histogram.get(k, 0) for part in parts) for k in bins},
        )

    @property
    def parameters(self) -> int:
        """All values, finite or not."""
        return self.count + self.nonfinite

    @property
    def mean(self) -> float:
        """Mean of the finite values; NaN without any."""
        return self.total / self.count if self.count else math.nan

    @property
    def std(self) -> float:
        """Population standard deviation; NaN without a value."""
        if not self.count:
            return math.nan
        spread = self.low < self.high  # equal values have none, whatever rounding says
        return math.sqrt(max(self.squares / self.count - self.mean**2, 0.0)) if spread else 0.0

    def summary(self) -> dict[str, Any]:
        """The figures as JSON: mean, std, min and max are None where there is no finite value."""
        figures = {"mean": self.mean, "std": self.std, "min": self.low, "max": self.high}
        return {
            "parameters": self.parameters,
            **(figures if self.count else dict.fromkeys(figures)),
            "zeros": self.zeros,
            "nonfinite": self.nonfinite,
            "outliers": self.outliers,
            "histogram": self.histogram,
        }


class LayerStatistics:
    """Figures of every tensor: ``update`` with all values of one tensor after the other, then read."""

    def __init__(self) -> None:
        self._done: dict[str, tuple[Role, Figures]] = {}
        self._name = ""
        self._tally: _Tally | None = None

    def update(self, name: str, shape: tuple[int, ...], values: NDArray[np.float32]) -> None:
        """Add the next values of a tensor, float32 and one-dimensional; sums are float64."""
        if self._tally is None or name != self._name:
            self._finish()
            self._name, self._tally = name, _Tally(classify(name, shape))
        self._tally.update(values)

    def _finish(self) -> None:
        if self._tally is not None:
            self._done[self._name] = self._tally.role, self._tally.figures()
            self._tally = None

    def fold(self, key: Callable[[str, Role], Key]) -> dict[Key, Figures]:
        """Figures of the tensors whose names and roles share a key, in the order the keys first came."""
        self._finish()
        groups: dict[Key, list[Figures]] = {}
        for name, (role, figures) in self._done.items():
            groups.setdefault(key(name, role), []).append(figures)
        return {group: Figures.merge(parts) for group, parts in groups.items()}

    def by_role(self) -> dict[str, dict[str, Any]]:
        """Layer type → summary of its figures."""
        folded = self.fold(lambda _, role: role.type)
        return {layer_type: folded[layer_type].summary() for layer_type in sorted(folded)}

    def by_tensor(self) -> list[dict[str, Any]]:
        """Per tensor its name, role, kind, block, and the summary of its figures."""
        self._finish()
        return [
            {"name": name, "role": role.type, "kind": role.kind, "block": role.block, **figures.summary()}
            for name, (role, figures) in self._done.items()
        ]


class _Tally:
    """Running figures of one tensor."""

    def __init__(self, role: Role) -> None:
        self.role = role
        self._sums = np.zeros((2, _LANES))
        self._counts = np.zeros(_BINS + 4, np.int64)
        self._counts[[_LOW, _HIGH]] = _HIGHEST, _LOWEST

    def update(self, values: NDArray[np.float32]) -> None:
        _measure(values, self._sums, self._counts)

    def figures(self) -> Figures:
        octaves = self._counts[:_BINS].reshape(2, 1 << 8, _OCTAVE).sum(axis=(0, 2))
        seen, zeros, nonfinite = map(int, (self._counts[_SEEN], self._counts[_ZEROS], octaves[_FINITE]))
        octaves[0] -= zeros
        low, high = _unordered(self._counts[[_LOW, _HIGH]].astype(np.int32)).tolist()
        plain = Figures(
            count=seen - nonfinite,
            total=math.fsum(self._sums[0]),
            squares=math.fsum(self._sums[1]),
            low=low + 0.0 if seen > nonfinite else math.inf,  # -0.0 + 0.0 is 0.0
            high=high + 0.0 if seen > nonfinite else -math.inf,
            zeros=zeros,
            nonfinite=nonfinite,
            outliers=0,
            histogram={int(e) - _BIAS: int(octaves[e]) for e in np.flatnonzero(octaves[:_FINITE])},
        )
        return replace(plain, outliers=self._count_outliers(plain.mean, OUTLYING * plain.std))

    def _count_outliers(self, mean: float, distance: float) -> int:
        beyond = np.greater(_BOTTOMS, mean + distance) | np.less(_TOPS, mean - distance)
        return int(self._counts[:_BINS][beyond].sum())


def _unordered(ordered: NDArray[np.int32]) -> NDArray[np.float32]:
    return (ordered ^ ((ordered >> _SIGN) & _HIGHEST)).view(np.float32)


@njit(cache=True, nogil=True)
def _measure(values: NDArray[np.float32], sums: NDArray[np.float64], counts: NDArray[np.int64]) -> None:
    """Add the next values of a tensor."""
    low, high = np.int32(counts[_LOW]), np.int32(counts[_HIGH])
    for start in range(0, len(values), _PIECE):
        piece = values[start : start + _PIECE]
        _add(piece, counts[_SEEN] % _LANES, sums)
        low, high, zeros = _scan(piece.view(np.int32), low, high)
        for word in piece.view(np.uint32):
            counts[word >> _BIN_BITS] += 1
        counts[_ZEROS] += zeros
        counts[_SEEN] += len(piece)
    counts[_LOW], counts[_HIGH] = low, high


@njit(inline="always")
def _add(values: NDArray[np.float32], lane: int, sums: NDArray[np.float64]) -> None:
    """Add values and squares to their lanes."""
    head = min(-lane % _LANES, len(values))
    body = head + (len(values) - head) // _LANES * _LANES
    for i in range(head):
        _add_one(values[i], sums, lane + i)
    for start in range(head, body, _LANES):
        first = np.uint64(start)  # indices that cannot be negative let the loop vectorise
        for j in range(np.uint64(_LANES)):
            _add_one(values[first + j], sums, j)
    for i in range(body, len(values)):
        _add_one(values[i], sums, i - body)


@njit(inline="always")
def _add_one(value: np.float32, sums: NDArray[np.float64], lane: int) -> None:
    wide = np.float64(value if abs(value) < np.inf else _0)
    sums[0, lane] += wide
    sums[1, lane] += wide * wide


@njit(inline="always")
def _scan(words: NDArray[np.int32], low: np.int32, high: np.int32) -> tuple[np.int32, np.int32, np.int32]:
    """Smallest and largest finite float32, as integers in the same order, which vectorises; and the zeros."""
    zeros = np.int32(0)
    for i in range(len(words)):  # an iterator would not vectorise
        word = words[i]
        magnitude = np.int32(word & _HIGHEST)
        ordered = np.int32(word ^ ((word >> _SIGN) & _HIGHEST))
        finite = magnitude < _INFINITE
        low = min(low, ordered if finite else _HIGHEST)
        high = max(high, ordered if finite else _LOWEST)
        zeros += np.int32(magnitude == 0)
    return low, high, zeros
