from __future__ import annotations

import shutil

import numpy as np
import pytest

from hilm.errors import NotACheckpoint, OfflineError, UnknownModel, UsageError
from hilm.lineage.comparison import NARROW
from hilm.lineage.fingerprint import fingerprint
from hilm.lineage.gram import WORDS
from hilm.store import Store
from hilm.weights import open_checkpoint
from tests.lineage.family import mixed, reads_stream
from tests.lineage.kinship import plus, task, ties
from tests.store.conftest import tiny, tuned
from tests.tiny import bert_like, write_model


@pytest.fixture(scope="module")
def filled(house, tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("store"))
    store.index([path for path in sorted(house.iterdir()) if path.name != "tuned"], jobs=1)
    return store


def answer(store, model, **options):
    """Matches without what follows from names and places of the query."""
    matches = store.search(model, **options)["matches"]
    return [(m["model"], m["score"], m["z"], m["p_value"], m["relation"]) for m in matches]


@pytest.mark.parametrize("method", ["hybrid", "hierarchical", "features"])
def test_the_base_comes_first_and_strangers_are_independent(filled, house, method):
    document = filled.search(house / "tuned", method=method, top_k=3)
    assert (document["query"], document["method"]) == ("tuned", method)
    matches = document["matches"]
    assert matches[0]["model"] == "base"
    if method != "features":  # whose evidence a model this small has too little of
        assert matches[0]["relation"] == "fine-tune"
        assert matches[0]["p_value"] < 1e-6
    assert [m["relation"] for m in matches[1:]] == ["independent", "independent"]
    assert all(m["uri"] == str(house / m["model"]) for m in matches)


def test_a_model_of_the_store_is_not_its_own_relative(filled, house):
    by_name, by_path = answer(filled, "stranger-0"), answer(filled, house / "stranger-0")
    assert by_name == by_path
    assert "stranger-0" not in [match[0] for match in by_name]


def test_an_identical_copy_comes_first(filled, house, tmp_path):
    shutil.copytree(house / "base", tmp_path / "copy")
    first = answer(filled, tmp_path / "copy")[0]
    assert (first[0], first[4]) == ("base", "identical")


VARIANTS = {
    "three shards": {"shards": 3},
    "another order": {"order": 1},
    "other names": {"prefix": "model."},
    "all of it": {"shards": 2, "order": 2, "prefix": "bert."},
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_sharding_order_and_a_rename_change_neither_fingerprint_nor_answer(filled, house, tmp_path, variant):
    tensors = list(tuned(tiny(1)).items())
    if "order" in variant:
        tensors = [tensors[i] for i in np.random.default_rng(variant["order"]).permutation(len(tensors))]
    renamed = {variant.get("prefix", "") + name: value for name, value in tensors}
    folder = write_model(tmp_path / "variant", renamed, shards=variant.get("shards", 1))
    with open_checkpoint(folder) as one, open_checkpoint(house / "tuned") as other:
        assert fingerprint(one).identity == fingerprint(other).identity
    for method in ("hybrid", "hierarchical", "features"):
        assert answer(filled, folder, method=method) == answer(filled, house / "tuned", method=method)


@pytest.mark.parametrize("chunk_size", [64, 4096])
def test_the_chunk_size_of_a_film_changes_neither_fingerprint_nor_answer(house, store, chunk_size):
    store.encode([house / "tuned"], mode="sample", stream=True, chunk_size=chunk_size)
    other = Store(store.path.parent / "other")
    other.index([house / "tuned"])
    drop = {"run_id", "created_at", "seconds"}
    one, two = (
        [{k: v for k, v in row.items() if k not in drop} for row in s.catalog.rows("fingerprints")]
        for s in (store, other)
    )
    assert one == two
    for target in (store, other):
        target.index([house / "base"])
    assert answer(store, "base") == answer(other, "base")


def test_a_permuted_copy_is_proved_by_its_weights(filled, house, tmp_path):
    order = np.random.default_rng(3).permutation(64)
    tensors = tiny(1)
    prefix = "encoder.layer.0."
    for name in ("intermediate.dense.weight", "intermediate.dense.bias"):
        tensors[prefix + name] = tensors[prefix + name][order]
    tensors[prefix + "output.dense.weight"] = np.ascontiguousarray(
        tensors[prefix + "output.dense.weight"][:, order]
    )
    folder = write_model(tmp_path / "permuted", tensors)
    seen = []
    match = filled.search(folder, progress=lambda *args: seen.append(args))["matches"][0]
    assert match["model"] == "base"
    assert match["relation"] != "independent"
    assert seen


def test_a_model_without_a_quarter_of_its_coordinates_is_proved_by_its_weights(store, tmp_path):
    models = [mixed(seed, layers=6, hidden=128) for seed in range(3)]
    store.index([write_model(tmp_path / f"m{seed}", tensors) for seed, tensors in enumerate(models)])
    kept = np.sort(np.random.default_rng(4).permutation(64)[:48])
    narrow = {n: t[..., kept] if reads_stream(n) else t[kept] for n, t in models[1].items()}
    matches = store.search(write_model(tmp_path / "narrow", narrow))["matches"]
    assert [m["relation"] for m in matches] == ["resized", "independent", "independent"]
    assert matches[0]["model"] == "m1"
    assert matches[0]["details"]["changes"] == ["width"]


def test_a_base_that_is_gone_is_still_found(house, store, tmp_path):
    shutil.copytree(house / "base", tmp_path / "base")
    store.index([tmp_path / "base", house / "stranger-0"])
    shutil.rmtree(tmp_path / "base")
    assert answer(store, house / "tuned")[0][::4] == ("base", "fine-tune")


def test_a_model_is_listed_once_however_often_its_weights_are_there(house, store, tmp_path):
    for name in ("one", "two"):
        shutil.copytree(house / "base", tmp_path / name)
    (tmp_path / "two" / "vocab.txt").write_text("\n".join("Ġ" + word for word in WORDS))
    store.index([tmp_path / "one", tmp_path / "two"])
    assert len(store.catalog.rows("fingerprints")) == 2
    assert sorted(match[0] for match in answer(store, house / "tuned")) == ["one", "two"]


def test_what_cannot_be_searched_is_said(filled, house, store):
    with pytest.raises(UnknownModel):
        filled.search("no body")
    with pytest.raises(NotACheckpoint):
        filled.search("nobody")
    with pytest.raises(OfflineError):
        filled.search("no/body")
    with pytest.raises(UnknownModel, match="is empty"):
        store.search(house / "base")
    with pytest.raises(UsageError):
        filled.search("base", method="magic")


def test_parents_of_a_ties_merge_are_proved_by_values(tmp_path):
    base = bert_like(1)
    tasks = [task(base, 10 + k, shared=99, share=0.4) for k in range(3)]
    models = {"base": base} | {f"child-{k}": plus(base, (1, t)) for k, t in enumerate(tasks)}
    folders = [write_model(tmp_path / name, tensors) for name, tensors in models.items()]
    merged = write_model(tmp_path / "merged", ties(base, *tasks[:2]))
    store = Store(tmp_path / "store")
    store.index(folders, jobs=1)
    matches = {m["model"]: m for m in store.search(merged)["matches"]}
    assert [m for m in matches if matches[m]["relation"] == "merge"] == ["child-0", "child-1"]
    merge = matches["child-0"]["details"]["merge"]
    assert (merge["kind"], merge["base"]) == ("ties", "base")
    assert [p["factor"] for p in merge["parents"]] == pytest.approx([1, 1], abs=1e-3)
    shutil.rmtree(folders[0])  # without the base nothing is proved
    matches = store.search(merged)["matches"]
    assert "ties" not in [m["details"]["merge"]["kind"] for m in matches if "merge" in m["details"]]


@pytest.mark.parametrize("dtype", ["F16", "F8_E4M3"])
def test_casts_that_no_digest_shows_are_found_in_values(filled, house, tmp_path, dtype):
    with open_checkpoint(house / "base") as checkpoint:
        tensors = {name: checkpoint.array(name) for name in checkpoint.tensors}
    narrow = {name: values.astype(NARROW[dtype]) for name, values in tensors.items()}
    cast = write_model(tmp_path / "cast", {n: v.astype(np.float32) for n, v in narrow.items()})
    found = filled.search(cast)["matches"][0]
    assert (found["model"], found["relation"], found["details"]["cast"]) == ("base", "dtype-cast", dtype)
    wide = {name: values.astype(np.float32) for name, values in narrow.items()}
    name = next(name for name, values in wide.items() if values.ndim > 1)
    trained = write_model(tmp_path / "trained", wide | {name: wide[name] * np.float32(1.01)})
    assert filled.search(trained)["matches"][0]["relation"] == "fine-tune"


def test_components_of_a_model_are_searched_for_apart(tmp_path):
    parts = {"text": bert_like(1), "sight": bert_like(2, width=80, hidden=160)}
    folders = [write_model(tmp_path / name, tensors) for name, tensors in parts.items()]
    both = {f"{name}.{n}": values for name, tensors in parts.items() for n, values in tensors.items()}
    whole = write_model(tmp_path / "whole", both)
    store = Store(tmp_path / "store")
    store.index([*folders, whole], jobs=1)
    found = {c["component"]: c["matches"] for c in store.search(whole)["components"]}
    assert [name.partition(".")[0] for name in found] == ["sight", "text"]
    for name, matches in found.items():
        assert [(m["model"], m["relation"]) for m in matches] == [(name.partition(".")[0], "identical")]
    assert "components" not in store.search(folders[0])
    assert "components" not in store.search(whole, method="features")
