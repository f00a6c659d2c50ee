"""All that lineage takes from one tensor, in one pass over its blocks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hilm.lineage import records
from hilm.lineage.digest import DigestAccumulator, TensorDigest
from hilm.lineage.gram import PAIRS, Anchors, GramAccumulator
from hilm.lineage.profile import Profile, ProfileAccumulator
from hilm.lineage.sketch import (
    RUNS,
    Sketch,
    SketchAccumulator,
    code,
    embedding_key,
    fixed,
    matrix_key,
    quantise,
)
from hilm.lineage.tables import is_fixed_table, row_runs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from hilm.lineage.anatomy import Anatomy, Matrix
    from hilm.weights.blocks import Block
    from hilm.weights.checkpoint import Checkpoint
    from hilm.weights.tensor import TensorInfo

EMBEDDING_ROWS = 2048
"""Leading rows of the embedding that are sketched and digested alone: vocabularies grow at their end."""

Row = tuple[Any, ...]

_FIXED_POWER = 0.01  # how far the mean square of a fixed table's sample may be from 1/2


@dataclass(slots=True, eq=False)
class Traits:
    """What was found in some tensors; sums run over their matrices.

    Attributes:
        position: Fixed-point sum of F1, int64 [1024].
        anchored: Fixed-point sum of F2, int64 [2016].
        digests: F0 of every tensor, by name, with its number of values.
        codes: F3 of every sketched matrix, by name of its tensor: rows of ``records.CODES``.
        profiles: F4 of every matrix likewise: rows of ``records.PROFILES``.
        nonfinite: NaN and infinite values in matrices that therefore have no sketch.
    """

    position: NDArray[np.int64] = field(default_factory=lambda: np.zeros(RUNS, np.int64))
    anchored: NDArray[np.int64] = field(default_factory=lambda: np.zeros(PAIRS, np.int64))
    digests: list[tuple[str, TensorDigest, int]] = field(default_factory=list)
    codes: list[tuple[str, Row]] = field(default_factory=list)
    profiles: list[tuple[str, Row]] = field(default_factory=list)
    nonfinite: int = 0

    def add(self, other: Traits) -> None:
        """Take over what was found in other tensors."""
        self.position += other.position
        self.anchored += other.anchored
        self.digests += other.digests
        self.codes += other.codes
        self.profiles += other.profiles
        self.nonfinite += other.nonfinite


class TensorPass:
    """Fed the blocks of one tensor; keeps the state of one matrix at a time, however high the stack.

    Args:
        checkpoint: Where the tensor is; a few matrices are looked at again.
        anatomy: Of the checkpoint.
        anchors: Of the checkpoint, or None.
        info: The tensor.
        matrices: Those of its matrices that are eligible, in order.
        traits: What is found is added here.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        anatomy: Anatomy,
        anchors: Anchors | None,
        info: TensorInfo,
        matrices: Sequence[Matrix],
        traits: Traits,
    ) -> None:
        self._checkpoint, self._anatomy, self._anchors, self._info = checkpoint, anatomy, anchors, info
        self._queue, self._traits, self._is_weight = list(reversed(matrices)), traits, info.is_weight
        self._digest = _digest_of(info, prefixed=info.name in anatomy.tables)
        self._current: _MatrixPass | None = None
        self._codes: list[Row] = []
        self._profiles: list[Row] = []

    def update(self, block: Block) -> None:
        """Take the next block."""
        values = block.values if self._is_weight else block.words.astype(np.float32)
        self._digest.update(values, block.words)
        if self._current is None and self._queue:
            self._current = _MatrixPass(self._queue.pop(), self._anatomy, self._anchors)
        if self._current is not None:
            self._current.update(values, block.start)
            if block.stop == self._current.matrix.stop:
                self._close(self._current)
                self._current = None

    def finish(self) -> None:
        """Add what was found; rows start with the digest by which they are sorted and found."""
        name, digest = self._info.name, self._digest.finish()
        exact = int.from_bytes(digest.exact, "little")
        self._traits.digests.append((name, digest, self._info.numel))
        self._traits.codes += [(name, (exact, *row)) for row in self._codes]
        self._traits.profiles += [(name, (exact, *row)) for row in self._profiles]

    def _close(self, work: _MatrixPass) -> None:
        profile = work.profile.finish()
        self._profiles.append((profile.fields,))
        if not work.sketched or self._is_fixed(work.matrix, profile):
            return
        sketch = work.finish_sketch()
        if sketch is None:
            runs = (rows for _, rows in row_runs(self._checkpoint, work.matrix))
            self._traits.nonfinite += sum(int(rows.size - np.isfinite(rows).sum()) for rows in runs)
            return
        position, anchored = fixed(sketch.vector), work.finish_gram()
        self._traits.position += position
        self._traits.anchored += anchored
        self._codes.append(_code_row(work, sketch, position, anchored))

    def _is_fixed(self, matrix: Matrix, profile: Profile) -> bool:
        """Whether this is a fixed position table.

        Its mean square is 1/2. Few matrices pass that first test, so reading those again costs nothing.
        """
        power = profile.value("mean") ** 2 + profile.value("std") ** 2
        if not abs(power - 0.5) <= _FIXED_POWER:
            return False
        return all(is_fixed_table(rows) for _, rows in row_runs(self._checkpoint, matrix))


def _digest_of(info: TensorInfo, *, prefixed: bool) -> DigestAccumulator:
    """Digest of decoded values; of stored bytes where values are integers or cannot be decoded."""
    kind = info.type
    if not info.is_weight:
        apart = kind.block == 1
        return DigestAccumulator("U8", (*info.shape, kind.block_bytes) if apart else (info.nbytes,))
    shape = (*info.shape, 2) if kind.values > 1 else info.shape
    prefix = None
    if prefixed:
        _, rows, columns = info.matrices
        prefix = EMBEDDING_ROWS * columns if rows >= columns else None
    return DigestAccumulator(kind.name, shape, prefix_values=prefix)


class _MatrixPass:
    """Sketch, anchored Gram and profile of one matrix, as far as each applies.

    The embedding gives the sketch of its leading rows and no Gram, another vocabulary table neither.
    """

    def __init__(self, matrix: Matrix, anatomy: Anatomy, anchors: Anchors | None) -> None:
        rows, columns = matrix.rows, matrix.columns
        self.matrix = matrix
        self.is_embedding = matrix == anatomy.embedding
        self.sketched = self.is_embedding or matrix.info.name not in anatomy.tables
        self.profile = ProfileAccumulator(rows, columns)
        self._grams: list[GramAccumulator] = []
        self._tokens: NDArray[np.float32] | None = None
        self._take = rows
        if self.is_embedding:
            self._take = min(EMBEDDING_ROWS, max(rows, columns))
            self._sketch = SketchAccumulator(
                self._take, min(rows, columns), embedding_key(min(rows, columns))
            )
            if rows < columns:  # stored d x V: its leading columns are token rows, sketched at the end
                self._tokens = np.empty((self._take, rows), np.float32)
        elif self.sketched:
            self._sketch = SketchAccumulator(rows, columns, matrix_key(rows, columns))
            if anchors is not None:
                sides: dict[Literal["columns", "rows"], int] = {"columns": columns, "rows": rows}
                residual = [side for side, width in sides.items() if width == anchors.width]
                self._grams = [GramAccumulator(anchors, rows, columns, side) for side in residual]

    def update(self, values: NDArray[np.float32], position: int) -> None:
        start, columns = position - self.matrix.start, self.matrix.columns
        self.profile.update(values, start)
        for gram in self._grams:
            gram.update(values, start)
        if self._tokens is not None:
            part = values.reshape(-1, columns)[:, : self._take]
            self._tokens[:, start // columns : start // columns + len(part)] = part.T
        elif self.sketched and start < self._take * columns:
            self._sketch.update(values[: self._take * columns - start], start)

    def finish_sketch(self) -> Sketch | None:
        if self._tokens is not None:
            self._sketch.update(self._tokens.ravel(), 0)
        return self._sketch.finish()

    def finish_gram(self) -> NDArray[np.int64]:
        total = np.zeros(PAIRS, np.int64)
        for gram in self._grams:
            unit = gram.finish()
            if unit is not None:
                total += fixed(unit)
        return total


def _code_row(
    work: _MatrixPass, sketch: Sketch, position: NDArray[np.int64], anchored: NDArray[np.int64]
) -> Row:
    """Columns of ``records.CODES`` from the second on."""
    flags = records.IS_EMBEDDING * work.is_embedding | records.HAS_GRAM * bool(anchored.any())
    return (work.matrix.rows, work.matrix.columns, flags, sketch.weight_norm, code(quantise(position), RUNS))
