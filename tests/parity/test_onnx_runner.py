from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
import pytest

from hilm.errors import InputError
from hilm.parity.engine import compare
from hilm.parity.inputs import Item
from hilm.parity.onnx_runner import OnnxRunner
from hilm.parity.selftest import generated_items
from tests.parity.conftest import vision_transformer

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model, its export, and an input."""
    runner = vision_transformer(32)
    model = runner.load()
    item = generated_items(model)[0]
    pixels = torch.from_numpy(item.pixels[:, :, 0].copy())
    path = tmp_path_factory.mktemp("onnx") / "vit.onnx"
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (pixels,), path, dynamo=True, verbose=False, external_data=False)
    logging.disable(logging.NOTSET)
    return runner, path, item


def run(exported, path=None):
    runner, whole, item = exported
    return compare(runner, OnnxRunner(Path(path or whole), "graph"), [item])


def test_an_export_is_at_the_floor_stage_by_stage(exported):
    report = run(exported)
    assert (report.verdict, report.at_precision_floor, report.first_divergence) == ("pass", True, None)
    local = {stage.stage for stage in report.stages if stage.mode == "local"}
    assert {"layer.0/norm1", "layer.1/attn", "layer.2/mlp", "layer.2", "post", "head"} <= local


@pytest.mark.parametrize(
    ("scope", "sub"), [("layers.1.mlp.fc2", "mlp"), ("layers.1.attention.o_proj", "attn")]
)
def test_a_fault_in_a_graph_is_named(exported, tmp_path, scope, sub):
    model = onnx.load(exported[1])
    node = next(n for n in model.graph.node if n.op_type == "MatMul" and scope in str(n.metadata_props))
    weight = next(t for t in model.graph.initializer if t.name == node.input[1])
    weight.CopyFrom(
        onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.float32(1.02), weight.name)
    )
    onnx.save(model, tmp_path / "faulty.onnx")
    report = run(exported, tmp_path / "faulty.onnx")
    assert report.verdict == "fail"
    assert (report.first_divergence["stage"], report.first_divergence["sub"]) == ("layer.1", sub)


def test_a_graph_without_notes_is_compared_by_its_outputs(exported, tmp_path):
    model = onnx.load(exported[1])
    for node in model.graph.node:
        del node.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    report = run(exported, tmp_path / "bare.onnx")
    assert (report.verdict, report.compatible, report.at_precision_floor) == ("pass", True, None)
    assert report.document()["verdicts"]["at_precision_floor"] == "not measured"
    assert any("accumulate" in warning for warning in report.warnings)
    assert {s.stage for s in report.stages if s.ratio is not None} == {"post", "head"}


def test_bad_files_and_inputs(exported, tmp_path):
    (tmp_path / "text.onnx").write_text("nothing")
    for name in ("text.onnx", "none.onnx"):
        with pytest.raises(InputError, match=name):
            run(exported, tmp_path / name)
    item = Item("x", "arrays", "x", arrays={"other": np.ones((1, 2))})
    with pytest.raises(InputError, match="pixel_values"):
        OnnxRunner(exported[1], "graph").run(item, lambda *_: None)
