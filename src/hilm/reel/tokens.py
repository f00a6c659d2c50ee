"""Hybrid tokens: any integer below 2^32 as a symbol of a small alphabet plus raw bits.

Magnitudes below 16 are their own token. A larger one keeps its bit length and the two bits below the leading
one in the token; the rest goes uncoded to the raw bits. The sign joins the token: 0, +1, -1, +2, -2, …
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hilm.reel.entropy import pack_raw, unpack_raw
from hilm.reel.kernel import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

LIMIT = 1 << 32
"""Magnitudes must stay below this."""

ALPHABET = 255
"""Symbols that tokens can have."""

PLAIN = 16
"""Tokens below are their own magnitude, without raw bits."""

_TOKENS = np.arange(1, 257) >> 1  # of each symbol
_WIDTHS = np.where(_TOKENS < PLAIN, 0, (_TOKENS - PLAIN) // 4 + 2)
_ONE = np.uint64(1)


def tokenize(values: NDArray[np.int64]) -> tuple[NDArray[np.uint8], bytes]:
    """Turn integers into symbols and packed raw bits.

    Args:
        values: [n], magnitudes below `LIMIT`.
    """
    symbols = np.empty(values.size, np.uint8)
    buffer = np.zeros(values.size // 2 + 2, np.uint64)  # a token has at most 29 raw bits
    return symbols, pack_raw(buffer, _tokenize(values, symbols, buffer))


def detokenize(symbols: NDArray[np.uint8], raw: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Undo `tokenize`.

    Args:
        symbols: [n], below `ALPHABET`.
        raw: Packed raw bits.

    Raises:
        ChecksumMismatch: There are not exactly the raw bits the symbols ask for.
    """
    counts = np.bincount(symbols, minlength=256)
    return _detokenize(symbols, unpack_raw(raw, int(counts @ _WIDTHS)))


@kernel
def _tokenize(values: NDArray[np.int64], symbols: NDArray[np.uint8], buffer: NDArray[np.uint64]) -> int:
    """Fill both outputs; return the number of raw bits."""
    position = 0
    for i in range(values.size):
        magnitude = abs(values[i])
        token = magnitude
        if magnitude >= PLAIN:
            width = 2
            while magnitude >> (width + 3):
                width += 1
            token = PLAIN + 4 * (width - 2) + (magnitude >> width & 3)
            field = np.uint64(magnitude & ((1 << width) - 1))
            shift = np.uint64(position & 63)
            buffer[position >> 6] |= field << shift
            buffer[(position >> 6) + 1] |= field >> _ONE >> (np.uint64(63) - shift)
            position += width
        symbols[i] = 2 * token - (values[i] > 0)
    return position


@kernel
def widen(token: np.int64, width: np.int64, buffer: NDArray[np.uint64], position: int | np.int64) -> np.int64:
    """Magnitude of a token with ``width`` raw bits, which start at ``position``."""
    shift = np.uint64(position & 63)
    field = buffer[position >> 6] >> shift | buffer[(position >> 6) + 1] << _ONE << (np.uint64(63) - shift)
    return (4 + (token & 3)) << width | np.int64(field & ((_ONE << np.uint64(width)) - _ONE))


@kernel
def _detokenize(symbols: NDArray[np.uint8], buffer: NDArray[np.uint64]) -> NDArray[np.int64]:
    values = np.empty(symbols.size, np.int64)
    position = 0
    for i in range(symbols.size):
        magnitude = (np.int64(symbols[i]) + 1) >> 1
        if magnitude >= PLAIN:
            width = _WIDTHS[symbols[i]]
            magnitude = widen(magnitude, width, buffer, position)
            position += width
        values[i] = magnitude if symbols[i] & 1 else -magnitude
    return values
