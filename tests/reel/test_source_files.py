from __future__ import annotations

import hashlib
import os

import pytest

from hilm.errors import StorageError
from hilm.reel.container import ReelFile
from hilm.reel.source_files import _SIDE_LIMIT
from tests.reel.archives import contents, decode, encode
from tests.tiny import bert_like, write_model


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "m", bert_like(width=32, layers=1), config={"model_type": "bert"})


def test_side_files_travel_and_strangers_stay(model, tmp_path):
    sides = {"tokenizer.json": b"{}" * 40_000, "vocab.txt": b"a\nb", "empty.txt": b"", "README.md": b"# \xff"}
    for name, raw in sides.items():
        (model / name).write_bytes(raw)
    (model / "training.bin").write_bytes(b"x")
    (model / "sub.json").mkdir()
    with (model / "huge.json").open("wb") as file:
        file.truncate(_SIDE_LIMIT + 1)
    encode(model, tmp_path / "x")
    assert "training.bin" not in decode(tmp_path / "x", tmp_path / "out")
    wanted = contents(model)
    del wanted["training.bin"], wanted["huge.json"]
    assert contents(tmp_path / "out") == wanted
    with ReelFile.open(tmp_path / "x") as reel:
        for file in reel.manifest["source"]["files"]:
            assert file["sha256"] == hashlib.sha256(wanted[file["name"]]).hexdigest()


def test_links_into_a_hub_cache_are_followed_and_others_are_not(model, tmp_path):
    snapshot, blobs = tmp_path / "hub" / "snapshots" / "abc", tmp_path / "hub" / "blobs"
    snapshot.parent.mkdir(parents=True)
    blobs.mkdir()
    model.rename(snapshot)
    (blobs / "1234").write_bytes(b"{}")
    (snapshot / "tokenizer.json").symlink_to(blobs / "1234")
    (tmp_path / "secret.txt").write_text("secret")
    (snapshot / "notes.txt").symlink_to(tmp_path / "secret.txt")
    encode(snapshot, tmp_path / "x")
    assert "notes.txt" not in decode(tmp_path / "x", tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == b"{}"


def test_the_neighbours_of_a_lone_file_stay(model, tmp_path):
    lone = (model / "model.safetensors").rename(model / "other.safetensors")
    encode(lone, tmp_path / "x")
    assert decode(tmp_path / "x", tmp_path / "out") == ["other.safetensors"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_side_file_is_said(model, tmp_path):
    (model / "config.json").chmod(0)
    with pytest.raises(StorageError, match=r"config\.json"):
        encode(model, tmp_path / "x")


def test_folders_of_modules_travel(model, tmp_path):
    (model / "1_Pooling").mkdir()
    (model / "1_Pooling" / "config.json").write_text("{}")
    (model / ".git").mkdir()
    (model / ".git" / "config.txt").write_text("hidden")
    encode(model, tmp_path / "x")
    names = decode(tmp_path / "x", tmp_path / "out")
    assert "1_Pooling/config.json" in names
    assert ".git/config.txt" not in names
    assert (tmp_path / "out" / "1_Pooling" / "config.json").read_text() == "{}"
