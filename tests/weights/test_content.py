from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from hilm.errors import ChecksumMismatch
from hilm.weights import ContentDigest, content_key, open_checkpoint
from tests.tiny import bert_like, file_bytes, stored, write_model
from tests.weights.other_formats import FILES, write_format


def digests(target) -> tuple[bytes, ...]:
    with open_checkpoint(target) as checkpoint:
        content = ContentDigest(checkpoint)
        for block in checkpoint.blocks(include_integer=True):
            content.update(block)
        return content.finish()


@pytest.mark.parametrize("shards", [1, 3])
def test_one_pass_over_blocks_hashes_every_byte_of_every_file(tmp_path, shards):
    tensors = bert_like() | {
        "ids": np.arange(7),
        "empty": np.empty((0, 3), np.float32),
        "half": stored(np.ones(3, np.float32), "BF16"),
    }
    folder = write_model(tmp_path, tensors, shards=shards)
    files = sorted(folder.glob("*.safetensors"))
    assert digests(folder) == tuple(hashlib.sha256(f.read_bytes()).digest() for f in files)


def test_bytes_of_hidden_tensors_count_too(tmp_path):
    folder = write_model(tmp_path, {"a": np.zeros(2, np.float32), "b": np.zeros(2, np.float32)}, shards=2)
    second = folder / "model-00002-of-00002.safetensors"
    second.write_bytes(file_bytes({n: stored(np.full(2, i, np.float32)) for i, n in enumerate("bac")}))
    assert digests(folder)[1] == hashlib.sha256(second.read_bytes()).digest()


def test_the_content_key_ignores_names_and_order_of_files(tmp_path):
    folder = write_model(tmp_path / "a", {"w": np.arange(5, dtype=np.float32)})
    other = tmp_path / "other.safetensors"
    other.write_bytes((folder / "model.safetensors").read_bytes())
    assert content_key(digests(folder)) == content_key(digests(other))
    assert content_key([b"1" * 32, b"2" * 32]) == content_key([b"2" * 32, b"1" * 32])
    assert content_key([b"1" * 32]) != content_key([b"2" * 32])


@pytest.mark.parametrize("form", ["torch", "legacy"])
def test_bytes_of_views_are_hashed_once_and_in_place(tmp_path, form):
    flat = torch.arange(1000.0)
    tensors = {"turned": torch.ones(30, 40).T, "head": flat[:600], "tail": flat[400:], "third": flat[::3]}
    folder = write_format(tmp_path, tensors, form)
    assert digests(folder) == (hashlib.sha256((folder / FILES[form]).read_bytes()).digest(),)


def test_a_file_that_is_not_what_the_hub_states_is_refused(tmp_path):
    with open_checkpoint(write_model(tmp_path, {"w": np.ones(3, np.float32)})) as checkpoint:
        (file,) = checkpoint.files
        right = hashlib.sha256(checkpoint.read_file(0, 0, file.size)).digest()
        for stated in (None, right):
            checkpoint.files = (replace(file, sha256=stated),)
            assert ContentDigest(checkpoint).finish() == (right,)
        assert checkpoint.content_key() == content_key([right])
        checkpoint.files = (replace(file, sha256=bytes(32)),)
        with pytest.raises(ChecksumMismatch, match=file.name):
            ContentDigest(checkpoint).finish()
