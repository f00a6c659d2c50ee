"""Stored words as symbols: how each element type is split into a coded symbol and uncoded raw bits.

Floats are rotated left by one bit, which puts the sign last: the top ``b`` bits (exponent and the first
mantissa bits) are the symbol, the rest is raw. It is a permutation of bits, so NaN payloads, infinities, -0
and subnormals need no special case. Wide integers become hybrid tokens; the rest is coded byte by byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from hilm.reel.entropy import pack_raw
from hilm.reel.kernel import kernel
from hilm.reel.layout import CHUNK_ELEMENTS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hilm.weights.dtypes import DType

    Floats = NDArray[np.float32] | NDArray[np.float64]

_MANTISSA = {
    "F64": 52,
    "F32": 23,
    "C64": 23,
    "F16": 10,
    "BF16": 7,
    "F8_E4M3": 3,
    "F8_E4M3FNUZ": 3,
    "F8_E5M2": 2,
    "F8_E5M2FNUZ": 2,
}
_ONE = np.uint64(1)


@dataclass(frozen=True, slots=True)
class WordView:
    """One slab as a matrix of words.

    Attributes:
        kind: How words become symbols.
        word: Unsigned little-endian type.
        rows: R.
        columns: C.
        mantissa: Mantissa bits of a float type.
        signed: Whether integers are two's complement.
        spans: First and last-plus-one word of chunks that are cut otherwise than by their number.
    """

    kind: Literal["float", "token", "byte"]
    word: np.dtype[np.unsignedinteger]
    rows: int
    columns: int
    mantissa: int = 0
    signed: bool = False
    spans: tuple[tuple[int, int], ...] = ()

    @property
    def size(self) -> int:
        """Number of words."""
        return self.rows * self.columns

    @property
    def nbytes(self) -> int:
        """Stored bytes."""
        return self.size * self.word.itemsize

    @property
    def symbol_bits(self) -> int:
        """Bits of a float that the symbol takes at first: the exponent and two of the mantissa."""
        return max(7, 8 * self.word.itemsize - self.mantissa + 1)

    def ranges(self) -> list[tuple[int, int]]:
        """First and last-plus-one word of every chunk."""
        starts = range(0, self.size, CHUNK_ELEMENTS)
        return list(self.spans) or [(start, min(start + CHUNK_ELEMENTS, self.size)) for start in starts]


def word_view(dtype: DType, rows: int, columns: int) -> WordView:
    """See a slab of ``rows`` x ``columns`` words of a type.

    Complex numbers are two words each; values that share bytes (4 and 6 bit, quantised blocks)
    are seen as those bytes.
    """
    if dtype.name in _MANTISSA:
        return WordView("float", dtype.word, rows, columns, _MANTISSA[dtype.name])
    if dtype.word.itemsize > 1:
        return WordView("token", dtype.word, rows, columns, signed=dtype.kind == "int")
    return WordView("byte", dtype.word, rows, columns)


def as_floats(words: NDArray[np.unsignedinteger], view: WordView) -> Floats:
    """Values of stored floats of 16 bits or more: float64 of F64, float32 of all others, exactly."""
    if view.mantissa == _MANTISSA["BF16"]:
        return (words.astype("<u4") << np.uint32(16)).view("<f4")
    floats: Floats = words.view(f"<f{words.itemsize}")
    return floats.astype(np.float32) if words.itemsize == 2 else floats


def as_words(values: NDArray[np.float32], view: WordView) -> NDArray[np.unsignedinteger]:
    """Stored words of values, rounded to the nearest, ties to even; what is too large becomes infinite."""
    if view.mantissa == _MANTISSA["BF16"]:
        bits = values.view(np.uint32)
        return ((bits + (bits >> 16 & 1) + np.uint32(0x7FFF)) >> np.uint32(16)).astype(view.word)
    with np.errstate(over="ignore"):
        return values.astype(f"<f{view.word.itemsize}").view(view.word)


def split_floats(
    words: NDArray[np.unsignedinteger], bits: int, index: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], bytes]:
    """Split words into symbols and packed raw bits.

    Args:
        words: [n].
        bits: Bits taken by the symbol, b.
        index: Symbol of each of the 2^b possible leading parts.
    """
    width = 8 * words.itemsize - bits
    symbols = np.empty(words.size, np.uint8)
    buffer = np.zeros(words.size * width // 64 + 2, np.uint64)
    _split(words, bits, index, symbols, buffer)
    return symbols, pack_raw(buffer, words.size * width)


@kernel
def count_leading(
    words: NDArray[np.unsignedinteger], ids: NDArray[np.uint8], bits: int, counts: NDArray[np.int64]
) -> None:
    """Add to ``counts`` [T, 2^b] the leading ``bits`` (sign aside) of every word, by table id."""
    top = words.itemsize * 8 - 1
    mask = (_ONE << np.uint64(top)) - _ONE
    drop = np.uint64(top - bits)
    for i in range(words.size):
        counts[np.uint64(ids[i]), (np.uint64(words[i]) & mask) >> drop] += 1


@kernel
def _split(
    words: NDArray[np.unsignedinteger],
    bits: int,
    index: NDArray[np.uint8],
    symbols: NDArray[np.uint8],
    buffer: NDArray[np.uint64],
) -> None:
    top = np.uint64(words.itemsize * 8 - 1)
    drop = top - np.uint64(bits)
    width = drop + _ONE
    value_mask = (_ONE << np.uint64(bits)) - _ONE
    low_mask = (_ONE << drop) - _ONE
    pending, filled, at = np.uint64(0), np.uint64(0), 0
    for i in range(words.size):
        word = np.uint64(words[i])
        symbols[i] = index[word >> drop & value_mask]
        raw = (word & low_mask) << _ONE | word >> top
        pending |= raw << filled
        filled += width
        if filled >= np.uint64(64):
            buffer[at] = pending
            at += 1
            filled -= np.uint64(64)
            pending = raw >> (width - filled)
    buffer[at] = pending


@kernel
def join_floats(
    symbols: NDArray[np.uint8],
    values: NDArray[np.uint64],
    bits: int,
    buffer: NDArray[np.uint64],
    words: NDArray[np.unsignedinteger],
) -> None:
    """Undo `split_floats` into ``words`` [n].

    Args:
        symbols: [n], each below the length of ``values``.
        values: Leading part of each symbol.
        bits: Bits taken by the symbol, b.
        buffer: Raw bits as `hilm.reel.entropy.unpack_raw` returns them.
        words: [n], written in full.
    """
    top = np.uint64(words.itemsize * 8 - 1)
    drop = top - np.uint64(bits)
    width = drop + _ONE
    mask = (_ONE << width) - _ONE
    pending, left, at = buffer[0], np.uint64(64), np.uint64(1)
    for i in range(words.size):
        raw = pending
        if left < width:
            pending = buffer[at]
            at += _ONE
            raw |= pending << left
            pending >>= width - left
            left += np.uint64(64) - width
        else:
            pending >>= width
            left -= width
        raw &= mask
        words[i] = (raw & _ONE) << top | values[np.uint64(symbols[i])] << drop | raw >> _ONE
