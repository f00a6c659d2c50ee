"""Published pseudo-random signs: one bit per element, random access by index.

``seed(text)`` names a stream; word ``i`` of the stream is output ``i`` of SplitMix64 started from that seed.
Element ``64 w + k`` carries the sign -1 where bit ``k`` (least significant first) of word ``w`` is set,
else +1. Seeds are part of the stored format: within a catalog they never change.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
from numba import njit

if TYPE_CHECKING:
    from numpy.typing import NDArray

_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_ONE, _27, _30, _31 = (np.uint64(n) for n in (1, 27, 30, 31))


def seed(text: str) -> np.uint64:
    """Seed of a named stream: the first 8 bytes, little-endian, of BLAKE2b-64 of the ASCII ``text``."""
    return np.uint64(int.from_bytes(hashlib.blake2b(text.encode("ascii"), digest_size=8).digest(), "little"))


@njit(inline="always")
def word(seed: np.uint64, index: int) -> np.uint64:
    """Output ``index`` of SplitMix64; callable from other kernels."""
    z = seed + (np.uint64(index) + _ONE) * _STEP
    z = (z ^ (z >> _30)) * _MIX_1
    z = (z ^ (z >> _27)) * _MIX_2
    return np.uint64(z ^ (z >> _31))


@njit(cache=True, nogil=True)
def words(seed: np.uint64, start: int, count: int) -> NDArray[np.uint64]:
    """Return words ``start`` … ``start + count - 1`` of a stream as uint64."""
    out = np.empty(count, np.uint64)
    for i in range(count):
        out[i] = word(seed, start + i)
    return out


def signs(seed: np.uint64, count: int) -> NDArray[np.int8]:
    """Return the signs of elements 0 … ``count - 1`` as ±1 int8."""
    stored = words(seed, 0, -(-count // 64)).astype("<u8").view(np.uint8)
    bits = np.unpackbits(stored, count=count, bitorder="little").astype(np.int8)
    return np.int8(1) - np.int8(2) * bits
