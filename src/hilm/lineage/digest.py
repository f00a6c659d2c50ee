"""F0: digests of a tensor's values, for identity.

Digests see canonical values, row-major and little-endian: -0.0 becomes +0.0 and every NaN the quiet NaN.
A digest is the first 8 bytes of SHA-256(header ‖ body length as u64 ‖ body). A body over 32,768 bytes is
first folded into 4096 lanes of 64 bits: lane ``l`` starts at (l + 1)·M, and word ``w`` (the last one padded
with zeros) updates lane ``w mod 4096`` by x = (lane ^ word)·K, lane = x ^ x≫32. Every step is a bijection,
so one changed word always changes the lanes.

This finds equal tensors; it does not resist forgery, for which hash whole files.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

from hilm.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

_LANES = 4096
_DIRECT = 8 * _LANES  # bytes of a body that is hashed as it is
_KEPT = _DIRECT // 2  # values of a tensor kept whole until the end: its bfloat16 body is hashed as it is
_ROUND = 4 * _LANES  # words folded together: a lane is loaded once for four of them
_BLOCK = 4 * _ROUND  # values encoded at a time: a round of bfloat16 words, and small enough for the cache
_TILE = 4096  # values scanned, then rounded, while they sit in the first-level cache

_K = np.uint64(0x9E3779B97F4A7C15)
_M = np.uint64(0xBF58476D1CE4E5B9)
_START = np.arange(1, _LANES + 1, dtype=np.uint64) * _M
_S32 = np.uint64(32)
_ZERO, _ONE, _S16 = np.uint32(0), np.uint32(1), np.uint32(16)
_LOW, _HALF, _MAGNITUDE = np.uint32(0xFFFF), np.uint32(0x7FFF), np.uint32(0x7FFFFFFF)
_LAST, _INFINITY, _MINUS_INFINITY = np.uint32(0xFFFFFFFF), np.uint32(0x7F800000), np.uint32(0xFF800000)
_NAN, _FIRST_NAN = np.uint32(0x7FC00000), np.uint32(0x7F800001)
_TINY = np.uint32(0x80008000 - 0x7F800001)  # 0x80008000, -2^-134, is the last to become -0.0 in bfloat16
_ZERO16, _MINUS_ZERO16, _MAGNITUDE16 = np.uint16(0), np.uint16(0x8000), np.uint16(0x7FFF)
_INFINITY16, _NAN16 = np.uint16(0x7F80), np.uint16(0x7FC0)


@dataclass(frozen=True, slots=True)
class TensorDigest:
    """Digests of one tensor, 8 bytes each.

    Attributes:
        exact: Of the float32 values. If bfloat16 holds every value exactly it is derived from ``half``,
            so that a bfloat16 tensor and its float32 up-cast share it.
        half: Of the values rounded to bfloat16, nearest even.
        prefix: ``half`` of the leading rows alone, where asked for: vocabularies grow at their end.
    """

    exact: bytes
    half: bytes
    prefix: bytes | None = None


def model_digest(exact: Iterable[bytes]) -> bytes:
    """SHA-256 (32 bytes) over the ``exact`` digests of all tensors in byte order, repetitions kept."""
    return hashlib.sha256(b"".join(sorted(exact))).digest()


class DigestAccumulator:
    """Digests of one tensor, fed its values in order and in pieces of any size.

    Args:
        dtype: Stored dtype in safetensors spelling; ``BF16`` is hashed from its stored words.
        shape: Shape of the tensor.
        prefix_values: Also digest this many leading values: whole rows, or all if the tensor has fewer.

    Raises:
        UsageError: A prefix that cannot be digested on the way through a long tensor.
    """

    def __init__(self, dtype: str, shape: tuple[int, ...], *, prefix_values: int | None = None) -> None:
        self._shape, self._size = shape, math.prod(shape)
        self._cut = None if prefix_values is None else min(prefix_values, self._size)
        if (
            self._cut is not None
            and self._cut < self._size
            and (self._cut % 4 or self._cut <= _KEPT < self._size)
        ):
            raise UsageError(f"cannot digest {self._cut} of {self._size} values alone", hint="take more rows")
        self._stored = dtype == "BF16"
        self._rest: NDArray[Any] = np.empty(0, np.uint16 if self._stored else np.uint32)
        self._position = 0
        self._exact = True
        self._prefix: bytes | None = None
        if self._size > _KEPT:
            self._lanes = _START.copy(), _START.copy()
            self._scratch = np.empty(_BLOCK, np.uint32), np.empty(_BLOCK, np.uint16)

    def update(self, values: NDArray[np.float32], words: NDArray[np.uint8]) -> None:
        """Take the next values, as float32 and as the bytes they are stored in (read for ``BF16`` alone).

        They must not change before the next call, be it ``finish``.
        """
        bits = words.view("<u2") if self._stored else values.view(np.uint32)
        if self._size <= _KEPT:
            self._rest = np.concatenate([self._rest, bits]) if self._rest.size else bits
            return
        ahead = 0 if self._cut is None else self._cut - self._position - self._rest.size
        if 0 < ahead <= bits.size:
            self._take(bits[:ahead])
            self._prefix = self._digest("b16", self._lanes[1], self._position)
            bits = bits[ahead:]
        self._take(bits)

    def finish(self) -> TensorDigest:
        """Digest what was fed.

        Raises:
            UsageError: More or fewer values were fed than the shape holds.
        """
        if self._position + self._rest.size != self._size:
            raise UsageError(f"{self._position + self._rest.size} values fed for a tensor of {self._size}")
        return self._finish_kept() if self._size <= _KEPT else self._finish_lanes()

    def _take(self, bits: NDArray[Any]) -> None:
        """Fold whole groups of four values (one bfloat16 word) and keep the rest for the next piece."""
        if self._rest.size:
            missing = -self._rest.size % 4
            self._rest, bits = np.concatenate([self._rest, bits[:missing]]), bits[missing:]
            if self._rest.size % 4:
                return
            self._fold(self._rest, self._rest.size)
        whole = bits.size // 4 * 4
        self._fold(bits[:whole], whole)
        self._rest = bits[whole:].copy()

    def _fold(self, bits: NDArray[Any], count: int) -> None:
        if self._stored:
            _fold_half(self._lanes[1], self._scratch[1], self._position // 4, bits)
        else:
            self._exact &= _fold_both(self._lanes, self._scratch, self._position, bits, count)
        self._position += count

    def _finish_lanes(self) -> TensorDigest:
        if count := self._rest.size:
            padded = np.zeros(4, self._rest.dtype)
            padded[:count] = self._rest
            self._rest = self._rest[:0]
            self._fold(padded, count)
        return self._assemble(*self._lanes, self._prefix)

    def _finish_kept(self) -> TensorDigest:
        half = np.empty(self._size, np.uint16)
        exact = np.zeros(self._size + self._size % 2, np.uint32)  # whole words
        if self._stored:
            _canonical_half(self._rest, half)
        else:
            self._exact = _encode_special(self._rest, exact[: self._size], half)
        prefix = None if self._cut is None else self._digest("b16", half[: self._cut], self._cut)
        if self._exact or 4 * self._size <= _DIRECT:
            return self._assemble(exact[: self._size], half, prefix)
        lanes = _START.copy()
        _fold(lanes, 0, exact.view(np.uint64))
        return self._assemble(lanes, half, prefix)

    def _assemble(self, exact: NDArray[Any], half: NDArray[Any], prefix: bytes | None) -> TensorDigest:
        h = self._digest("b16", half, self._size)
        if self._exact:
            x = hashlib.sha256(b"exact-b16|" + h).digest()[:8]
        else:
            x = self._digest("f32", exact, self._size)
        return TensorDigest(x, h, h if self._cut == self._size else prefix)

    def _digest(self, kind: str, body: NDArray[Any], count: int) -> bytes:
        """Digest the first ``count`` values, given as a body that is short enough or folded."""
        rows = self._shape if count == self._size else (count // math.prod(self._shape[1:]), *self._shape[1:])
        header = f"{kind}|{'x'.join(map(str, rows))}|".encode()
        length = (count * (2 if kind == "b16" else 4)).to_bytes(8, "little")
        return hashlib.sha256(b"".join((header, length, body.data))).digest()[:8]


@njit(inline="always")
def _mix(lane: np.uint64, word: np.uint64) -> np.uint64:
    x = (lane ^ word) * _K
    return np.uint64(x ^ (x >> _S32))


@njit(nogil=True)
def _fold_round(lanes: NDArray[np.uint64], words: NDArray[np.uint64]) -> None:
    """Fold four words into each lane, a turn of all lanes apart."""
    n = lanes.size
    w0, w1 = words[:n], words[_LANES : _LANES + n]
    w2, w3 = words[2 * _LANES : 2 * _LANES + n], words[3 * _LANES : 3 * _LANES + n]
    for i in range(n):
        lanes[i] = _mix(_mix(_mix(_mix(lanes[i], w0[i]), w1[i]), w2[i]), w3[i])


@njit(cache=True, nogil=True)
def _fold(lanes: NDArray[np.uint64], first: int, words: NDArray[np.uint64]) -> None:
    """Fold words into the lanes, the first of them being word number ``first`` of its body."""
    first = first % _LANES
    i = 0
    while i + _ROUND <= words.size:
        _fold_round(lanes[first:], words[i:])
        _fold_round(lanes[:first], words[i + _LANES - first :])
        i += _ROUND
    while i < words.size:
        lane = (first + i) % _LANES
        n = min(_LANES - lane, words.size - i)
        target, source = lanes[lane : lane + n], words[i : i + n]
        for j in range(n):
            target[j] = _mix(target[j], source[j])
        i += n


@njit(cache=True, nogil=True)
def _fold_both(
    lanes: tuple[NDArray[np.uint64], NDArray[np.uint64]],
    scratch: tuple[NDArray[np.uint32], NDArray[np.uint16]],
    position: int,
    bits: NDArray[np.uint32],
    count: int,
) -> bool:
    """Fold ``count`` float32 words, padded to a multiple of 4, the first being value number ``position``.

    Returns:
        Whether bfloat16 holds them all.
    """
    exact = True
    for i in range(0, count, _BLOCK):
        n = min(_BLOCK, count - i)
        tile, half = bits[i : i + (n + 3) // 4 * 4], scratch[1][: (n + 3) // 4 * 4]
        special, fits = _encode(tile, half)
        if special:
            canonical = scratch[0][: tile.size]
            fits = _encode_special(tile, canonical, half)
            _fold(lanes[0], (position + i) // 2, canonical.view(np.uint64)[: (n + 1) // 2])
        else:
            _fold(lanes[0], (position + i) // 2, tile.view(np.uint64)[: (n + 1) // 2])
        _fold(lanes[1], (position + i) // 4, half.view(np.uint64))
        exact = exact and fits
    return exact


@njit(cache=True, nogil=True)
def _fold_half(
    lanes: NDArray[np.uint64], scratch: NDArray[np.uint16], first: int, words: NDArray[np.uint16]
) -> None:
    """Fold stored bfloat16 words, a multiple of four."""
    for i in range(0, words.size, _BLOCK):
        n = min(_BLOCK, words.size - i)
        _canonical_half(words[i : i + n], scratch)
        _fold(lanes, first + i // 4, scratch[:n].view(np.uint64))


@njit(cache=True, nogil=True)
def _encode(bits: NDArray[np.uint32], half: NDArray[np.uint16]) -> tuple[bool, bool]:
    """Round float32 words to bfloat16, nearest even, by integers.

    Returns:
        Whether a word has a second spelling (NaN, negative zero) or gets one by rounding, so that ``half``
        is not to be used; whether rounding changed none.
    """
    least, greatest, union = _LAST, _ZERO, _ZERO
    for i in range(0, bits.size, _TILE):
        tile, out = bits[i : i + _TILE], half[i : i + _TILE]
        for j in range(tile.size):
            # Positive NaNs, negative zero and the tiniest negative numbers follow one another.
            least = min(least, np.uint32(tile[j] - _FIRST_NAN))
            greatest = max(greatest, tile[j])
        for j in range(tile.size):
            b = tile[j]
            union = np.uint32(union | b)
            out[j] = np.uint16(np.uint32(b + _HALF + ((b >> _S16) & _ONE)) >> _S16)
    return bool(least <= _TINY or greatest > _MINUS_INFINITY), bool(union & _LOW == _ZERO)


@njit(cache=True, nogil=True)
def _encode_special(
    bits: NDArray[np.uint32], canonical: NDArray[np.uint32], half: NDArray[np.uint16]
) -> bool:
    """Like ``_encode`` for words that need a canonical spelling first."""
    for i in range(bits.size):
        magnitude = np.uint32(bits[i] & _MAGNITUDE)
        numeric = bits[i] if magnitude <= _INFINITY else _NAN
        canonical[i] = numeric if magnitude != _ZERO else _ZERO
    fits: bool = _encode(canonical, half)[1]
    for j in range(half.size):
        half[j] = half[j] if half[j] != _MINUS_ZERO16 else _ZERO16
    return fits


@njit(cache=True, nogil=True)
def _canonical_half(words: NDArray[np.uint16], out: NDArray[np.uint16]) -> None:
    for i in range(words.size):
        magnitude = np.uint16(words[i] & _MAGNITUDE16)
        numeric = words[i] if magnitude <= _INFINITY16 else _NAN16
        out[i] = numeric if magnitude != _ZERO16 else _ZERO16
