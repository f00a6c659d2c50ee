from __future__ import annotations

import numpy as np
import pytest
import torch

from hilm.ship import OnnxStreamer, export_to_onnx


@pytest.fixture(scope="module")
def step(models, tmp_path_factory):
    path = tmp_path_factory.mktemp("step") / "step.onnx"
    return export_to_onnx(models["resnet-bk"], path, graph="step"), path


def test_steps_are_one_forward_pass(step):
    report, _ = step
    assert report
    assert report.max_abs_error <= 1e-5
    assert report.lengths == (1, 40)


def test_the_graph_generates_what_the_model_generates(step, models):
    model = models["resnet-bk"]
    streamer = OnnxStreamer(step[1], model.config)
    ids = torch.randint(3, 101, (1, 9))
    sizes = [values.nbytes for values in streamer.state]
    written = streamer.generate(ids.numpy(), 12)
    model.eval()
    expected = model.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
    model.train()
    np.testing.assert_array_equal(written, expected.numpy())
    assert [values.nbytes for values in streamer.state] == sizes
    assert streamer.seen == 20


def test_chunks_of_any_length_are_one_forward_pass(models, tmp_path):
    report = export_to_onnx(models["resnet-bk"], tmp_path / "chunk.onnx", graph="chunk")
    assert report
    assert report.lengths == (1, 2, 5, 17, 64, 128, 217)
