"""The lineage graph: which of a family's models comes from which, as far as their fingerprints tell.

Distances between sign sketches give the tree; steps that are not undone (quantising, pruning, rounding,
taking layers out or repeating them, merging) give directions. What the base of a model is declared to be is
never counted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from hilm.lineage.arborescence import arborescence, shown
from hilm.lineage.merges import NEAREST, as_merge, find_parents, replaced
from hilm.lineage.search import HAS_SKETCH, weigh
from hilm.lineage.statistics import GRAM_NULL, critical_cosine
from hilm.lineage.verdict import PRUNED_EXCESS, PRUNED_SHARE, Verdict, resizing, verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from hilm.lineage.merges import Merge
    from hilm.lineage.search import Print
    from hilm.lineage.verdict import Side

AGAINST = 1.0  # what soft evidence against a direction costs, in mean distances of the family
SHARED = 0.02  # how much nearer a model seems that has all tensors of another
CLOSE = 32  # models nearest to each whose tensors are compared
HINT = 5.2
"""Standard score of similar token geometry that is worth a hint; it establishes nothing."""


@dataclass(frozen=True, slots=True)
class Edge:
    """One step of descent.

    Attributes:
        parent: Number of the model it leads from.
        child: Number of the model it leads to.
        shown: Whether the evidence shows this direction; otherwise the two are related either way round.
        distance: Of their sketches, relative to their norms: about the share of the weights that changed.
        verdict: The relation, and how sure it is.
        weight: The parent's weight in a linear merge, or its share of a merge by layers.
    """

    parent: int
    child: int
    shown: bool
    distance: float
    verdict: Verdict
    weight: float | None = None


@dataclass(frozen=True, slots=True)
class Graph:
    """Families of models.

    Attributes:
        family: Family of every model; strangers have different ones.
        edges: Parents before their children.
        hints: Pairs of different families with similar token geometry, and its standard score.
    """

    family: tuple[int, ...]
    edges: tuple[Edge, ...]
    hints: tuple[tuple[int, int, float], ...]


def lineage_graph(prints: Sequence[Print], n: int) -> Graph:
    """Arrange models as trees.

    Args:
        prints: The models; of order n² numbers are kept.
        n: Fingerprints in the catalog, for which probabilities are corrected.
    """
    if not prints:
        return Graph((), (), ())
    related = _related(prints, n)
    family = _families(related)
    edges: list[Edge] = []
    for number in sorted(set(family)):
        members = [i for i, f in enumerate(family) if f == number]
        if len(members) > 1:
            grown = _grow([prints[i] for i in members], related[np.ix_(members, members)], n)
            edges += [replace(e, parent=members[e.parent], child=members[e.child]) for e in grown]
    return Graph(tuple(family), tuple(edges), tuple(_hints(prints, family)))


def _related(prints: Sequence[Print], n: int) -> NDArray[np.bool_]:
    """Which pairs are established: by their sketches, or by having the same values."""
    sums = np.stack([p.sums[0] for p in prints])
    norms = np.linalg.norm(sums, axis=1)
    present = np.array([bool(p.row["flags"] & HAS_SKETCH) for p in prints])
    sums /= np.where(norms > 0, norms, 1.0)[:, None]
    related: NDArray[np.bool_] = (sums @ sums.T >= critical_cosine(n)) & present & present[:, None]
    digests = np.array([int.from_bytes(p.digest[:8], "little") for p in prints], np.uint64)
    related |= digests[:, None] == digests
    return related


def _families(related: NDArray[np.bool_]) -> list[int]:
    """Connected components, numbered in the order of their first members."""
    family = [-1] * len(related)
    for start in range(len(related)):
        if family[start] < 0:
            number, queue = max(family) + 1, [start]
            family[start] = number
            for node in queue:
                new = [int(k) for k in np.flatnonzero(related[node]) if family[k] < 0]
                queue += new
                for k in new:
                    family[k] = number
    return family


def _grow(prints: Sequence[Print], related: NDArray[np.bool_], n: int) -> list[Edge]:
    """The cheapest tree of one family, and the further parents of merges."""
    distances = _distances(prints)
    costs = np.where(related, distances * _likeness(prints, distances), np.inf)
    costs += AGAINST * distances[related].mean() * _against(prints)
    merges = _merges(prints, related, distances)
    for child, merge in merges.items():
        costs[[k for k in range(len(prints)) if k not in merge.parents], child] = np.inf
        costs[child, list(merge.parents)] = np.inf
    parents_of = _plant(costs, distances, merges)
    edges = [
        Edge(parent, child, arrow, float(distances[parent, child]), _judge(prints[parent], prints[child], n))
        for child, (parent, arrow) in enumerate(zip(parents_of, shown(parents_of, costs), strict=True))
        if parent >= 0 and child not in merges
    ]
    for child, merge in merges.items():
        names, own = [prints[p].name for p in merge.parents], prints[child]
        for p, weight in zip(merge.parents, merge.weights or [None] * len(names), strict=True):
            judged = as_merge(_judge(prints[p], own, n), own.name, merge, names)
            edges.append(Edge(p, child, True, float(distances[p, child]), judged, weight))
    return edges


def _plant(
    costs: NDArray[np.float64], distances: NDArray[np.float64], merges: Mapping[int, Merge]
) -> list[int]:
    """The cheapest forest in which no parent of a merge descends from it, with few roots and central ones.

    A merge lies near the base of its parents, which would else seem to come from it.
    """
    centrality = distances.mean(axis=1) / max(float(distances.max()), 1e-30)
    roots = 2 * float(costs[np.isfinite(costs)].sum()) + 1 + 1e-6 * centrality
    while True:
        parents = arborescence(costs, roots)
        wrong = [_first_step(parents, child, p) for child, m in merges.items() for p in m.parents]
        steps = [step for step in wrong if step is not None]
        if not steps:
            return parents
        costs[tuple(np.array(steps).T)] = np.inf


def _first_step(parents: Sequence[int], ancestor: int, node: int) -> tuple[int, int] | None:
    """The first edge on the way from an ancestor down to a node; None if it is no ancestor."""
    while node >= 0:
        if parents[node] == ancestor:
            return ancestor, node
        node = parents[node]
    return None


def _distances(prints: Sequence[Print]) -> NDArray[np.float64]:
    """2 |x - y| / (|x| + |y|) of the unrounded sketches, float64 [n, n]."""
    sums = np.stack([p.sums[0] for p in prints])
    norms = np.linalg.norm(sums, axis=1)
    squares = np.stack([np.square(sums - row).sum(axis=1) for row in sums])
    distances: NDArray[np.float64] = 2 * np.sqrt(squares) / np.maximum(norms + norms[:, None], 1e-30)
    return distances


def _likeness(prints: Sequence[Print], distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Factors a little below 1 for models that share tensors to the bit, float64 [n, n].

    A sketch cannot tell a model from its short fine-tune as the parent of something far from both; the
    tensors that the fine-tune changed and the child did not can.
    """
    factors = np.ones_like(distances)
    for child, own in enumerate(prints):
        for k in np.argsort(distances[child], kind="stable")[1 : CLOSE + 1].tolist():
            same = np.isin(own.hashes["exact"], prints[k].hashes["exact"]).mean()
            factors[child, k] = min(factors[child, k], 1 - SHARED * same)
            factors[k, child] = factors[child, k]
    return factors


def _merges(
    prints: Sequence[Print], related: NDArray[np.bool_], distances: NDArray[np.float64]
) -> dict[int, Merge]:
    """Models with several parents, and which; of two that name each other the first counts."""
    found: dict[int, Merge] = {}
    for child, own in enumerate(prints):
        order = np.argsort(np.where(related[child], distances[child], np.inf), kind="stable")
        near = [k for k in order[: 2 * NEAREST].tolist() if k != child and related[child, k]]
        merge = find_parents(own, [prints[k] for k in near])
        claim = replaced(merge, near) if merge else None
        if claim and not any(child in found[p].parents for p in claim.parents if p in found):
            found[child] = claim
    return found


def _judge(parent: Print, child: Print, n: int) -> Verdict:
    return verdict(weigh(parent, child), n=n)


def _against(prints: Sequence[Print]) -> NDArray[np.float64]:
    """Evidence against the step from row to column: infinite if that would undo what is not undone."""
    sides = [p.side() for p in prints]
    bits = np.array([s.bits is not None for s in sides])
    zeros = np.array([s.zeros or 0.0 for s in sides])
    narrow = np.array([p.is_rounded for p in prints])
    values = np.unique([hash(p.rounded) for p in prints], return_inverse=True)[1]
    lost = bits[:, None] & ~bits
    lost |= (zeros[:, None] >= PRUNED_SHARE) & (zeros[:, None] - zeros >= PRUNED_EXCESS)
    copies = narrow & np.isin(values, values[~narrow])  # of models that are there unrounded as well
    lost |= copies[:, None] & ~narrow
    forms = {(s.width, s.vocabulary, frozenset(s.shapes.items()), s.repeats): s for s in sides}
    places = {form: i for i, form in enumerate(forms)}
    table = np.array([[_undoes(a, b) for b in forms.values()] for a in forms.values()])
    at = [places[s.width, s.vocabulary, frozenset(s.shapes.items()), s.repeats] for s in sides]
    return np.where(lost, np.inf, table[np.ix_(at, at)])


def _undoes(a: Side, b: Side) -> float:
    """The same for the shapes of two models."""
    if (a.width, a.shapes) == (b.width, b.shapes):
        return float((a.vocabulary or 0) > (b.vocabulary or 0))  # vocabularies grow
    kind = resizing(a, b)
    before, after = (sum(r * c * n for (r, c), n in s.shapes.items()) for s in (a, b))
    if kind in {"up-scaled", "up-cycled"}:
        return np.inf if before > after else 0.0  # the one with repetitions is the child
    if kind == "graft":
        return float(before > after)  # parts are put together more often than taken out
    return np.inf if before < after else 0.0  # what was taken out is gone


def _hints(prints: Sequence[Print], family: Sequence[int]) -> list[tuple[int, int, float]]:
    """The pair of nearest token geometry of every two families, if it is near."""
    forms = np.stack([np.asarray(p.row["anchored_vec"], np.float32) for p in prints])
    norms = np.linalg.norm(forms, axis=1)
    forms /= np.where(norms > 0, norms, 1.0)[:, None]
    close = np.triu(forms @ forms.T >= GRAM_NULL.mean + HINT * GRAM_NULL.sd, 1)
    best: dict[tuple[int, int], tuple[int, int, float]] = {}
    for i, j in np.argwhere(close).tolist():
        pair = family[i], family[j]
        if pair[0] == pair[1]:
            continue
        gram = weigh(prints[i], prints[j]).gram
        z = GRAM_NULL.z(gram) if gram is not None else 0.0
        if z >= HINT and (pair not in best or z > best[pair][2]):
            best[pair] = i, j, z
    return list(best.values())
