"""Several parents: which models were merged into one, and in what proportion.

Sums of sign sketches are nearly linear in the weights of close relatives: the average of two models lies half
way between their sketches. Of a merge layer by layer every matrix tells its own parent.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hilm.lineage.search import COMPARED, akin, cosine
from hilm.lineage.sketch import RUNS
from hilm.lineage.tables import evenly
from hilm.lineage.verdict import PRUNED_SHARE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from hilm.lineage.search import Print
    from hilm.lineage.verdict import Verdict

NEAREST = 24  # relatives tried as parents: every two and every three of them
MOST_PARENTS = 8
LINEAR = 0.15  # distance from an average over that to the nearest parent, at most
PART = 0.05  # smallest weight of a parent
VOTES = (
    0.1  # share of the matrices that a parent explains alone, at least, and all leave unexplained, at most
)
SIBLING = 0.5  # sketch cosine of models whose weights can be averaged, at least
WHOLE = 1.05  # largest weight of a parent; what lies further out is no merge
CLOSE = 0.95  # sketch cosine of models whose matrices are all each other's relatives
RIDGE = 1e-10


@dataclass(frozen=True, slots=True)
class Merge:
    """What one model was merged from.

    Attributes:
        kind: ``linear``: a weighted average; ``layers``: whole matrices of one or another; ``ties`` and
            ``dare``: some values of each.
        parents: Numbers of the candidates, the heaviest first.
        weights: Their weights in a linear or ``dare`` merge (what is missing from 1 is the base's); the share
            of the matrices that came from each in a merge by layers; none otherwise.
        error: Standard error of the weights of a linear merge.
        residual: What is left unexplained, as a share of the distance to the nearest parent (linear),
            of the matrices (layers), or of values (ties, dare).
        base: The one that the parents of a ``ties`` or ``dare`` merge come from.
        factors: What the kept changes of each parent were multiplied by (ties, dare).
    """

    kind: Literal["linear", "layers", "ties", "dare"]
    parents: tuple[int, ...]
    weights: tuple[float, ...] | None
    error: float | None
    residual: float
    base: int | None = None
    factors: tuple[float, ...] | None = None


def find_merge(child: NDArray[np.float64], candidates: NDArray[np.float64]) -> Merge | None:
    """Explain a sketch as a weighted average of others, or not at all.

    Sketches sum unit vectors, so that blends lie beside the chord: scaled to reach the plane that touches the
    sphere at the child, seen from the origin, parents and child lie on one line again.

    Args:
        child: float64 [1024], unrounded.
        candidates: float64 [k, 1024], relatives with the same matrices, no copies of the child among them; at
            most ``NEAREST``.
    """
    along = candidates @ child
    reach = float(child @ child) / np.where(along > 0, along, np.inf)  # what points away is no parent
    ways = candidates * reach[:, None] - child
    found = _find_average(ways @ ways.T)
    if found is None:
        return None
    heavy = np.array(found.weights)
    weights = heavy * reach[list(found.parents)]
    return replace(found, weights=tuple((weights / weights.sum() * heavy.sum()).tolist()))


def _find_average(gram: NDArray[np.float64]) -> Merge | None:
    """What the child is a weighted average of; if it can be, of models that are no averages themselves.

    Args:
        gram: Inner products of the ways from the child to the candidates.
    """
    pure = [k for k in range(len(gram)) if not _is_between(gram, k)]
    found = _smallest_average(gram[np.ix_(pure, pure)])
    if found is not None:
        return replace(found, parents=tuple(pure[k] for k in found.parents))
    return _smallest_average(gram) if len(pure) < len(gram) else None


def _is_between(gram: NDArray[np.float64], candidate: int) -> bool:
    """Whether a candidate is an average of two of the others, or of one and the child."""
    points = np.pad(gram, (0, 1))  # the child last: all ways start there
    row = points[candidate]
    ways = np.delete(np.delete(points - row - row[:, None] + row[candidate], candidate, 0), candidate, 1)
    pairs = np.array(list(combinations(range(len(ways)), 2)))
    if not len(pairs):
        return False
    weights, residuals = _average(ways, pairs)
    nearest = np.sqrt(np.maximum(np.diagonal(ways)[pairs].min(axis=1), 0))  # of a copy, rounding leaves less
    return bool(((weights.min(axis=1) >= PART) & (residuals <= LINEAR * nearest)).any())


def _smallest_average(gram: NDArray[np.float64]) -> Merge | None:
    """The smallest set whose weighted average is the child: of two, three, then one more at a time."""
    sets: list[tuple[int, ...]] = list(combinations(range(len(gram)), 2))
    for size in range(2, min(len(gram), MOST_PARENTS) + 1):
        weights, residuals = _average(gram, np.array(sets))
        best = int(np.where((weights > 0).sum(axis=1) >= 2, residuals, np.inf).argmin())
        kept = [k for k, weight in zip(sets[best], weights[best], strict=True) if abs(weight) >= PART]
        if size > 2 and 2 <= len(kept) < len(sets[best]):  # what counts for nothing was only in the way
            sets = [tuple(kept)]
            weights, residuals, best = *_average(gram, np.array(sets)), 0
        found = _describe_average(gram, np.array(sets[best]), weights[best], float(residuals[best]))
        if found is not None:
            return found
        grown = [(*sets[best], k) for k in range(len(gram)) if k not in sets[best]]
        sets = list(combinations(range(len(gram)), 3)) if size == 2 else grown
    return None


def _average(
    gram: NDArray[np.float64], sets: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights of sum 1 that bring each set nearest to the child, and what distance they leave."""
    parts = gram[sets[:, :, None], sets[:, None, :]]
    scale = np.trace(parts, axis1=1, axis2=2)[:, None, None]
    inverse = np.linalg.inv(parts + RIDGE * np.maximum(scale, 1e-30) * np.eye(sets.shape[1]))
    total = inverse.sum(axis=(1, 2))
    return inverse.sum(axis=2) / total[:, None], np.sqrt(1 / np.maximum(total, 1e-30))


def _describe_average(
    gram: NDArray[np.float64], chosen: NDArray[np.int64], weights: NDArray[np.float64], residual: float
) -> Merge | None:
    """The merge, if the average is near enough to the child and no part of it negligible."""
    order = [int(i) for i in np.argsort(-weights, kind="stable") if weights[i] > 0]
    parents, heavy = tuple(int(chosen[i]) for i in order), tuple(float(weights[i]) for i in order)
    nearest = float(np.sqrt(np.diagonal(gram)[list(parents)].min()))
    if len(parents) < 2 or np.abs(weights).min() < PART or heavy[0] > WHOLE or residual > LINEAR * nearest:
        return None
    part = gram[np.ix_(chosen, chosen)]
    spread = part - part.mean(axis=0) - part.mean(axis=1)[:, None] + part.mean()  # about the set's middle
    error = residual * np.sqrt(np.diagonal(np.linalg.pinv(spread)).max() / (RUNS - len(chosen)))
    return Merge("linear", parents, heavy, float(error), residual / nearest)


def find_layers(votes: Sequence[frozenset[int]]) -> Merge | None:
    """Explain a model as whole matrices of several, or not at all.

    Args:
        votes: For every matrix the candidates it came from, the nearest model being number 0: those that
            have it exactly, or without any those that it is a relative of.
    """
    parents: list[int] = []
    counts: list[int] = []
    left = [vote for vote in votes if vote]
    while left and len(parents) < MOST_PARENTS:
        best = max(sorted(frozenset().union(*left)), key=lambda c: sum(c in vote for vote in left))
        count = sum(best in vote for vote in left)
        if count < VOTES * len(votes):
            break
        parents.append(best)
        counts.append(count)
        left = [vote for vote in left if best not in vote]
    if len(parents) < 2 or sum(counts) < (1 - VOTES) * len(votes):
        return None
    shares = tuple(count / len(votes) for count in counts)
    return Merge("layers", tuple(parents), shares, None, 1 - sum(shares))


def find_parents(child: Print, relatives: Sequence[Print]) -> Merge | None:
    """What a model was merged from, by fingerprints alone.

    Args:
        child: The model; a quantised or pruned one tells nothing.
        relatives: Models it is established to be related to.

    Returns:
        The merge; parents are numbers of relatives.
    """
    near = _nearest(child, relatives)
    merge = find_layers(_votes(child, [relatives[i] for i in near])) if near else None
    if merge is None:
        near = siblings(child, relatives)
        merge = find_merge(child.sums[0], np.array([relatives[i].sums[0] for i in near]).reshape(-1, RUNS))
    return replaced(merge, near) if merge else None


def replaced(merge: Merge, numbers: Sequence[int]) -> Merge:
    """The merge with other numbers for its parents and base."""
    base = numbers[merge.base] if merge.base is not None else None
    return replace(merge, parents=tuple(numbers[k] for k in merge.parents), base=base)


def siblings(child: Print, relatives: Sequence[Print], *, copies: bool = False) -> list[int]:
    """Numbers of the relatives whose values could have been mixed into the child's, the nearest first.

    Their shapes are equal, their sketches similar, and neither they nor the child were quantised or pruned.
    Without ``copies`` only one of models that are equal but for rounding and names.
    """
    shapes = child.side().shapes
    return [
        i
        for i in _nearest(child, relatives, copies=copies)
        if relatives[i].side().shapes == shapes
        and (cosine(child.sums[0], relatives[i].sums[0]) or 0.0) >= SIBLING
    ]


def _nearest(child: Print, relatives: Sequence[Print], *, copies: bool = False) -> list[int]:
    """Numbers of the relatives that are as they were trained, the nearest first."""
    if _is_worn(child):
        return []
    useful = [i for i, p in enumerate(relatives) if p.rounded != child.rounded and not _is_worn(p)]

    def far(i: int) -> tuple[float, bool]:
        other = relatives[i]
        return float(np.linalg.norm(other.sums[0] - child.sums[0])), other.vocabulary != child.vocabulary

    useful.sort(key=far)
    if copies:
        return useful[:NEAREST]
    return list({relatives[i].rounded: i for i in reversed(useful)}.values())[::-1][:NEAREST]


def as_merge(
    judged: Verdict, child: str, merge: Merge, parents: Sequence[str], base: str | None = None
) -> Verdict:
    """The verdict on a model and one of its parents; facts about values stay as they are."""
    if judged.relation in {"identical", "subset", "dtype-cast"}:
        return judged
    details = judged.details | {"merge": details_of(merge, child, parents, base)}
    return replace(
        judged, relation="merge", details=details, sentence=sentence_of(merge, child, parents, base)
    )


def details_of(merge: Merge, child: str, parents: Sequence[str], base: str | None) -> dict[str, Any]:
    """What is known of a merge, as data."""
    weights, factors = (x or (None,) * len(parents) for x in (merge.weights, merge.factors))
    return {
        "model": child,
        "kind": merge.kind,
        "base": base,
        "parents": [
            {"model": p, "weight": w, "factor": f} for p, w, f in zip(parents, weights, factors, strict=True)
        ],
        "weight_error": merge.error,
        "residual": merge.residual,
    }


def sentence_of(merge: Merge, child: str, parents: Sequence[str], base: str | None = None) -> str:
    """The same for people."""
    names = f"{', '.join(parents[:-1])} and {parents[-1]}"
    if merge.factors is not None:
        return f"{child} is a {merge.kind.upper()} merge of {names}: of what they changed of {base}"
    parts = [f"{name} ({weight:.0%})" for name, weight in zip(parents, merge.weights or (), strict=True)]
    how = "a merge by layers" if merge.kind == "layers" else "a weighted average"
    return f"{child} is {how} of {', '.join(parts[:-1])} and {parts[-1]}"


def _is_worn(model: Print) -> bool:
    """Whether values were quantised or pruned: a step that is not undone."""
    return model.side().bits is not None or (model.side().zeros or 0.0) >= PRUNED_SHARE


def _votes(child: Print, candidates: Sequence[Print]) -> list[frozenset[int]]:
    """For every matrix the candidates that have it exactly; else those with a relative of it.

    Relatives count only where no candidate is close as a whole: between siblings they tell nothing.
    """
    rows = child.matrices[evenly(0, len(child.matrices) - 1, min(COMPARED, len(child.matrices)))]
    exact = np.array([np.isin(_halves(child, rows), _halves(p, p.matrices)) for p in candidates])
    exact = exact.reshape(len(candidates), len(rows))
    related = np.zeros_like(exact)
    if all((cosine(child.sums[0], p.sums[0]) or 0.0) < CLOSE for p in candidates):
        related[:] = [akin(rows, p.matrices).any(axis=1) for p in candidates]
    votes = np.where(exact.any(axis=0), exact, related)
    return [frozenset(np.flatnonzero(column).tolist()) for column in votes.T]


def _halves(model: Print, rows: NDArray[np.void]) -> NDArray[np.uint64]:
    """Digests of the tensors of some matrices, rounded to bfloat16."""
    order = np.argsort(model.hashes["exact"])
    places = np.searchsorted(model.hashes["exact"], rows["exact"], sorter=order)
    halves: NDArray[np.uint64] = model.hashes["half"][order[places]]
    return halves
