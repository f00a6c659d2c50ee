from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from hilm import errors
from hilm.weights import open_checkpoint
from hilm.weights.roles import classify
from hilm.weights.tensor import BLOCK_VALUES, Span, TensorInfo
from hilm.weights.weight_files import INDEX
from tests.tiny import bert_like, file_bytes, stored, write_model


def info(shape, dtype="F32"):
    return TensorInfo("t", dtype, shape, Span(0, 0, 0), classify("t", shape))


@pytest.mark.parametrize(
    ("shape", "matrices"),
    [
        ((), (1, 1, 1)), ((5,), (1, 1, 5)), ((3, 4), (1, 3, 4)), ((8, 40, 64), (8, 40, 64)),
        ((8, 3, 3), (1, 8, 9)), ((6, 2, 3, 4), (1, 6, 24)), ((0, 5), (1, 0, 5)),
    ],
)  # fmt: skip
def test_every_shape_is_seen_as_matrices(shape, matrices):
    assert info(shape).matrices == matrices


@given(
    st.lists(st.integers(0, 700), max_size=4).map(tuple)
    | st.tuples(st.integers(1, 3), st.integers(1, 2 * BLOCK_VALUES))
)
def test_canonical_blocks_tile_the_tensor_in_whole_rows(shape):
    tensor = info(shape)
    cuts = list(tensor.cuts())
    assert cuts[0][0] == 0
    assert cuts[-1][1] == tensor.numel
    assert all(a[1] == b[0] for a, b in pairwise(cuts))
    _, rows, columns = tensor.matrices
    for start, stop in cuts:
        assert stop - start <= BLOCK_VALUES
        if tensor.numel and columns <= BLOCK_VALUES:
            assert start % columns == stop % columns == 0
            assert start // (rows * columns) == (stop - 1) // (rows * columns)


def test_values_equal_those_of_the_safetensors_library(tmp_path):
    tensors = {k: v for k, v in bert_like(3).items() if "layer.0" in k} | {
        "scalar": np.array(2.5, np.float32)
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.metadata == {"format": "pt"}
        assert set(checkpoint.tensors) == set(tensors)
        for name, expected in tensors.items():
            np.testing.assert_array_equal(checkpoint.array(name), expected)
        weight = checkpoint.array("encoder.layer.0.output.dense.weight")
        np.testing.assert_array_equal(
            checkpoint.read_rows("encoder.layer.0.output.dense.weight", 3, 9), weight[3:9]
        )
        with pytest.raises(errors.UsageError, match="no range"):
            checkpoint.words("scalar", 0, 2)


def test_shards_show_as_one_model_in_storage_order(tmp_path):
    tensors = {name: np.full(4, i, np.float32) for i, name in enumerate("dbca")}
    with open_checkpoint(write_model(tmp_path, tensors, shards=2)) as checkpoint:
        assert list(checkpoint.tensors) == ["d", "c", "b", "a"]
        assert checkpoint.total_parameters == 16


def test_the_index_decides_where_a_tensor_stands_twice(tmp_path):
    write_model(tmp_path, {"a": np.zeros(2, np.float32), "b": np.zeros(2, np.float32)}, shards=2)
    second = tmp_path / "model-00002-of-00002.safetensors"
    second.write_bytes(file_bytes({n: stored(np.ones(2, np.float32)) for n in ("a", "b", "extra")}))
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.array("a").tolist() == [0, 0]
        assert checkpoint.array("extra").tolist() == [1, 1]
        assert any("shadowed" in note for note in checkpoint.notes)
    (tmp_path / INDEX).unlink()
    with pytest.raises(errors.DuplicateTensor, match="'a'"):
        open_checkpoint(tmp_path)


def test_an_index_that_promises_an_absent_tensor_is_corrupt(tmp_path):
    write_model(tmp_path, {"a": np.zeros(2), "b": np.zeros(2)}, shards=2)
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(file_bytes({"c": stored(np.zeros(1))}))
    with pytest.raises(errors.CorruptCheckpoint, match="'b'"):
        open_checkpoint(tmp_path)


def test_names_removed_by_a_saver_become_aliases_counted_once(tmp_path):
    tied = {"embed.weight": np.ones((4, 2), np.float32)}
    write_model(tmp_path, tied, metadata={"lm_head.weight": "embed.weight", "format": "pt"})
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.tensors["lm_head.weight"].alias_of == "embed.weight"
        assert checkpoint.tensors["lm_head.weight"].role.type == "output"
        assert checkpoint.total_parameters == 8
        assert [b.info.name for b in checkpoint.blocks()] == ["embed.weight"]


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (b"", errors.NotACheckpoint, "empty"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n",
            errors.NotACheckpoint,
            "LFS",
        ),
        (b"<!DOCTYPE html><html>not found</html>", errors.NotACheckpoint, "HTML"),
        (b"\xff" * 40, errors.HeaderError, "length"),
        (file_bytes({"w": stored(np.ones(9, np.float32))})[:-1], errors.TruncatedFile, "describes"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path, data, error, text):
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(error, match=text):
        open_checkpoint(tmp_path)


def test_state_changes_with_the_file(tmp_path):
    folder = write_model(tmp_path, {"w": np.arange(5, dtype=np.float32)})
    with open_checkpoint(folder) as checkpoint:
        before = checkpoint.state
        checkpoint.check_unchanged()
        os.utime(folder / "model.safetensors", ns=(1, 1))
        with pytest.raises(errors.SourceChanged):
            checkpoint.check_unchanged()
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.state != before


def test_configuration_is_data_of_bounded_size(tmp_path):
    folder = write_model(tmp_path, {"w": np.ones(1)}, config={"model_type": "bert"})
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.config == {"model_type": "bert"}
    (folder / "config.json").write_text("[" * 200_000)
    with open_checkpoint(folder) as checkpoint, pytest.raises(errors.CorruptCheckpoint):
        _ = checkpoint.config


SPARSE = """
import sys
from pathlib import Path
from hilm.weights import open_checkpoint
from hilm.weights.selection import Selection

def peak():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) << 10

with open_checkpoint(sys.argv[1]) as checkpoint:
    next(checkpoint.blocks())
    before, read = peak(), 0
    for block in checkpoint.blocks():
        read += len(block.values)
        if read >= 1 << 30:
            break
    last = checkpoint.total_parameters
    assert checkpoint.values("w", last - 2, last).tolist() == [1.0, 2.0]
    sampled = len(Selection.of(checkpoint, 1 << 14).values(checkpoint))
    print(last, read, sampled, peak() - before, peak())
"""


def test_every_pass_tells_the_watcher_how_far_it_is(tmp_path):
    with open_checkpoint(write_model(tmp_path / "m", bert_like(1))) as checkpoint:
        seen, total = [], sum(t.numel for t in checkpoint.stored.values())
        checkpoint.watch = lambda *told: seen.append(told)
        for _ in range(2):
            assert [block.info.name for block in checkpoint.blocks(stored=True)] == [
                name for *_, name in seen
            ]
            done = [number for number, _, _ in seen]
            assert done == sorted(done)
            assert seen[-1][:2] == (total, total)
            seen.clear()


def test_64_gib_take_no_more_memory_than_a_block(tmp_path):
    """A sparse file of one tensor: 2 GiB of it are streamed, its end is read, and a sample spread over it."""
    count = 32 << 30
    header = json.dumps({"w": {"dtype": "BF16", "shape": [count], "data_offsets": [0, 2 * count]}}).encode()
    path = tmp_path / "w.safetensors"
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 2 * count)
        file.seek(-4, 2)
        file.write(bytes([0x80, 0x3F, 0x00, 0x40]))
    ran = subprocess.run([sys.executable, "-c", SPARSE, path], capture_output=True, text=True, check=True)
    total, read, sampled, growth, peak = map(int, ran.stdout.split())
    assert (total, read, sampled) == (count, 1 << 30, 1 << 14)
    assert growth < 64 << 20
    assert peak < 256 << 20
