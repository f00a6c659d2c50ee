from __future__ import annotations

from itertools import product

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hilm.lineage.arborescence import arborescence, shown


def cost_of(parents, costs, root_costs):
    return sum(root_costs[v] if p < 0 else costs[p, v] for v, p in enumerate(parents))


def is_forest(parents):
    for start in range(len(parents)):
        node, steps = start, 0
        while parents[node] >= 0:
            node, steps = parents[node], steps + 1
            if steps > len(parents):
                return False
    return True


def cheapest(costs, root_costs):
    """The cheapest forest of all there are."""
    forests = filter(is_forest, product(range(-1, len(costs)), repeat=len(costs)))
    return min(cost_of(forest, costs, root_costs) for forest in forests)


@st.composite
def problems(draw):
    size = draw(st.integers(1, 4))
    numbers = st.sampled_from([*map(float, range(8)), np.inf])  # few values: many ties and cycles
    costs = np.array(
        draw(st.lists(st.lists(numbers, min_size=size, max_size=size), min_size=size, max_size=size))
    )
    roots = draw(st.lists(st.integers(0, 20), min_size=size, max_size=size))
    np.fill_diagonal(costs, np.inf)
    return costs, np.array(roots, float)


@given(problems())
def test_it_is_the_cheapest_of_all_forests(problem):
    costs, roots = problem
    parents = arborescence(costs.copy(), roots)
    assert is_forest(parents)
    assert cost_of(parents, costs, roots) == cheapest(costs, roots)


def test_a_star_of_a_thousand_and_a_chain_of_a_thousand():
    places = np.cumsum(np.arange(1000.0))
    chain = np.abs(places[:, None] - places)
    parents = arborescence(chain, np.full(1000, 1e9))
    assert sum(abs(places[v] - places[p]) for v, p in enumerate(parents) if p >= 0) == places[-1]
    star = np.add.outer(np.arange(1000.0), np.arange(1000.0))
    assert arborescence(star, np.where(np.arange(1000) == 7, 1e8, 1e9))[:9] == [7, 0, 0, 0, 0, 0, 0, -1, 0]


def test_only_directions_that_matter_are_shown():
    costs = np.array([[np.inf, 1, 9, 9], [1, np.inf, 1, 9], [9, np.inf, np.inf, 1], [9, 9, 1.01, np.inf]])
    # 1 → 2 cannot be turned round; 2 — 3 alone can, but then 2 would have to come from 3.
    assert shown([-1, 0, 1, 2], costs) == [False, False, True, True]
    costs[2, 1] = 1.2
    assert shown([-1, 0, 1, 2], costs) == [False, False, True, True]
    costs[2, 1] = 1.1
    assert shown([-1, 0, 1, 2], costs) == [False, False, False, False]
    assert shown([-1, -1], np.zeros((2, 2))) == [False, False]
