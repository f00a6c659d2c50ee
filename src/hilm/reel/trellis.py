"""The trellis: which of two quantisers each weight of a chunk is rounded with, and the cheapest path.

Quantiser 0 has the values 2k, quantiser 1 the values 2k - sign(k), in steps. The state decides the quantiser
(its lowest bit), and the parity of the index k decides the next state, so that a decoder needs nothing but
the indices. A path through the eight states uses values of both, which is finer than either, at the rate of
one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from hilm.reel.kernel import kernel
from hilm.reel.levels import level
from hilm.reel.tokens import ALPHABET, PLAIN, widen

if TYPE_CHECKING:
    from numpy.typing import NDArray

NEXT = ((0, 1), (3, 2), (5, 4), (6, 7), (1, 0), (2, 3), (4, 5), (7, 6))
"""State after each state and parity."""

MARGIN = 4
"""Indices that the search looks at reach this far beyond half the largest magnitude."""

_NEXT = np.uint64(sum(state << 4 * i for i, state in enumerate(sum(NEXT, ()))))
_ODD = 0x96  # bit t: parity of the bits of t
_BLOCK = 512
_MASK = np.uint64(4095)
_LOW = np.uint64(1 << 16)
_ONE = np.uint64(1)


@kernel
def _branch(
    v: float, u: float, rates: NDArray[np.float64], middle: int, q: int, parity: int
) -> tuple[float, int]:
    """Cheapest index of one parity in one quantiser: its cost, and which of three candidates it is."""
    k = 2 * math.floor((u - parity) * 0.5 + 0.5) + parity
    d = v - (2 * k - q * ((k > 0) - (k < 0)))
    best, choice = d * d + rates[middle + k], 0
    k -= 2
    d = v - (2 * k - q * ((k > 0) - (k < 0)))
    cost = d * d + rates[middle + k]
    choice = 1 if cost < best else choice
    best = min(cost, best)
    k += 4
    d = v - (2 * k - q * ((k > 0) - (k < 0)))
    cost = d * d + rates[middle + k]
    choice = 2 if cost < best else choice
    return min(cost, best), choice


@kernel
def _measure(
    values: NDArray[np.float64],
    classes: NDArray[np.uint8],
    rates: NDArray[np.float64],
    metrics: NDArray[np.float64],
    choices: NDArray[np.uint8],
) -> None:
    """Fill ``metrics`` [n, 4] with the costs of both parities in both quantisers, and note the choices."""
    width = rates.shape[1]
    flat, middle = rates.reshape(-1), width // 2
    for i in range(values.size):
        v = values[i]
        u = (v + 1.0 if v > 0 else v - 1.0) * 0.5
        at = 2 * np.int64(classes[i]) * width + middle
        metrics[i, 0], a = _branch(v, v * 0.5, flat, at, 0, 0)
        metrics[i, 1], b = _branch(v, v * 0.5, flat, at, 0, 1)
        metrics[i, 2], c = _branch(v, u, flat, at + width, 1, 0)
        metrics[i, 3], d = _branch(v, u, flat, at + width, 1, 1)
        choices[i] = a | b << 2 | c << 4 | d << 6


@kernel
def _step(low: float, high: float, a: float, b: float) -> tuple[float, int]:
    """The better way into a state: from one of the lower four states at cost a, or from a higher one."""
    x, y = low + a, high + b
    return min(x, y), y < x


@kernel
def search(
    values: NDArray[np.float64],
    classes: NDArray[np.uint8],
    rates: NDArray[np.float64],
    indices: NDArray[np.int32],
) -> float:
    """Find the indices of least cost: squared errors in steps, plus rates (Viterbi's algorithm).

    Costs are summed over the chunk without subtracting the smallest in between: float64 has the room.

    Args:
        values: [n] weights in steps.
        classes: [n] scale classes.
        rates: [2 * classes, 2K + 1] cost of each index -K … K by class and quantiser, where K is at least
            half the largest magnitude plus `MARGIN`.
        indices: [n], written.

    Returns:
        The cost.
    """
    n = values.size
    choices, decisions = np.empty(n, np.uint8), np.empty(n, np.uint8)
    metrics = np.empty((_BLOCK, 4))
    c0, c1, c2, c3, c4, c5, c6, c7 = 0.0, np.inf, np.inf, np.inf, np.inf, np.inf, np.inf, np.inf
    for begin in range(0, n, _BLOCK):
        end = min(begin + _BLOCK, n)
        _measure(values[begin:end], classes[begin:end], rates, metrics, choices[begin:end])
        for i in range(end - begin):
            a, b, c, d = metrics[i, 0], metrics[i, 1], metrics[i, 2], metrics[i, 3]
            n0, d0 = _step(c0, c4, a, b)
            n1, d1 = _step(c0, c4, b, a)
            n2, d2 = _step(c1, c5, d, c)
            n3, d3 = _step(c1, c5, c, d)
            n4, d4 = _step(c2, c6, b, a)
            n5, d5 = _step(c2, c6, a, b)
            n6, d6 = _step(c3, c7, c, d)
            n7, d7 = _step(c3, c7, d, c)
            c0, c1, c2, c3, c4, c5, c6, c7 = n0, n1, n2, n3, n4, n5, n6, n7
            decisions[begin + i] = d0 | d1 << 1 | d2 << 2 | d3 << 3 | d4 << 4 | d5 << 5 | d6 << 6 | d7 << 7
    costs = np.array([c0, c1, c2, c3, c4, c5, c6, c7])
    last = int(np.argmin(costs))
    _trace_back(values, choices, decisions, last, indices)
    return float(costs[last])


@kernel
def _trace_back(
    values: NDArray[np.float64],
    choices: NDArray[np.uint8],
    decisions: NDArray[np.uint8],
    state: int,
    indices: NDArray[np.int32],
) -> None:
    for i in range(values.size - 1, -1, -1):
        upper = decisions[i] >> state & 1
        parity = (_ODD >> state & 1) ^ upper
        state = state >> 1 | upper << 2
        q = state & 1
        v = values[i]
        u = (v + q * (1.0 if v > 0 else -1.0)) * 0.5
        choice = choices[i] >> 2 * (2 * q + parity) & 3
        shift = 2 * (choice >> 1) - 2 * (choice & 1)
        indices[i] = 2 * math.floor((u - parity) * 0.5 + 0.5) + parity + shift


@kernel
def _follow(state: np.uint64, parity: np.uint64) -> np.uint64:
    """The next state: `NEXT` in one word, four bits an entry."""
    return _NEXT >> (state << np.uint64(3) | parity << np.uint64(2)) & np.uint64(7)


@kernel
def walk(indices: NDArray[np.int32], classes: NDArray[np.uint8], ids: NDArray[np.uint8]) -> None:
    """Fill ``ids`` [n] with the tables of a chunk's indices: 2 * class + quantiser."""
    state = np.uint64(0)
    for i in range(indices.size):
        ids[i] = np.uint64(classes[i]) << _ONE | state & _ONE
        state = _follow(state, np.uint64(indices[i] & 1))


@kernel
def decode(
    classes: NDArray[np.uint8],
    entries: NDArray[np.uint32],
    lanes: NDArray[np.uint64],
    words: NDArray[np.uint16],
    raw: NDArray[np.uint64],
    bits: int,
    bias: NDArray[np.int8],
    step: float,
    values: NDArray[np.float32],
) -> tuple[int, int]:
    """Decode a chunk: entropy decoder, tokens and trellis at once, for each needs what the others found.

    Args:
        classes: [n] scale classes.
        entries: Tables of `hilm.reel.entropy.decoder_entries`, 2 per class.
        lanes: States, changed.
        words: Words and eight zeros.
        raw: Raw bits and one word more.
        bits: How many raw bits there may be.
        bias: As of `hilm.reel.levels.level`.
        step: A 256th of the step.
        values: [n], written.

    Returns:
        Words and raw bits used; a number of words of -1 is an error.
    """
    at, limit, size = np.uint64(0), np.uint64(words.size - 8), np.uint64(classes.size)
    state, position = np.uint64(0), np.int64(0)
    for start in range(0, classes.size, 8):
        for lane in range(8):  # a fixed count, so that it unrolls
            i = np.uint64(start + lane)
            if i < size:
                x = lanes[lane]
                slot = np.uint64(classes[i]) << np.uint64(13) | x & _MASK
                q = state & _ONE
                zero, one = np.uint64(entries[slot]), np.uint64(entries[slot + np.uint64(4096)])
                entry = one if q else zero  # both are loaded before the state is known
                symbol = np.int64(entry & np.uint64(255))
                magnitude = symbol + 1 >> 1
                frequency = (entry >> np.uint64(8) & _MASK) + _ONE
                x = frequency * (x >> np.uint64(12)) + (entry >> np.uint64(20))
                refill = np.uint64(x < _LOW)
                lanes[lane] = x << (refill << np.uint64(4)) | np.uint64(words[at]) * refill
                at += refill
                if magnitude >= PLAIN:
                    width = (magnitude - PLAIN >> 2) + 2
                    if symbol == ALPHABET or position + width > bits:
                        return -1, 0
                    magnitude = widen(magnitude, width, raw, position)
                    position += width
                value = level(magnitude, 2, np.int64(q), bias)
                values[i] = np.float64(value if symbol & 1 else -value) * step
                state = _follow(state, np.uint64(magnitude & 1))
        if at > limit:
            return -1, 0
    return int(at), int(position)
