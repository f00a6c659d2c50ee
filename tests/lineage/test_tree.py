from __future__ import annotations

import pytest

from hilm.lineage.tree import lineage_graph
from tests.lineage.family import bf16, with_layer_twice, without_layer
from tests.lineage.kinship import Prints, average, levels, plus, pruned, task
from tests.tiny import bert_like


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
    assert found["first"] == found["second"] == {"base": ("fine-tune", False)}
    assert found["holes"] == {"base": ("pruned", True)}
    assert found["short"] == found["long"] == {"base": ("subset", True)}
    assert found["copy"] == {"base": ("identical", False)}
    assert graph.family == (0,) * 11 + (1,)
    assert graph.hints == ()


@pytest.mark.parametrize("seed", range(3))
def test_tensors_left_alone_tell_a_model_from_its_short_fine_tunes(tmp_path, seed):
    base = bert_like(seed)
    tuned = {f"tuned{k}": plus(base, (0.003, task(base, 10 * seed + k))) for k in range(4)}
    prints = Prints(tmp_path)(base=base, holes=pruned(base), **tuned)
    found = steps(prints, lineage_graph(prints, len(prints)))
    assert found["holes"] == {"base": ("pruned", True)}


def test_weights(family):
    prints, graph = family
    weights = {prints[e.parent].name: e.weight for e in graph.edges if prints[e.child].name == "mean"}
    assert weights["first"] == pytest.approx(0.6, abs=0.01)
    assert weights["second"] == pytest.approx(0.4, abs=0.01)
