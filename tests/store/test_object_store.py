"""A store at an address: its catalog there, what derives from it here, no reels anywhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hilm.errors import UsageError
from hilm.store import Store, diff
from tests.store.conftest import run


@pytest.fixture
def address(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "local"))
    return f"file-object-store://{tmp_path}/bucket/models"


def names(store):
    return [row["model"] for row in store.list()["models"]]


def test_every_verb_on_catalogs(house, address, tmp_path):
    store = Store(address)
    assert not store.exists
    assert names(store) == []
    assert list(tmp_path.iterdir()) == []
    done = store.index([house / "base", house / "tuned"])
    assert (done["indexed"], done["failed"]) == (["base", "tuned"], [])
    store = Store(address)
    assert store.index([house / "base"])["skipped"] == ["base"]
    assert names(store) == ["base", "tuned"]
    assert store.stats().items() >= {"path": address, "models": 2, "reels": 0}.items()
    best = store.search(house / "tuned")["matches"][0]
    assert (best["model"], best["relation"]) == ("base", "fine-tune")
    assert [edge["relation"] for edge in store.lineage()["edges"]] == ["fine-tune"]
    assert len(store.dedupe()["near"]) == 1
    assert diff("base", "tuned", store=store)["relation"] == "fine-tune"
    assert store.show("base")["reels"] == []
    assert store.remove("base")["removed"] == "base"
    assert names(store) == ["tuned"]
    assert store.index([house / "base"])["indexed"] == ["base"]
    assert {path.name for path in (tmp_path / "bucket" / "models").iterdir()} == {"catalog"}


def test_what_derives_from_the_catalog_is_local_and_of_one_address(house, address, tmp_path):
    store = Store(address)
    store.index([house / "base"])
    store.search(house / "tuned")
    assert store.path.parent == tmp_path / "local" / "hilm-catalogs"
    assert list(store.path.rglob("codes.u64"))
    assert Store(address + "2").path != store.path
    assert Store(Path(address)).place == Store(address + "/").place == address
    assert diff("base", "base", store=store)["relation"] == "identical"


def test_reels_need_a_folder(house, address):
    store = Store(address)
    store.index([house / "base"])
    for verb in (lambda: store.encode([house / "base"]), lambda: store.reel("base")):
        with pytest.raises(UsageError, match="holds a catalog and no reels"):
            verb()
    for words in (("encode", house / "base"), ("serve",)):
        code, out, err = run(*words, "--storage-dir", address)
        assert (code, out) == (2, "")
        assert f"{address} holds a catalog and no reels" in err


def test_the_environment_may_name_the_address(house, address, monkeypatch):
    monkeypatch.setenv("HILM_HOME", address)
    assert Store().index([house / "base"])["indexed"] == ["base"]
    assert Store().place == address


@pytest.mark.parametrize(
    ("given", "meant"),
    [("s3:/b/p", "s3://b/p"), ("gs://b/p/", "gs://b/p"), ("az://c/p", "az://c/p")],
)
def test_addresses(given, meant):
    store = Store(given)
    assert (store.address, store.place) == (meant, meant)
    assert not store.path.exists()


@pytest.mark.parametrize("given", ["s3://name:hush@bucket/p", "az://c/p?sv=1&sig=hush"])
def test_credentials_do_not_belong_in_an_address(given):
    with pytest.raises(UsageError, match="no credentials") as caught:
        Store(given)
    assert "hush" not in f"{caught.value} {caught.value.hint}"


def test_the_command_indexes_there_in_many_processes(house, address):
    code, out, err = run(
        "index", house / "base", house / "tuned", "--jobs", "2", "--json", "--storage-dir", address
    )
    assert code == 0, err
    assert sorted(json.loads(out)["indexed"]) == names(Store(address)) == ["base", "tuned"]
