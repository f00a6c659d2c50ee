"""The coder of differences: the words of a fine-tune against those of its base, every bit.

Floats are numbered in the order of their values, so that neighbours differ by one; other words are numbers as
they are. A difference, modulo 2^W for words of W bits and counted away from zero, is a hybrid token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hilm.errors import ChecksumMismatch
from hilm.reel.delta_model import (
    ACTIVITIES,
    DRIFTS,
    EXPONENTS,
    DeltaModel,
    count_contexts,
    delta_flags,
    drift_places,
)
from hilm.reel.entropy import decode_stream, decoder_entries, encode_stream, encoder_steps
from hilm.reel.head import Coder, SlabHead
from hilm.reel.kernel import kernel
from hilm.reel.plan import Plan
from hilm.reel.tables import frequencies, table_codes
from hilm.reel.threads import in_threads
from hilm.reel.tokens import LIMIT, detokenize, tokenize

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hilm.reel.plan import ChunkDecoder, Words
    from hilm.reel.words import WordView

_DRIFT_WORDS = 1 << 18  # of the quietest rows, from which the table is made
_LARGEST_DRIFT = 1 << 30  # so that nothing is too large for a token
_MIN_CONTEXT = 2048  # words of the smallest values, which share a context: it must pay for its tables
_DRIFT_GAIN = 8192  # bits it must save among them


def plan_delta(words: Words, base: Words, view: WordView, threads: int = 1) -> Plan | None:
    """Plan the coding of a slab as differences.

    Args:
        words: [view.size] stored words.
        base: [view.size] those of the base.
        view: Their shape and type.
        threads: Chunks counted at a time.

    Returns:
        The plan, or None if a difference is too large for a token.
    """
    if np.array_equal(words, base):
        return Plan(SlabHead(Coder.SAME, view), lambda *_: b"")
    model = _measure(words, base, view)
    if model is None:
        return None

    def split(start: int, stop: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8], bytes]:
        ids, expected = model.expect(base[start:stop], view, start)
        return ids, *tokenize(_subtract(words[start:stop], base[start:stop], view) - expected)

    counts = np.zeros((count_contexts(view), 256), np.int64)

    def count(span: tuple[int, int]) -> NDArray[np.int64]:
        ids, symbols, _ = split(*span)
        return np.bincount(ids * np.int64(256) + symbols, minlength=counts.size).reshape(counts.shape)

    for part in in_threads(count, view.ranges(), threads):
        counts += part
    codes = table_codes(counts[:, : np.flatnonzero(counts.any(axis=0))[-1] + 1])
    steps = encoder_steps(frequencies(codes))

    def encode(start: int, stop: int) -> bytes:
        ids, symbols, raw = split(start, stop)
        return encode_stream(symbols, ids, steps, raw)

    return Plan(SlabHead(Coder.WORDDIFF, view, codes=codes, model=model), encode)


def delta_decoder(head: SlabHead) -> ChunkDecoder:
    """Make the thread-safe function that decodes a chunk starting at word ``start``.

    It is given the base's words in ``out``, and turns them into those of the fine-tune. It raises
    ChecksumMismatch for a malformed chunk, or one that was coded against another base.
    """
    view, entries = head.view, decoder_entries(frequencies(head.codes))
    filled = head.codes.max(axis=1) > 0

    def decode(chunk: bytes, start: int, out: Words) -> None:
        ids, expected = head.model.expect(out, view, start)
        if not filled[ids].all():
            raise ChecksumMismatch("a difference uses an empty frequency table")
        values = detokenize(*decode_stream(chunk, ids, entries)) + expected
        if view.kind == "float":
            values = _turn(values, out)
        numbers = _numbers(out, view) + values.astype(out.dtype)
        out[:] = numbers ^ (~_signs(numbers) | _top(numbers)) if view.kind == "float" else numbers

    return decode


def _measure(words: Words, base: Words, view: WordView) -> DeltaModel | None:
    """Find what is to be expected of a slab; None if a difference is too large for a token."""
    sums, floats = np.zeros(view.rows, np.int64), view.kind == "float"
    exponents = np.zeros(1 << 8 * view.word.itemsize - 1 - view.mantissa if floats else 1, np.int64)
    for start, stop in view.ranges():
        values = _subtract(words[start:stop], base[start:stop], view)
        if values.max() >= LIMIT or values.min() <= -LIMIT:
            return None
        _add_lengths(values, start, view.columns, sums)
        if floats:
            places = (base[start:stop] & ~_top(base)) >> base.dtype.type(view.mantissa)
            exponents += np.bincount(places.astype(np.int64), minlength=exponents.size)
    if not floats:
        return DeltaModel()
    lowest = np.searchsorted(exponents.cumsum(), min(_MIN_CONTEXT, view.size))
    must, may = delta_flags(view)
    activity = _activity(sums, view) if must else np.zeros(0, np.int8)
    drift = _drift(words, base, view, sums) if may else np.zeros(0, np.int64)
    return DeltaModel(int(lowest) + EXPONENTS - 1, activity, drift)


def _activity(sums: NDArray[np.int64], view: WordView) -> NDArray[np.int8]:
    """Class of every row by the bits of its differences; the quietest is 0."""
    low = np.frexp(64 * sums // view.columns)[1]  # the bit length
    activity: NDArray[np.int64] = np.where(sums < view.columns, low, 6 + sums // view.columns)
    return np.minimum(activity - int(activity.min()), ACTIVITIES - 1).astype(np.int8)


def _drift(words: Words, base: Words, view: WordView, sums: NDArray[np.int64]) -> NDArray[np.int64]:
    """Median difference in the quietest rows, by mantissa; empty unless that is worth sending."""
    quiet = np.argsort(sums, kind="stable")[: max(_DRIFT_WORDS // view.columns, 1)]
    part, old = (w.reshape(view.rows, -1)[quiet].reshape(-1)[:_DRIFT_WORDS] for w in (words, base))
    found, places = _subtract(part, old, view), drift_places(old, view)
    ordered = found[np.lexsort((found, places))]
    sizes = np.bincount(places, minlength=DRIFTS)
    medians = ordered[sizes.cumsum() - sizes // 2 - 1].clip(-_LARGEST_DRIFT, _LARGEST_DRIFT)
    drift = np.where(sizes > 0, medians, 0)
    saved = np.frexp(found.astype(np.float64))[1] - np.frexp((found - drift[places]).astype(np.float64))[1]
    return drift if saved.sum() > _DRIFT_GAIN else drift[:0]


def _subtract(words: Words, base: Words, view: WordView) -> NDArray[np.int64]:
    """Differences modulo 2^W, away from zero."""
    difference = (_numbers(words, view) - _numbers(base, view)).view(f"<i{words.itemsize}").astype(np.int64)
    return _turn(difference, base) if view.kind == "float" else difference


def _turn(values: NDArray[np.int64], base: Words) -> NDArray[np.int64]:
    """Negate what belongs to a negative word of the base."""
    signs = _signs(base).view(f"<i{base.itemsize}").astype(np.int64)
    return (values ^ signs) - signs


def _numbers(words: Words, view: WordView) -> Words:
    """Number floats in the order of their values, from that of negative NaNs to that of positive ones."""
    return words ^ (_signs(words) | _top(words)) if view.kind == "float" else words


def _signs(words: Words) -> Words:
    """All ones where the highest bit is set, else zeros."""
    signs: Words = (words.view(f"<i{words.itemsize}") >> (8 * words.itemsize - 1)).view(words.dtype)
    return signs


def _top(words: Words) -> np.unsignedinteger:
    return words.dtype.type(1 << 8 * words.itemsize - 1)


@kernel
def _add_lengths(values: NDArray[np.int64], start: int, columns: int, sums: NDArray[np.int64]) -> None:
    """Add the bit length of every value's magnitude to the sum of its row."""
    row, left = start // columns, columns - start % columns
    for i in range(values.size):
        magnitude, length = abs(values[i]), 0
        while magnitude >> length:
            length += 1
        sums[row] += length
        left -= 1
        if left == 0:
            row, left = row + 1, columns
