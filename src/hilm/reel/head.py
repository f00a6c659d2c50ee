"""The head of a slab: what its chunks need to be decoded, about a kilobyte.

A fixed part, thresholds and vectors of the scale classes, the alphabet or the constant word, and the
frequency tables follow each other without gaps.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from hilm.errors import ChecksumMismatch, UnsupportedVersion
from hilm.reel.delta_model import DeltaModel, count_contexts, delta_flags, pack_model, parse_model
from hilm.reel.scales import MAX_CLASSES, Scales, one_class, pack_vector, parse_vector, sent_scales
from hilm.reel.tables import MAX_ALPHABET, pack_tables, parse_tables
from hilm.reel.tokens import ALPHABET

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hilm.reel.words import WordView

_FIXED = struct.Struct("<BBHBBHIId6s")
_STEP = slice(16, 30)  # step and reconstruction points, zero unless weights are rounded


class Coder(IntEnum):
    """How the chunks of a slab are coded."""

    RAW = 0
    CONST = 1
    SYMBOLS = 2
    TCQ = 3
    ECSQ = 4
    WORDDIFF = 5
    SAME = 6
    TCQ_DELTA = 7


TABLES: Final = {Coder.SYMBOLS: 1, Coder.TCQ: 2, Coder.ECSQ: 1, Coder.WORDDIFF: 1, Coder.TCQ_DELTA: 2}
"""Frequency tables per scale class, of differences per context; other coders have none."""

DIFFERENCES: Final = frozenset({Coder.WORDDIFF, Coder.SAME, Coder.TCQ_DELTA})
"""Coders that need the words of a base."""

ROUNDING: Final = frozenset({Coder.TCQ, Coder.ECSQ, Coder.TCQ_DELTA})
"""Coders that do not give back every bit."""


class _Fixed(NamedTuple):
    """The fixed part, field by field."""

    coder: int
    n_class: int
    alphabet: int
    bits: int
    flags: int
    n_values: int
    largest_exponent: int
    table_bytes: int
    step: float
    bias: bytes


@dataclass(frozen=True, slots=True, eq=False)
class SlabHead:
    """A slab head in memory.

    Attributes:
        coder: How the chunks are coded.
        view: The slab as words.
        word: The one word of a constant slab, as stored.
        scales: Scale classes; more than one only for floats.
        bits: Leading bits of a float that its symbol takes; 0 for other words.
        values: uint16, leading bits of each symbol, ascending; empty unless a symbol is part of a float.
        codes: [T, A] codes of the frequency tables, `TABLES` per class.
        step: A 256th of the quantiser's step, in weight units; 0 unless weights are rounded.
        bias: int8 [2, 3], how far the magnitudes 1, 2 and above are reconstructed from where the step puts
            them, in units of ``step``, for both quantisers of a trellis.
        model: What to expect of differences from a base.
    """

    coder: Coder
    view: WordView
    word: bytes = b""
    scales: Scales = field(default_factory=one_class)
    bits: int = 0
    values: NDArray[np.uint16] = field(default_factory=lambda: np.zeros(0, np.uint16))
    codes: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    step: float = 0.0
    bias: NDArray[np.int8] = field(default_factory=lambda: np.zeros((2, 3), np.int8))
    model: DeltaModel = field(default_factory=DeltaModel)


def pack_head(head: SlabHead) -> bytes:
    """Write a slab head."""
    scales, tables = head.scales, pack_tables(head.codes)
    sends = sent_scales(head.view.rows, head.view.columns, scales.n_class)
    fixed = _Fixed(
        coder=head.coder,
        n_class=scales.n_class,
        alphabet=head.codes.shape[1],
        bits=head.bits,
        flags=_flags(sends) | head.model.flags,
        n_values=head.values.size,
        largest_exponent=head.model.largest_exponent,
        table_bytes=len(tables),
        step=head.step,
        bias=head.bias.tobytes(),
    )
    vectors = [pack_vector(v) for v, sent in zip((scales.rows, scales.columns), sends, strict=True) if sent]
    vectors.append(pack_model(head.model))
    lists = scales.thresholds.astype("<i2").tobytes(), *vectors, head.values.astype("<u2").tobytes()
    return b"".join((_FIXED.pack(*fixed), *lists, head.word, tables))


def parse_head(data: bytes, view: WordView, *, carried: bool = False) -> SlabHead:
    """Read the head of a slab; that of one carried by a video has no tables and one class.

    Raises:
        ChecksumMismatch: The head contradicts itself or the shape and type of the slab.
        UnsupportedVersion: It names a coder this version does not know.
    """
    _require(len(data) >= _FIXED.size, f"is cut at {len(data)} bytes")
    fixed = _Fixed(*_FIXED.unpack_from(data))
    if fixed.coder not in set(Coder):
        raise UnsupportedVersion(f"slab coder {fixed.coder} is not known to this version")
    coder = Coder(fixed.coder)
    _check_fixed(fixed, coder, view)
    _require(not carried or (coder in TABLES and fixed.n_class == 1), "does not belong to a video")
    _check_step(fixed, coder, data[_STEP])
    scales, at = _parse_scales(data, view, fixed.n_class)
    model = DeltaModel()
    if coder == Coder.WORDDIFF:
        model, at = parse_model(data, at, view, fixed.flags, fixed.largest_exponent)
    word_at = at + 2 * fixed.n_values
    tables_at = word_at + (view.word.itemsize if coder == Coder.CONST else 0)
    _require(len(data) == tables_at + fixed.table_bytes, f"of {len(data)} bytes has another size")
    values = np.frombuffer(data, "<u2", fixed.n_values, at)
    _require(bool((np.diff(values.astype(np.int64)) > 0).all()), "has an unsorted alphabet")
    _require(values.size == 0 or int(values[-1]) >> fixed.bits == 0, "has values beyond its bits")
    if coder not in TABLES:
        return SlabHead(coder, view, word=data[word_at:tables_at])
    per_class = 0 if carried else count_contexts(view) if coder == Coder.WORDDIFF else TABLES[coder]
    codes = parse_tables(memoryview(data)[tables_at:], fixed.n_class * per_class, fixed.alphabet)
    used = codes.reshape(fixed.n_class, -1).any(axis=1)
    _require(carried or bool((used >= scales.occupied()).all()), "lacks a table in use")
    bias = np.frombuffer(fixed.bias, np.int8).reshape(2, 3)
    return SlabHead(coder, view, b"", scales, fixed.bits, values, codes, fixed.step, bias, model)


def _require(condition: bool, found: str) -> None:  # noqa: FBT001 - an assertion about what is stored
    if not condition:
        raise ChecksumMismatch(f"slab head {found}")


def _flags(sends: tuple[bool, bool]) -> int:
    return 1 * sends[0] | 2 * sends[1]


def _check_fixed(fixed: _Fixed, coder: Coder, view: WordView) -> None:
    """Only what this coder and this type of word can have written."""
    coded, rounds, differs = coder in TABLES, coder in ROUNDING, coder == Coder.WORDDIFF
    floats = coded and view.kind == "float" and not differs
    split = coder == Coder.SYMBOLS and floats
    tokens = rounds or differs or view.kind == "token"
    must, may = delta_flags(view) if differs else (0, 0)
    alphabet = (ALPHABET if tokens else MAX_ALPHABET) if coded else 0
    sends = sent_scales(view.rows, view.columns, fixed.n_class)
    _require(
        not rounds or (floats and view.word.itemsize > 1), "rounds what are no floats of 16 bits or more"
    )
    _require(1 <= fixed.n_class <= (MAX_CLASSES if floats else 1), f"has {fixed.n_class} classes")
    _require(coded <= fixed.alphabet <= alphabet, f"has {fixed.alphabet} symbols")
    _require(split <= fixed.bits <= view.symbol_bits * split, f"has symbols of {fixed.bits} bits")
    _require(fixed.flags & ~may == _flags(sends) | must, f"has flags {fixed.flags}")
    _require(fixed.n_values == fixed.alphabet * split, f"has an alphabet of {fixed.n_values} values")
    _require(coded or fixed.table_bytes == 0, "has tables but no symbols")
    _require(differs or fixed.largest_exponent == 0, "uses a field of another coder")


def _check_step(fixed: _Fixed, coder: Coder, stored: bytes) -> None:
    """Rounded weights have a step, and as many reconstruction points as quantisers."""
    if coder in ROUNDING:
        _require(0 < fixed.step < math.inf, f"has a step of {fixed.step}")
        _require(TABLES[coder] > 1 or not any(fixed.bias[3:]), "has points of a second quantiser")
    else:
        _require(not any(stored), "uses a field of another coder")


def _parse_scales(data: bytes, view: WordView, n_class: int) -> tuple[Scales, int]:
    """Thresholds and vectors; also the offset behind them."""
    at = _FIXED.size + 2 * (n_class - 1)
    _require(at <= len(data), f"is cut at {len(data)} bytes")
    if n_class == 1:
        return one_class(), at
    thresholds = np.frombuffer(data, "<i2", n_class - 1, _FIXED.size)
    _require(bool((np.diff(thresholds.astype(np.int64)) >= 0).all()), "has falling thresholds")
    rows, columns = np.zeros(view.rows, np.int8), np.zeros(view.columns, np.int8)
    sends_rows, sends_columns = sent_scales(view.rows, view.columns, n_class)
    if sends_rows:
        sent, at = parse_vector(data, at, view.rows)
        rows = sent.astype(np.int8)
    if sends_columns:
        sent, at = parse_vector(data, at, view.columns)
        columns = sent.astype(np.int8)
    return Scales(rows, columns, thresholds), at
