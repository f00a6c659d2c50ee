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

FACTS = frozenset({"identical", "subset", "dtype-cast"})  # hold whatever else is true of a merge
NEAREST = 24  # relatives tried as parents: every two and every three of them
MOST_PARENTS = 8
LINEAR = 0.15  # distance from an average over that to the nearest parent, at most
PART = 0.05  # smallest weight of a parent; share of the way from the base that every parent must explain
PAIR, MIXED = 0.75, 0.65  # share of the way from the base that two, then all parents may leave unexplained
BEYOND_SIBLINGS = (
    0.8  # the same, over what a sibling as similar to them as they are to each other would leave
)
NEARER = 0.9  # distance to what a mixture explains over that to the nearest relative, at most
DECIDED = 0.95  # distance to one corner over that to the next, from which a model belongs to the first
APART = -0.1  # correlation of two parents given the child; models that descend from it have 0, siblings more
STRAIGHT = 0.1  # how far a parent's way must be from having all of the child's in it, as descendants do
CENTRAL = 1.2  # distance of a parent to the base over that to another parent, at most
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
        kind: ``linear``: a weighted average; ``nonlinear``: of these parents, but no average, or trained
            further; ``layers``: whole matrices of one or another; ``ties``, ``dare``: some values of each.
        parents: Numbers of the candidates, the heaviest first.
        weights: Their weights in a linear or ``dare`` merge (what is missing from 1 is the base's); the share
            of the matrices that came from each in a merge by layers; none otherwise.
        error: Standard error of the weights of a linear merge.
        residual: What is left unexplained, as a share of the distance to the nearest parent (linear), to the
            base (nonlinear), of the matrices (layers), or of values (ties, dare).
        base: The one that the parents of a nonlinear, ``ties`` or ``dare`` merge come from.
        factors: What the kept changes of each parent were multiplied by (ties, dare).
    """

    kind: Literal["linear", "nonlinear", "layers", "ties", "dare"]
    parents: tuple[int, ...]
    weights: tuple[float, ...] | None
    error: float | None
    residual: float
    base: int | None = None
    factors: tuple[float, ...] | None = None


def find_merge(
    child: NDArray[np.float64], candidates: NDArray[np.float64], family: NDArray[np.float64] | None = None
) -> Merge | None:
    """Explain a sketch as a merge of others, or not at all.

    Args:
        child: float64 [1024], unrounded.
        candidates: float64 [k, 1024], relatives with the same matrices, no copies of the child among them; at
            most ``NEAREST``.
        family: float64 [m, 1024], all relatives: they tell which of several models is older.
    """
    found = _find_blend(child, candidates)
    if found is not None:
        return found
    points = np.vstack([child, candidates])
    others = candidates if family is None else family
    places = np.stack([np.sqrt(np.square(others - point).sum(axis=1)) for point in points])
    ways = candidates - child
    return _find_mixture(ways @ ways.T, places)


def _find_blend(child: NDArray[np.float64], candidates: NDArray[np.float64]) -> Merge | None:
    """An average, seen from the origin: sketches sum unit vectors, so that blends lie beside the chord.

    Scaled to reach the plane that touches the sphere at the child, parents and child lie on one line again.
    """
    along = candidates @ child
    reach = float(child @ child) / np.where(along > 0, along, np.inf)  # what points away is no parent
    ways = candidates * reach[:, None] - child
    found = _find_average(ways @ ways.T)
    if found is None or found.weights is None:
        return found
    weights = np.array(found.weights) * reach[list(found.parents)]
    return replace(found, weights=tuple((weights / weights.sum() * sum(found.weights)).tolist()))


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
    nearest = np.sqrt(np.diagonal(ways)[pairs].min(axis=1))
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


def _find_mixture(gram: NDArray[np.float64], places: NDArray[np.float64]) -> Merge | None:
    """Siblings and a base that explain enough of the child, but not as siblings or descendants would.

    Args:
        gram: Inner products of the ways from the child to the candidates.
        places: Distances from the child, then from the candidates, to the family.
    """
    found: Merge | None = None
    least = np.inf
    nearest = float(np.sqrt(np.diagonal(gram).min(initial=np.inf)))
    for base in range(len(gram)):
        row = gram[base]
        tasks = gram - row - row[:, None] + row[base]  # products of the ways from the base
        toward, reach = row[base] - row, float(row[base])  # theirs with the child's, and its square
        own = np.diagonal(tasks)
        for i, j, residual in _mixtures(tasks, toward, reach):
            central = max(own[i], own[j]) / (own[i] + own[j] - 2 * tasks[i, j])
            doubt = residual * np.sqrt(reach) * (1 + PART * central)  # three alone do not tell their base
            if residual * np.sqrt(reach) > NEARER * nearest or doubt >= least:
                continue
            if _is_youngest(gram, places, base, (i, j)):
                grown = _grow_mixture([i, j], base, tasks / reach, toward / reach)
                if grown.residual <= MIXED:
                    found, least = replace(grown, base=base), doubt
    return found


def _is_youngest(
    gram: NDArray[np.float64], places: NDArray[np.float64], base: int, pair: tuple[int, ...]
) -> bool:
    """Whether of the four the child is the merge, and the base the base.

    A merge, its parents and their base lie like the corners of a square, and each might be the merge of its
    neighbours. The base lies nearer to most of the family than the parents do; the merge has no more models
    close by than the others. Where that tells nothing, it must not lie further from the plane of the others
    than another corner does from its own.
    """
    around = places[[0, base + 1, *(k + 1 for k in pair)]]
    around = around[:, around.min(axis=0) > 0]  # without the four
    if not around.shape[1]:  # nothing tells
        return False
    middles = np.median(around, axis=1)
    if middles[1] > middles[2:].min():
        return False
    order = np.sort(around, axis=0)
    decided = order[0] < DECIDED * order[1]
    followers = np.bincount(around.argmin(axis=0)[decided], minlength=4)
    if followers[0] > followers.min():
        return False
    if followers[0] < followers[1]:
        return True
    corners = np.zeros((4, 4))
    corners[1:, 1:] = gram[np.ix_((base, *pair), (base, *pair))]
    faces = [_area(corners, [k for k in range(4) if k != corner]) for corner in range(4)]
    return bool(faces[0] >= DECIDED * max(faces))


def _area(gram: NDArray[np.float64], corners: list[int]) -> float:
    """Twice the area of a triangle of points given by their inner products."""
    part = gram[np.ix_(corners, corners)]
    sides = part[1:, 1:] - part[0, 1:] - part[1:, :1] + part[0, 0]
    return float(np.sqrt(max(0.0, np.linalg.det(sides))))


def _grow_mixture(
    parents: list[int], base: int, tasks: NDArray[np.float64], toward: NDArray[np.float64]
) -> Merge:
    """Add parents as long as each explains enough; products are in units of the child's squared way."""
    residual = _fit(parents, tasks, toward)
    while len(parents) < MOST_PARENTS:
        more = [[*parents, k] for k in range(len(tasks)) if k not in (*parents, base)]
        left = [_fit(chosen, tasks, toward) for chosen in more]
        if not left or min(left) > residual - PART:
            break
        residual = min(left)
        parents = more[left.index(residual)]
    return Merge("nonlinear", tuple(parents), None, None, residual)


def _fit(parents: list[int], tasks: NDArray[np.float64], toward: NDArray[np.float64]) -> float:
    """What the best combination of tasks leaves; 1 if it is none of parts."""
    weights = np.linalg.pinv(tasks[np.ix_(parents, parents)]) @ toward[parents]
    rest = float(np.sqrt(max(0.0, 1 - float(weights @ toward[parents]))))
    return rest if weights.min() >= PART and weights.max() <= WHOLE else 1.0


def _mixtures(
    tasks: NDArray[np.float64], toward: NDArray[np.float64], reach: float
) -> list[tuple[int, int, float]]:
    """Pairs of task vectors that may be the child's parents, and the share of its way that they leave.

    Args:
        tasks: Inner products of the task vectors.
        toward: Theirs with the child's.
        reach: The child's with itself.
    """
    i, j = np.triu_indices(len(tasks), 1)
    own, cross, a, b = np.diagonal(tasks), tasks[i, j], toward[i], toward[j]
    possible = (own[i] > 0) & (own[j] > 0) & (cross**2 < (1 - PART**2) * own[i] * own[j])
    possible &= reach > 0
    i, j, cross, a, b = i[possible], j[possible], cross[possible], a[possible], b[possible]
    p, q = own[i], own[j]
    area = p * q - cross**2
    x, y = (a * q - b * cross) / area, (b * p - a * cross) / area
    left = np.sqrt(np.maximum(0, 1 - (x * a + y * b) / reach))
    alone = np.sqrt(np.maximum(0, 1 - np.maximum(a**2 / p, b**2 / q) / reach))  # by the better one
    alike = np.maximum(0, cross / np.sqrt(p * q))
    sibling = np.sqrt(np.maximum(0, 1 - 2 * alike**2 / (1 + alike)))
    given = np.maximum(p - a**2 / reach, 1e-30) * np.maximum(q - b**2 / reach, 1e-30)
    apart = (cross - a * b / reach) / np.sqrt(given) < APART
    straight = np.minimum(np.abs(a / reach - 1), np.abs(b / reach - 1)) <= STRAIGHT
    good = (np.minimum(x, y) >= PART) & (np.maximum(x, y) <= WHOLE) & (alone - left >= PART)
    good &= (left <= np.minimum(PAIR, BEYOND_SIBLINGS * sibling)) & (apart | ~straight)
    good &= np.maximum(p, q) <= CENTRAL**2 * (p + q - 2 * cross)
    return list(zip(i[good].tolist(), j[good].tolist(), left[good].tolist(), strict=True))


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
        family = np.array([p.sums[0] for p in relatives]).reshape(-1, RUNS)
        merge = find_merge(child.sums[0], family[near], family)
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
    if judged.relation in FACTS:
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
    if merge.weights is None:
        return f"{child} is a merge of {names}, not linear or trained further"
    parts = [f"{name} ({weight:.0%})" for name, weight in zip(parents, merge.weights, strict=True)]
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
