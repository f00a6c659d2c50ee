"""The rounding coders: weights become integers, on a trellis or one by one, and nearby weights come back.

One step serves a whole slab, in proportion to its root mean square. The integers are coded as hybrid tokens
in the contexts of their scale class and, on a trellis, of the quantiser in use.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from hilm.reel import trellis
from hilm.reel.carrier import Carried
from hilm.reel.entropy import (
    check_end,
    decode_stream,
    decoder_entries,
    encode_stream,
    encoder_steps,
    open_stream,
    unpack_raw,
)
from hilm.reel.head import TABLES, Coder, SlabHead
from hilm.reel.kernel import kernel
from hilm.reel.levels import PARTS, lean, reconstruct
from hilm.reel.plan import Plan
from hilm.reel.scales import measure_scales, worth_sending
from hilm.reel.tables import frequencies, table_codes
from hilm.reel.threads import in_threads
from hilm.reel.tokens import detokenize, tokenize
from hilm.reel.words import as_floats, as_words

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from hilm.reel.plan import CarriedDecoder, ChunkDecoder, Words
    from hilm.reel.words import Floats, WordView

LAMBDA = 0.33
"""Squared steps that a bit is worth to the search."""

_SMOOTHING = (0.5, 0.02)  # added to every count before the first search, and before later ones
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Quantizer:
    """How weights are rounded; a `hilm.reel.plan.Planner`.

    Attributes:
        step: Distance of neighbouring values, in root mean squares of a slab.
        trellis: Choose between two quantisers of half the values each, on a trellis; else one for all.
        passes: Searches of the trellis; the rates of a second follow from the result of the first.
    """

    step: float
    trellis: bool = True
    passes: int = 2

    def __call__(self, words: Words, view: WordView, threads: int) -> Plan | None:
        """Plan the coding of a slab of floats; None if a value is not finite, or becomes so."""
        scale, largest = measure(words, view)
        step = self.step * scale
        if not 0 < step / PARTS < math.inf:
            return None
        slab, coder = _Slab(words, view, step, threads), Coder.TCQ if self.trellis else Coder.ECSQ
        slab.guess(coder)
        if self.trellis:
            slab.search(largest / step, self.passes)
        head = slab.head(coder)
        parts = slab.each(lambda span: _weights(head, slab.indices[span], slab.ids[span]))
        if not all(np.isfinite(as_floats(part, view)).all() for part in parts):
            return None
        return Plan(head, slab.encoder(head), np.concatenate(parts), lambda *span: slab.carry(slice(*span)))

    @property
    def coarse(self) -> Quantizer:
        """Rounds one by one, with about the indices of this one and without a search."""
        return Quantizer(self.step * (2 if self.trellis else 1), trellis=False)


class _Slab:
    """The weights of a slab in steps, and the indices they are given.

    Attributes:
        indices: int32 [n].
        ids: [n] frequency table of each.
    """

    def __init__(self, words: Words, view: WordView, step: float, threads: int) -> None:
        self._words, self._view, self._step, self._threads = words, view, step, threads
        self._scales = measure_scales(words.reshape(view.rows, view.columns), view.mantissa)
        self.indices, self.ids = np.empty(view.size, np.int32), np.empty(view.size, np.uint8)

    def each(self, work: Callable[[slice], _Result]) -> list[_Result]:
        """Do the work for every chunk."""
        return in_threads(work, [slice(*span) for span in self._view.ranges()], self._threads)

    def _units(self, span: slice) -> NDArray[np.float64]:
        return as_floats(self._words[span], self._view).astype(np.float64) / self._step

    def _classes(self, span: slice) -> NDArray[np.uint8]:
        return self._scales.ids(span.start, span.stop)

    def carry(self, span: slice) -> Carried:
        """Make of a chunk what rides in a video."""
        return Carried.of_indices(self.indices[span])

    def guess(self, coder: Coder) -> None:
        """Give every weight the nearest index, and keep the scale classes that are worth it by those."""
        tables = TABLES[coder]

        def assign(span: slice) -> None:
            self.ids[span] = tables * self._classes(span)

        def round_chunk(span: slice) -> NDArray[np.int64]:
            self.indices[span] = np.rint(self._units(span) / tables)
            assign(span)
            return self._count_symbols(span)

        measured, counts = self._scales, sum(self.each(round_chunk), np.zeros((), np.int64))
        self._scales = worth_sending(measured, counts[: tables * measured.n_class : tables], tables)
        if self._scales is not measured:
            self.each(assign)

    def search(self, largest: float, passes: int) -> None:
        """Find the indices on the trellis, for weights of up to ``largest`` steps, from those guessed."""
        half = int(largest / 2) + trellis.MARGIN
        for number in range(passes):
            counts = np.zeros((2 * self._scales.n_class, 2 * half + 1), np.int64)
            _count(self.indices, self.ids, counts)
            if number == 0:
                counts[1::2] = counts[::2]
            rates = _rates(counts, _SMOOTHING[number])
            self.each(partial(self._find, rates))

    def _find(self, rates: NDArray[np.float64], span: slice) -> None:
        classes, indices = self._classes(span), self.indices[span]
        trellis.search(self._units(span), classes, rates, indices)
        trellis.walk(indices, classes, self.ids[span])

    def head(self, coder: Coder) -> SlabHead:
        """Head of the slab: tables and reconstruction points follow from the indices."""
        counts = np.zeros((TABLES[coder] * self._scales.n_class, 256), np.int64)
        for part in self.each(self._count_symbols):
            counts += part[: len(counts)]
        sums = sum(self.each(lambda span: self._lean(coder, span)), np.zeros((2, 3, 2)))
        shift = np.rint(PARTS * sums[..., 0] / np.maximum(sums[..., 1], 1))
        return SlabHead(
            coder,
            self._view,
            scales=self._scales,
            codes=table_codes(counts[:, : np.flatnonzero(counts.any(axis=0))[-1] + 1]),
            step=self._step / PARTS,
            bias=shift.clip(-128, 127).astype(np.int8),
        )

    def _count_symbols(self, span: slice) -> NDArray[np.int64]:
        """How often each of 32 tables has each symbol."""
        symbols = tokenize(self.indices[span].astype(np.int64))[0]
        return np.bincount(self.ids[span] * np.int64(256) + symbols, minlength=32 * 256).reshape(32, 256)

    def _lean(self, coder: Coder, span: slice) -> NDArray[np.float64]:
        return lean(self._units(span), self.indices[span], self.ids[span], TABLES[coder])

    def encoder(self, head: SlabHead) -> Callable[[int, int], bytes]:
        """Make the function that codes a chunk."""
        steps = encoder_steps(frequencies(head.codes))

        def encode(start: int, stop: int) -> bytes:
            symbols, raw = tokenize(self.indices[start:stop].astype(np.int64))
            return encode_stream(symbols, self.ids[start:stop], steps, raw)

        return encode


def trellis_decoder(head: SlabHead) -> ChunkDecoder:
    """Make the thread-safe function that decodes a chunk coded on the trellis."""
    entries = decoder_entries(frequencies(head.codes))

    def decode(chunk: bytes, start: int, out: Words) -> None:
        values = np.empty(out.size, np.float32)
        lanes, words, raw = open_stream(chunk)
        buffer, classes = unpack_raw(raw, 8 * raw.size), head.scales.ids(start, start + out.size)
        used, bits = trellis.decode(
            classes, entries, lanes, words, buffer, 8 * raw.size, head.bias, head.step, values
        )
        check_end(used, lanes, words)
        unpack_raw(raw, bits)
        out[:] = as_words(values, head.view)

    return decode


def scalar_decoder(head: SlabHead) -> ChunkDecoder:
    """Make the thread-safe function that decodes a chunk of weights rounded one by one."""
    entries = decoder_entries(frequencies(head.codes))

    def decode(chunk: bytes, start: int, out: Words) -> None:
        ids = head.scales.ids(start, start + out.size)
        indices = detokenize(*decode_stream(chunk, ids, entries))
        out[:] = _weights(head, indices, ids)

    return decode


def carried_weights(head: SlabHead) -> CarriedDecoder:
    """Make the thread-safe function that decodes a chunk whose indices a video carried."""

    def decode(chunk: Carried, out: Words) -> None:
        indices, ids = chunk.indices(), np.zeros(out.size, np.uint8)
        if head.coder == Coder.TCQ:
            trellis.walk(indices, np.zeros_like(ids), ids)
        out[:] = _weights(head, indices, ids)

    return decode


def _weights(head: SlabHead, indices: NDArray[np.signedinteger], ids: NDArray[np.uint8]) -> Words:
    """Stored words of the weights that indices stand for."""
    values = np.empty(indices.size, np.float32)
    reconstruct(indices, ids, TABLES[head.coder], head.bias, head.step, values)
    return as_words(values, head.view)


def measure(words: Words, view: WordView) -> tuple[float, float]:
    """Root mean square and largest magnitude; squares are added row by row, rows in order."""
    rows, largest = np.zeros(view.rows), 0.0
    for start, stop in view.ranges():
        largest = max(largest, _add_squares(as_floats(words[start:stop], view), start, view.columns, rows))
    return math.sqrt(sum(rows.tolist()) / view.size), largest


@kernel
def _add_squares(values: Floats, start: int, columns: int, rows: NDArray[np.float64]) -> float:
    """Add to ``rows`` the squares of consecutive values from ``start`` on; return the largest magnitude."""
    largest, at = 0.0, 0
    while at < values.size:
        row = (start + at) // columns
        end = min(values.size, (row + 1) * columns - start)
        total = rows[row]
        for i in range(at, end):
            value = np.float64(values[i])
            total += value * value
            largest = max(largest, abs(value))
        rows[row] = total
        at = end
    return largest


@kernel
def _count(indices: NDArray[np.int32], ids: NDArray[np.uint8], counts: NDArray[np.int64]) -> None:
    """Add up how often each table has each index; ``counts`` [T, 2K + 1] is for -K … K."""
    half = counts.shape[1] // 2
    for i in range(indices.size):
        counts[ids[i], indices[i] + half] += 1


def _rates(counts: NDArray[np.int64], smoothing: float) -> NDArray[np.float64]:
    """Cost of each index by table: `LAMBDA` times its bits, which are rounded to 256ths."""
    shares: NDArray[np.float64] = counts.astype(np.float64)
    shares += smoothing
    shares /= shares.sum(axis=1, keepdims=True)
    np.log2(shares, out=shares)
    np.rint(shares * -256, out=shares)
    shares *= LAMBDA / 256
    return shares
