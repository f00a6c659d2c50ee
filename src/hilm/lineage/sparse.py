"""Merges that decide value by value, as TIES and DARE do: proved on values of the models themselves.

Such a merge keeps some of what each parent changed of a common base, times a factor, and the base elsewhere.
Where one parent alone decided, the child's change is an exact multiple of that parent's, everywhere the same;
the ratios to the changes of any other model are spread. Where several count, TIES takes the mean of their
changes, DARE the sum.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Literal

import ml_dtypes
import numpy as np

from hilm.lineage.anatomy import dissect
from hilm.lineage.merges import Merge
from hilm.lineage.tables import spread

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from hilm.weights.checkpoint import Checkpoint

    Floats = NDArray[np.float64]

Kind = Literal["ties", "dare"]
TENSORS, VALUES = 32, 1024  # tensors looked at, and values of each
STEP = 1 / 256  # ratios less apart than this are counted together
LARGEST = 16.0  # factor of a kept change, at most: DARE scales up what it keeps
RESOLVED = 64  # change over the error of a value from which its ratio means something
APART = 8  # what two parents make of a value, over its tolerance, from which they can be told apart
EXACT = 1e-4  # relative error of a multiple that counts as exact
COMMON = 0.02  # share of values with one ratio that makes a model a possible parent
POSSIBLE = 4  # possible parents of one base that are tried with each other
ENOUGH = 128  # values that show something, at least
UNEXPLAINED = 0.1  # share of these that a merge leaves, at most: of other models of a family at least 0.12
PART = 0.02  # share of them that every parent is needed for, at least
MOST = 0.7  # values that show an explanation over those that show another one as good, at least
KINDS: tuple[Kind, ...] = ("ties", "dare")
ERRORS = ((ml_dtypes.bfloat16, 2.0**-8), (np.float16, 2.0**-10), (np.float32, 2.0**-21))
"""Types, and relative errors of values that were computed in float32 and rounded to them."""


def sampled_names(checkpoint: Checkpoint) -> list[str]:
    """Tensors of which values are read: evenly spaced by name, vocabulary tables left out."""
    anatomy = dissect(checkpoint)
    return spread(sorted({m.info.name for m in anatomy.matrices} - anatomy.tables), TENSORS)


def read_values(checkpoint: Checkpoint, names: Sequence[str]) -> NDArray[np.float32]:
    """The middle values of tensors, one after another, float32 [n]; 0 for what is not finite."""
    parts = [np.empty(0, np.float32)]
    for name in names:
        size = checkpoint.tensors[name].numel
        start = max(0, (size - VALUES) // 2)
        parts.append(checkpoint.values(name, start, min(start + VALUES, size)))
    return np.nan_to_num(np.concatenate(parts), posinf=0.0, neginf=0.0)


def find_sparse_merge(child: NDArray[np.float32], others: NDArray[np.float32]) -> Merge | None:
    """The base and the parents that explain nearly all values of the child.

    None also if one of them is better explained with the child's help: then that is the merge.

    Args:
        child: float32 [n], finite.
        others: float32 [k, n], the same values of relatives, finite.
    """
    found = _best(child, others)
    if found is None:
        return None
    for member in (found.base, *found.parents):
        swapped = others.copy()
        swapped[member] = child
        rival = _best(others[member], swapped)
        if rival and member in (rival.base, *rival.parents) and rival.residual < found.residual:
            return None
    return found


def _best(child: NDArray[np.float32], others: NDArray[np.float32]) -> Merge | None:
    """The best explanation, of several as good one of the fewest parents that most values show.

    Fewer values show one whose parents share values with each other or the base: a parent that is a merge.
    """
    with np.errstate(over="ignore"):
        error = next(e for kind, e in ERRORS if np.array_equal(child.astype(kind).astype(np.float32), child))
    found = [
        x for base in range(len(others)) for x in _with_base(base, child.astype(np.float64), others, error)
    ]
    if not found:
        return None
    rank = [(round(20 * merge.residual), len(merge.parents)) for _, merge in found]
    good = [x for x, r in zip(found, rank, strict=True) if r == min(rank)]
    most = max(shown for shown, _ in good)
    return min((merge for shown, merge in good if shown >= MOST * most), key=lambda m: round(m.residual, 3))


def _with_base(
    base: int, child: Floats, others: NDArray[np.float32], relative: float
) -> Iterator[tuple[int, Merge]]:
    """Explanations of the child by changes of one base, each with the number of values that show it."""
    start = others[base].astype(np.float64)
    error, change, tasks = relative * np.maximum(np.abs(child), np.abs(start)), child - start, others - start
    ratios = [_common_ratio(change[::4], task[::4], error[::4]) for task in tasks]
    possible = [k for k in np.argsort([-share for share, _ in ratios]).tolist() if ratios[k][0] >= COMMON]
    for size in range(2, POSSIBLE + 1):
        for parents in combinations(possible[:POSSIBLE], size):
            factors = np.array([ratios[k][1] for k in parents])
            parts = tasks[list(parents)] * factors[:, None]
            for kind in KINDS:
                if _explain(kind, change[::8], parts[:, ::8], error[::8])[1] > 2 * UNEXPLAINED:
                    continue  # most are told by a glance
                shown, left, kept = _explain(kind, change, parts, error)
                if shown >= ENOUGH and left <= UNEXPLAINED and kept.min() >= PART:
                    weights = tuple((factors * kept).tolist()) if kind == "dare" else None
                    yield shown, Merge(kind, parents, weights, None, left, base, tuple(factors.tolist()))


def _common_ratio(change: Floats, task: Floats, error: Floats) -> tuple[float, float]:
    """Share of the values that have the commonest ratio of two changes, and that ratio."""
    shown = np.abs(task) > RESOLVED * error
    ratios = change[shown] / task[shown]
    ratios = ratios[(ratios > STEP) & (ratios < LARGEST)]
    if 4 * shown.sum() < ENOUGH or not ratios.size:
        return 0.0, 0.0
    counts = np.bincount((ratios / STEP).astype(np.int64), minlength=2)
    counts = counts[:-1] + counts[1:]  # no ratio lies at the edge of all bins
    at = int(counts.argmax())
    near = ratios[(ratios >= at * STEP) & (ratios < (at + 2) * STEP)]
    return float(counts[at] / shown.sum()), float(np.median(near))


def _explain(kind: Kind, change: Floats, tasks: Floats, error: Floats) -> tuple[int, float, Floats]:
    """How many values show something, the share that no parents explain, and shares that need each parent.

    Values show something where the base and each parent alone would make something else.
    """
    alone = np.concatenate([np.zeros((1, change.size)), tasks])
    tolerance = error + EXACT * np.abs(tasks).max(axis=0)
    shown = np.all([np.abs(a - b) > APART * tolerance for a, b in combinations(alone, 2)], axis=0)
    change, tasks, tolerance = change[shown], tasks[:, shown], tolerance[shown]
    everyone = range(len(tasks))
    right = np.tile(np.abs(change) <= tolerance, (len(tasks) + 1, 1))  # by all, by all but the first, …
    for size in range(1, len(tasks) + 1):
        for chosen in combinations(everyone, size):
            made = tasks[list(chosen)].sum(axis=0) / (size if kind == "ties" else 1)
            right[[0, *(k + 1 for k in everyone if k not in chosen)]] |= np.abs(change - made) <= tolerance
    shares: Floats = right.sum(axis=1) / max(1, change.size)
    return change.size, 1 - float(shares[0]), shares[0] - shares[1:]
