"""F4: what kind of values a matrix holds: quantised, pruned or plain. It never speaks for a relation.

A profile is taken from 64 rows spread over the matrix, and their first 4096 columns. Models trained by one
recipe share moments and histograms, so these only annotate; lattice, codebook and zeros tell a derived copy
from its source.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numba import njit

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

SAMPLE_ROWS = 64
SAMPLE_COLUMNS = 4096
BITS = (2, 3, 4, 5, 6, 8)
_GROUPS = (0, 128, 64, 32)
FORMS = tuple((group, symmetric) for symmetric in (True, False) for group in _GROUPS)
"""Ways to quantise: how many values share a scale (0: a row), and whether the scale is symmetric about 0."""

FIELDS = (
    *("mean", "std", "skewness", "kurtosis", "max_abs", "zeros", "sparse_groups"),
    *(f"lattice_{bits}" for bits in BITS),
    *("form", "codebook", "sampled"),
)
"""Order of ``Profile.fields``."""

_FORM = FIELDS.index("form")
_CODEBOOKS = (16, 256)
_DECISIVE = 256  # entries that a lattice error needs
_DECISIVE_BOOK = 4096  # entries that a codebook needs
_ON_LATTICE = 0.12  # largest error of quantised values; continuous ones have 1/sqrt(12) = 0.289
_OFF_LATTICE = 0.2  # smallest error on a few rows that settles the matter
_SCREEN = 2048  # values of whole rows that are tested first
_GRID = 512  # codebook entries are told apart to 1/512 of the scale
_EDGE = np.float32(1e-4)
_0, _HALF, _1 = np.float32(0.0), np.float32(0.5), np.float32(1.0)
_one = np.uint64(1)
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_OFFSET, _END = np.float32(_GRID + 0.5), np.float32(2 * _GRID + 1)
_ROUND = np.float32(3 << 22)  # added and subtracted, it rounds a float32 to the nearest integer


@dataclass(frozen=True, slots=True)
class Profile:
    """Profile of one matrix.

    Attributes:
        fields: float32 [16], as named by ``FIELDS``: mean, standard deviation, skewness, kurtosis (3 for a
            normal distribution) and largest magnitude of the sample; share of exact zeros; share of aligned
            groups of four with at least two zeros; for each of ``BITS`` the smallest lattice error over
            ``FORMS`` (NaN where undecided); the index in ``FORMS`` of the fewest bits on a lattice (-1:
            none); the number of distinct scaled values that occur in two groups; the number of values
            sampled.
    """

    fields: NDArray[np.float32]

    def value(self, name: str) -> float:
        """Return one field by its name in ``FIELDS``."""
        return float(self.fields[FIELDS.index(name)])


@dataclass(frozen=True, slots=True)
class Lattice:
    """Evenly spaced levels found in a model's values.

    Attributes:
        bits: Bits of a level.
        group: Values that share a scale; 0 is a whole row.
        symmetric: Whether levels are symmetric about 0.
        error: Median distance to the nearest level, root mean square, in steps.
    """

    bits: int
    group: int
    symmetric: bool
    error: float


class ProfileAccumulator:
    """Profile of one matrix, fed whole rows in order.

    Args:
        rows: R, at least 1.
        columns: C, at least 1.
    """

    def __init__(self, rows: int, columns: int) -> None:
        self._rows, self._columns = rows, columns
        self._sample = np.zeros((min(rows, SAMPLE_ROWS), min(columns, SAMPLE_COLUMNS)), np.float32)

    def update(self, values: NDArray[np.float32], start: int) -> None:
        """Take whole rows, from flat position ``start`` on."""
        _pick_rows(self._sample, values.reshape(-1, self._columns), start // self._columns, self._rows)

    def finish(self) -> Profile:
        """Return the profile; fields that a value which is not finite spoils are NaN."""
        return Profile(_measure(self._sample))


def find_lattice(profiles: Iterable[Profile]) -> Lattice | None:
    """Fewest bits whose median error over the matrices is that of quantised values, if any."""
    kept = list(profiles)
    for bits in BITS:
        found = [p for p in kept if np.isfinite(p.value(f"lattice_{bits}"))]
        error = statistics.median(p.value(f"lattice_{bits}") for p in found) if found else np.inf
        if error < _ON_LATTICE:
            forms = [int(p.fields[_FORM]) for p in found if p.value(f"lattice_{bits}") < _ON_LATTICE]
            group, symmetric = FORMS[max(set(forms), key=lambda form: (forms.count(form), -form))]
            return Lattice(bits, group, symmetric, float(error))
    return None


def find_codebook(profiles: Iterable[Profile]) -> int | None:
    """Size of the smallest usual codebook (16 or 256 entries) that the values of most matrices come from."""
    sizes = [p.value("codebook") for p in profiles if p.value("sampled") >= _DECISIVE_BOOK]
    size = statistics.median(sizes) if sizes else 0.0
    return next((book for book in _CODEBOOKS if 1 < size <= book), None)


@njit(cache=True, nogil=True)
def _pick_rows(sample: NDArray[np.float32], block: NDArray[np.float32], first: int, rows: int) -> None:
    """Copy the rows j·R/64 (all of them, of at most 64) that lie in a block whose first row is ``first``."""
    kept, columns = sample.shape
    for j in range(-(-first * kept // rows), kept):
        row = j * rows // kept - first
        if row >= len(block):
            return
        sample[j] = block[row, :columns]


@njit(cache=True, nogil=True)
def _find_levels(sample: NDArray[np.float32]) -> tuple[NDArray[np.float64], int, int]:
    """Lattice errors by bits, form of the first lattice, and size of the codebook.

    A few rows settle that values are continuous; only otherwise are all rows tested.
    """
    rows = max(2, -(-_SCREEN // sample.shape[1]))
    errors, form, levels = _test_levels(sample[:: max(len(sample) // rows, 1)].copy())
    settled = errors.min() > _OFF_LATTICE and errors[0] < np.inf and levels > _CODEBOOKS[-1]
    if not settled:
        errors, form, levels = _test_levels(sample)
    errors[errors == np.inf] = np.nan
    return errors, form, levels


@njit(cache=True, nogil=True)
def _test_levels(sample: NDArray[np.float32]) -> tuple[NDArray[np.float64], int, int]:
    """The same for these rows, undecided errors being infinite."""
    table = np.empty((len(FORMS), len(BITS)))
    levels = 2 * _GRID + 1
    for i in range(len(_GROUPS)):
        group = _GROUPS[i] or sample.shape[1]
        if i > 0 and group >= sample.shape[1]:  # whole rows again
            table[i], table[len(_GROUPS) + i] = table[0], table[len(_GROUPS)]
            continue
        table[i] = _lattice_errors(sample, group, True)
        table[len(_GROUPS) + i] = _lattice_errors(sample, group, False)
        levels = min(levels, _count_levels(sample, group))
    errors, form = np.full(len(BITS), np.inf), -1
    for i in range(len(BITS)):
        errors[i] = table[:, i].min()
        if form < 0 and errors[i] < _ON_LATTICE:
            form = int(table[:, i].argmin())
    return errors, form, levels


@njit(cache=True, nogil=True)
def _lattice_errors(sample: NDArray[np.float32], group: int, symmetric: bool) -> NDArray[np.float64]:  # noqa: FBT001 - compiled
    """Distance to the nearest level by bits, root mean square in steps; infinite below 256 entries."""
    rows, columns = sample.shape
    words, values = sample.reshape(-1).view(np.int32), sample.reshape(-1)
    sums = np.zeros((len(BITS), group), np.float32)  # by place in the group, so that the loops vectorise
    counts = np.zeros((len(BITS), group), np.float32)
    scaled = np.empty(group, np.float32)
    for row in range(rows):
        for column in range(0, columns, group):
            start, n = np.uint64(row * columns + column), np.uint64(min(group, columns - column))
            low, high = _range(words, start, n)
            base = np.float32(0.0) if symmetric else low
            scale = np.float32(max(-low, high) if symmetric else high - low)
            if not _0 < scale < np.inf:
                continue
            for j in range(n):  # the ends of the scale are levels whatever the values are: they go to 0
                u = abs((values[start + j] - base) / scale)
                scaled[j] = u if (u > _EDGE) & (u < _1 - _EDGE) else _0
            for i in range(len(BITS)):
                steps = np.float32(2 ** (BITS[i] - 1) - 1 if symmetric else 2 ** BITS[i] - 1)
                for j in range(n):
                    t = scaled[j] * steps
                    error = t - ((t + _ROUND) - _ROUND)
                    inner = t >= _HALF  # what rounds to 0 is on a level too
                    sums[i, j] += error * error if inner else _0
                    counts[i, j] += _1 if inner else _0
    out = np.full(len(BITS), np.inf)
    for i in range(len(BITS)):
        count = counts[i].sum()
        if count >= _DECISIVE:
            out[i] = np.sqrt(np.float64(sums[i].sum()) / count)
    return out


@njit(cache=True, nogil=True)
def _count_levels(sample: NDArray[np.float32], group: int) -> int:
    """Distinct values, scaled by the largest of their group and rounded to 1/512, found in two groups."""
    rows, columns = sample.shape
    words, values = sample.reshape(-1).view(np.int32), sample.reshape(-1)
    seen = np.zeros(2 * _GRID + 1, np.int64)  # number of the group that has it, -1 for several
    for row in range(rows):
        for column in range(0, columns, group):
            start, n = np.uint64(row * columns + column), np.uint64(min(group, columns - column))
            low, high = _range(words, start, n)
            scale = np.float32(max(-low, high))
            if not _0 < scale < np.inf:
                continue
            factor, number = np.float32(_GRID) / scale, np.int64(start + _one)
            for j in range(n):
                scaled = values[start + j] * factor + _OFFSET
                level = np.uint64(scaled) if _0 <= scaled < _END else np.uint64(0)  # NaN and overflow
                seen[level] = number if seen[level] == 0 or seen[level] == number else -1
    return int((seen < 0).sum())


@njit(inline="always")
def _range(words: NDArray[np.int32], start: np.uint64, n: np.uint64) -> tuple[np.float32, np.float32]:
    """Smallest and largest float32, compared as integers, which vectorises; NaNs lie outside all."""
    low, high = np.int32(0x7FFFFFFF), np.int32(-0x80000000)
    for j in range(n):
        word = words[start + j]
        ordered = np.int32(word ^ ((word >> np.int32(31)) & np.int32(0x7FFFFFFF)))
        low, high = min(low, ordered), max(high, ordered)
    return _unordered(low), _unordered(high)


@njit(inline="always")
def _unordered(ordered: np.int32) -> np.float32:
    return np.int32(ordered ^ ((ordered >> np.int32(31)) & np.int32(0x7FFFFFFF))).view(np.float32)


@njit(cache=True, nogil=True)
def _measure(sample: NDArray[np.float32]) -> NDArray[np.float32]:
    """All fields."""
    fields, size = np.empty(len(FIELDS), np.float32), sample.size
    sums, smallest, largest = _count(sample)
    mean = _total(sums) / size
    powers = _powers(sample, mean)
    m2, m3, m4 = _total(powers[0]) / size, _total(powers[1]) / size, _total(powers[2]) / size
    fields[:2] = mean, math.sqrt(m2)
    fields[2:4] = (m3 / m2**1.5, m4 / m2**2) if m2 else (0.0, 0.0)
    fields[4] = largest
    fields[5:7] = (0.0, 0.0) if smallest else _zeros(sample)
    fields[7:13], fields[13], fields[14] = _find_levels(sample)
    fields[15] = size
    return fields


@njit(cache=True, nogil=True)
def _total(values: NDArray[np.float64]) -> float:
    """Sum by halves, down to runs of at most 128 that are added eight apart."""
    if values.size > 128:
        half = values.size // 16 * 8
        return float(_total(values[:half]) + _total(values[half:]))
    parts, whole = np.zeros(8), values.size // 8 * 8
    for i in range(whole):
        parts[i % 8] += values[i]
    total = ((parts[0] + parts[1]) + (parts[2] + parts[3])) + ((parts[4] + parts[5]) + (parts[6] + parts[7]))
    for i in range(whole, values.size):
        total += values[i]
    return float(total)


@njit(cache=True, nogil=True)
def _zeros(sample: NDArray[np.float32]) -> tuple[float, float]:
    """Share of zeros, and of aligned groups of four with at least two of them."""
    rows, columns = sample.shape
    zeros = sparse = 0
    for row in range(rows):
        for start in range(0, columns, 4):
            found = (sample[row, start : start + 4] == 0).sum()
            zeros += found
            sparse += found >= 2 and start + 4 <= columns
    return zeros / sample.size, sparse / max(rows * (columns // 4), 1)


@njit(cache=True, nogil=True)
def _count(sample: NDArray[np.float32]) -> tuple[NDArray[np.float64], np.uint32, np.float32]:
    """Sums by column, bits of the smallest magnitude, and the largest magnitude."""
    rows, columns = sample.shape
    values, words = sample.reshape(-1), sample.reshape(-1).view(np.uint32)
    sums, smallest, largest = np.zeros(columns), _MAGNITUDE, np.uint32(0)
    for i in range(words.size):
        magnitude = np.uint32(words[i] & _MAGNITUDE)
        smallest, largest = min(smallest, magnitude), max(largest, magnitude)
    for row in range(rows):
        start = np.uint64(row * columns)
        for j in range(np.uint64(columns)):
            sums[j] += values[start + j]
    return sums, smallest, np.uint32(largest).view(np.float32)


@njit(cache=True, nogil=True)
def _powers(sample: NDArray[np.float32], mean: float) -> NDArray[np.float64]:
    """Sums by column of the second to fourth powers of deviations from the mean."""
    rows, columns = sample.shape
    values = sample.reshape(-1)
    powers = np.zeros((3, columns))
    for row in range(rows):
        start = np.uint64(row * columns)
        for j in range(np.uint64(columns)):
            d = values[start + j] - mean
            powers[0, j] += d * d
            powers[1, j] += d * d * d
            powers[2, j] += d * d * (d * d)
    return powers
