from __future__ import annotations

import json
import shutil

import pytest
from PIL import Image

import hilm
from hilm.errors import InputError, NotAReel, UsageError, VerificationError
from hilm.store import Store, report


@pytest.fixture
def small(house, store):
    store.encode([house / "base"], mode="small", bits=4, preview=False)
    return store.reel("base", "small")


def test_the_store_knows_what_was_rounded(small, house, store):
    document = report([small], store=store)
    json.dumps(document, allow_nan=False)
    (reel,) = document["reels"]
    assert (reel["mode"], reel["source"], reel["unavailable"]) == ("small", str(house / "base"), {})
    assert reel["bytes"] == small.stat().st_size
    weights = sum(kind["weights"] for kind in (reel["rounded"], reel["exact"]))
    assert weights == store.list()["models"][0]["parameters"]
    assert {"q4_k", "q5_k", "q6_k", "q8_0", "nf4", "int4"} == reel["rounded"]["others"].keys()
    assert document["picture"] is None


def test_without_a_source_it_says_so(small, house, tmp_path):
    other = Store(tmp_path / "other")
    (reel,) = report([small], store=other)["reels"]
    assert (reel["source"], reel["rounded"]["others"]) == (None, {})
    assert "--against" in reel["unavailable"]["block formats"]
    (told,) = report([small], against=house / "base", store=other)["reels"]
    assert told["rounded"]["others"]
    with pytest.raises(VerificationError, match="another one"):
        report([small], against=house / "tuned", store=other)
    with pytest.raises(InputError):
        report([small], against="nobody", store=other)


def test_an_archive_in_the_store_stands_in_for_a_source_that_is_gone(house, store, tmp_path):
    model = shutil.copytree(house / "base", tmp_path / "model")
    store.encode([model], preview=False)
    store.encode([model], mode="small", preview=False)
    shutil.rmtree(model)
    (reel,) = report([store.reel("model", "small")], store=store)["reels"]
    assert reel["source"] == str(store.reel("model", "archive"))
    assert reel["rounded"]["others"]


def test_its_own_figures_take_neither_base_nor_source(house, store, tmp_path):
    store.encode([house / "tuned"], mode="delta", base=house / "base", preview=False)
    reel, other = store.reel("tuned", "delta"), Store(tmp_path / "other")
    with pytest.raises(UsageError, match="not in the store"):
        report([reel], store=other)
    (alone,) = report([reel], others=False, store=other)["reels"]
    (compared,) = report([reel], base=house / "base", store=other)["reels"]
    assert alone["exact"]["others"] == {}
    assert compared["exact"]["others"].keys() == {"zstd-3", "zstd-19", "zipnn", "xor+zstd-3"}
    assert alone["exact"]["bits_per_weight"] == compared["exact"]["bits_per_weight"]


def test_a_picture_shows_every_reel(small, store, house, tmp_path):
    store.encode([house / "base"], preview=False)
    reels, seen = [small, store.reel("base", "archive")], []
    drawn = report(
        reels, picture=tmp_path / "new" / "x.png", store=store, progress=lambda *step: seen.append(step)
    )
    with Image.open(drawn["picture"]) as image:
        assert image.format == "PNG"
    tensors = len(drawn["reels"][0]["tensors"])
    assert [step[0] for step in seen] == [*range(1, tensors + 1)] * 2
    with pytest.raises(UsageError, match="every bit is kept"):
        report(reels[1:], picture=tmp_path / "y.png", others=False, store=store)
    assert not (tmp_path / "y.png").exists()


def test_only_reels_of_tensors_are_measured(house, store):
    store.encode([house / "base"], mode="sample", max_params=100, preview=False)
    with pytest.raises(UsageError, match="samples"):
        hilm.report([store.reel("base", "sample")], store=store)
    with pytest.raises(NotAReel):
        report([house / "base"], store=store)
