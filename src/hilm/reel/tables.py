"""Frequency tables and how they are stored, at a few bits per symbol.

A table is a code per symbol: 0 for absent, else 1 + eight times the base-2 logarithm of its frequency in
4096ths, rounded. Reader and writer both turn codes into frequencies with the same integer arithmetic.

A table's bit string, lowest bit first: one bit "not empty"; the first present symbol and the distance to
the last in Exp-Golomb; a Rice parameter (3 bits); the zigzag differences of successive codes (before the
first: 64) in Rice code. Both prefix codes are a run of zeros, a one, and the low bits. Tables follow each
other without gaps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hilm.errors import ChecksumMismatch
from hilm.reel.kernel import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_ALPHABET = 256
"""Symbols a table can have."""

TOTAL = 4096
"""What the frequencies of a table that is not empty sum to."""

_OCTAVE = np.array([256, 279, 304, 332, 362, 395, 431, 470])  # round(256 * 2^(i/8))
_MAX_CODE = 97
_LONGEST_RUN = 255
_LONGEST_EXPONENT = 8  # of an Exp-Golomb code below 511


@kernel
def table_codes(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Turn symbol counts [T, A] into table codes [T, A]; a row of zeros becomes an empty table."""
    codes = np.zeros(counts.shape, np.int64)
    for table in range(counts.shape[0]):
        total = np.sum(counts[table])
        for symbol in range(counts.shape[1]):
            if counts[table, symbol]:
                octaves = np.log2(max(1.0, TOTAL * counts[table, symbol] / total))
                codes[table, symbol] = 1 + np.int64(np.rint(8.0 * octaves))
    return codes


@kernel
def frequencies(codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Turn table codes [T, A] into frequencies [T, A] that sum to 4096 per table, or 0 if it is empty.

    Every present symbol gets 1, the rest is shared in proportion, and what rounding leaves over goes to the
    symbol with the largest code, the lowest such symbol on a tie.
    """
    result = np.zeros_like(codes)
    for table in range(codes.shape[0]):
        present = np.flatnonzero(codes[table])
        if not present.size:
            continue
        steps = codes[table][present] - 1
        sizes = _OCTAVE[steps & 7] << (steps >> 3)
        shares = 1 + sizes * (TOTAL - present.size) // np.sum(sizes)
        shares[np.argmax(steps)] += TOTAL - np.sum(shares)
        result[table][present] = shares
    return result


def pack_tables(codes: NDArray[np.int64]) -> bytes:
    """Write table codes [T, A] as one bit string, padded with zeros to whole bytes."""
    longest = 48 + 10 * codes.shape[1]  # of one table: a symbol costs at most 9 bits in Rice(7)
    bits = np.zeros(len(codes) * longest, np.uint8)
    return np.packbits(bits[: _write(codes, bits)], bitorder="little").tobytes()


def parse_tables(data: bytes | memoryview, tables: int, alphabet: int) -> NDArray[np.int64]:
    """Read the codes [T, A] of `pack_tables`.

    Raises:
        ChecksumMismatch: The bit string is not exactly ``tables`` tables over at most ``alphabet`` symbols.
    """
    codes = np.zeros((tables, alphabet), np.int64)
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    used = int(_read(bits, codes))
    if used < 0 or -(-used // 8) != len(data) or bits[used:].any():
        raise ChecksumMismatch(f"{len(data)} bytes are not {tables} frequency tables of {alphabet} symbols")
    return codes


@kernel
def _put(bits: NDArray[np.uint8], at: int, value: int, width: int) -> int:
    for i in range(width):
        bits[at + i] = value >> i & 1
    return at + width


@kernel
def _put_prefixed(bits: NDArray[np.uint8], at: int, run: int, value: int, width: int) -> int:
    bits[at + run] = 1
    return _put(bits, at + run + 1, value, width)


@kernel
def _put_exp_golomb(bits: NDArray[np.uint8], at: int, value: int) -> int:
    run = 0
    while (value + 1) >> (run + 1):
        run += 1
    return _put_prefixed(bits, at, run, value + 1, run)


@kernel
def _cheapest_rice(zigzag: NDArray[np.int64]) -> int:
    best, cost = 0, np.sum(zigzag) + zigzag.size
    for k in range(1, 8):
        bits = np.sum(zigzag >> k) + zigzag.size * (1 + k)
        if bits < cost:
            best, cost = k, bits
    return best


@kernel
def _write(codes: NDArray[np.int64], bits: NDArray[np.uint8]) -> int:
    """Fill ``bits`` (zero on entry), one bit per element; return how many were used."""
    at = 0
    for table in range(codes.shape[0]):
        present = np.flatnonzero(codes[table])
        at = _put(bits, at, 1 if present.size else 0, 1)
        if not present.size:
            continue
        first, last = present[0], present[-1]
        at = _put_exp_golomb(bits, _put_exp_golomb(bits, at, first), last - first)
        difference = codes[table, first : last + 1].copy()
        difference[1:] -= codes[table, first:last]
        difference[0] -= 64
        zigzag = difference << 1 ^ difference >> 63
        k = _cheapest_rice(zigzag)
        at = _put(bits, at, k, 3)
        for value in zigzag:
            at = _put_prefixed(bits, at, value >> k, value, k)
    return at


@kernel
def _run(bits: NDArray[np.uint8], at: int) -> int:
    """Length of the run of zeros before the next one, or -1 if it is too long or there is none."""
    for run in range(min(bits.size - at, _LONGEST_RUN + 1)):
        if bits[at + run]:
            return run
    return -1


@kernel
def _get(bits: NDArray[np.uint8], at: int, width: int) -> int:
    """Value of a fixed-width field, or -1 if it goes beyond the end."""
    if at + width > bits.size:
        return -1
    value = 0
    for i in range(width):
        if bits[at + i]:
            value |= 1 << i
    return value


@kernel
def _get_exp_golomb(bits: NDArray[np.uint8], at: int) -> tuple[int, int]:
    """Value and next position; a value of -1 is an error."""
    run = _run(bits, at)
    low = _get(bits, at + run + 1, run)
    if not 0 <= run <= _LONGEST_EXPONENT or low < 0:
        return -1, at
    return (1 << run | low) - 1, at + 2 * run + 1


@kernel
def _read(bits: NDArray[np.uint8], codes: NDArray[np.int64]) -> int:
    """Fill ``codes`` (zero on entry); return how many bits were used, or -1 for a malformed string."""
    at = 0
    for table in range(codes.shape[0]):
        full = _get(bits, at, 1)
        at += 1
        if full == 0:
            continue
        first, at = _get_exp_golomb(bits, at)
        distance, at = _get_exp_golomb(bits, at)
        k = _get(bits, at, 3)
        at += 3
        last = first + distance
        if full < 0 or first < 0 or distance < 0 or k < 0 or last >= codes.shape[1]:
            return -1
        code = 64
        for symbol in range(first, last + 1):
            run = _run(bits, at)
            low = _get(bits, at + run + 1, k)
            if run < 0 or low < 0:
                return -1
            at += run + 1 + k
            zigzag = run << k | low
            code += zigzag >> 1 ^ -(zigzag & 1)
            if not 0 <= code <= _MAX_CODE:
                return -1
            codes[table, symbol] = code
        if codes[table, first] == 0 or codes[table, last] == 0:
            return -1
    return at
