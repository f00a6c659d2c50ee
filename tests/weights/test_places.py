from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hilm import errors
from hilm.weights import content_key, hub_files, open_checkpoint
from hilm.weights.folder import locate
from hilm.weights.places import HubPlace, LocalPlace, read_small
from hilm.weights.retry import Patience
from hilm.weights.selection import Selection
from hilm.weights.weight_files import INDEX, Location, choose
from tests.servers import COMMIT, Hub, Server, reach
from tests.tiny import bert_like, write_model
from tests.weights.other_formats import write_format, write_gguf

BASE = "org/model"


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = write_model(
        tmp_path_factory.mktemp("m"), bert_like(layers=2), shards=5, config={"model_type": "bert"}
    )
    (folder / "tokenizer.json").write_text("{}")
    torches = {"w": torch.arange(12.0).reshape(3, 4).T, "b": torch.ones(4)}
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    for form in ("torch", "legacy", "gguf"):
        made = write_format(tmp_path_factory.mktemp(form), torches, form)
        files |= {f"{form}/{path.name}": path.read_bytes() for path in made.iterdir()}
    return folder, files | {"torch/config.json": b'{"model_type": "torch"}', ".hidden/x.json": b"{}"}


@pytest.fixture
def hub(repository, monkeypatch, tmp_path):
    monkeypatch.setattr(hub_files, "PATIENCE", Patience(tries=2, first=0.01, longest=0.05))
    with Hub({BASE: repository[1], "single": repository[1]}) as running:
        reach(running, monkeypatch, tmp_path / "home")
        yield running


def requests(hub):
    return len(hub.seen) + len(hub.cdn.seen)


def test_a_model_on_the_hub_is_listed_from_headers_alone(hub, repository):
    with open_checkpoint(BASE) as remote, open_checkpoint(repository[0]) as local:
        assert requests(hub) <= 2 + 2 * 5
        assert list(remote.tensors.items()) == list(local.tensors.items())
        assert remote.name == BASE
        assert remote.uri == f"hf://{BASE}@{COMMIT}"
        assert remote.config == {"model_type": "bert"}
        sizes = [(f.name, f.size) for f in remote.files]
        assert sizes == [(f.name, f.size) for f in local.files]
        assert remote.content_key() == content_key(f.sha256 for f in remote.files)
        assert local.content_key() is None


@pytest.mark.parametrize(
    "target",
    [BASE, "single", f"hf://{BASE}", f"hf://{BASE}@main", f"hf://{BASE}@{COMMIT}/", "hf://single@v1%2Fx"],
)
def test_addresses_of_the_same_model(hub, target):
    location = locate(target)
    assert location.uri == f"hf://{BASE if BASE in target else 'single'}@{COMMIT}"
    assert len(location.weights) == 5


@pytest.mark.parametrize("form", ["torch", "legacy", "gguf"])
def test_folders_and_files_of_a_repository_are_checkpoints_of_every_format(hub, repository, form):
    name = next(n for n in repository[1] if n.startswith(f"{form}/model") or n == f"{form}/pytorch_model.bin")
    for inside in (form, name):
        with open_checkpoint(f"hf://{BASE}/{inside}") as checkpoint:
            np.testing.assert_array_equal(checkpoint.array("w"), np.arange(12.0).reshape(3, 4).T)
            config = {"model_type": "torch"} if form == "torch" else None
            assert checkpoint.config == config
            whole = form in {inside, "torch"}
            suffix = f"/{form}" if whole else f"/{name}"
            assert checkpoint.uri == f"hf://{BASE}@{COMMIT}{suffix}"
            assert checkpoint.alone != whole


def test_a_stream_announces_its_ranges_and_reads_nothing_twice(hub, repository):
    with open_checkpoint(repository[0]) as local:
        expected = {b.info.name: b.words.tobytes() for b in local.blocks(include_integer=True)}
    with open_checkpoint(BASE) as remote:
        found = {b.info.name: b.words.tobytes() for b in remote.blocks(include_integer=True)}
    assert found == expected
    taken = sum(stop - start for start, stop in hub.cdn.ranges())
    assert taken <= sum(
        len(b) for n, b in repository[1].items() if n.endswith("safetensors") and "/" not in n
    )


def test_offline_no_socket_is_opened(hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def refuse(*_):
        pytest.fail("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    for target in (BASE, f"hf://{BASE}", hub.url("/model.safetensors")):
        with pytest.raises(errors.OfflineError) as caught:
            open_checkpoint(target)
        assert caught.value.exit_code == 5


AUDITED = """
import os, sys

def refuse(event, arguments):
    if event.startswith("socket."):
        print(event, flush=True)
        os._exit(9)

from hilm.errors import HilmError
from hilm.weights import http_source, hub_files, open_checkpoint
sys.addaudithook(refuse)
for target in sys.argv[1:]:
    try:
        with open_checkpoint(target) as checkpoint:
            print(sum(block.values.size for block in checkpoint.blocks()))
    except HilmError as error:
        print(type(error).__name__)
"""


def test_offline_nothing_touches_the_network_in_any_way(repository, tmp_path):
    """Every event of every socket is audited: names looked up, too."""
    cached = tmp_path / "home" / "hub" / "models--org--model"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(COMMIT)
    shutil.copytree(repository[0], cached / "snapshots" / COMMIT)
    with open_checkpoint(repository[0]) as local:
        total = local.total_parameters
    targets = [
        BASE,
        f"hf://{BASE}@{COMMIT}",
        "org/absent",
        f"hf://{BASE}@v2",
        "http://localhost/x.bin",
        "gpt2",
    ]
    ran = subprocess.run(
        [sys.executable, "-c", AUDITED, *targets],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran
    assert ran.stdout.split() == [str(total)] * 2 + ["OfflineError"] * 3 + ["NotACheckpoint"]


def test_offline_the_cache_serves_and_what_it_lacks_is_named(hub, repository, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    cached = tmp_path / "home" / "hub" / "models--org--model"
    snapshot = cached / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(COMMIT)
    (snapshot / "config.json").write_bytes(b"{}")
    with pytest.raises(errors.OfflineError, match="weights of"):
        open_checkpoint(BASE)
    for path in repository[0].iterdir():
        (snapshot / path.name).write_bytes(path.read_bytes())
    with open_checkpoint(BASE) as checkpoint:
        assert checkpoint.total_parameters
    (snapshot / "model-00003-of-00005.safetensors").unlink()
    with pytest.raises(errors.OfflineError, match="model-00003-of-00005"):
        open_checkpoint(BASE)


@pytest.mark.parametrize(
    ("target", "options", "error"),
    [
        ("org/absent", {}, errors.NetworkError),
        (BASE, {"revision": "absent"}, errors.NotFound),
        (f"hf://{BASE}@main", {"revision": "main"}, errors.UsageError),
        ("hf://", {}, errors.UsageError),
        (f"hf://{BASE}/absent", {}, errors.NotACheckpoint),
        (f"hf://{BASE}/torch/config.json", {}, errors.UnsupportedFormat),
        ("http://user:secret@127.0.0.1/x.bin", {}, errors.UsageError),
    ],
)
def test_wrong_addresses_are_said(hub, target, options, error):
    with pytest.raises(error) as caught:
        open_checkpoint(target, **options)
    assert "secret" not in str(caught.value)


def test_a_token_is_sent_and_never_shown(hub, monkeypatch):
    hub.token = "hf_canary"
    with pytest.raises(errors.AuthRequired):
        open_checkpoint(BASE)
    with open_checkpoint(BASE, token="hf_canary") as checkpoint:
        assert "hf_canary" not in f"{checkpoint.place!r} {checkpoint.uri} {checkpoint.notes}"
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    open_checkpoint(BASE).close()


def test_bases_are_those_the_card_names(hub):
    for card, base in (
        ({"base_model": "org/base"}, ("org/base",)),
        ({"base_model": ["a/b", 3, "../x"]}, ("a/b",)),
        ([], ()),
    ):
        hub.cards[BASE] = card
        assert locate(BASE).declared_base == base


def test_a_url_is_one_file(hub, repository, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    files = {"/a/w.safetensors": repository[1]["model-00001-of-00005.safetensors"], "/a/page": b"x"}
    with Server(files) as server:
        url = server.url("/a/w.safetensors")
        with open_checkpoint(f"{url}?signature=canary") as checkpoint:
            assert (checkpoint.name, checkpoint.uri, checkpoint.alone) == ("w", url, True)
            assert checkpoint.config is None
            state = checkpoint.state
            assert sum(1 for _ in checkpoint.blocks())
        server.etags["/a/w.safetensors"] = "another"
        with open_checkpoint(url) as checkpoint:
            assert checkpoint.state != state
        with pytest.raises(errors.UnsupportedFormat):
            open_checkpoint(server.url("/a/page"))
        with pytest.raises(errors.NotFound):
            open_checkpoint(server.url("/a/absent.bin"))


def test_an_index_on_the_hub_cannot_name_what_is_not_there(repository, monkeypatch, tmp_path):
    for shard, error in (("../x.safetensors", errors.UnsafePath), ("x.safetensors", errors.MissingShard)):
        index = json.dumps({"weight_map": {"w": shard}}).encode()
        with Hub({BASE: {INDEX: index}}) as running:
            reach(running, monkeypatch, tmp_path)
            with pytest.raises(error):
                open_checkpoint(BASE)


NAMES = st.sets(
    st.sampled_from([
        "model.safetensors", "other.safetensors", "adapter_model.safetensors", "pytorch_model.bin",
        "adapter_model.bin", "training_args.bin", "a.gguf", "b.gguf", "x.pt", "y.pth", "model.onnx",
        "m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors", "q-00001-of-00001.gguf",
        "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin",
    ])
)  # fmt: skip


@settings(max_examples=60)
@given(NAMES)
def test_a_listing_of_the_hub_and_a_folder_choose_alike(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("f")
    for name in names:
        (folder / name).write_bytes(b"")
    files = {name: hub_files.HubFile(f"sub/{name}", 0, None, "", None) for name in names}
    listing = hub_files.HubRepository(
        BASE,
        COMMIT,
        "",
        {f"sub/{n}": f for n, f in files.items()} | {"model.safetensors": None},
        offline=False,
    )
    outcomes = []
    for place in (LocalPlace(folder), HubPlace(listing, "sub/")):
        try:
            found = choose(Location("", "", place))
            outcomes.append((found.weights, found.unused))
        except errors.InputError as error:
            outcomes.append(type(error))
    assert outcomes[0] == outcomes[1]
    if "model.safetensors" in names:
        assert outcomes[0][0] == ("model.safetensors",)


def test_files_of_folders_are_side_files_hidden_ones_are_not(hub, repository, tmp_path):
    place = locate(BASE).place
    assert "torch/config.json" in place.deep_names()
    assert ".hidden/x.json" not in place.deep_names()
    assert "torch/config.json" not in place.names()
    assert read_small(place, "torch/config.json", 100) == b'{"model_type": "torch"}'
    assert read_small(place, "torch/config.json", 3) is None
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / ".x.json").write_text("")
    (tmp_path / "sub" / "y.json").write_text("")
    assert LocalPlace(tmp_path).deep_names() == ["sub/y.json"]


def test_a_long_header_costs_no_weights(hub, tmp_path):
    """The vocabulary of a GGUF file is larger than what opening fetches; reading through it is no stream."""
    words = [f"word number {i}" for i in range(150_000)]
    path = write_gguf(tmp_path / "a.gguf", {"w": torch.zeros(3000, 3200)}, {"tokenizer.ggml.tokens": words})
    data = path.read_bytes()
    with Server({"/a.gguf": data}) as server, open_checkpoint(server.url("/a.gguf")) as checkpoint:
        header = checkpoint.tensors["w"].span.start
        assert header > 3 << 20
        assert sum(stop - start for start, stop in server.ranges()) < 2 * header
        asked = len(server.seen)
        assert asked <= 6
        values = Selection.of(checkpoint, 20_000).values(checkpoint)
        assert len(values) == 20_000
        assert len(server.seen) - asked <= -(-len(data) // (8 << 20)) + 2
