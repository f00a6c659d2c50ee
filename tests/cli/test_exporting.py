from __future__ import annotations

import sys

import onnx
import pytest
import torch
import transformers


@pytest.fixture
def bert(tmp_path):
    """A folder with one tiny model."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=32,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    return str(tmp_path / "bert")


def test_export_check_and_damage(hilm, bert, tmp_path):
    out = str(tmp_path / "bert.onnx")
    run = hilm("export", "onnx", bert, out, "--json")
    assert (run.code, run.err) == (0, "")
    assert run.document["ok"] is True
    assert run.document["path"] == out
    assert run.document["max_abs_error"] <= 1e-5
    assert run.document["max_rel_error"] <= 1e-4
    assert run.document["lengths"] == [1, 2, 17, 31, 32]
    again = hilm("export", "onnx", bert, out)
    assert (again.code, again.out) == (2, "")
    assert "--force" in again.err
    assert hilm("export", "verify", bert, out, "--json").document["ok"] is True
    model = onnx.load(out)
    next(node for node in model.graph.node if node.op_type == "Add").op_type = "Sub"
    onnx.save_model(model, out)
    damaged = hilm("export", "verify", bert, out, "--json")
    assert damaged.code == 3
    assert damaged.document["ok"] is False
    (tmp_path / "bert.onnx").write_bytes(b"not a graph")
    broken = hilm("export", "verify", bert, out)
    assert broken.code == 3
    assert "refuses" in broken.err


def test_too_strict_a_tolerance_is_exit_3_and_writes_nothing(hilm, bert, tmp_path):
    run = hilm("export", "onnx", bert, str(tmp_path / "x.onnx"), "--tolerance", "0", "--max-length", "9")
    assert run.code == 3
    assert "NOT" in run.out
    assert not list(tmp_path.glob("*x.onnx*"))


def test_bad_input(hilm, bert, tmp_path, monkeypatch):
    out = str(tmp_path / "x")
    assert hilm("export", "onnx", str(tmp_path / "nowhere"), out).code == 2
    assert hilm("export", "all", bert, out, "--fp16").code == 2
    assert hilm("export", "onnx", bert, out, "--quantize", "int8").code == 2
    assert hilm("export", "onnx", bert, out, "--graph", "step").code == 2
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    run = hilm("export", "tensorrt", bert, out)
    assert (run.code, run.out) == (4, "")
    assert "pip install tensorrt" in run.err
    assert not list(tmp_path.glob("x*"))


def test_missing_onnxruntime_is_exit_4(hilm, bert, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("hilm.ship")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    run = hilm("export", "onnx", bert, str(tmp_path / "x.onnx"))
    assert run.code == 4
    assert 'pip install "hilm[export]"' in run.err


def test_bench_prints_what_it_measured(hilm, bert):
    run = hilm("bench", bert, "--lengths", "8", "20", "500", "--json")
    assert run.code == 0
    assert [row["length"] for row in run.document["forward"]] == [8, 20]  # 500 is more than it takes
    for row in run.document["forward"]:
        assert row["speedup"] == pytest.approx(row["torch_ms"] / row["onnxruntime_ms"])
    assert run.document["step_tokens_per_second"] is None
    assert hilm("bench", bert, "--lengths", "5000").code == 2
