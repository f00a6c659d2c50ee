from __future__ import annotations

import sys
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

from hilm.errors import HilmError, MissingExtra, UsageError
from hilm.ship import benchmark_tensorrt_speedup, export_to_tensorrt
from hilm.ship.tensorrt_export import build


def recording(*, parses=True, engine=b"engine"):
    """A stand-in for the library, version 10, that remembers how it was called."""
    trt = MagicMock(name="tensorrt", __version__="10.9.0")
    trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED = 1
    builder = trt.Builder.return_value
    network = builder.create_network.return_value
    network.num_inputs = 2
    network.get_input.side_effect = [
        SimpleNamespace(name=name, shape=(-1, -1)) for name in ("input_ids", "attention_mask")
    ]
    parser = trt.OnnxParser.return_value
    parser.parse_from_file.return_value = parses
    parser.num_errors = 2
    parser.get_error.side_effect = ["no kernel for Scan", "bad weight"]
    builder.build_serialized_network.return_value = engine
    return trt


def test_without_the_library_or_a_gpu_nothing_is_written(tmp_path, monkeypatch):
    engine = tmp_path / "model.engine"
    for version, gpu, reason in (
        (None, False, "not installed"),
        ("10.9", False, "GPU"),
        ("8.6.1", True, "8.6.1"),
    ):
        module = None if version is None else SimpleNamespace(__version__=version)
        monkeypatch.setitem(sys.modules, "tensorrt", module)
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        for call in (
            lambda: export_to_tensorrt(tmp_path / "model.onnx", engine),
            lambda: benchmark_tensorrt_speedup(torch.nn.Identity(), engine),
        ):
            with pytest.raises(MissingExtra, match=reason) as caught:
                call()
            assert "ONNX Runtime" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_an_engine_is_built_by_the_present_interface(tmp_path):
    trt = recording()
    profile = {0: (1, 4, 8), 1: (1, 128, 512)}
    assert build(trt, tmp_path / "model.onnx", profile, 2) == b"engine"
    builder = trt.Builder.return_value
    builder.create_network.assert_called_once_with(1 << 1)
    config = builder.create_builder_config.return_value
    config.set_memory_pool_limit.assert_called_once_with(trt.MemoryPoolType.WORKSPACE, 2 << 30)
    shapes = builder.create_optimization_profile.return_value
    calls = [call.args for call in shapes.set_shape.call_args_list]
    assert calls == [(name, [1, 1], [4, 128], [8, 512]) for name in ("input_ids", "attention_mask")]
    config.add_optimization_profile.assert_called_once_with(shapes)
    removed = {"max_workspace_size", "build_engine", "build_cuda_engine"}
    assert not removed & {name for name, *_ in builder.method_calls}


def test_every_parser_error_is_told(tmp_path):
    with pytest.raises(HilmError, match="no kernel for Scan; bad weight"):
        build(recording(parses=False), tmp_path / "model.onnx", {}, 1)
    with pytest.raises(HilmError, match="no engine"):
        build(recording(engine=None), tmp_path / "model.onnx", {0: (1, 1, 1), 1: (1, 1, 1)}, 1)


def test_int8_wants_calibration_and_an_engine_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", recording())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UsageError, match="calibration"):
        export_to_tensorrt(tmp_path / "model.onnx", tmp_path / "model.engine", int8=True)
    (tmp_path / "model.engine").write_bytes(b"mine")
    with pytest.raises(UsageError, match="exists"):
        export_to_tensorrt(tmp_path / "model.onnx", tmp_path / "model.engine")
