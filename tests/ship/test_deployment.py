from __future__ import annotations

import json
import sys

import pytest
import transformers

from hilm.errors import MissingExtra, UsageError
from hilm.ship import export_model_for_deployment


def test_a_folder_holds_all_that_serving_needs(models, tmp_path):
    report = export_model_for_deployment(
        models["resnet-bk"], tmp_path / "out", quantize="int8", max_length=60
    )
    assert report
    assert set(report.exports) == {"model.onnx", "step.onnx", "model-int8.onnx"}
    written = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"model.onnx", "model.onnx.data", "step.onnx", "model-int8.onnx", "config.json"} <= written
    stored = json.loads((tmp_path / "out" / "report.json").read_text())
    assert stored["exports"]["step.onnx"]["max_abs_error"] <= 1e-5
    assert stored["exports"]["model-int8.onnx"]["top1_agreement"] >= 0.9
    assert stored["path"] == str(tmp_path / "out")
    assert transformers.AutoConfig.from_pretrained(tmp_path / "out").model_type == "resnet_bk"
    with pytest.raises(UsageError, match="exists"):
        export_model_for_deployment(models["resnet-bk"], tmp_path / "out")


def test_nothing_is_published_when_one_part_fails(models, tmp_path):
    report = export_model_for_deployment(models["gpt2"], tmp_path / "out", tolerance=0.0, quantize="int8")
    assert not report
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_made_is_refused_first(models, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingExtra, match="tensorrt"):
        export_model_for_deployment(models["gpt2"], tmp_path / "out", formats=("onnx", "tensorrt"))
    with pytest.raises(UsageError, match="int4"):
        export_model_for_deployment(models["gpt2"], tmp_path / "out", quantize="int4")
    assert list(tmp_path.iterdir()) == []
