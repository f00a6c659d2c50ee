from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from hilm import errors
from hilm.ship import pull
from tests.ship.cards import good


@pytest.fixture
def shelf(online, tmp_path):
    folder = good(tmp_path / "it", "org/it", shards=3)
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    online.add("org/it", folder)
    return online


def test_pickles_are_left_out_where_there_are_safetensors(shelf, tmp_path):
    names = {file["name"] for file in pull("org/it")["files"]}
    assert "pytorch_model.bin" not in names
    assert len(names) == 6
    assert {f["name"] for f in pull("org/it", include=["*.bin"])["files"]} == {"pytorch_model.bin"}
    assert {f["name"] for f in pull("org/it", include=["*.json"], exclude=["model*"])["files"]} == {
        "config.json"
    }
    with pytest.raises(errors.UsageError, match="wanted"):
        pull("org/it", include=["*.gguf"])


def test_what_is_there_is_not_fetched_again(shelf):
    first, sent = pull("org/it"), len([r for r in shelf.log if r.method == "GET" and "/lfs/" in r.path])
    assert pull("org/it") == first
    assert len([r for r in shelf.log if r.method == "GET" and "/lfs/" in r.path]) == sent == 3


def test_a_record_tells_commit_and_digests(shelf, tmp_path):
    told = pull("org/it", tmp_path / "here")
    record = json.loads((tmp_path / "here" / "pull.json").read_text())
    assert record == {k: v for k, v in told.items() if k != "path"}
    assert record["commit"] == shelf.repositories["models", "org/it"].refs["main"]
    assert str(tmp_path) not in json.dumps(record)


def test_a_flipped_bit_is_fetched_again_and_then_refused(shelf):
    shelf.fail("/lfs/", kind="flip", method="GET")
    path = Path(pull("org/it")["path"])
    assert len(list(path.iterdir())) == 6
    shutil.rmtree(path.parents[2])
    shelf.fail("/lfs/", kind="flip", method="GET", times=99)
    with pytest.raises(errors.ChecksumMismatch, match="safetensors"):
        pull("org/it")
    assert not list(path.parents[1].glob("snapshots/*/*.safetensors"))
    shelf.faults.clear()
    pull("org/it")


GATED = {"path": "/resolve/", "status": 403, "headers": {"X-Error-Code": "GatedRepo"}}
LIMITED = {"path": "/revision/", "status": 429, "headers": {"Retry-After": "900"}}
FAULTS = {
    "missing": ({"path": "nothing"}, "org/none", errors.NotFound, "repository"),
    "gated": (GATED, "org/it", errors.AuthRequired, "gated"),
    "forbidden": ({"path": "/resolve/", "status": 403}, "org/it", errors.AuthRequired, "permission"),
    "down": ({"path": "/resolve/", "status": 503}, "org/it", errors.NetworkError, "tried"),
    "always cut": ({"path": "/lfs/", "kind": "reset"}, "org/it", errors.NetworkError, "tried"),
    "limited": (LIMITED, "org/it", errors.RateLimited, "pause"),
}


@pytest.mark.parametrize(("fault", "repo_id", "kind", "says"), FAULTS.values(), ids=FAULTS)
def test_what_cannot_be_had(shelf, fault, repo_id, kind, says):
    shelf.fail(**fault, times=999)
    with pytest.raises(kind, match=says) as caught:
        pull(repo_id)
    assert caught.value.exit_code == 5
    shelf.faults.clear()
    if repo_id == "org/it":
        assert len(pull(repo_id)["files"]) == 6


@pytest.mark.parametrize("kind", ["cut", "reset", "delay", "status"])
def test_passing_faults_are_survived(shelf, kind):
    shelf.fail("/resolve/|/lfs/|/revision/", kind=kind, status=503, times=3, seconds=0.01)
    assert len(pull("org/it")["files"]) == 6


def test_private_repositories_need_a_token(shelf, monkeypatch):
    shelf.repositories["models", "org/it"].private = True
    assert len(pull("org/it")["files"]) == 6
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(errors.AuthRequired):
        pull("org/it")


def test_the_token_stays_on_the_hub(shelf):
    pull("org/it")
    assert {r.role for r in shelf.log if "/lfs/" in r.path} == {""}
    assert {r.role for r in shelf.log if "/resolve/" in r.path} == {"write"}


def test_a_full_disk_is_noticed_before(shelf, monkeypatch):
    monkeypatch.setattr("hilm.ship.download.shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(errors.StorageError, match="are free"):
        pull("org/it")
    assert not any("/resolve/" in r.path for r in shelf.log)


def test_offline_the_cache_is_checked(shelf, monkeypatch):
    path = Path(pull("org/it")["path"])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert len(pull("org/it")["files"]) == 6
    (path / "config.json").resolve().write_bytes(b"{" * (path / "config.json").stat().st_size)
    with pytest.raises(errors.ChecksumMismatch, match="config"):
        pull("org/it")


def test_an_older_commit(shelf, tmp_path):
    repository = shelf.repositories["models", "org/it"]
    first = repository.refs["main"]
    repository.commit(repository.files | {"config.json": b"{}"}, "second")
    assert (Path(pull("org/it")["path"]) / "config.json").read_bytes() == b"{}"
    assert (Path(pull("org/it", revision=first)["path"]) / "config.json").read_bytes() != b"{}"
    with pytest.raises(errors.NotFound, match="revision"):
        pull("org/it", revision="v9")
