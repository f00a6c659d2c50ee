"""The cheapest tree in which every model has one parent, and which of its arrows the costs insist on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Edge = tuple[int, int]

SHOWN = 0.05
"""Share of a tree's cost that turning an edge round must add for its direction to be shown."""


def arborescence(costs: NDArray[np.float64], root_costs: NDArray[np.float64]) -> list[int]:
    """Parents of the cheapest forest, -1 for a root (Chu and Liu 1965, Edmonds 1967; O(n²) on full matrices).

    Args:
        costs: float64 [n, n], of the edge from row to column; infinite where there is none.
        root_costs: float64 [n], finite, of being a root.
    """
    search = _Search(np.vstack([costs, root_costs]))
    for start in range(len(root_costs)):
        search.grow(start)
    return [-1 if source == len(root_costs) else source for source in search.expand()]


class _Search:
    """Cheapest edges into every node; cycles become nodes of their own, and are taken apart at the end."""

    def __init__(self, costs: NDArray[np.float64]) -> None:
        self._size = costs.shape[1]
        self._into = [costs[:, v].copy() for v in range(self._size)]  # reduced cost, by source
        self._ends = [np.full(self._size + 1, v, np.int32) for v in range(self._size)]  # and where it ends
        for v in range(self._size):
            self._into[v][v] = np.inf
        self._label = np.arange(self._size + 1)  # vertex → the node it is part of
        self._seen = {int(self._label[-1]): self._size}  # node → number of the path that reached it
        self._edge: dict[int, Edge] = {}
        self._up: dict[int, int] = {}  # node → the cycle it became part of
        self._next = self._size + 1

    def grow(self, start: int) -> None:
        """Follow cheapest edges backwards from a vertex to what is known to hang from the root."""
        node, path = int(self._label[start]), []
        while node not in self._seen:
            column = self._into[self._column(node)]
            source = int(column.argmin())
            self._edge[node] = source, int(self._ends[self._column(node)][source])
            column -= column[source]
            self._seen[node] = start
            path.append(node)
            node = int(self._label[source])
            if self._seen.get(node) == start:
                cycle = path[path.index(node) :]
                del path[-len(cycle) :]
                node = self._contract(cycle)

    def _column(self, node: int) -> int:
        return node if node < self._size else node - 1  # the root has number ``size`` and no column

    def _contract(self, cycle: Sequence[int]) -> int:
        """Make one node of a cycle; an edge into it costs what it costs more than the one it replaces."""
        node: int = self._next
        self._next += 1
        columns = [self._column(member) for member in cycle]
        into, ends = self._into[columns[0]], self._ends[columns[0]]
        for column in columns[1:]:
            better = self._into[column] < into
            into[better], ends[better] = self._into[column][better], self._ends[column][better]
        for column in columns[1:]:
            self._into[column] = self._ends[column] = np.empty(0)
        inside = np.isin(self._label, cycle)
        into[inside] = np.inf
        self._label[inside] = node
        self._into.append(into)
        self._ends.append(ends)
        self._up |= dict.fromkeys(cycle, node)
        return node

    def expand(self) -> list[int]:
        """Source of the edge into every vertex: a cycle's own edge replaces that of the member it ends in."""
        for node in range(self._next - 1, self._size, -1):
            source, end = self._edge[node]
            member = end
            while self._up[member] != node:
                member = self._up[member]
            self._edge[member] = source, end
        return [self._edge[v][0] for v in range(self._size)]


def shown(parents: Sequence[int], costs: NDArray[np.float64]) -> list[bool]:
    """Whether the direction of the edge into each vertex matters; False for roots.

    Turning an edge round means another root of the same tree, on the edge's other side. What the cheapest
    such root adds to the cost is compared with the cost of the tree.
    """
    children: dict[int, list[int]] = {}
    for child, parent in enumerate(parents):
        children.setdefault(parent, []).append(child)
    answer = [False] * len(parents)
    for root in children.get(-1, []):
        order, extra = [root], {root: 0.0}
        for node in order:
            for child in children.get(node, []):
                extra[child] = extra[node] + costs[child, node] - costs[node, child]
                order.append(child)
        total = sum(costs[parents[v], v] for v in order[1:])
        for node in reversed(order[1:]):  # extra becomes the least of the subtree
            answer[node] = bool(extra[node] >= SHOWN * total and extra[node] > 0)
            extra[parents[node]] = min(extra[parents[node]], extra[node])
    return answer
