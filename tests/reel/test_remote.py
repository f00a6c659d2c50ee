"""Reels behind a URL: how much is fetched, and what happens when the server misbehaves."""

from __future__ import annotations

import numpy as np
import pytest

from hilm.errors import (
    NotAReel,
    NotFound,
    OfflineError,
    RangeUnsupported,
    RemoteSourceChanged,
    Truncated,
    UsageError,
)
from hilm.reel.container import ReelFile
from hilm.reel.decoder import Reel
from hilm.reel.verification import verify_reel
from tests.reel.archives import encode
from tests.servers import Fault, Server
from tests.tiny import bert_like, write_model

NAME = "encoder.layer.3.output.dense.weight"


@pytest.fixture(scope="module")
def tensors():
    return bert_like(width=128, layers=6, hidden=512, vocabulary=2000)  # 82 tensors


@pytest.fixture(scope="module")
def data(tensors, tmp_path_factory):
    folder = tmp_path_factory.mktemp("remote")
    encode(write_model(folder / "m", tensors), folder / "x", preview=True)
    return (folder / "x").read_bytes()


@pytest.fixture
def server(data, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with Server({"/file": data}) as running:
        yield running


def test_a_tensor_costs_three_requests_and_the_index_64_kib(server, data, tensors):
    with Reel.open(server.url()) as reel:
        assert reel.file.traffic == {"requests": 2, "fetched": 65536 + 96}
        assert np.array_equal(reel.tensor(NAME), tensors[NAME])
        entry = reel.tensors[NAME]
        payload = entry["bits"] // 8 - 24 * entry["slabs"][0][3]
        assert reel.file.traffic == {"requests": 3, "fetched": 65536 + 96 + payload}
    assert server.seen[0].headers["range"] == "bytes=-65536"
    assert len(server.seen) == 3


def test_the_index_of_a_hundred_tensors_fits(tmp_path):
    """The names of a real model, each tensor of several chunks."""
    names = [f"model.layers.{n}.self_attn.some_projection_layer.weight" for n in range(100)]
    encode(write_model(tmp_path / "m", dict.fromkeys(names, np.ones((2, 3), np.float32))), tmp_path / "x")
    with ReelFile.open(tmp_path / "x") as file:
        footer = file._sections[-1].footer
        assert footer + 128 - file._sections[-1].index <= 64 << 10


def test_a_file_smaller_than_the_tail(server, tmp_path):
    encode(write_model(tmp_path / "m", {"w": np.arange(9.0)}), tmp_path / "x")
    server.files["/small"] = (tmp_path / "x").read_bytes()
    with Reel.open(server.url("/small")) as reel:
        assert reel.tensor("w").tolist() == list(range(9))
    assert len(server.seen) == 1


def test_a_connection_that_breaks_is_resumed(server, tensors):
    server.faults.extend([Fault(cut=1000), None, Fault(cut=10)])
    with Reel.open(server.url()) as reel:
        assert np.array_equal(reel.tensor(NAME), tensors[NAME])


def test_rows_fetch_less_than_the_tensor(server, tensors):
    name = "embeddings.word_embeddings.weight"
    with Reel.open(server.url()) as reel:
        assert np.array_equal(reel.tensor(name, (5, 9)), tensors[name][5:9])


def test_verify_reads_ahead_and_finds_damage(server, data):
    with Reel.open(server.url()) as reel:
        assert verify_reel(reel).ok
    position = data.index(b"HILMREEL") + 1000
    server.files["/bad"] = data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :]
    with Reel.open(server.url("/bad")) as reel:
        assert not verify_reel(reel).ok


@pytest.mark.parametrize("moment", [1, 2])
def test_a_file_that_is_replaced_is_refused(server, data, moment):
    server.faults.extend([None] * moment + [Fault(replace={"ETag": '"another"'})] * 9)
    with pytest.raises(RemoteSourceChanged), Reel.open(server.url()) as reel:
        reel.tensor(NAME)


def test_a_file_of_another_length_is_refused(server, data):
    with Reel.open(server.url()) as reel:
        server.etags["/file"] = server.etag("/file")
        server.files["/file"] = data + b"more"
        with pytest.raises(RemoteSourceChanged):
            reel.tensor(NAME)


def test_a_server_without_ranges_is_refused(server):
    server.always["/file"] = Fault(whole=True)
    with pytest.raises(RangeUnsupported):
        Reel.open(server.url())


def test_what_is_no_reel(server, data, monkeypatch):
    server.files |= {"/page": b"<html>" * 20_000, "/cut": data[:-70_000], "/empty": b""}
    with pytest.raises(NotAReel):
        Reel.open(server.url("/page"))
    with pytest.raises(Truncated):
        Reel.open(server.url("/cut"))
    with pytest.raises(RemoteSourceChanged):
        Reel.open(server.url("/empty"))
    with pytest.raises(NotFound):
        Reel.open(server.url("/nothing"))
    with pytest.raises(UsageError, match="not an http"):
        Reel.open("hf://org/model/x.reel.mp4")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(OfflineError):
        Reel.open(server.url())
