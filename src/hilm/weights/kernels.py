"""Compiled loops, imported where they are used: the compiler takes time to load, and 100 MB."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import njit

if TYPE_CHECKING:
    from numpy.typing import NDArray


@njit(cache=True, nogil=True)
def extract_fields(
    words: NDArray[np.uint32], places: NDArray[np.int64], bits: int, out: NDArray[np.float32]
) -> None:
    """Fields of little-endian bit streams along the first axis.

    Args:
        words: ``[W, n]``.
        places: ``[m]`` first bit of every field.
        bits: Of a field; it may go on in the next word.
        out: ``[m, n]``.
    """
    for i, place in enumerate(places):
        word, shift = place // 32, place % 32
        for j in range(words.shape[1]):
            field = np.int64(words[word, j]) >> shift
            if shift + bits > 32:
                field |= np.int64(words[word + 1, j]) << 32 - shift
            out[i, j] = field & (1 << bits) - 1


@njit(cache=True, nogil=True)
def scale_rows(
    out: NDArray[np.float32],
    zeros: NDArray[np.float32],
    scales: NDArray[np.float32],
    groups: NDArray[np.int64],
) -> None:
    """Turn codes ``[n, C]`` into (code - zero)·scale, of the column's group in ``[n, G]``."""
    for row in range(len(out)):
        for column in range(out.shape[1]):
            group = groups[column]
            out[row, column] = (out[row, column] - zeros[row, group]) * scales[row, group]
