"""Archives of PyTorch files and GGUF: every byte comes back, whatever the tensors make of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hilm.reel.decoder import Reel
from hilm.reel.verification import verify_reel
from hilm.store import decode as decode_tensor
from hilm.weights import open_checkpoint
from tests.reel.archives import contents, decode, encode
from tests.weights.other_formats import FILES, write_format, write_gguf


def odd_tensors():
    """In order, turned, tied, overlapping, cut out of others."""
    base = torch.randn(300, 64, generator=torch.Generator().manual_seed(1))
    flat = torch.arange(1000, dtype=torch.float32)
    return {
        "plain": base, "tied": base, "turned": base.T, "half": base.to(torch.bfloat16),
        "head": flat[:600], "tail": flat[400:], "middle": flat[100:200], "every.third": flat[::3],
        "count": torch.tensor(3), "empty": torch.empty(0, 4),
    }  # fmt: skip


@pytest.mark.parametrize("form", ["torch", "legacy"])
@pytest.mark.parametrize("preview", [False, True])
def test_pytorch_files_come_back_byte_for_byte(tmp_path, form, preview):
    model = write_format(tmp_path / "m", odd_tensors(), form)
    (model / "config.json").write_text('{"model_type": "bert"}')
    encode(model, tmp_path / "x", preview=preview)
    decode(tmp_path / "x", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(model)
    with Reel.open(tmp_path / "x") as reel, open_checkpoint(model) as checkpoint:
        report = verify_reel(reel, checkpoint)
        assert (report.bad, report.max_abs, report.nmse) == ([], 0.0, 0.0)
        for name, tensor in odd_tensors().items():
            np.testing.assert_array_equal(reel.tensor(name), tensor.to(torch.float32).numpy())


def gguf_model(folder, seed=0):
    folder.mkdir()
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (96, 20, 144), np.uint8)
    blocks[..., :4] = np.array([0.01, 0.02], "<f2").view(np.uint8)  # finite scales
    tensors = {
        "token_embd.weight": (blocks.reshape(96, -1), "Q4_K"),
        "unread": (rng.integers(0, 256, (4, 80), np.uint8), "Q8_1"),
        "blk.0.attn_q.weight": torch.randn(32, 64).to(torch.bfloat16),
        "norm": torch.ones(64),
    }
    write_gguf(folder / FILES["gguf"], tensors)
    return folder


def test_gguf_comes_back_byte_for_byte(tmp_path):
    model = gguf_model(tmp_path / "m")
    encode(model, tmp_path / "x", preview=True)
    assert decode(tmp_path / "x", tmp_path / "out") == ["model.gguf"]
    assert contents(tmp_path / "out") == contents(model)
    with Reel.open(tmp_path / "x") as reel, open_checkpoint(model) as checkpoint:
        assert {name: entry["dtype"] for name, entry in reel.tensors.items()} == {
            name: info.dtype for name, info in checkpoint.tensors.items()
        }
        report = verify_reel(reel, checkpoint)
        assert (report.bad, report.max_abs, report.nmse) == ([], 0.0, 0.0)
        np.testing.assert_array_equal(reel.tensor("token_embd.weight"), checkpoint.array("token_embd.weight"))


def test_a_changed_block_is_found_and_measured(tmp_path, monkeypatch):
    """Slabs and compared pieces that cut through blocks change nothing."""
    monkeypatch.setattr("hilm.reel.verification._PIECE", 1000)
    monkeypatch.setattr("hilm.reel.layout.SLAB_ELEMENTS", 10_001)
    model, other = gguf_model(tmp_path / "m"), tmp_path / "other"
    encode(model, tmp_path / "x")
    other.mkdir()
    raw = bytearray((model / "model.gguf").read_bytes())
    with open_checkpoint(model) as checkpoint:
        span = checkpoint.tensors["token_embd.weight"].span
        raw[span.stop - 1] ^= 0xFF
        (other / "model.gguf").write_bytes(raw)
        with Reel.open(tmp_path / "x") as reel, open_checkpoint(other) as changed:
            assert len(reel.tensors["token_embd.weight"]["slabs"]) > 10
            assert verify_reel(reel, checkpoint).bad == []
            report = verify_reel(reel, changed)
            before, after = (c.array("token_embd.weight") for c in (checkpoint, changed))
    assert report.bad == ["tensor token_embd.weight differs from other"]
    assert report.max_abs == np.abs(before - after).max() > 0


def test_one_quantised_tensor_is_written_as_floats(tmp_path):
    encode(gguf_model(tmp_path / "m"), tmp_path / "x")
    written = decode_tensor(tmp_path / "x", tmp_path / "out", tensor="token_embd.weight")["out"]
    with open_checkpoint(tmp_path / "m") as checkpoint, open_checkpoint(written) as single:
        assert single.tensors["token_embd.weight"].dtype == "F32"
        np.testing.assert_array_equal(
            single.array("token_embd.weight"), checkpoint.array("token_embd.weight")
        )
