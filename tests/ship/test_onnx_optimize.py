from __future__ import annotations

import pytest

from hilm.errors import UsageError
from hilm.ship import optimize_onnx_model, verify_onnx_model


def test_an_optimised_graph_is_smaller_and_still_right(exported, models, tmp_path):
    report = optimize_onnx_model(exported("bert")[1], tmp_path / "out.onnx", "extended")
    assert report
    assert report.nodes_after < report.nodes_before
    assert verify_onnx_model(models["bert"], tmp_path / "out.onnx", lengths=(1, 20))
    with pytest.raises(UsageError, match="exists"):
        optimize_onnx_model(exported("bert")[1], tmp_path / "out.onnx")


def test_nothing_is_written_beyond_the_tolerance(exported, tmp_path):
    assert not optimize_onnx_model(exported("bert")[1], tmp_path / "out.onnx", tolerance=-1)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match="level"):
        optimize_onnx_model(exported("bert")[1], tmp_path / "out.onnx", "most")
