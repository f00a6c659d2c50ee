from __future__ import annotations

import hashlib
import json
import os
import pickle
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, closing

import numpy as np
import pytest

from hilm import errors
from hilm.weights import hub_files
from hilm.weights.blocks import read_blocks
from hilm.weights.byte_source import FileSource
from hilm.weights.checkpoint import open_checkpoint
from hilm.weights.http_source import HttpSource
from hilm.weights.hub_files import locate_hub
from hilm.weights.places import open_together
from hilm.weights.retry import Patience
from hilm.weights.safetensors import parse_header
from tests.servers import COMMIT, Fault, Hub, git_id
from tests.tiny import write_model

SECRET = "hf_canary4711"
REPOSITORY = "org/model"


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    rng = np.random.default_rng(3)
    tensors = {f"layer.{n}.weight": rng.standard_normal((200, 300)).astype(np.float32) for n in range(10)}
    folder = write_model(tmp_path_factory.mktemp("m"), tensors, shards=5, config={"model_type": "bert"})
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())} | {"sub/notes.txt": b"hello"}


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
    for name in (
        "HF_TOKEN",
        "HF_HUB_CACHE",
        "HUGGINGFACE_HUB_CACHE",
        "HF_TOKEN_PATH",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(hub_files, "PATIENCE", Patience(tries=3, first=0.01, longest=0.05))


@pytest.fixture
def hub(contents, monkeypatch):
    with Hub({REPOSITORY: contents, "single": contents}) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url(""))
        yield running


def shards(repository):
    return [name for name in repository.files if name.endswith(".safetensors")]


def test_one_request_pins_and_lists(hub, contents):
    repository = locate_hub(REPOSITORY)
    assert len(hub.seen) == 1
    assert repository.commit == COMMIT
    assert {name: file.size for name, file in repository.files.items()} == {
        n: len(b) for n, b in contents.items()
    }
    for name, file in repository.files.items():
        large = name.endswith(".safetensors")
        assert file.sha256 == (hashlib.sha256(contents[name]).hexdigest() if large else None)
        assert file.etag == file.sha256 or file.etag == git_id(contents[name])
        assert file.path is None
    assert all(COMMIT in repository.url(name) for name in repository.files)
    assert repository.url("sub/notes.txt").endswith("/sub/notes.txt")
    assert locate_hub("single", revision="v1/x").commit == COMMIT
    assert locate_hub(REPOSITORY, revision=COMMIT).commit == COMMIT


def test_inspecting_five_shards_takes_eight_requests_of_the_hub_and_one_per_shard_elsewhere(hub, contents):
    repository = locate_hub(REPOSITORY)
    for name in ("config.json", "model.safetensors.index.json"):
        with closing(repository.open(name)) as source:
            assert json.loads(source.read(0, source.size)) == json.loads(contents[name])
    names = shards(repository)
    with ExitStack() as stack:
        sources = [stack.enter_context(closing(s)) for s in open_together(repository.open, names)]
        headers = [parse_header(source.read, source.size) for source in sources]
        assert len(hub.seen) == 1 + 2 + 5
        assert len(hub.cdn.seen) == 5
        assert sum(len(header.entries) for header in headers) == 10
        for name, source in zip(names, sources, strict=True):
            assert source.read(0, source.size) == contents[name]
        assert len(hub.seen) == 8, "locations are kept"


def test_blocks_of_remote_shards_equal_those_of_the_folder(hub, contents, tmp_path):
    for name, body in contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(body)
    repository = locate_hub(REPOSITORY)
    with open_checkpoint(tmp_path) as local, ExitStack() as stack:
        sources = [
            stack.enter_context(closing(s))
            for s in open_together(repository.open, [f.name for f in local.files])
        ]
        remote = read_blocks((info, sources[info.span.file]) for info in local.tensors.values())
        for ours, theirs in zip(local.blocks(), remote, strict=True):
            assert ours.info == theirs.info
            assert np.array_equal(ours.values, theirs.values)


def test_a_token_goes_to_the_hub_only(hub):
    hub.token = SECRET
    with pytest.raises(errors.AuthRequired, match="gated") as caught:
        locate_hub(REPOSITORY)
    assert "accept" in caught.value.hint
    repository = locate_hub(REPOSITORY, token=SECRET)
    with closing(repository.open(shards(repository)[0])) as source:
        source.read(0, source.size)
    assert all(s.headers["authorization"] == f"Bearer {SECRET}" for s in hub.seen[1:])
    assert hub.cdn.seen
    assert not any(SECRET in str(s) for s in hub.cdn.seen)
    assert SECRET not in repr(repository)
    travelled = pickle.dumps(repository)
    assert SECRET.encode() not in travelled
    assert pickle.loads(travelled) == repository


def test_tokens_come_from_the_argument_then_the_environment_then_the_login(monkeypatch, tmp_path):
    def used(token=None):
        return hub_files.authorization(token).get("Authorization", "").removeprefix("Bearer ")

    assert used() == ""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "token").write_text("stored\n")
    assert used() == "stored"
    monkeypatch.setenv("HF_TOKEN", "environment")
    assert used() == "environment"
    assert used("argument") == "argument"
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "yes")
    assert used() == ""
    assert used("argument") == "argument"


def test_a_malformed_token_is_refused_without_showing_it(hub):
    for token in (f"{SECRET}\r\nX-Other: 1", f"{SECRET} x", f"{SECRET}\u00e9"):
        with pytest.raises(errors.UsageError) as caught:
            locate_hub(REPOSITORY, token=token)
        assert SECRET not in str(caught.value)
    assert not hub.seen


def test_no_error_shows_a_token(hub):
    hub.always[f"/api/models/{REPOSITORY}/revision/main"] = Fault(500, body=SECRET.encode())
    with pytest.raises(errors.NetworkError) as caught:
        locate_hub(REPOSITORY, token=SECRET)
    shown, chain = "", caught.value
    while chain is not None:
        shown += repr(chain) + str(chain) + getattr(chain, "hint", "")
        chain = chain.__cause__ or chain.__context__
    assert SECRET not in shown


@pytest.mark.parametrize(
    ("repository", "revision", "kind", "says"),
    [
        ("org/other", "main", errors.AuthRequired, "does not exist or may not be read"),
        (REPOSITORY, "nowhere", errors.NotFound, "revision"),
        ("../etc", "main", errors.UsageError, "not a repository"),
        ("a/b/c", "main", errors.UsageError, "not a repository"),
        (REPOSITORY, "../../x", errors.UsageError, "not a repository"),
        (REPOSITORY, "a b", errors.UsageError, "not a repository"),
    ],
)
def test_what_is_not_there(hub, repository, revision, kind, says):
    with pytest.raises(kind, match=says):
        locate_hub(repository, revision=revision)


def test_missing_files(hub):
    repository = locate_hub(REPOSITORY)
    with pytest.raises(errors.NotFound, match="absent"):
        repository.open("absent.txt")
    del hub.repositories[REPOSITORY]["sub/notes.txt"]
    with pytest.raises(errors.NotFound, match="no such file"):
        open_together(repository.open, ["config.json", "sub/notes.txt"])
    hub.repositories[REPOSITORY]["sub/notes.txt"] = b"hello"


@pytest.mark.parametrize("name", ["config.json", "model-00001-of-00005.safetensors"])
def test_a_file_that_is_not_the_listed_one_is_refused(hub, contents, name):
    repository = locate_hub(REPOSITORY)
    other = bytearray(contents[name])
    other[-1] ^= 1
    hub.repositories[REPOSITORY] = contents | {name: bytes(other)}
    hub.cdn.files[f"/blob/{hashlib.sha256(other).hexdigest()}"] = bytes(other)
    with pytest.raises(errors.RemoteSourceChanged):
        repository.open(name)


def test_regular_files_come_whole_when_the_hub_ignores_the_range(hub, contents):
    repository = locate_hub(REPOSITORY)
    hub.files[f"/{REPOSITORY}/resolve/{COMMIT}/config.json"] = contents["config.json"]
    hub.etags[f"/{REPOSITORY}/resolve/{COMMIT}/config.json"] = git_id(contents["config.json"])
    hub.always[f"/{REPOSITORY}/resolve/{COMMIT}/config.json"] = Fault(whole=True)
    hub.route = lambda *_: None
    with closing(repository.open("config.json")) as source:
        assert source.read(0, source.size) == contents["config.json"]


GOOD = {"rfilename": "a", "size": 1, "blobId": "0" * 40}


@pytest.mark.parametrize(
    "listing",
    [
        b"[]",
        b"not json",
        b"[" * 100_000,
        json.dumps({"sha": "main", "siblings": []}).encode(),
        *(
            json.dumps({"sha": COMMIT, "siblings": [GOOD | bad]}).encode()
            for bad in (
                {"rfilename": "../a"},
                {"rfilename": "/a"},
                {"rfilename": "a//b"},
                {"rfilename": "a\\b"},
                {"rfilename": "a\nb"},
                {"rfilename": 3},
                {"size": -1},
                {"size": "1"},
                {"size": True},
                {"blobId": "../x"},
                {"blobId": None},
                {"lfs": {"sha256": "0" * 40}},
            )
        ),
    ],
)
def test_listings_that_are_none(hub, listing):
    hub.always[f"/api/models/{REPOSITORY}/revision/main"] = Fault(200, body=listing)
    with pytest.raises(errors.NetworkError, match="listing"):
        locate_hub(REPOSITORY)


def fill_cache(folder, contents, names, commit=COMMIT):
    """The snapshot cache as the Hub's own client leaves it."""
    for name in names:
        blob = (
            hashlib.sha256(contents[name]).hexdigest()
            if name.endswith(".safetensors")
            else git_id(contents[name])
        )
        (folder / "blobs").mkdir(parents=True, exist_ok=True)
        (folder / "blobs" / blob).write_bytes(contents[name])
        link = folder / "snapshots" / commit / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(folder / "blobs" / blob)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(commit)


def test_cached_files_are_not_fetched_again(hub, contents, tmp_path):
    cache = tmp_path / "home" / "hub" / "models--org--model"
    older = [name for name in contents if "00002" in name]
    fill_cache(cache, contents, older, commit="a" * 40)
    fill_cache(cache, contents, ["config.json"])
    repository = locate_hub(REPOSITORY)
    assert [n for n, f in repository.files.items() if f.path] == ["config.json", *older]
    for name in ("config.json", *older):
        with closing(repository.open(name)) as source:
            assert isinstance(source, FileSource)
            assert source.read(0, source.size) == contents[name]
    assert len(hub.seen) == 1


def test_offline_opens_no_socket(contents, tmp_path, monkeypatch):
    fill_cache(tmp_path / "home" / "hub" / "models--org--model", contents, ["config.json", "sub/notes.txt", *[
        name for name in contents if "00001" in name]])  # fmt: skip

    def refuse(*_, **__):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    repository = locate_hub(REPOSITORY)
    assert repository.commit == COMMIT
    assert set(repository.files) == {"config.json", "sub/notes.txt", "model-00001-of-00005.safetensors"}
    assert repository == locate_hub(REPOSITORY, revision=COMMIT, offline=True)
    shard = repository.files["model-00001-of-00005.safetensors"]
    assert shard.sha256 == hashlib.sha256(contents[shard.name]).hexdigest()
    with closing(repository.open(shard.name)) as source:
        assert source.read(0, source.size) == contents[shard.name]
    with pytest.raises(errors.OfflineError, match=r"model-00002-of-00005\.safetensors"):
        repository.open("model-00002-of-00005.safetensors")
    for target, revision in (("org/other", None), (REPOSITORY, "v9"), (REPOSITORY, "b" * 40)):
        with pytest.raises(errors.OfflineError, match=target):
            locate_hub(target, revision=revision)


CLIENT = """
import sys
from huggingface_hub import hf_hub_download
for name in sys.argv[2:]:
    print(hf_hub_download(sys.argv[1], name))
"""


def test_the_hubs_own_client_fills_a_cache_that_is_read_offline(hub, contents, tmp_path):
    names = ["config.json", "model-00003-of-00005.safetensors"]
    environment = {
        **os.environ, "HF_ENDPOINT": hub.url(""), "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, REPOSITORY, *names],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    repository = locate_hub(REPOSITORY, offline=True)
    assert sorted(repository.files) == names
    for name in names:
        with closing(repository.open(name)) as source:
            assert source.read(0, source.size) == contents[name]
    seen = len(hub.seen)
    online = locate_hub(REPOSITORY)
    assert sorted(n for n, f in online.files.items() if f.path) == names
    assert {n: f.etag for n, f in online.files.items() if f.path} == {
        n: f.etag for n, f in repository.files.items()
    }
    assert len(hub.seen) == seen + 1


def test_shards_are_opened_at_the_same_time(hub):
    repository = locate_hub(REPOSITORY)
    hub.latency = 0.3
    began = time.monotonic()
    sources = open_together(repository.open, shards(repository))
    took = time.monotonic() - began
    assert all(isinstance(source, HttpSource) for source in sources)
    for source in sources:
        source.close()
    assert took < 1.2
