"""Rate control: the step at which rounded weights cost, or lose, what was asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

import numpy as np

from hilm.errors import EmptySelection, UsageError
from hilm.reel.distortion import Distortion
from hilm.reel.layout import CHUNK_ELEMENTS, coded_view, cut_slabs
from hilm.reel.quantizer import Quantizer, measure
from hilm.reel.records import RECORD
from hilm.reel.slab import encode_slab
from hilm.reel.words import word_view
from hilm.weights.dtypes import DTYPES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from hilm.weights.checkpoint import Checkpoint
    from hilm.weights.tensor import TensorInfo

LIKE: Final = {
    "q4_k": 0.00548, "q5_k": 0.00138, "q6_k": 0.00036, "q8_0": 3.3e-5, "nf4": 0.00883, "int4": 0.0133
}  # fmt: skip
"""Normalised mean squared error of other formats on the weights of a sentence-embedding model."""

BITS: Final = (1.5, 8.0)
ERRORS: Final = (1.5e-5, 0.15)
"""What may be asked for: bits per weight, normalised mean squared errors."""

_DEFAULT = "q4_k"
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_MIN_SIDE = 32
_GRID = 64  # steps are powers of 2^(1/64)
_CHUNKS = 64  # looked at: 16.8 million weights
_TRIES = 6
_TYPICAL = 0.18, 3.5, 0.0077  # a step, and what weights cost and lose at it


@dataclass(frozen=True, slots=True)
class Rounding:
    """How weights are to be rounded; as far as ``q4_k`` does it unless something else is asked for.

    Attributes:
        bits: Bits per rounded weight, 1.5 to 8.
        error: Normalised mean squared error, 1.5e-5 to 0.15.
        like: Another format, a key of `LIKE`, whose error is aimed at.
        quantiser: ``tcq``, a trellis, or ``ecsq``, which is faster and takes 0.15 bits more.
        effort: Searches of the trellis, 1 or 2.
        keep: Patterns of names, as a shell's; tensors that match one are kept bit for bit.

    Raises:
        UsageError: Too much is asked for, or something out of range.
    """

    bits: float | None = None
    error: float | None = None
    like: str | None = None
    quantiser: str = "tcq"
    effort: int = 2
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if sum(wish is not None for wish in (self.bits, self.error, self.like)) > 1:
            raise UsageError("bits, an error or a format to be like: one follows from the other")
        for value, (least, most), what in (
            (self.bits, BITS, "bits per weight"),
            (self.error, ERRORS, "NMSE"),
        ):
            if value is not None and not least <= value <= most:
                raise UsageError(
                    f"{value:g} {what}; {least:g} to {most:g} is possible",
                    hint="--mode archive keeps every bit",
                )
        known = self.like in {None, *LIKE} and self.quantiser in {"tcq", "ecsq"} and self.effort in {1, 2}
        if not known:
            raise UsageError(
                f"no rounding like {self.like} with {self.quantiser} and effort {self.effort}",
                hint=f"like {', '.join(LIKE)}; tcq or ecsq; effort 1 or 2",
            )

    def applies(self, info: TensorInfo) -> bool:
        """Whether a tensor is rounded: a matrix of floats, not too narrow for scales, and not kept."""
        if info.dtype not in _FLOATS or len(info.shape) < 2 or info.packed or info.refusal:
            return False
        rows, columns, _ = coded_view(info.dtype, info.shape)
        kept = any(fnmatchcase(info.name, pattern) for pattern in self.keep)
        return min(rows, columns) >= _MIN_SIDE and not kept

    def quantizer(self, grid: int, effort: int) -> Quantizer:
        """The quantiser with a step of 2^(grid / 64)."""
        return Quantizer(2.0 ** (grid / _GRID), self.quantiser == "tcq", effort)

    @property
    def guess(self) -> int:
        """Where the search for the step begins: what typical weights need."""
        step, bits, error = _TYPICAL
        return round(_GRID * (math.log2(step) + self.excess(bits, error)))

    def excess(self, bits: float, error: float) -> float:
        """By how many octaves the step of something that costs and loses so much is too small."""
        if self.bits is not None:
            return bits - self.bits  # an octave is a bit
        return math.log2((self.error or LIKE[self.like or _DEFAULT]) / error) / 2


def find_quantizer(checkpoint: Checkpoint, rounding: Rounding, threads: int) -> Quantizer:
    """Find the step by rounding 64 chunks of a checkpoint, evenly spread, a few times.

    Raises:
        EmptySelection: Nothing in the checkpoint is rounded.
        SourceChanged: A file changed while it was read.
    """
    pieces = list(_sample(checkpoint, rounding))
    if not pieces:
        raise EmptySelection(
            f"{checkpoint.name} has no matrix of floats of at least {_MIN_SIDE} x {_MIN_SIDE} to round",
            hint="--mode archive keeps every bit",
        )
    grid = rounding.guess
    for _ in range(_TRIES):
        move = round(_GRID * rounding.excess(*_try(pieces, rounding.quantizer(grid, 1), threads)))
        if move == 0:
            break
        grid += move
    return rounding.quantizer(grid, rounding.effort)


@dataclass(frozen=True, slots=True, eq=False)
class _Piece:
    """Whole rows of a slab, about a chunk; ``scale`` is the root mean square of the slab over that of it."""

    words: NDArray[np.uint8]
    dtype: str
    rows: int
    columns: int
    scale: float
    share: float


def _try(pieces: list[_Piece], quantizer: Quantizer, threads: int) -> tuple[float, float]:
    """Bits per weight and mean error of rounding the pieces; a slab's head is shared by its chunks."""
    bits = noise = 0.0
    total = 0
    for piece in pieces:
        own, dtype = replace(quantizer, step=quantizer.step * piece.scale), DTYPES[piece.dtype]
        slab = encode_slab(piece.words, dtype, piece.rows, piece.columns, planner=own, threads=threads)
        count = piece.rows * piece.columns
        head = (len(slab.head) + RECORD.itemsize) * piece.share
        bits += 8 * (sum(map(len, slab.chunks)) + RECORD.itemsize * len(slab.chunks) + head)
        distortion = Distortion()
        distortion.add(piece.words if slab.decoded is None else slab.decoded, piece.words, dtype)
        noise += count * distortion.error["nmse"] / piece.scale**2
        total += count
    return bits / total, noise / total


def _sample(checkpoint: Checkpoint, rounding: Rounding) -> Iterator[_Piece]:
    """At most 64 chunks of what is rounded, evenly spread."""
    slabs: list[tuple[TensorInfo, int, int, int]] = []
    for info in checkpoint.tensors.values():
        if info.alias_of is None and rounding.applies(info):
            rows, columns, word = coded_view(info.dtype, info.shape)
            cuts, by_element = cut_slabs(rows, columns, word)
            unit = 1 if by_element else columns
            slabs += [(info, cut.begin * unit, cut.end * unit, min(columns, CHUNK_ELEMENTS)) for cut in cuts]
    counts = [-(-(stop - start) // CHUNK_ELEMENTS) for _, start, stop, _ in slabs]
    stride, first = max(1, -(-sum(counts) // _CHUNKS)), 0
    for slab, count in zip(slabs, counts, strict=True):
        chosen = [n for n in range(count) if (first + n) % stride == stride // 2]
        first += count
        if chosen:
            yield from _pieces(checkpoint, *slab, chosen)


def _pieces(
    checkpoint: Checkpoint, info: TensorInfo, start: int, stop: int, columns: int, chosen: list[int]
) -> Iterator[_Piece]:
    words = checkpoint.words(info.name, start, stop).view(info.type.word)
    rows, height = words.size // columns, max(CHUNK_ELEMENTS // columns, 1)
    scale = measure(words, word_view(info.type, rows, columns))[0]
    for number in chosen:
        piece = words[number * height * columns :][: height * columns]
        part = measure(piece, word_view(info.type, 1, piece.size))[0]
        if 0 < part < math.inf and 0 < scale < math.inf:
            yield _Piece(
                piece.view(np.uint8).copy(),
                info.dtype,
                piece.size // columns,
                columns,
                scale / part,
                min(height / rows, 1),
            )
