"""The entropy coder: static rANS over eight interleaved lanes, followed by uncoded raw bits.

Probabilities have 12 bits, states 32, renormalisation moves 16 bits at a time. Element ``i`` lives in lane
``i % 8`` and is coded with the frequency table its id names, so contexts cost nothing but a table each.

A stream is ``u32 lane[8] | u32 n_words | u16 words[n_words] | raw bits``, all little-endian.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

from hilm.errors import ChecksumMismatch
from hilm.reel.kernel import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

PROBABILITY_BITS = 12
LANES = 8
_HEAD = struct.Struct("<8II")
_TOTAL = np.uint64(1 << PROBABILITY_BITS)
_SLOT = np.uint64((1 << PROBABILITY_BITS) - 1)
_LOW = np.uint64(1 << 16)
_BYTE = np.uint64(0xFF)
_ONE = np.uint64(1)


def encoder_steps(frequencies: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Prepare frequency tables for encoding.

    The encoder divides by multiplying: for every state x < f * 2^20, ``x // f == x * ceil(2^44 / f) >> 44``
    holds exactly and the product stays below 2^64.

    Args:
        frequencies: [T, A] with A <= 256; each row sums to 4096 or is all zero.

    Returns:
        [T * 256, 3], one row per (table, symbol): ceil(2^44 / f), f, and the sum of all f before it.
    """
    return _fill_steps(np.ascontiguousarray(frequencies))


def decoder_entries(frequencies: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Prepare frequency tables for decoding.

    Returns:
        [T * 4096], one entry per (table, slot): symbol | (f - 1) << 8 | (slot - cumulated frequency) << 20.
        An empty table has symbol 255 everywhere, which is no token.
    """
    return _fill_entries(np.ascontiguousarray(frequencies))


def encode_stream(
    symbols: NDArray[np.uint8], ids: NDArray[np.uint8], steps: NDArray[np.uint64], raw: bytes
) -> bytes:
    """Code symbols, each with the table its id names, and append the raw bits.

    Args:
        symbols: [n]; each must have a non-zero frequency in its table.
        ids: [n] table numbers.
        steps: Tables of `encoder_steps`.
        raw: Packed raw bits.
    """
    lanes = np.full(LANES, _LOW)
    words = np.empty(symbols.size + 1, np.uint16)
    start = _encode(symbols, ids, steps, lanes, words)
    coded = words[start:].astype("<u2", copy=False)
    return _HEAD.pack(*lanes.tolist(), coded.size) + coded.tobytes() + raw


def decode_stream(
    data: bytes | memoryview, ids: NDArray[np.uint8], entries: NDArray[np.uint32]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Undo `encode_stream`.

    Args:
        data: One whole stream.
        ids: [n] table numbers, each that of a table in ``entries`` that is not empty.
        entries: Tables of `decoder_entries`.

    Returns:
        The [n] symbols and the packed raw bits behind them.

    Raises:
        ChecksumMismatch: The stream is cut, has words left over, or does not end in the initial state.
    """
    lanes, words, raw = open_stream(data)
    symbols = np.empty(ids.size, np.uint8)
    check_end(_decode(symbols, ids, entries, lanes, words), lanes, words)
    return symbols, raw


def open_stream(
    data: bytes | memoryview,
) -> tuple[NDArray[np.uint64], NDArray[np.uint16], NDArray[np.uint8]]:
    """Take a stream apart: states of the lanes, words with eight zeros behind them, packed raw bits.

    Raises:
        ChecksumMismatch: The stream is cut.
    """
    if len(data) < _HEAD.size:
        raise ChecksumMismatch(f"entropy-coded stream of {len(data)} bytes has no room for its head")
    *states, count = _HEAD.unpack_from(data)
    raw_at = _HEAD.size + 2 * count
    if raw_at > len(data):
        raise ChecksumMismatch(f"entropy-coded stream promises {count} words but has {len(data)} bytes")
    words = np.zeros(count + LANES, np.uint16)  # the end is checked once per round of lanes
    words[:count] = np.frombuffer(data, "<u2", count, _HEAD.size)
    return np.array(states, np.uint64), words, np.frombuffer(data, np.uint8, offset=raw_at)


def check_end(used: int | np.integer, lanes: NDArray[np.uint64], words: NDArray[np.uint16]) -> None:
    """Raise ChecksumMismatch unless all words were used and every lane is back in its first state."""
    if used != words.size - LANES or (lanes != _LOW).any():
        raise ChecksumMismatch("entropy-coded stream does not end where it began")


def pack_raw(buffer: NDArray[np.uint64], bits: int) -> bytes:
    """Take the first ``bits`` bits of a buffer filled from its lowest bit, in whole bytes."""
    return buffer.view(np.uint8)[: -(-bits // 8)].tobytes()


def unpack_raw(raw: NDArray[np.uint8], bits: int) -> NDArray[np.uint64]:
    """Undo `pack_raw`, with one word more than needed so that a field may be read from two words.

    Raises:
        ChecksumMismatch: There are not exactly ``bits`` bits, or the padding of the last byte is not zero.
    """
    if raw.size != -(-bits // 8) or (bits % 8 and raw[-1] >> bits % 8):
        raise ChecksumMismatch(f"{raw.size} bytes of raw bits where {bits} bits belong")
    buffer = np.zeros(bits // 64 + 2, np.uint64)
    buffer.view(np.uint8)[: raw.size] = raw
    return buffer


@kernel
def _fill_steps(frequencies: NDArray[np.int64]) -> NDArray[np.uint64]:
    tables, alphabet = frequencies.shape
    steps = np.zeros((tables * 256, 3), np.uint64)
    for table in range(tables):
        below = 0
        for symbol in range(alphabet):
            frequency = frequencies[table, symbol]
            step = steps[table * 256 + symbol]
            step[0] = -(-(1 << 44) // max(frequency, 1))
            step[1] = frequency
            step[2] = below
            below += frequency
    return steps


@kernel
def _fill_entries(frequencies: NDArray[np.int64]) -> NDArray[np.uint32]:
    tables, alphabet = frequencies.shape
    entries = np.full(tables << PROBABILITY_BITS, 255, np.uint32)
    for table in range(tables):
        at = table << PROBABILITY_BITS
        for symbol in range(alphabet):
            frequency = frequencies[table, symbol]
            for offset in range(frequency):
                entries[at + offset] = symbol | (frequency - 1) << 8 | offset << 20
            at += frequency
    return entries


@kernel
def _encode(
    symbols: NDArray[np.uint8],
    ids: NDArray[np.uint8],
    steps: NDArray[np.uint64],
    lanes: NDArray[np.uint64],
    words: NDArray[np.uint16],
) -> np.int64:
    """Fill ``words`` from its end; return the index of the first one. No branch depends on the data."""
    at, size = np.uint64(words.size), np.uint64(symbols.size)
    for start in range(symbols.size - 1 & ~7, -1, -8):
        for lane in range(7, -1, -1):  # a fixed count, so that it unrolls
            i = np.uint64(start + lane)
            if i < size:
                step = np.uint64(ids[i]) << np.uint64(8) | np.uint64(symbols[i])
                frequency = steps[step, 1]
                x = lanes[lane]
                words[at - _ONE] = x
                emit = np.uint64(x >= frequency << np.uint64(20))
                at -= emit
                x >>= emit << np.uint64(4)
                quotient = x * steps[step, 0] >> np.uint64(44)
                lanes[lane] = x + quotient * (_TOTAL - frequency) + steps[step, 2]
    return np.int64(at)


@kernel
def _decode(
    symbols: NDArray[np.uint8],
    ids: NDArray[np.uint8],
    entries: NDArray[np.uint32],
    lanes: NDArray[np.uint64],
    words: NDArray[np.uint16],
) -> np.int64:
    """Fill ``symbols``; return how many words were used, or -1 as soon as that is more than there are."""
    at, size, limit = np.uint64(0), np.uint64(symbols.size), np.uint64(words.size - 8)
    for start in range(0, symbols.size, 8):
        for lane in range(8):  # a fixed count, so that it unrolls
            i = np.uint64(start + lane)
            if i < size:
                x = lanes[lane]
                entry = np.uint64(entries[np.uint64(ids[i]) << np.uint64(12) | x & _SLOT])
                symbols[i] = entry & _BYTE
                frequency = (entry >> np.uint64(8) & _SLOT) + _ONE
                x = frequency * (x >> np.uint64(12)) + (entry >> np.uint64(20))
                refill = np.uint64(x < _LOW)
                lanes[lane] = x << (refill << np.uint64(4)) | np.uint64(words[at]) * refill
                at += refill
        if at > limit:
            return np.int64(-1)
    return np.int64(at)
