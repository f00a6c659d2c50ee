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

    from hilm.weights.checkpoint import Checkpoint
    from hilm.weights.tensor import TensorInfo

MIN_SIDE = 16
"""Smaller sides carry too few values for a sketch."""

TABLE_RATIO = 4
"""A vocabulary table is at least this many times longer than the model is wide."""

MAX_TABLES = 2
"""A vocabulary occurs in the embedding and, untied, in the head; a hidden size occurs in every block."""

MAX_COLUMNS = 1 << 18
"""Longer rows are no matrix of a model, and anchored Grams would need unbounded memory."""

_WIDEST_PACKED = 32
"""Bits of the integers that hold packed weights; indices have 64."""


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
        unread: Values of matrices that cannot be decoded; integers wider than a byte count by the byte.
    """

    matrices: tuple[Matrix, ...]
    width: int | None
    tables: frozenset[str]
    embedding: Matrix | None
    unread: int

    @property
    def vocabulary(self) -> int | None:
        """Rows of the embedding (its longer side), or None."""
        if self.embedding is None:
            return None
        return max(self.embedding.rows, self.embedding.columns)

    @property
    def coverage(self) -> float:
        """Share of the values of matrices that can be decoded, 0 to 1."""
        decoded = sum(m.rows * m.columns for m in self.matrices)
        return decoded / (decoded + self.unread) if self.unread else 1.0


def dissect(checkpoint: Checkpoint) -> Anatomy:
    """Find width, tables and eligible matrices from the header alone."""
    return dissect_tensors(checkpoint.tensors.values())


def dissect_tensors(tensors: Iterable[TensorInfo]) -> Anatomy:
    """The same for any list of tensors."""
    stored = [info for info in tensors if info.alias_of is None and not _is_buffer(info)]
    matrices = tuple(m for info in stored for m in _matrices(info))
    unread = sum(map(_unread, stored))
    sides = Counter(side for m in matrices for side in {m.rows, m.columns})
    if not sides:
        return Anatomy((), None, frozenset(), None, unread)
    width = max(sides, key=lambda side: (sides[side], side))
    tables = _vocabulary_tables(matrices, sides, width)
    return Anatomy(matrices, width, frozenset(t.info.name for t in tables), _embedding(tables), unread)


def _is_buffer(info: TensorInfo) -> bool:
    """Whether a name says that this was computed, not learnt: masks, indices, rotary caches."""
    last = info.name.rpartition(".")[2]
    return last.endswith("mask") or (info.role.kind == "buffer" and last != "weight")


def _matrices(info: TensorInfo) -> Iterable[Matrix]:
    count, rows, columns = info.matrices
    if not info.is_weight or min(rows, columns) < MIN_SIDE or columns > MAX_COLUMNS:
        return ()
    return (Matrix(info, index, rows, columns) for index in range(count))


def _unread(info: TensorInfo) -> int:
    """Values of a matrix that only its quantiser could decode."""
    if info.refusal:
        return info.nbytes
    if info.type.kind == "packed":
        return info.numel * (len(info.shape) > 1)
    packed = info.type.kind in {"int", "uint"} and info.type.bits <= _WIDEST_PACKED
    return info.nbytes if packed and info.matrices[1] >= MIN_SIDE else 0


def _vocabulary_tables(matrices: tuple[Matrix, ...], sides: Counter[int], width: int) -> list[Matrix]:
    """Long matrices of a length that hardly any other has; where there are none, what the names say."""
    found = [m for m in matrices if width in (m.rows, m.columns) and m.info.matrices[0] == 1]
    sizes = {m: m.rows * m.columns // width for m in found}
    lengths = [n for n in sizes.values() if n >= TABLE_RATIO * width and sides[n] <= MAX_TABLES]
    if lengths:
        return [m for m in found if sizes[m] == max(lengths)]
    named = [m for m in found if _is_embedding(m)]
    longest = max((sizes[m] for m in named), default=0)
    return [m for m in found if sizes[m] == longest and m.info.role.type in {"embedding", "output"}]


def _is_embedding(table: Matrix) -> bool:
    return (table.info.role.type, table.info.role.kind) == ("embedding", "token")


def _embedding(tables: list[Matrix]) -> Matrix | None:
    """The only table, or the first by name of those whose name says that they embed."""
    if len(tables) == 1:
        return tables[0]
    return min(filter(_is_embedding, tables), key=lambda t: t.info.name, default=None)
