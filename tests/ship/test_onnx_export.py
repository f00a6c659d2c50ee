from __future__ import annotations

import onnx
import onnxruntime
import pytest
import torch
import transformers

from hilm.errors import InputError, NotACheckpoint, UsageError
from hilm.ship import export_to_onnx
from hilm.ship.torch_model import sample_inputs


@pytest.mark.parametrize("name", ["bert", "gpt2", "resnet-bk"])
def test_the_graph_is_the_model_at_every_length_and_batch(name, exported, models):
    report, path = exported(name)
    assert report.ok
    assert report.max_abs_error <= 1e-5
    limit = 300 if name == "resnet-bk" else 48
    assert report.lengths == (1, 2, 17, limit - 1, limit)
    assert report.batches == (1, 2, 3, 4)
    assert report.bytes == sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
    assert models[name].training  # as it was
    shapes = {value.name: value.shape for value in onnxruntime.InferenceSession(path).get_inputs()}
    assert shapes == {name: ["batch", "sequence"] for name in ("input_ids", "attention_mask")}


def test_a_masked_token_is_inert_in_the_graph(exported):
    _, path = exported("resnet-bk")
    session = onnxruntime.InferenceSession(path)
    ids = torch.randint(101, (1, 20))
    alone = session.run(None, {"input_ids": ids.numpy(), "attention_mask": torch.ones_like(ids).numpy()})[0]
    padded = torch.cat([torch.zeros(1, 7, dtype=torch.long), ids], 1)
    mask = (torch.arange(27) >= 7).long()[None]
    answer = session.run(None, {"input_ids": padded.numpy(), "attention_mask": mask.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(answer[:, 7:]), torch.from_numpy(alone), atol=1e-5, rtol=0)


def test_metadata_says_what_it_is(exported):
    properties = {entry.key: entry.value for entry in onnx.load(exported("bert")[1]).metadata_props}
    assert properties["model_type"] == "bert"
    assert properties["graph"] == "full"


def test_an_existing_graph_is_kept_unless_forced(models, tmp_path):
    path = tmp_path / "bert.onnx"
    path.write_bytes(b"mine")
    with pytest.raises(UsageError, match="exists"):
        export_to_onnx(models["bert"], path)
    assert path.read_bytes() == b"mine"
    assert export_to_onnx(models["bert"], path, force=True, precision="float16", optimize="basic").ok
    types = {entry.data_type for entry in onnx.load(path).graph.initializer}
    assert onnx.TensorProto.FLOAT16 in types


def test_a_graph_that_is_not_right_is_not_written(models, tmp_path):
    report = export_to_onnx(models["gpt2"], tmp_path / "gpt2.onnx", tolerance=0.0, max_length=20)
    assert not report.ok
    assert report.max_abs_error > 0
    assert list(tmp_path.iterdir()) == []


def test_nonsense_is_refused(models, tmp_path):
    out = tmp_path / "out.onnx"
    with pytest.raises(UsageError, match="precision"):
        export_to_onnx(models["bert"], out, precision="float8")
    with pytest.raises(UsageError, match="no state"):
        export_to_onnx(models["gpt2"], out, graph="step")
    with pytest.raises(NotACheckpoint, match="neither"):
        export_to_onnx(tmp_path / "nowhere", out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotACheckpoint):
        export_to_onnx(tmp_path / "empty", out)
    audio = transformers.WhisperConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, vocab_size=50, pad_token_id=0, bos_token_id=0, eos_token_id=0,
        decoder_start_token_id=0,
    )  # fmt: skip
    with pytest.raises(InputError, match="input_features"):
        sample_inputs(transformers.WhisperForConditionalGeneration(audio), 1, 5)


def test_float64_takes_masks_too(models, tmp_path):
    """A mask times the lowest float64 is 0 where nothing is masked; through float32 it would be NaN."""
    report = export_to_onnx(models["gpt2"], tmp_path / "gpt2.onnx", precision="float64", max_length=20)
    assert report
    assert report.max_abs_error <= 1e-6
