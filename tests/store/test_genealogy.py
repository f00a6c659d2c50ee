"""The lineage of a store, and hilm.store.duplicates: what it holds more than once."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from hilm.errors import NotACheckpoint, UsageError
from hilm.lineage import picture
from hilm.store import Store, diff, genealogy
from tests.lineage.family import bf16
from tests.lineage.kinship import average, levels, plus, task
from tests.store.conftest import contents
from tests.store.conftest import tiny as small
from tests.tiny import bert_like, write_model


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    base = bert_like(1)
    first, second = (plus(base, (1, task(base, seed))) for seed in (1, 2))
    models = {
        "base": base, "first": first, "second": second, "mean": average((0.6, first), (0.4, second)),
        "coarse": levels(second), "half": bf16(base), "twin": base, "stranger": bert_like(2), "tiny": small(),
    }  # fmt: skip
    for name, tensors in models.items():
        write_model(folder / name, tensors)
    store = Store(tmp_path_factory.mktemp("store"))
    store.index([folder / name for name in models], jobs=1)
    return store, folder


def test_the_whole_store(filled):
    store, _ = filled
    before = contents(store.path)
    document = store.lineage()
    assert document["query"] is None
    assert {n["model"] for n in document["nodes"]} == {path.name for path in filled[1].iterdir()}
    found = {(e["parent"], e["child"]): (e["relation"], e["direction"]) for e in document["edges"]}
    assert found["first", "mean"] == found["second", "mean"] == ("merge", "shown")
    assert found["second", "coarse"] == ("quantized", "shown")
    assert {e["child"] for e in document["edges"]} == {"first", "second", "mean", "coarse", "half", "twin"}
    assert all(e["p_value"] < 1e-6 and e["sentence"] for e in document["edges"])
    weights = [e["weight"] for e in document["edges"] if e["child"] == "mean"]
    assert sorted(weights) == pytest.approx([0.4, 0.6], abs=0.01)
    assert contents(store.path) == before


def test_one_family(filled):
    store, folder = filled
    document = store.lineage("mean")
    assert document["query"] == "mean"
    names = {n["model"] for n in document["nodes"]}
    assert names == {"base", "first", "second", "mean", "coarse", "half", "twin"}
    assert store.lineage(folder / "mean")["edges"] == document["edges"]
    with pytest.raises(NotACheckpoint):
        store.lineage("nobody")


def test_a_model_that_is_not_in_the_store(filled, tmp_path):
    store, _ = filled
    new = plus(bert_like(1), (1, task(bert_like(1), 5)))
    document = store.lineage(write_model(tmp_path / "new", new))
    node = next(n for n in document["nodes"] if n["model"] == "new")
    assert node["uri"] is None
    assert any("new" in (e["parent"], e["child"]) for e in document["edges"])


def test_an_empty_store(tmp_path):
    document = Store(tmp_path / "nothing").lineage()
    assert document == {"query": None, "nodes": [], "edges": [], "hints": []}
    assert Store(tmp_path / "nothing").dedupe()["exact"] == []


def test_the_picture_shows_every_model(filled, tmp_path, monkeypatch):
    store, _ = filled
    document = store.lineage(picture=tmp_path / "tree.png")
    with Image.open(io.BytesIO((tmp_path / "tree.png").read_bytes())) as image:
        assert image.height > 40 * len(document["nodes"])
        darkest = image.convert("L").getextrema()[0]
    assert darkest < 50
    monkeypatch.setattr(picture, "MAX_ROWS", 3)
    with pytest.raises(UsageError):
        store.lineage(picture=tmp_path / "other.png")
    assert not (tmp_path / "other.png").exists()


def test_too_many_models(filled, monkeypatch):
    monkeypatch.setattr(genealogy, "LIMIT", 3)
    with pytest.raises(UsageError, match="8 models"):
        filled[0].lineage()


def test_search_and_diff_name_the_parents_of_a_merge(filled):
    store, _ = filled
    matches = {m["model"]: m for m in store.search("mean")["matches"]}
    assert {name for name, m in matches.items() if m["relation"] == "merge"} == {"first", "second"}
    parents = matches["first"]["details"]["merge"]["parents"]
    assert [p["model"] for p in parents] == ["first", "second"]
    for pair in (("first", "mean"), ("mean", "first")):
        document = diff(*pair, store=store)
        assert (document["relation"], document["details"]["merge"]["model"]) == ("merge", "mean")
    assert diff("base", "first", store=store)["relation"] == "fine-tune"


def test_duplicates(filled):
    store, folder = filled
    document = store.dedupe(measure=True)
    size = (folder / "base" / "model.safetensors").stat().st_size
    assert document["exact"] == [{"models": ["base", "twin"], "bytes": 2 * size, "saved": size}]
    near = {entry["model"]: entry for entry in document["near"]}
    assert {"first", "second", "mean"} <= set(near)
    for entry in near.values():
        assert entry["saved_estimate"] == pytest.approx(entry["saved"], abs=0.1 * entry["bytes"])
    assert document["near_bytes"] == sum(entry["saved"] for entry in near.values())
