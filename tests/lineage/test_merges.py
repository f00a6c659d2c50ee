from __future__ import annotations

import numpy as np
import pytest

from hilm.lineage.merges import as_merge, find_layers, find_merge, find_parents, sentence_of
from hilm.lineage.search import weigh
from hilm.lineage.verdict import verdict
from tests.lineage.family import bf16
from tests.lineage.kinship import Prints, average, levels, plus, slerp, task, ties
from tests.tiny import bert_like

BASE = bert_like(1)


def model_of(*tensors):
    """Models with the layers of several, alternately."""
    return {n: tensors[int(n.split(".")[2]) % len(tensors) if ".layer." in n else 0][n] for n in tensors[0]}


@pytest.fixture(scope="module", params=[0.0, 0.25], ids=["own data", "shared data"])
def family(request, tmp_path_factory):
    """A base, six fine-tunes whose tasks are partly the same, and a stranger."""
    tasks = [task(BASE, 10 + k, shared=99, share=request.param) for k in range(7)]
    models = {f"m{k}": plus(BASE, (1, t)) for k, t in enumerate(tasks[:6])}
    prints = Prints(tmp_path_factory.mktemp("family"))
    relatives = prints(base=BASE, **models)

    def parents(tensors, *others):
        found = find_parents(prints(child=tensors)[0], [*relatives, *others])
        names = [p.name for p in (*relatives, *others)]
        return found, {names[k] for k in found.parents} if found else None

    return parents, tasks, models, prints


MERGES = {
    "average": (lambda m, t: average((0.5, m["m0"]), (0.5, m["m1"])), [0.5, 0.5]),
    "weighted": (lambda m, t: average((0.7, m["m0"]), (0.3, m["m1"])), [0.7, 0.3]),
    "slerp": (lambda m, t: slerp(m["m0"], m["m1"], 0.4), [0.6, 0.4]),
    "arithmetic": (lambda m, t: plus(BASE, (0.7, t[0]), (0.6, t[1])), [0.7, 0.6]),
    "soup": (lambda m, t: average(*((0.25, m[f"m{k}"]) for k in range(4))), [0.25] * 4),
}


@pytest.mark.parametrize("how", MERGES)
def test_weights_of_linear_merges(family, how):
    parents, tasks, models, _ = family
    make, weights = MERGES[how]
    found, names = parents(make(models, tasks))
    assert (found.kind, names) == ("linear", {f"m{k}" for k in range(len(weights))})
    assert found.weights == pytest.approx(weights, abs=0.02)
    assert found.error < 0.01


def test_two_merges_of_the_same_parents_do_not_explain_each_other(family):
    parents, _, models, prints = family
    half, most = (average((w, models["m0"]), (1 - w, models["m1"])) for w in (0.5, 0.7))
    for own, other, share in ((half, most, 0.5), (most, half, 0.7)):
        found, names = parents(own, *prints(other=other))
        assert (found.kind, names) == ("linear", {"m0", "m1"})
        assert max(found.weights) == pytest.approx(share, abs=0.02)
    three = average(*((1 / 3, models[f"m{k}"]) for k in range(3)))
    found, names = parents(three, *prints(half=half, most=most))
    assert (found.kind, names) == ("linear", {"m0", "m1", "m2"})


def test_what_is_no_average_has_no_parents_by_fingerprints_alone(family):
    parents, tasks, models, _ = family
    assert parents(ties(BASE, *tasks[:2]))[0] is None
    assert parents(plus(average((0.5, models["m0"]), (0.5, models["m1"])), (0.3, tasks[6])))[0] is None


def test_what_is_no_merge(family):
    parents, tasks, models, prints = family
    assert parents(plus(BASE, (1, tasks[6])))[0] is None  # one more sibling
    assert parents(plus(models["m0"], (0.5, tasks[6])))[0] is None  # trained further
    assert parents(levels(average((0.5, models["m0"]), (0.5, models["m1"]))))[0] is None  # worn
    assert parents(bf16(models["m0"]))[0] is None
    offspring = prints(**{f"child{k}": plus(models["m0"], (0.3, task(BASE, 50 + k))) for k in range(3)})
    assert parents(models["m0"], *offspring)[0] is None  # their ancestor


def test_layers_of_siblings_and_of_strangers(family):
    parents, _, models, prints = family
    found, names = parents(model_of(models["m2"], models["m5"]))
    assert (found.kind, names) == ("layers", {"m2", "m5"})
    stranger = bert_like(2)
    mixed = plus(model_of(models["m2"], stranger), (0.2, task(BASE, 60)))  # and trained further
    found, names = parents(mixed, *prints(stranger=stranger))
    assert found.kind == "layers"
    assert "stranger" in names
    assert found.weights == pytest.approx([0.5, 0.5], abs=0.1)


@pytest.mark.parametrize("share", [0.5, 0.7])
def test_an_average_of_parents_far_apart(share):
    """Sketches sum unit vectors: the average of two lies beside the line that joins them."""
    rng = np.random.default_rng(5)
    base, first, second = rng.standard_normal((3, 30, 1024))
    parents = base + 0.4 * first, base + 0.4 * second
    child = share * parents[0] + (1 - share) * parents[1]
    sketches = [sum(m / np.linalg.norm(m) for m in model) for model in (child, *parents)]
    found = find_merge(sketches[0], np.array(sketches[1:]))
    assert (found.kind, sorted(found.parents)) == ("linear", [0, 1])
    assert found.weights[found.parents.index(0)] == pytest.approx(share, abs=0.01)
    assert found.residual < 0.05


def test_votes():
    a, b, both = frozenset({0}), frozenset({1}), frozenset({0, 1})
    assert find_layers([a] * 5 + [b] * 5 + [both] * 10).weights == (0.75, 0.25)
    assert find_layers([both] * 20) is None
    assert find_layers([a] * 19 + [b]) is None
    assert find_layers([a] * 5 + [b] * 5 + [frozenset()] * 10) is None
    assert find_layers([]) is None


def test_too_few_candidates():
    rng = np.random.default_rng(0)
    child = rng.standard_normal(1024)
    assert find_merge(child, np.empty((0, 1024))) is None
    assert find_merge(child, rng.standard_normal((1, 1024))) is None
    assert find_merge(child, np.stack([child, child, child])) is None


def test_the_verdict_names_the_parents(tmp_path):
    first, second = (plus(BASE, (1, task(BASE, seed))) for seed in (1, 2))
    a, b, child = Prints(tmp_path)(a=first, b=second, child=average((0.5, first), (0.5, second)))
    merge = find_parents(child, [a, b])
    judged = as_merge(verdict(weigh(a, child)), "child", merge, ["a", "b"])
    assert judged.relation == "merge"
    assert [p["weight"] for p in judged.details["merge"]["parents"]] == pytest.approx([0.5, 0.5], abs=0.01)
    assert judged.sentence == "child is a weighted average of a (50%) and b (50%)"
    fact = verdict(weigh(a, a))
    assert as_merge(fact, "child", merge, ["a", "b"]) is fact
    assert "by layers" in sentence_of(find_layers([frozenset({0}), frozenset({1})]), "child", ["a", "b"])
