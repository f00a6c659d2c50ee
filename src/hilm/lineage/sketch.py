"""F1: the sign sketch of a matrix, and the stored forms that F1 and F2 share.

A matrix of n values, its column means removed, is cut into 1024 contiguous runs (run b holds the elements i
with floor(1024 i / n) = b) and each run is summed under published random signs that depend on the shape
alone. For independent weights the cosine of two sketches has mean 0 and standard deviation 1/32, whatever
recipe they share. Unit sketches of a model's matrices are added as fixed-point integers, so that order
cannot matter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, reduce
from typing import TYPE_CHECKING

import numpy as np
from numba import njit

from hilm.lineage.signs import seed, signs, word

if TYPE_CHECKING:
    from numpy.typing import NDArray

RUNS = 1024
_LANES = 64  # partial sums of a run, by flat position mod 64: any cut of the stream adds in the same order
_SLACK = 4096  # how far the column means are repeated past the last column
_NEGLIGIBLE = 1e-12  # energy of a sketch, relative to its matrix, that is rounding noise
_CANCELLED = 1e-14  # energy that the removal of means cannot resolve
_0, _1, _2, _3, _16, _32, _48 = (np.uint64(n) for n in (0, 1, 2, 3, 16, 32, 48))
_64, _128, _192, _256 = (np.uint64(n) for n in (64, 128, 192, 256))


@dataclass(frozen=True, slots=True)
class Sketch:
    """Sketch of one matrix.

    Attributes:
        vector: float64 [1024], of norm 1.
        norm: Norm before normalisation; ``norm * vector`` is linear in the matrix.
        weight_norm: Frobenius norm of the matrix, means included.
    """

    vector: NDArray[np.float64]
    norm: float
    weight_norm: float


def matrix_key(rows: int, columns: int) -> str:
    """Class key of a matrix: its shape, never its name."""
    return f"M:{rows}x{columns}"


def embedding_key(width: int) -> str:
    """Class key of the leading 2048 rows of an embedding, token-major."""
    return f"V:{width}"


class SketchAccumulator:
    """Sketch of one matrix, fed its values row by row, in pieces of any size.

    Args:
        rows: R, at least 1.
        columns: C, at least 1.
        key: Class key; only sketches of one key have comparable coordinates.
    """

    def __init__(self, rows: int, columns: int, key: str) -> None:
        self._rows, self._columns = rows, columns
        self._seed = seed("hilm.lineage/sketch/1|" + key)
        self._runs = np.zeros(RUNS)
        self._lanes = np.zeros(_LANES)
        self._sums, self._squares = np.zeros(columns), np.zeros(columns)

    def update(self, values: NDArray[np.float32], start: int) -> None:
        """Take the values from flat position ``start`` on; pieces must come in order."""
        _sum_runs(self._runs, self._lanes, self._seed, values, (start, self._rows * self._columns))
        _sum_columns(self._sums, self._squares, values, start)

    def finish(self) -> Sketch | None:
        """Return the sketch; None if only rounding noise is left of it, or if a value is not finite."""
        total = float(self._squares.sum())
        if not math.isfinite(total):
            return None
        means = self._sums / self._rows
        vector = self._runs - _sum_mean_runs(self._seed, self._rows * self._columns, means)
        norm = math.sqrt(np.square(vector).sum())
        centred = max(total - self._rows * float(means @ means), _CANCELLED * total)
        if norm**2 <= _NEGLIGIBLE * centred:
            return None
        return Sketch(vector / norm, norm, math.sqrt(total))


@njit(inline="always")
def _bound(run: np.uint64, size: np.uint64) -> np.uint64:
    """First element of a run: ceil(run size / 1024)."""
    return np.uint64((run * size + np.uint64(RUNS - 1)) // np.uint64(RUNS))


@njit(cache=True, nogil=True)
def _sum_runs(
    runs: NDArray[np.float64],
    lanes: NDArray[np.float64],
    key: np.uint64,
    values: NDArray[np.float32],
    span: tuple[int, int],
) -> None:
    """Add the values at ``span`` = (position, size of the matrix) to their runs, and close those it fills."""
    start, size = np.uint64(span[0]), np.uint64(span[1])
    position, stop = start, start + np.uint64(values.size)
    run = np.uint64(RUNS) * position // size
    while position < stop:
        bound = _bound(run + _1, size)
        end = min(bound, stop)
        _add_signed(lanes, key, values, position - start, position, end - position)
        if end == bound:
            runs[run] = _close(lanes)
            run += _1
        position = end


@njit(cache=True, nogil=True)
def _sum_mean_runs(key: np.uint64, size: int, row: NDArray[np.float64]) -> NDArray[np.float64]:
    """Run sums of the matrix whose every row is ``row``."""
    means = np.empty(row.size + _SLACK)
    means[: row.size] = row
    for i in range(row.size, means.size):
        means[i] = means[i - row.size]
    runs = np.empty(RUNS)
    lanes = np.zeros(_LANES)
    columns = np.uint64(row.size)
    position = _0
    for run in range(np.uint64(RUNS)):
        bound = _bound(run + _1, np.uint64(size))
        while position < bound:
            column = position % columns
            whole = (np.uint64(means.size) - column) // _64 * _64 - position % _64
            n = min(bound - position, whole)
            _add_signed(lanes, key, means, column, position, n)
            position += n
        runs[run] = _close(lanes)
    return runs


@njit(inline="always")
def _add_signed(
    lanes: NDArray[np.float64],
    key: np.uint64,
    values: NDArray[np.floating],
    at: np.uint64,
    position: np.uint64,
    n: np.uint64,
) -> None:
    """Add ``n`` signed values from index ``at`` on to the lanes; the first is at ``position`` in the matrix.

    Indices are unsigned and arrays are not sliced: or the compiler counts references instead of vectorising.
    """
    done = _0
    while done < n:
        lead = (position + done) % _64
        index = (position + done) // _64
        i = at + done
        s0 = word(key, index) >> lead
        if lead == _0 and n - done >= _256:
            s1, s2, s3 = word(key, index + _1), word(key, index + _2), word(key, index + _3)
            for k in range(_64):
                lane = _add(lanes[k], s0, k, values[i + k])
                lane = _add(lane, s1, k, values[i + k + _64])
                lane = _add(lane, s2, k, values[i + k + _128])
                lanes[k] = _add(lane, s3, k, values[i + k + _192])
            done += _256
        elif lead == _0 and n - done >= _64:
            for k in range(_64):
                lanes[k] = _add(lanes[k], s0, k, values[i + k])
            done += _64
        else:
            part = min(_64 - lead, n - done)
            for k in range(part):
                lanes[lead + k] = _add(lanes[lead + k], s0, k, values[i + k])
            done += part


@njit(inline="always")
def _add(total: float, signs: np.uint64, k: np.uint64, value: np.floating) -> float:
    x = np.float64(value)
    return total + (-x if signs & (_1 << k) else x)


@njit(inline="always")
def _close(lanes: NDArray[np.float64]) -> float:
    """Sum of the lanes, which are left empty."""
    for k in range(_16):
        lanes[k] = (lanes[k] + lanes[k + _32]) + (lanes[k + _16] + lanes[k + _48])
    total = 0.0
    for k in range(_16):
        total += lanes[k]
    for k in range(_64):
        lanes[k] = 0.0
    return total


@njit(cache=True, nogil=True)
def _sum_columns(
    sums: NDArray[np.float64], squares: NDArray[np.float64], values: NDArray[np.float32], start: int
) -> None:
    """Add rows to column sums, each column in order, and their squares."""
    columns, i = sums.size, 0
    while i < values.size:
        column = (start + i) % columns
        if column == 0 and values.size - i >= 4 * columns:
            r0, r1 = values[i : i + columns], values[i + columns : i + 2 * columns]
            r2, r3 = values[i + 2 * columns : i + 3 * columns], values[i + 3 * columns : i + 4 * columns]
            for c in range(columns):
                x0, x1, x2, x3 = np.float64(r0[c]), np.float64(r1[c]), np.float64(r2[c]), np.float64(r3[c])
                sums[c] = sums[c] + x0 + x1 + x2 + x3
                squares[c] += (x0 * x0 + x1 * x1) + (x2 * x2 + x3 * x3)
            i += 4 * columns
        else:
            n = min(columns - column, values.size - i)
            for c in range(n):
                x = np.float64(values[i + c])
                sums[column + c] += x
                squares[column + c] += x * x
            i += n


@njit(cache=True, nogil=True)
def fixed(vector: NDArray[np.float64]) -> NDArray[np.int64]:
    """Fixed-point form rint(2³² x) of a unit vector; sums of these are exact in any order."""
    form = np.empty(vector.size, np.int64)
    for i in range(vector.size):
        form[i] = np.int64(np.rint(vector[i] * 2.0**32))
    return form


@njit(cache=True, nogil=True)
def quantise(total: NDArray[np.int64]) -> NDArray[np.int8]:
    """int8 form rint(127 S / max |S|) of a sum of fixed-point vectors; all zero for a zero sum."""
    largest = 1
    for value in total:
        largest = max(largest, abs(value))
    form = np.empty(total.size, np.int8)
    for i in range(total.size):
        form[i] = np.int8(np.rint(127.0 * total[i] / largest))
    return form


def energy(form: NDArray[np.int8]) -> int:
    """Sum of the squares of an int8 form."""
    return int(np.square(form.astype(np.int64)).sum())


def cosine(a: NDArray[np.int8], b: NDArray[np.int8]) -> float:
    """Cosine of two int8 forms, its sums exact; 0 if one of them is zero."""
    product = int(a.astype(np.int64) @ b.astype(np.int64))
    return product / math.sqrt(energy(a) * energy(b)) if product else 0.0


def z1(c: float) -> float:
    """Cosine of two F1 forms in standard deviations of unrelated models, which are 1/32."""
    return 32.0 * c


def level(total: NDArray[np.int64], order: int) -> NDArray[np.int64]:
    """Coarser sketch of 4^order runs (order 0 … 5), each the sum of neighbouring runs."""
    sums: NDArray[np.int64] = total.reshape(4**order, -1).sum(axis=1)
    return sums


def code(form: NDArray[np.int8], bits: int = 256) -> NDArray[np.uint64]:
    """Binary code of an int8 form, in integer arithmetic: 256 bits to search, 1024 to tell matrices apart.

    The entries are given published signs, added in groups of 1024 / ``bits`` and transformed by the Hadamard
    matrix in natural order; bit j (word j // 64, position j % 64) tells whether component j is positive.
    """
    words: NDArray[np.uint64] = _code(form, _bit_signs(), bits)
    return words


@cache
def _bit_signs() -> NDArray[np.int8]:
    return signs(seed("hilm.lineage/bits/1"), RUNS)


@njit(cache=True, nogil=True)
def _code(form: NDArray[np.int8], flips: NDArray[np.int8], bits: int) -> NDArray[np.uint64]:
    group, half = form.size // bits, bits // 2
    y, turned = np.zeros(bits, np.int32), np.empty(bits, np.int32)
    for j in range(bits):
        for i in range(j * group, (j + 1) * group):
            y[j] += form[i] * flips[i]
    stages = half
    while stages:  # each transforms the lowest bit of the index and makes it the highest
        for i in range(half):
            turned[i], turned[half + i] = y[2 * i] + y[2 * i + 1], y[2 * i] - y[2 * i + 1]
        y, turned, stages = turned, y, stages // 2
    words = np.zeros(bits // 64, np.uint64)
    for j in range(bits):
        words[j // 64] |= np.uint64(y[j] > 0) << np.uint64(j % 64)
    return words


def directions(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Directions that 1024-bit codes stand for, uint64 [n, 16] to ±1 times the transform, float64 [n, 1024].

    Their mean cosine with the forms the codes were made of is √(2/π).
    """
    bits = np.unpackbits(words.astype("<u8").view(np.uint8), axis=-1, bitorder="little")
    hadamard = reduce(np.kron, [np.array([[1.0, 1.0], [1.0, -1.0]])] * 10)
    turned: NDArray[np.float64] = (2.0 * bits - 1) @ hadamard * _bit_signs()
    return turned


def code_cosine(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> float:
    """Agreement 1 - 2h/bits of two codes at Hamming distance h; its mean is (2/π)·asin of the cosine."""
    return 1.0 - 2.0 * int(np.bitwise_count(a ^ b).sum()) / (64 * a.size)
