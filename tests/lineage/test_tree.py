from __future__ import annotations

import numpy as np
import pytest

from hilm.lineage.tree import lineage_graph
from tests.lineage.family import bf16, turned, permutation, with_layer_twice, without_layer
from tests.lineage.kinship import Prints, average, levels, plus, pruned, task
from tests.tiny import bert_like, stored


def steps(prints, graph):
    """Child → its parents with the relation, whether the direction is shown, and the weight."""
    found = {}
    for e in graph.edges:
        found.setdefault(prints[e.child].name, {})[prints[e.parent].name] = (e.verdict.relation, e.shown)
    return found


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    base = bert_like(1)
    tasks = [task(base, seed) for seed in (11, 12, 13)]
    first, second = (plus(base, (1, t)) for t in tasks[:2])
    prints = Prints(tmp_path_factory.mktemp("family"))(
        base=base,
        first=first,
        second=second,
        mean=average((0.6, first), (0.4, second)),
        later=plus(first, (0.5, tasks[2])),
        small=levels(first),
        holes=pruned(base),
        short=without_layer(base, 2),
        long=with_layer_twice(base, 1, 7),
        half=bf16(second),
        copy=base,
        stranger=bert_like(2),
    )
    return prints, lineage_graph(prints, len(prints))


def test_the_tree_of_a_family(family):
    prints, graph = family
    found = steps(prints, graph)
    assert found["mean"] == {"first": ("merge", True), "second": ("merge", True)}
    assert found["small"] == {"first": ("quantized", True)}
    assert found["half"] == {"second": ("dtype-cast", True)}
    assert found["later"] == {"first": ("fine-tune", False)}
    assert {"base", "copy"} >= set(found["holes"]) and next(iter(found["holes"].values())) == ("pruned", True)
    assert next(iter(found["short"].values())) == ("subset", True)
    assert next(iter(found["long"].values())) == ("subset", True)
    assert {frozenset(("base", c)) for c in ("first", "second")} <= {
        frozenset((c, p)) for c, parents in found.items() for p in parents
    } | {frozenset(("base", c)) for c in ("first", "second") if "copy" in found.get(c, {})}
    assert "stranger" not in found
    assert graph.family == (0,) * 11 + (1,)
    print(found)


def test_weights(family):
    prints, graph = family
    weights = {prints[e.parent].name: e.weight for e in graph.edges if prints[e.child].name == "mean"}
    assert weights["first"] == pytest.approx(0.6, abs=0.01)
    assert weights["second"] == pytest.approx(0.4, abs=0.01)
