"""Which goes with which: the linear assignment problem, exactly, and the tensors of two checkpoints by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numba import njit

from hilm.errors import InputError
from hilm.lineage.anatomy import MIN_SIDE, Anatomy
from hilm.lineage.tables import evenly
from hilm.weights.dtypes import decode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from hilm.weights.checkpoint import Checkpoint
    from hilm.weights.tensor import TensorInfo

RUNS, RUN = 16, 1024  # a sample: evenly spaced runs, at most this long
CLASS_SAMPLE = 1 << 24  # values sampled of all tensors of one shape, at most
UNALIGNED = 0.3  # a direct cosine below this says that coordinates do not correspond
COPY = 0.99999  # above this cosine a tensor is a copy of another, not just similar
NAME_BONUS = 0.01  # what an equal name counts beside a cosine


def assign(scores: NDArray[np.floating]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pair rows with columns, one to one, for the largest possible sum of scores.

    Shortest augmenting paths with dual potentials; O(min(R, C)² · max(R, C)).

    Args:
        scores: [R, C], finite.

    Returns:
        Row and column numbers of the min(R, C) pairs, rows ascending.

    Raises:
        InputError: scores is not a matrix or holds values that are not finite.
    """
    if scores.ndim != 2 or not np.isfinite(scores).all():
        raise InputError(f"an assignment needs a finite matrix, got shape {scores.shape}")
    costs = -np.ascontiguousarray(scores, np.float64)
    if costs.shape[0] <= costs.shape[1]:
        columns = _augment(costs)
        return np.arange(len(columns)), columns
    rows = _augment(np.ascontiguousarray(costs.T))
    order = np.argsort(rows, kind="stable")
    return rows[order], order


def upper_half(values: Sequence[float]) -> float | None:
    """Mean of the better half of an assignment's scores: what has no partner is paired all the same."""
    ordered = sorted(values, reverse=True)
    return float(np.mean(ordered[: (len(ordered) + 1) // 2])) if ordered else None


@njit(cache=True, nogil=True)
def _augment(costs: NDArray[np.float64]) -> NDArray[np.int64]:
    """Column of every row for the smallest sum of costs; needs rows ≤ columns."""
    rows, columns = costs.shape
    owner = np.full(columns + 1, -1)  # row that holds a column; the last column is where a search starts
    row_dual, column_dual = np.zeros(rows), np.zeros(columns + 1)
    for row in range(rows):
        owner[columns] = row
        previous = np.full(columns, columns)
        slack = np.full(columns, np.inf)
        visited = np.zeros(columns + 1, np.bool_)
        here = columns
        while owner[here] >= 0:
            visited[here] = True
            reduced = costs[owner[here]] - row_dual[owner[here]] - column_dual[:-1]
            closer = (reduced < slack) & ~visited[:-1]
            slack = np.where(closer, reduced, slack)
            previous = np.where(closer, here, previous)
            there = np.argmin(np.where(visited[:-1], np.inf, slack))
            step = slack[there]
            for column in np.flatnonzero(visited):
                row_dual[owner[column]] += step
                column_dual[column] -= step
            slack -= step  # visited columns are never looked at again
            here = there
        while here != columns:
            owner[here] = owner[previous[here]]
            here = previous[here]
    held = np.flatnonzero(owner[:-1] >= 0)
    return held[np.argsort(owner[held])]


@dataclass(frozen=True, slots=True)
class Aligned:
    """Two tensors that correspond; ``run`` is the length of the runs sampled to find that out, 0 for none."""

    a: TensorInfo
    b: TensorInfo
    run: int

    @property
    def shorter(self) -> TensorInfo:
        """The one whose values, in order, have partners in the other."""
        return min(self.a, self.b, key=lambda t: t.numel)

    def sampled(self) -> list[slice]:
        """The runs that decided on the alignment, as flat ranges."""
        return [slice(s, s + self.run) for s in _run_starts(self.a.numel, self.run)] if self.run else []


def align(a: Checkpoint, b: Checkpoint, anatomy_a: Anatomy, anatomy_b: Anatomy) -> list[Aligned]:
    """Find the tensors of two checkpoints that correspond, in the first one's storage order.

    Within a shape, namesakes with similar values go together; the rest by linear assignment on the cosines of
    sampled values, names tipping the scale; then copies of what is paired. Tables of equal width and unequal
    length are compared on their common rows. A tensor may occur in several pairs, as copies do.
    """
    aligned: list[Aligned] = []
    left, right = _by_shape(a), _by_shape(b)
    for shape in left.keys() & right.keys():
        aligned += _align_class(a, left[shape], b, right[shape])
    names = {p.a.name for p in aligned}, {p.b.name for p in aligned}
    aligned += _align_tables(a, b, (anatomy_a, anatomy_b), names)
    order = {name: i for i, name in enumerate(a.tensors)}
    return sorted(aligned, key=lambda p: (order[p.a.name], p.b.name))


def stored_tensors(checkpoint: Checkpoint) -> list[TensorInfo]:
    """Every tensor once: aliases left out."""
    return [t for t in checkpoint.tensors.values() if t.alias_of is None]


def decoded(info: TensorInfo, words: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Values of stored bytes; the bytes themselves where the type has no values of its own."""
    if info.type.kind == "packed":
        return words.astype(np.float32)
    out = np.empty(info.type.count(len(words)), np.float32)
    decode(info.type, words, out)
    return out


def _by_shape(checkpoint: Checkpoint) -> dict[tuple[str | int, ...], list[TensorInfo]]:
    classes: dict[tuple[str | int, ...], list[TensorInfo]] = {}
    for info in stored_tensors(checkpoint):
        codes = (info.dtype,) if info.type.kind == "packed" else ()  # codes of two types do not compare
        classes.setdefault((*codes, *info.shape), []).append(info)
    return classes


def _align_class(
    a: Checkpoint, left: list[TensorInfo], b: Checkpoint, right: list[TensorInfo]
) -> list[Aligned]:
    run = _run_length(left[0], len(left) + len(right))
    first, second = [_sample(a, t, run) for t in left], [_sample(b, t, run) for t in right]
    cosines = np.stack(first) @ np.stack(second).T
    keys = [np.array([hash(s.tobytes()) for s in side]) for side in (first, second)]
    equal = keys[0][:, None] == keys[1]
    namesake = np.array([[x.name == y.name for y in right] for x in left])
    pairs = [(i, j) for i, j in _pair_up(cosines, namesake, equal) if cosines[i, j] >= UNALIGNED]
    rows, columns = _free(pairs, cosines.shape)
    pairs += [(i, j) for i in rows for j in columns if namesake[i, j]]
    rows, columns = _free(pairs, cosines.shape)
    copies = [(i, int(cosines[i].argmax())) for i in rows] + [
        (int(cosines[:, j].argmax()), j) for j in columns
    ]
    pairs += [(i, j) for i, j in dict.fromkeys(copies) if cosines[i, j] >= COPY]
    return [Aligned(left[i], right[j], run) for i, j in pairs]


def _pair_up(
    cosines: NDArray[np.float32], namesake: NDArray[np.bool_], equal: NDArray[np.bool_]
) -> list[tuple[int, int]]:
    """Namesakes that nothing matches clearly better; then the best assignment of the rest, copies first.

    Gains near 1 are all but copies of one another: equal ones go before them.
    """
    best = np.maximum(cosines.max(axis=1, keepdims=True), cosines.max(axis=0))
    alike = (cosines >= COPY) | ((best < COPY) & (cosines >= best - NAME_BONUS))
    fixed = np.nonzero(namesake & alike & (cosines >= UNALIGNED))
    pairs = list(zip(fixed[0].tolist(), fixed[1].tolist(), strict=True))
    rows, columns = _free(pairs, cosines.shape)
    rest = np.ix_(rows, columns)
    more = assign((cosines + equal + (cosines >= COPY) + NAME_BONUS * namesake)[rest])
    return pairs + [(rows[i], columns[j]) for i, j in zip(*more, strict=True)]


def _free(pairs: list[tuple[int, int]], shape: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Rows and columns that no pair uses."""
    rows, columns = {i for i, _ in pairs}, {j for _, j in pairs}
    return [i for i in range(shape[0]) if i not in rows], [j for j in range(shape[1]) if j not in columns]


def _run_length(info: TensorInfo, tensors: int) -> int:
    """Whole vectors, a quarter of small matrices, 16 runs of 1024 of large ones."""
    share = RUNS if min(info.matrices[1:]) < MIN_SIDE else 4 * RUNS
    return max(1, min(RUN, -(-info.numel // share), CLASS_SAMPLE // (RUNS * tensors)))


def _run_starts(numel: int, run: int) -> list[int]:
    return [int(start) for start in evenly(0, max(numel - run, 0), RUNS)]


def _sample(checkpoint: Checkpoint, info: TensorInfo, run: int) -> NDArray[np.float32]:
    """Evenly spaced runs of a tensor as a unit vector; nothing but zeros has a coordinate of its own."""
    ranges = [(s, min(s + run, info.numel)) for s in _run_starts(info.numel, run)]
    packed = info.type.kind == "packed" or info.refusal
    pieces = [
        decoded(info, checkpoint.words(info.name, *r)) if packed else checkpoint.values(info.name, *r)
        for r in ranges
    ]
    values = np.nan_to_num(np.concatenate(pieces), nan=0.0, posinf=0.0, neginf=0.0).astype(np.float64)
    norm = float(np.linalg.norm(values))
    return np.append(values / (norm or 1.0), norm == 0).astype(np.float32)


def _align_tables(
    a: Checkpoint, b: Checkpoint, anatomies: tuple[Anatomy, Anatomy], taken: tuple[set[str], set[str]]
) -> list[Aligned]:
    """Pair what is left of namesakes, and the two embeddings, if they differ in rows only."""
    wanted = [(name, name) for name in a.tensors if name in b.tensors]
    tables = [m.embedding.info.name for m in anatomies if m.embedding]
    wanted += [(tables[0], tables[1])] if len(tables) == len(anatomies) else []
    found = []
    for name, other in dict.fromkeys(wanted):
        x, y = a.tensors[name], b.tensors[other]
        if "packed" in {x.type.kind, y.type.kind} and x.dtype != y.dtype:
            continue
        free = name not in taken[0] and other not in taken[1] and x.alias_of is None and y.alias_of is None
        if free and min(len(x.shape), len(y.shape)) > 1 and x.shape[1:] == y.shape[1:]:
            found.append(Aligned(x, y, 0))
    return found
