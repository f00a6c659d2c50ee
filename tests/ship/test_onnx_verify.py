from __future__ import annotations

import shutil

import numpy as np
import onnx
import pytest

from hilm.errors import VerificationError
from hilm.ship import verify_onnx_model


@pytest.fixture
def copied(exported, tmp_path):
    """A graph of BERT that may be damaged."""
    _, path = exported("bert")
    for file in path.parent.glob(f"{path.name}*"):
        shutil.copy(file, tmp_path / file.name)
    return tmp_path / path.name


def changed(path, change):
    model = onnx.load(path)
    change(model.graph)
    onnx.save_model(model, path)
    return path


def test_a_sound_graph_passes(models, copied):
    report = verify_onnx_model(models["bert"], copied, lengths=(3, 30))
    assert report
    assert report.lengths == (3, 30)
    assert report.top1_agreement == 1


def test_a_changed_weight_fails(models, copied):
    def scale(graph):
        weight = max(graph.initializer, key=lambda entry: np.prod(entry.dims))
        values = onnx.numpy_helper.to_array(weight) * np.float32(1.01)
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))

    report = verify_onnx_model(models["bert"], changed(copied, scale), lengths=(5,))
    assert not report
    assert report.max_abs_error > 1e-5


def test_a_weight_that_is_not_a_number_fails(models, copied):
    data = bytearray(copied.with_name(f"{copied.name}.data").read_bytes())
    data[: len(data) // 2] = b"\xff" * (len(data) // 2)
    copied.with_name(f"{copied.name}.data").write_bytes(data)
    assert not verify_onnx_model(models["bert"], copied, lengths=(5,))


def test_a_swapped_operation_fails(models, copied):
    def swap(graph):
        next(node for node in graph.node if node.op_type == "Add").op_type = "Mul"

    assert not verify_onnx_model(models["bert"], changed(copied, swap), lengths=(5,))


def test_a_graph_the_runtime_refuses_is_a_failed_verification(models, copied):
    copied.with_name(f"{copied.name}.data").unlink()
    with pytest.raises(VerificationError, match="refuses"):
        verify_onnx_model(models["bert"], copied)
    copied.write_bytes(copied.read_bytes()[:500])
    with pytest.raises(VerificationError, match="refuses"):
        verify_onnx_model(models["bert"], copied)
    with pytest.raises(VerificationError, match="refuses"):
        verify_onnx_model(models["bert"], copied.with_name("nowhere.onnx"))


def test_another_model_s_graph_fails(models, exported):
    with pytest.raises(VerificationError, match=r"refuses|gives"):
        verify_onnx_model(models["resnet-bk"].model, exported("gpt2")[1], lengths=(5,))
