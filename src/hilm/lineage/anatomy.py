"""What a checkpoint is made of, read from shapes first and names last.

Names only help to tell an embedding from a head and to leave out buffers; no fingerprint depends on them
otherwise.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hilm.weights.checkpoint import Checkpoint, TensorInfo

MIN_SIDE = 16
"""Smaller sides carry too few values for a sketch."""

TABLE_RATIO = 4
"""A vocabulary table is at least this many times longer than the model is wide."""

MAX_TABLES = 2
"""A vocabulary occurs in the embedding and, untied, in the head; a hidden size occurs in every block."""

MAX_COLUMNS = 1 << 18
"""Longer rows are no matrix of a model, and anchored Grams would need unbounded memory."""

_BUFFERS = frozenset(
    ("position_ids", "masked_bias", "inv_freq", "cos_cached", "sin_cached", "attn_mask", "causal_mask")
)


@dataclass(frozen=True, slots=True)
class Matrix:
    """One matrix of a tensor; a stack of experts is several.

    Attributes:
        info: The tensor.
        index: Which matrix of the stack, from 0.
        rows: R.
        columns: C.
    """

    info: TensorInfo
    index: int
    rows: int
    columns: int

    @property
    def start(self) -> int:
        """First value, as a flat position in the tensor."""
        return self.index * self.rows * self.columns

    @property
    def stop(self) -> int:
        """One behind the last value."""
        return self.start + self.rows * self.columns


@dataclass(frozen=True, slots=True)
class Anatomy:
    """The parts that lineage works on.

    Attributes:
        matrices: Eligible matrices, vocabulary tables included.
        width: Size d of the residual stream: the side that most matrices share; None without matrices.
        tables: Names of the vocabulary tables, embedding and untied head.
        embedding: The table that embeds tokens, or None if there is none or it cannot be told.
    """

    matrices: tuple[Matrix, ...]
    width: int | None
    tables: frozenset[str]
    embedding: Matrix | None

    @property
    def vocabulary(self) -> int | None:
        """Rows of the embedding (its longer side), or None."""
        if self.embedding is None:
            return None
        return max(self.embedding.rows, self.embedding.columns)


def dissect(checkpoint: Checkpoint) -> Anatomy:
    """Find width, tables and eligible matrices from the header alone."""
    return dissect_tensors(checkpoint.tensors.values())


def dissect_tensors(tensors: Iterable[TensorInfo]) -> Anatomy:
    """The same for any list of tensors."""
    matrices = tuple(m for info in tensors if info.alias_of is None for m in _matrices(info))
    sides = Counter(side for m in matrices for side in {m.rows, m.columns})
    if not sides:
        return Anatomy((), None, frozenset(), None)
    width = max(sides, key=lambda side: (sides[side], side))
    tables = _vocabulary_tables(matrices, sides, width)
    return Anatomy(matrices, width, frozenset(t.info.name for t in tables), _embedding(tables))


def _matrices(info: TensorInfo) -> Iterable[Matrix]:
    if not info.is_weight or len(info.shape) < 2 or _is_buffer(info.name):  # noqa: PLR2004 - vectors
        return ()
    count, rows, columns = info.matrices
    if min(rows, columns) < MIN_SIDE or columns > MAX_COLUMNS:
        return ()
    return (Matrix(info, index, rows, columns) for index in range(count))


def _is_buffer(name: str) -> bool:
    return name.rpartition(".")[2] in _BUFFERS


def _vocabulary_tables(matrices: tuple[Matrix, ...], sides: Counter[int], width: int) -> list[Matrix]:
    found = [m for m in matrices if width in (m.rows, m.columns) and m.info.matrices[0] == 1]
    sizes = [m.rows * m.columns // width for m in found]
    long = [s for s in sizes if s >= TABLE_RATIO * width and sides[s] <= MAX_TABLES]
    if long:
        return [m for m, size in zip(found, sizes, strict=True) if size == max(long)]
    named = [m for m in found if m.info.role.type == "embedding" and _embeds_tokens(m.info.name)]
    return sorted(named, key=lambda m: -m.rows * m.columns)[:1]


def _embeds_tokens(name: str) -> bool:
    return not any(word in name.lower() for word in ("position", "wpe", "segment", "type", "patch", "cls_"))


def _embedding(tables: list[Matrix]) -> Matrix | None:
    """The only table, or the only one whose name says that it embeds."""
    if len(tables) == 1:
        return tables[0]
    named = [t for t in tables if t.info.role.type == "embedding"]
    return named[0] if len(named) == 1 else None
