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


def test_links_into_a_cache_are_followed(model, tmp_path):
    (tmp_path / "blob").write_bytes(b"{}")
    (model / "tokenizer.json").symlink_to(tmp_path / "blob")
    encode(model, tmp_path / "x")
    decode(tmp_path / "x", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(model)


def test_the_neighbours_of_a_lone_file_stay(model, tmp_path):
    lone = (model / "model.safetensors").rename(model / "other.safetensors")
    encode(lone, tmp_path / "x")
    assert decode(tmp_path / "x", tmp_path / "out") == ["other.safetensors"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_side_file_is_said(model, tmp_path):
    (model / "config.json").chmod(0)
    with pytest.raises(StorageError, match=r"config\.json"):
        encode(model, tmp_path / "x")
