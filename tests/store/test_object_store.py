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


def told(*words):
    code, out, err = run(*words, "--json")
    assert code == 0, err
    return json.loads(out)


def test_every_command_on_catalogs(house, address, tmp_path):
    at = ("--storage-dir", address)
    assert told("list", *at) == {"models": []}
    done = told("index", house / "base", house / "tuned", *at)
    assert (done["indexed"], done["failed"]) == (["base", "tuned"], [])
    assert told("index", house / "base", *at)["skipped"] == ["base"]
    assert [row["model"] for row in told("list", *at)["models"]] == ["base", "tuned"]
    stats = told("stats", *at)
    assert (stats["path"], stats["models"], stats["reels"]) == (address, 2, 0)
    best = told("search", house / "tuned", *at)["matches"][0]
    assert (best["model"], best["relation"]) == ("base", "fine-tune")
    assert [edge["relation"] for edge in told("lineage", *at)["edges"]] == ["fine-tune"]
    assert [found["model"] for found in told("dedupe", *at)["near"]] != []
    assert told("diff", "base", "tuned", *at)["relation"] == "fine-tune"
    assert told("show", "base", *at)["reels"] == []
    assert told("rm", "base", "--yes", *at)["removed"] == "base"
    assert [row["model"] for row in told("list", *at)["models"]] == ["tuned"]
    assert told("index", house / "base", *at)["indexed"] == ["base"]
    assert {p.name for p in (tmp_path / "bucket" / "models").iterdir()} == {"catalog"}


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
    at = ("--storage-dir", address)
    told("index", house / "base", *at)
    for words in (("encode", house / "base"), ("get", "base", "x"), ("verify", "base"), ("serve",)):
        code, out, err = run(*words, *at)
        assert (code, out) == (2, "")
        assert "holds a catalog and no reels" in err
        assert "--storage-dir" in err


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


def test_many_processes_index_into_one_catalog(house, address):
    at = ("--storage-dir", address)
    done = told("index", house / "base", house / "tuned", "--jobs", "2", *at)
    assert sorted(done["indexed"]) == ["base", "tuned"]
