"""How a tensor is cut: slabs, the unit of memory; chunks, the unit of random access."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from hilm.errors import HeaderError, UnsupportedFormat
from hilm.weights.dtypes import DTYPES

if TYPE_CHECKING:
    from collections.abc import Sequence

CHUNK_ELEMENTS: Final = 1 << 18
SLAB_ELEMENTS: Final = 1 << 24
SLAB_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Slab:
    """Whole rows of a matrix, or a piece of one row that is too long for a slab.

    Attributes:
        begin: First row, or first element (flat) when rows are cut.
        end: One behind the last.
        rows: Rows of the slab as a matrix.
        columns: Its columns.
    """

    begin: int
    end: int
    rows: int
    columns: int

    @property
    def elements(self) -> int:
        """Elements in it."""
        return self.rows * self.columns


def coded_view(dtype: str, shape: Sequence[int]) -> tuple[int, int, int]:
    """Return rows, columns and bytes per element of the matrix that is cut into slabs.

    0-d is [1, 1], 1-d [1, n], k-d [shape[0], product of the rest]; a complex row holds twice as many
    values; types whose values share bytes are one row of bytes.

    Raises:
        UnsupportedFormat: A type this version does not know.
        HeaderError: Values that share bytes, and do not fill whole blocks.
    """
    if dtype not in DTYPES:
        raise UnsupportedFormat(f"element type {dtype!r} is not known", hint="upgrade hilm")
    known, count = DTYPES[dtype], math.prod(shape)
    if known.block > 1:
        if count % known.block:
            raise HeaderError("size", f"{count} values of {dtype} are not whole blocks of {known.block}")
        return 1, known.nbytes(count), 1
    rows = shape[0] if len(shape) > 1 else 1
    return rows, count // rows * known.values if rows else 0, known.word.itemsize


def cut_slabs(rows: int, columns: int, word: int) -> tuple[list[Slab], bool]:
    """Cut a matrix of ``word``-byte elements; the flag says that positions count elements, not rows."""
    limit = min(SLAB_ELEMENTS, SLAB_BYTES // word)
    if not rows * columns:
        return [], False
    if columns <= limit:
        step = limit // columns
        starts = range(0, rows, step)
        return [Slab(r, min(r + step, rows), min(step, rows - r), columns) for r in starts], False
    pieces = [
        (row * columns + c, min(limit, columns - c)) for row in range(rows) for c in range(0, columns, limit)
    ]
    return [Slab(start, start + size, 1, size) for start, size in pieces], True


def chunk_lengths(elements: int) -> list[int]:
    """Elements of each chunk of a slab."""
    return [min(CHUNK_ELEMENTS, elements - start) for start in range(0, elements, CHUNK_ELEMENTS)]
