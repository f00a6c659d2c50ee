"""Parts of matrices, read where they are needed: tokens, runs of rows, corners, profiles; and which parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

from hilm.lineage.profile import SAMPLE_ROWS, ProfileAccumulator

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from hilm.lineage.anatomy import Matrix
    from hilm.lineage.profile import Profile
    from hilm.weights.checkpoint import Checkpoint

T = TypeVar("T")

RUN_VALUES = 1 << 22  # values of a run of rows: 16 MiB
FIXED_LARGEST = 1.001  # no sine or cosine is larger, up to rounding
FIXED_NORM = 1e-3  # how far the norm of C/2 pairs of sine and cosine may be from √(C/2)


def row_runs(checkpoint: Checkpoint, matrix: Matrix) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Read a matrix by runs of rows, float32 [n, C], each with the number of its first row."""
    step, origin = max(1, RUN_VALUES // matrix.columns), matrix.index * matrix.rows
    for start in range(0, matrix.rows, step):
        stop = min(start + step, matrix.rows)
        yield start, checkpoint.read_rows(matrix.info.name, origin + start, origin + stop)


def token_rows(checkpoint: Checkpoint, table: Matrix, ids: Sequence[int]) -> NDArray[np.float32]:
    """Read the embeddings of tokens, float32 [len(ids), d], from a table stored [V, d] or [d, V]."""
    if table.rows >= table.columns:
        info, order = table.info, sorted(set(ids))
        checkpoint.expect(info.span.file, ((info, i * table.columns, (i + 1) * table.columns) for i in order))
        rows = {i: checkpoint.read_rows(info.name, i, i + 1) for i in order}
        return np.concatenate([rows[i] for i in ids])
    columns = [rows[:, ids] for _, rows in row_runs(checkpoint, table)]
    return np.ascontiguousarray(np.concatenate(columns).T)


def read_corner(checkpoint: Checkpoint, name: str, side: int) -> NDArray[np.float64]:
    """Read the first columns of a tensor's middle rows, at most ``side`` of either, as float64."""
    _, rows, _ = checkpoint.tensors[name].matrices
    start = max(0, (rows - side) // 2)
    return checkpoint.read_rows(name, start, min(start + side, rows))[:, :side].astype(np.float64)


def read_profile(checkpoint: Checkpoint, matrix: Matrix) -> Profile:
    """Profile a matrix from the rows that a profile looks at, and no others."""
    accumulator = ProfileAccumulator(matrix.rows, matrix.columns)
    for row in np.unique(np.arange(SAMPLE_ROWS) * matrix.rows // SAMPLE_ROWS).tolist():
        position = matrix.index * matrix.rows + row
        values = checkpoint.read_rows(matrix.info.name, position, position + 1)
        accumulator.update(values.reshape(-1), row * matrix.columns)
    return accumulator.finish()


def is_fixed_table(rows: NDArray[np.float32]) -> bool:
    """Whether rows [n, C] are sines and cosines, as in fixed position tables, which strangers share.

    Every row then has norm √(C/2), since sin² + cos² = 1, and no value is above 1. NaN and infinity make it
    False.
    """
    norms = np.sqrt(np.square(rows.astype(np.float64)).sum(axis=1))
    turning = np.abs(norms - np.sqrt(rows.shape[1] / 2)).max() <= FIXED_NORM
    return bool(turning and np.abs(rows).max() <= FIXED_LARGEST)


def evenly(first: int, last: int, count: int) -> NDArray[np.int64]:
    """At most ``count`` different numbers from ``first`` to ``last``, both included, spaced evenly."""
    return np.unique(np.linspace(first, last, count).astype(np.int64))


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most ``count`` items, evenly spaced, first and last included."""
    return [items[i] for i in evenly(0, len(items) - 1, min(count, len(items)))]
