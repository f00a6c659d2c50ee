from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from gguf.constants import GGML_QUANT_SIZES
from hypothesis import given, settings
from hypothesis import strategies as st

from hilm import errors
from hilm.weights import open_checkpoint
from hilm.weights.checkpoint import REORDERED
from hilm.weights.weight_files import FORMATS
from tests.hostile import gguf_files, onnx_files, torch_files
from tests.weights.other_formats import FILES, write_format, write_gguf

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SHAPES = st.lists(st.integers(1, 40), min_size=1, max_size=4).map(tuple) | st.just((3, 90_001))
TABLES = st.dictionaries(
    st.text("abcdefgh.", min_size=1, max_size=12),
    st.tuples(SHAPES, st.sampled_from(DTYPES), st.booleans()),
    min_size=1,
    max_size=5,
)


def make(drawn, seed=0):
    """Random tensors of these shapes; the flag asks for one that is not stored in order."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (shape, dtype, turned) in drawn.items():
        values = torch.randn(shape[::-1] if turned else shape, generator=generator).to(dtype)
        tensors[name] = values.permute(*range(len(shape))[::-1]) if turned else values
    return tensors


def streamed(folder):
    """Every value as float32 bits, by tensor, as blocks deliver it; checked against other ways to read."""
    parts = {}
    with open_checkpoint(folder) as checkpoint:
        for block in checkpoint.blocks(include_integer=True, poison=True):
            parts.setdefault(block.info.name, []).append(block.values.copy())
        for name, pieces in parts.items():
            whole = np.concatenate(pieces)
            np.testing.assert_array_equal(checkpoint.array(name).reshape(-1), whole)
            start, stop = sorted((len(whole) // 3, len(whole) - 1))
            np.testing.assert_array_equal(checkpoint.values(name, start, stop), whole[start:stop])
        shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    return {name: np.concatenate(p).view(np.uint32).tobytes() for name, p in parts.items()}, shapes


@settings(max_examples=40)
@given(TABLES)
def test_every_format_streams_the_same_values(tmp_path_factory, drawn):
    tensors = make(drawn)
    expected = {n: t.to(torch.float32).contiguous().numpy().tobytes() for n, t in tensors.items()}
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    for form in FILES:
        folder = write_format(tmp_path_factory.mktemp(form), tensors, form)
        assert streamed(folder) == (expected, shapes), form
        assert streamed(folder / FILES[form]) == (expected, shapes), form


@pytest.mark.parametrize("form", ["torch", "legacy"])
def test_a_name_for_the_same_values_counts_once(tmp_path, form):
    weight = torch.arange(12.0).reshape(3, 4)
    tensors = {"embed.weight": weight, "head.weight": weight, "turned": weight.T, "also.turned": weight.T}
    with open_checkpoint(write_format(tmp_path, tensors, form)) as checkpoint:
        assert checkpoint.format == "torch"
        aliases = {name: info.alias_of for name, info in checkpoint.tensors.items()}
        assert aliases == {
            "embed.weight": None, "head.weight": "embed.weight", "turned": None, "also.turned": "turned",
        }  # fmt: skip
        assert checkpoint.total_parameters == 24
        assert [block.info.name for block in checkpoint.blocks()] == ["embed.weight", "turned"]
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(checkpoint.array(name), tensor.numpy())


@pytest.mark.parametrize("name", ["Q4_0", "Q8_0", "Q5_1", "Q4_K", "Q6_K", "MXFP4"])
def test_quantised_blocks_are_weights_in_any_range(tmp_path, name):
    kind = GGMLQuantizationType[name]
    rng = np.random.default_rng(4)
    block, size = GGML_QUANT_SIZES[kind]
    raw = rng.integers(0, 256, (70, 5120 // block * size), np.uint8)
    raw.reshape(-1, size)[:] = _finite(raw.reshape(-1, size), kind)
    expected = quants.dequantize(raw, kind)
    write_gguf(tmp_path / "model.gguf", {"blk.0.ffn_up.weight": (raw, name)})
    with open_checkpoint(tmp_path) as checkpoint:
        (info,) = checkpoint.tensors.values()
        assert (info.dtype, info.shape, info.is_weight, info.nbytes) == (name, (70, 5120), True, raw.nbytes)
        parts = [block.values.copy() for block in checkpoint.blocks()]
        assert len(parts) > 1
        np.testing.assert_array_equal(np.concatenate(parts), expected.reshape(-1))
        np.testing.assert_array_equal(checkpoint.read_rows(info.name, 3, 5), expected[3:5])
        for start, stop in ((0, 1), (31, 33), (5119, 5400), (7, 7), (70 * 5120 - 1, 70 * 5120)):
            np.testing.assert_array_equal(
                checkpoint.values(info.name, start, stop), expected.reshape(-1)[start:stop]
            )


def _finite(blocks, kind):
    """Blocks with finite values only: others are replaced by the first finite one."""
    with np.errstate(all="ignore"):
        fine = np.isfinite(quants.dequantize(blocks, kind)).all(1) & (
            np.abs(quants.dequantize(blocks, kind)).max(1) < 1e30
        )
    return np.where(fine[:, None], blocks, blocks[fine.argmax()])


def test_blocks_nobody_decodes_are_listed_and_refused(tmp_path):
    write_gguf(tmp_path / "model.gguf", {"w": (np.zeros((4, 80), np.uint8), "Q8_1")})
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.total_parameters == 0
        assert list(checkpoint.blocks()) == []
        with pytest.raises(errors.PackedFormatUnsupported, match="Q8_1"):
            checkpoint.array("w")


HOSTILE = [
    (suffix, case)
    for suffix, files in ((".bin", torch_files), (".gguf", gguf_files), (".onnx", onnx_files))
    for case in files.cases()
]


@pytest.mark.parametrize(("suffix", "case"), HOSTILE, ids=[f"{s[1:]}-{c.name}" for s, c in HOSTILE])
def test_hostile_files_are_refused_or_read_within_bounds(tmp_path, suffix, case):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(case.data)
    read, refused = _read_all(path)
    assert read < 64 << 20
    assert refused is None or (refused.exit_code in {1, 2} and str(path) in refused.message)


def _read_all(path):
    """Bytes of all blocks, and what was refused."""
    try:
        with open_checkpoint(path) as checkpoint:
            for info in checkpoint.tensors.values():
                assert 0 <= info.span.start <= info.span.stop <= path.stat().st_size
            return sum(len(block.words) for block in checkpoint.blocks(include_integer=True)), None
    except errors.HilmError as error:
        return 0, error


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1", "LFS"),
    ],
)
def test_what_failed_downloads_leave_behind_is_said(tmp_path, suffix, data, text):
    (tmp_path / f"x{suffix}").write_bytes(data)
    with pytest.raises(errors.NotACheckpoint, match=text):
        open_checkpoint(tmp_path / f"x{suffix}")


def test_metadata_of_gguf_is_text(tmp_path):
    write_gguf(tmp_path / "a.gguf", {"w": torch.ones(2, 32)}, {"llama.block_count": 7})
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.metadata == {"general.architecture": "llama", "llama.block_count": "7"}
        json.dumps(checkpoint.metadata)


def test_big_endian_files_are_put_in_order_for_every_reader(tmp_path):
    values = np.arange(1, 3, dtype=np.float32)
    body = torch_files.table(w=torch_files.tensor())
    members = torch_files.members(torch_files.pickled(body))
    big = {"a/byteorder": b"big", "a/data/0": values.astype(">f4").tobytes()}
    (tmp_path / "pytorch_model.bin").write_bytes(torch_files.archive(members | big))
    with open_checkpoint(tmp_path) as checkpoint:
        assert not checkpoint.tensors["w"].in_order
        assert checkpoint.words("w").tobytes() == values.tobytes()
        assert checkpoint.values("w", 1, 2).tolist() == [2.0]
        (block,) = checkpoint.blocks()
        assert block.words.tobytes() == values.tobytes()


def test_only_a_few_tensors_are_kept_in_order_at_a_time(tmp_path):
    tensors = {f"t{i:02}": torch.full((200, 300), float(i)).T.contiguous().T for i in range(12)}
    size = 200 * 300 * 4
    with open_checkpoint(write_format(tmp_path, tensors, "torch")) as checkpoint:
        tracemalloc.start()
        for block in checkpoint.blocks():
            assert block.values[0] == float(block.info.name[1:])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < (REORDERED + 4) * size + 3 * (4 << 18)
