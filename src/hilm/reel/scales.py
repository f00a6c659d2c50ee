"""Scale classes: which values are coded with which frequency table.

Weights of one row or one column share a scale. The writer measures it as the mean of their exponents and
leading mantissa bits, relative to the slab, in eighths of an octave, sends one small number per row and per
column, and groups the elements by the sum of the two. Everything is integer arithmetic, so both sides agree
to the bit.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from hilm.errors import ChecksumMismatch
from hilm.reel.entropy import decode_stream, decoder_entries, encode_stream, encoder_steps
from hilm.reel.kernel import kernel
from hilm.reel.tables import TOTAL, frequencies, pack_tables, parse_tables, table_codes
from hilm.reel.tokens import ALPHABET, detokenize, tokenize

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_CLASSES = 16
_LOWEST, _HIGHEST = -64, 63  # of one scale
_OFFSET = 128  # added to a sum of two scales it indexes a table of 256
_MIN_SIDE = 32  # a scale must be shared by at least as many elements
_OCTAVE = 128
_DEPTH = 16 * _OCTAVE  # levels are raised to at most this far below the largest
_ONE = np.uint64(1)
_VECTOR = struct.Struct("<HHI")


@dataclass(frozen=True, slots=True, eq=False)
class Scales:
    """Scale classes of one slab.

    Attributes:
        rows: int8 [R], row scales in 1/8 octave; zeros where none are sent; empty if there is one class.
        columns: int8 [C], column scales, likewise.
        thresholds: int16 [n_class - 1], not decreasing; a class is the number of those not above an
            element's scale.
    """

    rows: NDArray[np.int8]
    columns: NDArray[np.int8]
    thresholds: NDArray[np.int16]

    @property
    def n_class(self) -> int:
        """Number of classes, 1 to 16."""
        return self.thresholds.size + 1

    def occupied(self) -> NDArray[np.bool_]:
        """Which classes have elements."""
        if self.n_class == 1:
            return np.ones(1, np.bool_)
        classes = np.searchsorted(self.thresholds, np.arange(-_OFFSET, _OFFSET), side="right")
        return np.bincount(classes, _histogram(self.rows, self.columns), self.n_class) > 0

    def ids(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Classes of the elements ``start`` to ``stop`` (row-major) of the slab."""
        if self.n_class == 1:
            return np.zeros(stop - start, np.uint8)
        return _class_ids(self.rows, self.columns, self.thresholds, start, stop)


def sent_scales(rows: int, columns: int, n_class: int) -> tuple[bool, bool]:
    """Whether a slab of this shape has row scales and column scales in its head."""
    return n_class > 1 and columns >= _MIN_SIDE, n_class > 1 and rows >= _MIN_SIDE


def one_class() -> Scales:
    """All elements of a slab in one class, whatever its shape."""
    return Scales(np.zeros(0, np.int8), np.zeros(0, np.int8), np.zeros(0, np.int16))


def worth_sending(scales: Scales, counts: NDArray[np.int64], tables: int) -> Scales:
    """Merge neighbouring classes as far as their tables cost more than they save.

    Args:
        scales: As measured, 2^k classes.
        counts: [n_class, A], how often each class has each symbol.
        tables: Frequency tables a class will have.
    """
    if scales.n_class == 1:
        return scales
    vectors = sum(len(pack_vector(v)) for v in (scales.rows, scales.columns) if v.any())
    costs = {}
    for merged in (1, 2, 4, 8)[: scales.n_class.bit_length()]:
        sums = counts.reshape(scales.n_class // merged, merged, -1).sum(axis=1)
        codes = table_codes(sums)
        spent = (sums * -np.log2(np.maximum(frequencies(codes), 1) / TOTAL)).sum()
        costs[merged] = spent + 8 * (tables * len(pack_tables(codes)) + vectors * (len(sums) > 1))
    merged = min(costs, key=costs.__getitem__)
    if merged == scales.n_class:
        return one_class()
    return replace(scales, thresholds=scales.thresholds[merged - 1 :: merged])


def measure_scales(words: NDArray[np.unsignedinteger], mantissa: int) -> Scales:
    """Measure the scales of a slab of floats and split its elements into equally full classes.

    Args:
        words: [R, C], unsigned, the stored bits of the values.
        mantissa: Mantissa bits of the type.
    """
    rows, columns = words.shape
    n_class = 8 if words.size >= 65_536 else 4 if words.size >= 8192 else 1
    if n_class == 1:
        return one_class()
    row_sums, column_sums = np.zeros(rows, np.int64), np.zeros(columns, np.int64)
    _sum_levels(words, mantissa, _largest_magnitude(words), row_sums, column_sums)
    sends_rows, sends_columns = sent_scales(rows, columns, n_class)
    row_scales = _relative(row_sums * sends_rows, words.size)
    column_scales = _relative(column_sums * sends_columns, words.size)
    return Scales(row_scales, column_scales, _thresholds(row_scales, column_scales, n_class))


def _relative(sums: NDArray[np.int64], elements: int) -> NDArray[np.int8]:
    """Mean level of each line less that of the slab, rounded from 1/128 to 1/8 octave."""
    above = sums.size * sums - sums.sum()
    scales: NDArray[np.int64] = (2 * above + 16 * elements) // (32 * elements)
    return scales.clip(_LOWEST, _HIGHEST).astype(np.int8)


def _histogram(rows: NDArray[np.int8], columns: NDArray[np.int8]) -> NDArray[np.int64]:
    """How many elements have each sum of scales from -128 to 127."""
    row_counts = np.bincount(rows.astype(np.int64) - _LOWEST, minlength=_OFFSET)
    column_counts = np.bincount(columns.astype(np.int64) - _LOWEST, minlength=_OFFSET)
    return np.append(np.convolve(row_counts, column_counts), 0)


def _thresholds(rows: NDArray[np.int8], columns: NDArray[np.int8], n_class: int) -> NDArray[np.int16]:
    below = n_class * np.cumsum(_histogram(rows, columns))
    wanted = np.arange(1, n_class) * (rows.size * columns.size)
    return (np.searchsorted(below, wanted) - _OFFSET + 1).astype(np.int16)


def _largest_magnitude(words: NDArray[np.unsignedinteger]) -> int:
    """Largest word without its sign, found among the negative words first, then among the others."""
    mask = (1 << (8 * words.itemsize - 1)) - 1
    return max(int(words.max()) & mask, int(words.view(f"<i{words.itemsize}").max()))


@kernel
def _sum_levels(
    words: NDArray[np.unsignedinteger],
    mantissa: int,
    largest: int,
    row_sums: NDArray[np.int64],
    column_sums: NDArray[np.int64],
) -> None:
    """Add up the levels of every row and column; a level is the word without sign at 128 to the octave."""
    mask = (_ONE << np.uint64(words.itemsize * 8 - 1)) - _ONE
    down, up = np.uint64(max(mantissa - 7, 0)), np.uint64(max(7 - mantissa, 0))
    floor = np.int64(np.uint64(largest) >> down << up) - _DEPTH
    for i in range(words.shape[0]):
        total = np.int64(0)
        for j in range(words.shape[1]):
            level = max(np.int64((np.uint64(words[i, j]) & mask) >> down << up), floor)
            total += level
            column_sums[j] += level
        row_sums[i] = total


@kernel
def _class_ids(
    rows: NDArray[np.int8], columns: NDArray[np.int8], thresholds: NDArray[np.int16], start: int, stop: int
) -> NDArray[np.uint8]:
    """Count thresholds one at a time along a row: comparing bytes vectorises, looking classes up does not."""
    ids = np.zeros(stop - start, np.uint8)
    at = start
    while at < stop:
        row = at // columns.size
        part = columns[at - row * columns.size :][: stop - at]
        out = ids[at - start :][: part.size]
        for threshold in thresholds:
            limit = np.int8(min(max(threshold - rows[row], _LOWEST), _HIGHEST + 1))
            for j in range(part.size):
                out[j] += part[j] >= limit
        at += part.size
    return ids


def pack_vector(values: NDArray[np.int8] | NDArray[np.int64]) -> bytes:
    """Write a short vector: its own frequency table and one entropy-coded stream of tokens."""
    symbols, raw = tokenize(values.astype(np.int64))
    counts = np.bincount(symbols, minlength=1)[None]
    codes = table_codes(counts)
    table = pack_tables(codes)
    ids = np.zeros(symbols.size, np.uint8)
    body = encode_stream(symbols, ids, encoder_steps(frequencies(codes)), raw)
    return _VECTOR.pack(counts.size, len(table), len(body)) + table + body


def parse_vector(
    data: bytes, offset: int, size: int, lowest: int = _LOWEST, highest: int = _HIGHEST
) -> tuple[NDArray[np.int64], int]:
    """Read a vector of ``size`` integers; return it and the offset behind it.

    Raises:
        ChecksumMismatch: The vector is malformed, goes beyond the end, or holds a value out of bounds.
    """
    if len(data) < offset + _VECTOR.size:
        raise ChecksumMismatch("slab head ends within a vector")
    alphabet, table_size, body_size = _VECTOR.unpack_from(data, offset)
    table_at = offset + _VECTOR.size
    body_at = table_at + table_size
    stop = body_at + body_size
    if not 1 <= alphabet <= ALPHABET or stop > len(data):
        raise ChecksumMismatch(f"vector with {alphabet} symbols, {stop - offset} bytes")
    codes = parse_tables(memoryview(data)[table_at:body_at], 1, alphabet)
    if not codes.any():
        raise ChecksumMismatch("vector with an empty frequency table")
    entries = decoder_entries(frequencies(codes))
    symbols, raw = decode_stream(memoryview(data)[body_at:stop], np.zeros(size, np.uint8), entries)
    values = detokenize(symbols, raw)
    if values.min() < lowest or values.max() > highest:
        raise ChecksumMismatch(f"vector with a value outside {lowest} to {highest}")
    return values, stop
