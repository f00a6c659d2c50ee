"""The zoo of trained models: its streams, changes and cache, and the figures made from it."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import lineage_zoo
import zoo
import zoo_changes as changes
import zoo_data as data
import zoo_recipes as recipes
import zoo_training as training
from zoo_files import write_safetensors
from zoo_reference import awm
from zoo_strangers import conservative_p, strangers, uniform_p

from hilm.store import Store

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

RNG = data.stream("test")


@cache
def fresh(architecture):
    """An untrained model, gains and biases moved so that none is the identity."""
    model, rng = training.fresh(architecture, 0), data.stream("test", architecture)
    return changes.edited(
        model,
        {
            n: (t + 0.1 * rng.standard_normal(t.shape)).astype(np.float32)
            for n, t in model.tensors.items()
            if t.ndim == 1
        },
    )


@pytest.fixture(scope="module", params=recipes.TRAINED)
def untrained(request):
    return request.param, fresh(request.param)


def logits(architecture, model):
    return training.outputs(model, training.batch_of(architecture, data.stream("batch"), "first"))


@pytest.mark.parametrize(
    ("architecture", "change"),
    [(a, c) for c, r in recipes.RECIPES.items() if r.keeps_function for a in recipes.TRAINED if a in r.only],
)
def test_function_is_kept_where_that_is_said(architecture, change):
    model, recipe = fresh(architecture), recipes.RECIPES[change]
    expected = logits(architecture, model)
    changed = recipe.make(model, data.stream(change)) if recipe.random else recipe.make(model)
    found = logits(architecture, changed)[..., : expected.shape[-1]]
    assert np.abs(found - expected).max() <= zoo.TOLERANCE * np.abs(expected).max()


def test_permutation_moves_almost_every_matrix(untrained):
    _, model = untrained
    moved = changes.permuted(model, data.stream("moved"))
    same = [n for n, t in changes.matrices(model) if np.array_equal(t, moved.tensors[n])]
    assert not same
    assert all(
        np.array_equal(np.sort(t, axis=None), np.sort(moved.tensors[n], axis=None))
        for n, t in model.tensors.items()
    )


def test_shapes_after_the_changes_of_shape(untrained):
    _, model = untrained
    blocks = {changes.layer(n) for n in model.tensors} - {""}
    stacks = {b.rpartition(".")[0] for b in blocks}
    count = {
        f: len({changes.layer(n) for n in f(model).tensors} - {""})
        for f in (changes.without_block, changes.upscaled)
    }
    assert count[changes.without_block] == len(blocks) - len(stacks)
    assert count[changes.upscaled] == len(blocks) * 3 // 2
    narrow = changes.narrowed(model, RNG, axis="residual")
    widths = {n: t.shape for n, t in narrow.tensors.items() if "norm" in n.lower() or "ln_" in n}
    assert set(widths.values()) == {(96,)}


def test_values_after_the_changes_of_values(untrained):
    _, model = untrained
    pruned, structured = changes.pruned(model), changes.pruned(model, group=4)
    for name, values in changes.matrices(model):
        assert (pruned.tensors[name] == 0).mean() == pytest.approx(0.5, abs=0.01)
        assert ((structured.tensors[name].reshape(-1, 4) == 0).sum(axis=1) >= 2).all()
        levels = changes.quantized(model, bits=4, group=32).tensors[name]
        if values.shape[-1] % 32 == 0 and values.ndim == 2:
            assert max(len(np.unique(group)) for group in levels.reshape(-1, 32)[:50]) <= 15
        assert np.abs(levels - values).max() <= np.abs(values).max() / 13


def test_merges_lie_between_their_parents():
    a, b = (training.fresh("qwen2", seed) for seed in range(2))
    name = "model.layers.1.mlp.up_proj.weight"
    x, y = a.tensors[name], b.tensors[name]
    np.testing.assert_allclose(
        changes.blended([a, b], (0.7, 0.3)).tensors[name], 0.7 * x + 0.3 * y, atol=1e-6
    )
    np.testing.assert_allclose(changes.slerped([a, b], 0.0).tensors[name], x, atol=1e-6)
    halfway = changes.slerped([a, b], 0.5).tensors[name]
    assert np.linalg.norm(halfway) == pytest.approx(np.linalg.norm(x), rel=0.02)
    assert np.array_equal(changes.layerwise([a, b]).tensors[name], y)
    assert np.array_equal(
        changes.layerwise([a, b]).tensors[name.replace("1", "0")], a.tensors[name.replace("1", "0")]
    )
    only = changes.ties([a, b, b], density=0.25).tensors[name] - x
    assert (only != 0).mean() == pytest.approx(0.25, abs=0.01)
    np.testing.assert_allclose(only[only != 0], (y - x)[only != 0], atol=1e-6)


def test_training_is_repeatable_and_its_streams_are_apart():
    start = training.fresh("bert", 0)
    runs = [
        training.train(start, "bert", ("bert", seed, "test"), steps=2, rate=1e-3)[0] for seed in (0, 0, 1)
    ]
    assert all(np.array_equal(t, runs[1].tensors[n]) for n, t in runs[0].tensors.items())
    assert not np.array_equal(*(run.tensors["cls.predictions.bias"] for run in runs[1:]))
    drawn = [
        data.stream(a, s, r).integers(1 << 62)
        for a in recipes.TRAINED
        for s in range(3)
        for r in recipes.RECIPES
    ]
    assert len(set(drawn)) == len(drawn)


def test_vocabulary_has_every_anchor_word():
    known = data.vocabulary()
    assert list(known.values()) == list(range(data.VOCABULARY))
    assert all(f"▁{word}" in known for word in data.WORDS)


def test_parents_come_first_and_a_folder_depends_on_them(tmp_path, monkeypatch):
    animals = zoo.catalogue((*recipes.TRAINED, recipes.REAL))
    seen = set()
    for animal in animals:
        assert set(animal.parents) <= seen
        seen.add(animal.name)
    assert len(seen) == len(animals)
    before = zoo.places(animals, tmp_path)
    tuned = next(a for a in animals if a.name == "gpt2-0.ft_long")
    other = [replace(tuned, parents=("gpt2-1",)) if a is tuned else a for a in animals]
    moved = {name for name, folder in zoo.places(other, tmp_path).items() if folder != before[name]}
    assert {"gpt2-0.ft_long", "gpt2-0.average", "gpt2-0.chain_ftl_perm_int8"} <= moved
    assert all(name.startswith("gpt2-0.") for name in moved)
    monkeypatch.setattr(zoo, "VERSION", 0)
    assert not set(before.values()) & set(zoo.places(animals, tmp_path).values())


SOME = (
    "bf16", "fp16", "int8", "int4", "prune50", "prune_2_4", "renamed", "sharded", "reordered", "permuted",
    "rotated", "vocab_add", "vocab_trim", "layerdrop", "upscale", "width_prune25", "mlp_prune25",
    "moe_upcycle", "multimodal", "noise100", "gguf_q8_0",
)  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Twenty-four models: three bases of few steps, and what is done to one of them without training."""
    cache = tmp_path_factory.mktemp("zoo")
    animals = [
        a for a in zoo.catalogue(("qwen2",)) if a.change == "base" or (a.change in SOME and a.seed == "0")
    ]
    folders = zoo.places(animals, cache)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo, "STEPS", 10)
        for animal in animals:
            zoo.build(animal, folders)
    return {folders[a.name]: a for a in animals}


@pytest.mark.slow
def test_a_zoo_of_24_is_recognised(small, tmp_path):
    assert len(small) == 24
    stores = tmp_path / "bases", tmp_path / "all"
    Store(stores[0]).index([path for path, a in small.items() if a.change == "base"], jobs=1)
    Store(stores[1]).index(list(small), jobs=1)
    seen = lineage_zoo.examine("qwen2-0", small, stores)
    assert lineage_zoo.top_one(seen, "hybrid") == 1.0
    assert lineage_zoo.auc(seen, "hybrid") == 1.0
    assert not lineage_zoo.false_claims(seen)
    wrong = {s.animal.change for s in seen if lineage_zoo.compared(s) not in s.allowed()}
    assert wrong <= {"gguf_q8_0"}


@pytest.mark.slow
def test_what_is_built_stays(small):
    cache = next(iter(small)).parent.parent
    animals, folders = list(small.values()), {a.name: path for path, a in small.items()}
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    manifest = zoo.write_manifest(cache, animals, folders)
    for animal in animals:
        zoo.build(animal, folders)
    assert {
        path: path.stat().st_mtime_ns for path in cache.rglob("*") if path in before and path != cache
    } == {path: time for path, time in before.items() if path != cache}
    assert zoo.write_manifest(cache, animals, folders) == manifest
    assert not list(cache.rglob("*.part"))


def test_reference_sees_through_a_permutation(tmp_path):
    models = [training.fresh("llama", seed) for seed in range(2)]
    for name, model in (("a", models[0]), ("b", models[1]), ("p", changes.permuted(models[0], RNG))):
        (tmp_path / name).mkdir()
        write_safetensors(tmp_path / name / "model.safetensors", model.tensors)
    assert awm(tmp_path / "a", tmp_path / "p") == pytest.approx(1.0)
    assert abs(awm(tmp_path / "a", tmp_path / "b")) < 0.1
    write_safetensors(tmp_path / "x.safetensors", changes.renamed(models[0], RNG).tensors)
    assert awm(tmp_path / "a", tmp_path / "x.safetensors") is None


def test_tests_of_probabilities_see_what_is_not_uniform():
    even = np.random.default_rng(0).random(1000)
    assert uniform_p(even) > 0.05
    assert conservative_p(even) > 0.05
    assert uniform_p(even**2) < 1e-6
    assert conservative_p(even**2) < 1e-6  # too small
    assert conservative_p(np.sqrt(even)) > 0.05  # too large is safe


def test_strangers_are_independent(tmp_path):
    found = strangers(3, tmp_path)
    assert [s.judged.relation for s in found] == ["independent"] * 3
    assert found[0].z("units") is not None
    assert found[1].z("units") is None
    assert not list(tmp_path.iterdir())


def sighting(change, first, z, **fields):
    animal = recipes.Animal(f"x-0.{change}", "x-0", "x", change, ("x-0",), (), ("fine-tune",), ("x-0",))
    methods = dict.fromkeys(lineage_zoo.METHODS, first), dict.fromkeys(lineage_zoo.METHODS, z)
    called = {
        m: {b: "fine-tune" if v > 5 else "independent" for b, v in z.items()} for m in lineage_zoo.METHODS
    }
    made = lineage_zoo.Sighting(
        animal, *methods, called, "fine-tune", "independent", "x-0", None, dict.fromkeys(z)
    )
    return replace(made, **fields)


def test_figures_tell_what_was_seen():
    good = sighting("good", "x-0", {"x-0": 30.0, "x-1": 1.0})
    bad = sighting("bad", "x-1", {"x-0": 2.0, "x-1": 9.0})
    assert lineage_zoo.top_one([good, bad], "hybrid") == 0.5
    assert lineage_zoo.auc([good], "hybrid") == 1.0
    assert lineage_zoo.auc([good, bad], "hybrid") == 0.75
    assert lineage_zoo.found_without_error([good, bad], "hybrid") == 0.5
    assert lineage_zoo.auc([good], "awm") == 0.5
    assert lineage_zoo.false_claims([good]) == []
    assert lineage_zoo.false_claims([bad]) == [f"x-0.bad {m} x-1: fine-tune" for m in lineage_zoo.METHODS]
    assert lineage_zoo.misses([good]) == []
    assert any("puts x-1 first" in line for line in lineage_zoo.misses([bad]))


def test_parents_of_a_merge_must_all_be_named_and_nobody_else():
    merge = sighting("average", "x-0", {"x-0": 30.0})
    true = replace(merge.animal, parents=("x-0.a", "x-0.b"), shares=(0.5, 0.5), relations=("merge",))
    named = [
        {"x-0.a": 0.51, "x-0.b": 0.49}, {"x-0.a": 0.4, "x-0.b": 0.4, "x-0": 0.2}, {"x-0.a": 0.5, "x-0": 0.5},
        {"x-0.a": 0.4, "x-0.b": 0.4, "x-1": 0.2}, None,
    ]  # fmt: skip
    seen = [replace(merge, animal=true, parents=parents) for parents in named]
    assert [lineage_zoo.parents_right(s) for s in seen] == [True, True, False, False, False]
    assert lineage_zoo.weight_error(seen[0]) == pytest.approx(0.01)
    assert lineage_zoo.weight_error(seen[4]) is None
