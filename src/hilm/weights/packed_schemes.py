"""Decoding of packed tensors to float32, row group by row group.

Formulas and bit orders are those of the programs that write each format. Multiplying a code of at most eight
bits by a half-precision scale is exact in float32.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from hilm.errors import CorruptCheckpoint, MemoryLimitError, PackedFormatUnsupported
from hilm.weights.dtypes import DTYPES, decode
from hilm.weights.tensor import BLOCK_VALUES

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from hilm.weights.byte_source import Reader
    from hilm.weights.tensor import TensorInfo

    Decoder = Callable[["Packed", "Parts", int, int], NDArray[np.float32]]

PART_MEMORY = 1 << 30
"""Bytes of a part that is kept in memory while its tensor is read: scales, zero points, transposed codes."""

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""Values of the 4-bit float of MXFP4 and NVFP4 by code."""

_AWQ_ORDER = np.array([0, 4, 1, 5, 2, 6, 3, 7])  # place of each of eight columns in a word
_OVER_127 = np.float32(7.874015718698502e-3)  # bitsandbytes multiplies by the reciprocal


@dataclass(frozen=True, slots=True)
class Packed:
    """How one tensor is packed.

    Attributes:
        scheme: What people call it, such as ``GPTQ4``.
        bits: Bits of a code.
        decode: ``decode(packed, parts, start, stop)`` returns rows as float32 ``[stop - start, columns]``.
        parts: What it is decoded from: what each is, and where.
        rows: Rows of one matrix R; a stack has several times as many.
        columns: Values of a row C.
        group: Sides ``(rows, columns)`` of what shares a scale; those of a codebook go on in the next row.
        zero: Added to stored zero points.
        nested: Values that share a scale of scales, and what is added to these, where scales are packed too.
    """

    scheme: str
    bits: int
    decode: Decoder
    parts: tuple[tuple[str, TensorInfo], ...]
    rows: int
    columns: int
    group: tuple[int, int]
    zero: int = 0
    nested: tuple[int, float] = (0, 0.0)


@dataclass(frozen=True, slots=True)
class Parts:
    """Reads the parts of one packed tensor; those read whole are kept.

    Attributes:
        infos: The parts by what they are.
        source: Gives what reads a part's bytes in order.
    """

    infos: dict[str, TensorInfo]
    source: Callable[[TensorInfo], Reader]
    _kept: dict[str, NDArray[Any]] = field(default_factory=dict)

    def run(self, part: str, start: int, stop: int) -> NDArray[Any]:
        """Values ``start`` to ``stop`` (flat): integers as they are, floats as float32."""
        info = self.infos[part]
        words = np.empty(info.type.nbytes(stop - start), np.uint8)
        self.source(info).read_into(info.span.start + info.type.nbytes(start), words)
        if info.type.kind in {"int", "uint"}:
            return words.view(info.type.word.str.replace("u", info.type.kind[0]))
        out = np.empty(stop - start, np.float32)
        decode(info.type, words, out)
        return out

    def whole(self, part: str) -> NDArray[Any]:
        """A whole part in its own shape.

        Raises:
            MemoryLimitError: It has more than ``PART_MEMORY`` bytes.
        """
        if part not in self._kept:
            info = self.infos[part]
            if info.nbytes > PART_MEMORY:
                raise MemoryLimitError(f"{info.name} has {info.nbytes:,} bytes, too many to keep")
            self._kept[part] = self.run(part, 0, info.numel).reshape(info.shape)
        return self._kept[part]


@dataclass(frozen=True, slots=True)
class PackedSource:
    """The values of a packed tensor as little-endian float32, at the positions they would have in a file.

    Attributes:
        packed: How to decode it.
        load: Gives its parts.
        start: Position of the first byte.
    """

    packed: Packed
    load: Callable[[], Parts]
    start: int

    def read_into(self, start: int, out: NDArray[np.uint8]) -> None:
        """Fill ``out`` with the bytes from ``start`` on, decoding as many rows at a time as a block has."""
        values, columns, parts = out.view("<f4"), self.packed.columns, self.load()
        first = (start - self.start) // 4
        last = first + len(values)
        step = max(BLOCK_VALUES // columns, 1)
        with np.errstate(over="ignore", invalid="ignore"):  # scales may be infinite or NaN
            for row in range(first // columns, -(-last // columns), step):
                stop = min(row + step, -(-last // columns))
                rows = self.packed.decode(self.packed, parts, row, stop).reshape(-1)
                begin, end = max(row * columns, first), min(stop * columns, last)
                values[begin - first : end - first] = rows[begin - row * columns : end - row * columns]


def gptq(packed: Packed, parts: Parts, start: int, stop: int) -> NDArray[np.float32]:
    """(q - z)·s, with q [in, out] packed along ``in``, z [groups, out] along ``out``, s [groups, out]."""
    places, bits = np.arange(packed.columns) * packed.bits, packed.bits
    codes = _fields(parts.whole("qweight")[:, start:stop], places, bits)
    zeros = _fields(parts.whole("qzeros").T, np.arange(start, stop) * bits, bits)
    scales = parts.whole("scales").T[start:stop]
    return _scale(codes.T, zeros + np.float32(packed.zero), scales, _groups(packed, parts))


def awq(packed: Packed, parts: Parts, start: int, stop: int) -> NDArray[np.float32]:
    """(q - z)·s, with q [in, out] and z [groups, out] packed along ``out`` in an order of its own."""
    column = np.arange(start, stop)
    places = (column // 8 * 8 + _AWQ_ORDER[column % 8]) * 4
    codes, zeros = (_fields(parts.whole(part).T, places, 4) for part in ("qweight", "qzeros"))
    return _scale(codes, zeros, parts.whole("scales").T[start:stop], _groups(packed, parts))


def integers(packed: Packed, parts: Parts, start: int, stop: int) -> NDArray[np.float32]:
    """(q - z)·s of compressed-tensors, with q [out, in] packed along ``in``, z along ``out``."""
    width = parts.infos["codes"].shape[1]
    words = parts.run("codes", start * width, stop * width).reshape(-1, width)
    codes = _fields(words.T, np.arange(packed.columns) * packed.bits, packed.bits).T
    zeros = np.full((1, 1), 1 << packed.bits - 1, np.float32)
    if "zero_point" in parts.infos:
        stored = parts.whole("zero_point")
        if stored.dtype == np.int8:
            zeros = stored[start:stop] + zeros
        else:
            zeros = _fields(stored, np.arange(start, stop) * packed.bits, packed.bits)
    scales = parts.whole("scales").reshape(packed.rows, -1)[start:stop]
    return _scale(codes, zeros, scales, _groups(packed, parts))


def scaled(packed: Packed, parts: Parts, start: int, stop: int) -> NDArray[np.float32]:
    """(q - z)·s of FP8 or whole bytes q [..., out, in], with s and z for rectangles of every matrix."""
    codes = parts.run("weight", start * packed.columns, stop * packed.columns).reshape(-1, packed.columns)
    high, wide = packed.group
    height, width = -(-packed.rows // high), -(-packed.columns // wide)
    row = np.arange(start, stop)
    band = row // packed.rows * height + row % packed.rows // high
    scales = parts.whole("scale").reshape(-1, width)
    zeros = np.zeros((1, 1), np.float32)
    if "zero_point" in parts.infos:
        zeros = parts.whole("zero_point").reshape(-1, width).astype(np.float32)
    scales, zeros = (t[band if len(t) > 1 else np.zeros_like(band)] for t in (scales, zeros))
    return _scale(codes, zeros, scales, _groups(packed, parts))


def int8_rows(packed: Packed, parts: Parts, start: int, stop: int) -> NDArray[np.float32]:
    """q·SCB/127 of bitsandbytes, SCB the largest magnitude of a row."""
    if "format" in parts.infos and parts.whole("format").any():
        raise PackedFormatUnsupported("bitsandbytes int8 weights in the layout of one kind of GPU")
    return scaled(packed, parts, start, stop) * _OVER_127


def codebook(packed: Packed, parts: Parts, start: int, stop: int) -> NDArray[np.float32]:
    """code[q]·absmax of bitsandbytes NF4 and FP4; the first of two values is in the upper half of a byte."""
    first, last, group = start * packed.columns, stop * packed.columns, packed.group[1]
    low, high = first // group, -(-last // group)
    absmax = parts.run("absmax", low, high)
    size, offset = packed.nested
    if size:  # the scales are codes of 8 bits themselves
        outer = parts.whole("nested_absmax")[np.arange(low, high) // size]
        absmax = parts.whole("nested_quant_map")[absmax] * outer + np.float32(offset)
    book = parts.whole("quant_map")
    raw = parts.run("weight", first // 2, -(-last // 2))
    values = _pairs(raw, np.stack([np.repeat(book, 16), np.tile(book, 16)], axis=1))
    values = values[first % 2 :][: last - first]
    values *= np.repeat(absmax, group)[first - low * group :][: last - first]
    return values.reshape(-1, packed.columns)


def small_floats(packed: Packed, parts: Parts, start: int, stop: int) -> NDArray[np.float32]:
    """e2m1[q]·s of MXFP4 and NVFP4; the first of two values is in the lower half of a byte."""
    half, groups = packed.columns // 2, packed.columns // packed.group[1]
    codes = _pairs(parts.run("codes", start * half, stop * half), _e2m1_pairs()).reshape(-1, packed.columns)
    scales = parts.run("scales", start * groups, stop * groups)
    if "global" in parts.infos:
        scales = scales / parts.whole("global").reshape(())
    else:
        exponents, scales = scales, np.empty(len(scales), np.float32)
        decode(DTYPES["F8_E8M0"], exponents, scales)
    values: NDArray[np.float32] = codes.reshape(-1, packed.group[1]) * scales[:, None]
    return values.reshape(-1, packed.columns)


def _groups(packed: Packed, parts: Parts) -> NDArray[np.int64]:
    """Group of every column: as stored, else runs of columns."""
    groups = -(-packed.columns // packed.group[1])
    if "g_idx" not in parts.infos:
        return np.arange(packed.columns) // packed.group[1]
    stored = parts.whole("g_idx").astype(np.int64)
    if not 0 <= stored.min() <= stored.max() < groups:
        name = parts.infos["g_idx"].name
        raise CorruptCheckpoint(f"{name} names group {stored.max()} or {stored.min()} of {groups}")
    return stored


def _fields(words: NDArray[Any], places: NDArray[np.int64], bits: int) -> NDArray[np.float32]:
    """Fields of little-endian bit streams along the first axis.

    Args:
        words: 32-bit ``[W, n]``.
        places: First bit of every field.
        bits: Of a field; it may go on in the next word.
    """
    from hilm.weights.kernels import extract_fields  # noqa: PLC0415 - few checkpoints are packed

    out = np.empty((len(places), words.shape[1]), np.float32)
    extract_fields(words.view(np.uint32), places, bits, out)
    return out


def _pairs(raw: NDArray[np.uint8], table: NDArray[np.float32]) -> NDArray[np.float32]:
    """Two values for every byte, from a table [256, 2]."""
    values: NDArray[np.float32] = np.take(table.view(np.uint64)[:, 0], raw).view(np.float32)
    return values


@cache
def _e2m1_pairs() -> NDArray[np.float32]:
    return np.stack([np.tile(E2M1, 16), np.repeat(E2M1, 16)], axis=1)


def _scale(
    codes: NDArray[Any], zeros: NDArray[np.float32], scales: NDArray[np.float32], groups: NDArray[np.int64]
) -> NDArray[np.float32]:
    """(codes - zeros)·scales, with codes [n, C], and zeros and scales [n, G] for groups of columns."""
    from hilm.weights.kernels import scale_rows  # noqa: PLC0415 - few checkpoints are packed

    out = np.ascontiguousarray(codes, np.float32)
    shape = len(out), max(zeros.shape[1], scales.shape[1])
    scale_rows(out, *(np.ascontiguousarray(np.broadcast_to(t, shape)) for t in (zeros, scales)), groups)
    return out
