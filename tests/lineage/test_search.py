from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest

from hilm.errors import CatalogError, UsageError
from hilm.lineage import scan, search
from hilm.lineage.catalog import Catalog
from hilm.lineage.gram import WORDS
from hilm.lineage.scan import ScanIndex
from hilm.lineage.search import METHODS, Print, find_similar, weigh
from hilm.lineage.verdict import verdict
from tests.lineage.family import (
    TABLE,
    bf16,
    mixed,
    noisy,
    permutation,
    print_of,
    rotation,
    shuffled_units,
    turned,
    with_layer_twice,
    without_layer,
    write_tokenizer,
)
from tests.lineage.rows import RUN
from tests.tiny import bert_like

if TYPE_CHECKING:
    from pathlib import Path

TRANSFORMS = {
    "noise": lambda t, rng: noisy(t, 0.1, rng),
    "heavy": lambda t, rng: noisy(t, 1.0, rng),
    "bf16": lambda t, rng: bf16(t),
    "permuted": lambda t, rng: shuffled_units(turned(t, permutation(64, rng)), rng),
    "rotated": lambda t, rng: turned(t, rotation(64, rng)),
    "shorter": lambda t, rng: without_layer(t, 2),
    "longer": lambda t, rng: with_layer_twice(t, 1, 7),
}


def key(text):
    return hashlib.sha256(text.encode()).digest()


def entries(name, found):
    """Rows of a model; equal weights have equal content."""
    content = hashlib.sha256(found.hashes).digest()
    model = {
        "ref_key": key(name), "content_key": content, "name": name, "uri": name, "format": "safetensors",
        "kind": "model", "files": [], "parameters": 1, "bytes": 1, "role_counts": [], "notes": [],
        "run_id": RUN,
    }  # fmt: skip
    return model, found.to_row(content) | {"run_id": RUN}


@dataclass(frozen=True)
class Library:
    root: Path
    catalog: Catalog
    prints: dict

    @property
    def index(self):
        return ScanIndex.open(self.catalog, self.root / "cache")

    def find(self, name, **how):
        return find_similar(self.catalog, self.index, self.prints[name], without=key(name), **how)


def library(root, found):
    catalog = Catalog.open(root / "catalog", create=True)
    rows = {name: entries(name, f) for name, f in found.items()}
    catalog.commit({"models": [m for m, _ in rows.values()], "fingerprints": [f for _, f in rows.values()]})
    return Library(root, catalog, {name: Print(name, row) for name, (_, row) in rows.items()})


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """Three families of the same shapes, 24 models; F2 is exact in the first, blurred in the others."""
    found, root = {}, tmp_path_factory.mktemp("zoo")
    for number, make in enumerate((mixed, bert_like, bert_like)):
        base, rng = make(20 + number), np.random.default_rng([number, 1])
        found[f"base-{number}"] = print_of(root / f"base-{number}", base)
        for name, transform in TRANSFORMS.items():
            model = f"{name}-{number}"
            found[model] = print_of(root / model, transform(base, rng))
    return library(root, found)


def test_the_true_base_comes_first(zoo):
    """Among the bases: siblings may be nearer."""
    for name in zoo.prints:
        number = name[-1]
        matches = [m for m in zoo.find(name, top_k=30) if m.model["name"].startswith("base")]
        if not name.startswith("base"):
            assert matches[0].model["name"] == f"base-{number}", name


def test_relatives_are_established_and_strangers_are_not(zoo):
    for name in zoo.prints:
        for match in zoo.find(name, top_k=30):
            if match.model["name"][-1] == name[-1]:
                continue
            assert match.verdict.relation == "independent"
            assert match.verdict.p_value > 1e-6
    relations = {m.model["name"]: m.verdict.relation for m in zoo.find("base-0", top_k=30)}
    assert relations["noise-0"] == "fine-tune"
    assert relations["bf16-0"] == "dtype-cast"
    assert relations["shorter-0"] == relations["longer-0"] == "subset"


def test_a_cast_names_the_rounded_side(zoo):
    evidence = weigh(zoo.prints["base-0"], zoo.prints["bf16-0"])
    assert (evidence.cast, evidence.casted) == ("BF16", "b")
    assert weigh(zoo.prints["bf16-0"], zoo.prints["base-0"]).casted == "a"
    assert weigh(zoo.prints["base-0"], zoo.prints["noise-0"]).casted is None


def test_methods_restrict_the_evidence(zoo):
    for method in METHODS:
        for match in zoo.find("base-0", method=method):
            assert (match.evidence.sketch is None) == (method == "features")
            assert (match.evidence.gram is None) == (method == "hierarchical")
    names = [m.model["name"] for m in zoo.find("rotated-0", method="features", top_k=3)]
    assert all(name.endswith("-0") for name in names)
    assert zoo.find("rotated-0", method="hierarchical", top_k=1)[0].verdict.relation == "independent"


def test_the_query_itself_is_left_out_of_a_full_list(zoo):
    assert len(zoo.find("base-1", top_k=23)) == 23
    assert all(m.model["name"] != "base-1" for m in zoo.find("base-1", top_k=30))
    kept = find_similar(zoo.catalog, zoo.index, zoo.prints["base-1"])[0]
    assert (kept.model["name"], kept.verdict.relation) == ("base-1", "identical")


def test_probabilities_count_every_model_of_the_catalog(zoo):
    match = zoo.find("base-0", top_k=30)[-1]
    alone = verdict(match.evidence, n=1)
    assert match.verdict.p_value == pytest.approx(min(1.0, 24 * alone.p_value))


def test_searching_twice_gives_the_same(zoo):
    first, second = (zoo.find("heavy-1", top_k=30) for _ in range(2))
    assert [(m.model["name"], m.verdict) for m in first] == [(m.model["name"], m.verdict) for m in second]
    chances = [m.verdict.p_value for m in first if m.verdict.relation == "independent"]
    assert chances == sorted(chances)


def test_a_query_changes_nothing(zoo):
    index = zoo.index
    before = zoo.catalog.versions(), {p: p.read_bytes() for p in zoo.catalog.root.rglob("*") if p.is_file()}
    for method in METHODS:
        find_similar(zoo.catalog, index, zoo.prints["base-2"], method=method)
    assert zoo.catalog.versions() == before[0]
    assert {p: p.read_bytes() for p in zoo.catalog.root.rglob("*") if p.is_file()} == before[1]


def test_copies_are_listed_by_name(tmp_path):
    found = print_of(tmp_path / "m", mixed())
    shelf = library(tmp_path, dict.fromkeys(("c", "a", "b"), found))
    matches = find_similar(shelf.catalog, shelf.index, Print("query", found.to_row(bytes(32))))
    assert [m.model["name"] for m in matches] == ["a", "b", "c"]
    assert {m.verdict.relation for m in matches} == {"identical"}


def test_what_has_no_matrices_is_found_by_its_digests(tmp_path):
    small = {"lora_A": np.ones((4, 64), np.float32), "lora_B": np.arange(64, dtype=np.float32)}
    found = {"adapter": print_of(tmp_path / "a", small), "model": print_of(tmp_path / "b", mixed())}
    shelf = library(tmp_path, found)
    for method in METHODS:
        first, second = find_similar(shelf.catalog, shelf.index, shelf.prints["adapter"], method=method)
        assert (first.model["name"], first.verdict.relation) == ("adapter", "identical")
        assert second.verdict.relation == "independent"
        assert not second.verdict.details["conclusive"]


def test_an_empty_catalog_has_no_matches(tmp_path):
    shelf = library(tmp_path, {})
    query = Print("query", print_of(tmp_path / "m", mixed()).to_row(bytes(32)))
    assert find_similar(shelf.catalog, shelf.index, query) == []


@pytest.mark.parametrize("wrong", [{"method": "magic"}, {"top_k": 0}])
def test_wrong_arguments(zoo, wrong):
    with pytest.raises(UsageError):
        zoo.find("base-0", **wrong)


def test_a_screened_search_says_that_it_was_not_exhaustive(zoo, monkeypatch):
    assert all(m.evidence.exhaustive for m in zoo.find("base-0"))
    for module in (search, scan):
        monkeypatch.setattr(module, "EXHAUSTIVE_ROWS", 20)
    monkeypatch.setattr(search, "SHORT_LIST", 4)
    matches = zoo.find("heavy-0", top_k=30)
    assert matches[0].model["name"].endswith("-0")
    assert len(matches) < 23
    assert not any(m.evidence.exhaustive for m in matches)


# Which Grams are comparable


def with_words(folder, words, tensors, first=100):
    ids = {f"▁{w}": first + WORDS.index(w) for w in words}
    write_tokenizer(folder, {"model": {"vocab": ids}})
    found = print_of(folder, tensors)
    return Print(folder.name, found.to_row(bytes(32)))


def test_kinds_of_anchors_are_never_mixed(tmp_path):
    text = with_words(tmp_path / "text", WORDS, mixed())
    ids = Print("ids", print_of(tmp_path / "ids", mixed()).to_row(bytes(32)))
    assert (text.kind, ids.kind) == ("text-64/1", "ids-64/1")
    assert weigh(text, ids).gram is None
    assert weigh(text, ids).sketch == pytest.approx(1.0)


def test_grams_are_compared_on_common_anchors(tmp_path):
    whole = with_words(tmp_path / "whole", WORDS, mixed())
    parts = [with_words(tmp_path / str(n), WORDS[n:], mixed()) for n in (10, 32, 33)]
    assert weigh(whole, parts[0]).gram > 0.9
    assert weigh(whole, parts[1]).gram > 0.7
    assert weigh(whole, parts[2]).gram is None
    other = with_words(tmp_path / "other", WORDS[10:], mixed(1))
    assert abs(weigh(whole, other).gram) < 0.3


def test_ids_mean_the_same_in_vocabularies_of_one_origin(tmp_path):
    def made(name, table):
        tensors = bert_like(layers=2) | {TABLE: table}
        return Print(name, print_of(tmp_path / name, tensors).to_row(bytes(32)))

    rng = np.random.default_rng(0)
    table = rng.standard_normal((2700, 64)).astype(np.float32)
    more = rng.standard_normal((64, 64)).astype(np.float32)
    base, grown = made("base", table), made("grown", np.concatenate([table, more]))
    tuned, other = made("tuned", table + 0.01), made("other", np.concatenate([table[::-1], more]))
    assert weigh(base, grown).gram == pytest.approx(1.0)
    assert weigh(base, tuned).gram is not None
    assert weigh(base, other).gram is None
    short, longer = made("short", table[:2300]), made("longer", table[:2400])
    assert weigh(short, longer).gram is None


# What a print knows


def test_a_print_describes_its_model(zoo):
    side = zoo.prints["base-1"].side(0.25, 0.5)
    assert (side.name, side.identical, side.rounded) == ("base-1", 0.25, 0.5)
    assert (side.width, side.vocabulary, side.coverage) == (64, 1000, 1.0)
    assert side.shapes == {(64, 64): 17, (256, 64): 4, (64, 256): 4}
    assert side.parameters == sum(v.size for v in bert_like(21).values())
    assert side.bits is None


def test_damaged_records_are_noticed(zoo):
    row = zoo.prints["base-0"].row
    for field in ("tensor_hashes", "tensor_codes", "profile"):
        broken = Print("broken", row | {field: row[field][:-1]})
        with pytest.raises(CatalogError, match="record is cut off") as caught:
            weigh(broken, zoo.prints["base-1"])
        assert caught.value.hint == "index the model again"


def test_quantised_copies_are_told_by_their_lattice(tmp_path):
    tensors = mixed()
    step = {n: np.abs(v).max(axis=1, keepdims=True) / 7 for n, v in tensors.items() if v.ndim > 1}
    coarse = tensors | {n: (np.rint(tensors[n] / s) * s).astype(np.float32) for n, s in step.items()}
    prints = [
        Print(n, print_of(tmp_path / n, t).to_row(bytes(32))) for n, t in (("a", tensors), ("b", coarse))
    ]
    found = verdict(weigh(*prints))
    assert found.relation == "quantized"
    assert found.details["quantization"] == {"model": "b", "of": "a", "bits": 4, "group": "row"}
