from __future__ import annotations

import numpy as np
import pytest

from hilm.errors import EncoderError, StorageError, UsageError
from hilm.reel.container import ReelFile
from hilm.reel.decoder import Reel
from hilm.reel.preview import draw_sample
from hilm.reel.sampling import MAX_VALUES, ModelSample, encode_samples
from hilm.reel.video import decode_preview
from hilm.weights.checkpoint import open_checkpoint
from hilm.weights.selection import Selection
from hilm.weights.streamer import MemoryEfficientParameterStreamer, StreamingConfig
from tests.reel.archives import sample_model
from tests.tiny import bert_like, write_model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [write_model(folder / f"m{i}", bert_like(i, width=32, layers=2)) for i in range(3)]


def selected(model, limit):
    with open_checkpoint(model) as checkpoint:
        return Selection.of(checkpoint, limit).values(checkpoint)


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 16, 17, 1024, 5000, 7500, 30_000, None])
def test_values_come_back_bit_for_bit(models, tmp_path, limit):
    """One frame per model and one per chunk hold the same values in the same order."""
    whole = encode_samples([sample_model(m, limit) for m in models], tmp_path / "a")
    chunked = encode_samples([sample_model(m, limit, chunk_size=700) for m in models], tmp_path / "b")
    assert whole.frames == 3
    assert whole.weights == chunked.weights
    with Reel.open(tmp_path / "a") as one, Reel.open(tmp_path / "b") as many:
        assert [s["model_id"] for s in one.samples] == ["m0", "m1", "m2"]
        for model, sample in zip(models, one.samples, strict=True):
            truth = selected(model, limit)
            values = one.sample_values(sample)
            assert values.dtype == np.float32
            assert values.tobytes() == truth.tobytes()
            assert sample["grid_side"] ** 2 >= len(truth) == sample["fill"]
            assert sample["grid_side"] == 2 or sample["grid_side"] ** 2 < 4 * len(truth)
            parts = [many.sample_values(s) for s in many.samples if s["model_id"] == sample["model_id"]]
            assert np.concatenate(parts).tobytes() == truth.tobytes()
        assert list(one.file.check_coverage()) == list(many.file.check_coverage()) == []


def test_models_of_several_sizes_share_one_grid(models, tmp_path):
    samples = [sample_model(m, limit) for m, limit in zip(models, (3, 5000, 70), strict=True)]
    encode_samples(samples, tmp_path / "x")
    with Reel.open(tmp_path / "x") as reel:
        assert [(s["grid_side"], s["fill"]) for s in reel.samples] == [(128, 3), (128, 5000), (128, 70)]
        for sample, given in zip(reel.samples, samples, strict=True):
            assert reel.sample_values(sample).tobytes() == given.values.tobytes()


def test_the_front_shows_every_frame(models, tmp_path):
    samples = [sample_model(m, 5000) for m in models]
    encode_samples(samples, tmp_path / "x")
    with Reel.open(tmp_path / "x") as reel:
        front, frames = reel.file.manifest["front"], list(decode_preview(reel.file.front))
        assert len(frames) == len(front["frames"]) == 3
        for entry, pixels, sample in zip(reel.samples, frames, samples, strict=True):
            drawn = draw_sample(sample.values, name=sample.model_id, side=128)
            assert pixels.shape == drawn.pixels.shape == (front["height"], front["width"])
            assert entry["scale"] == drawn.scale
            assert np.abs(pixels.astype(int) - drawn.pixels).mean() < 20
        assert [frame["scale"] for frame in front["frames"]] == [s["scale"] for s in reel.samples]


def test_documented_fields(models, tmp_path):
    encode_samples([sample_model(m, 3000, chunk_size=256) for m in models], tmp_path / "x")
    with Reel.open(tmp_path / "x") as reel, open_checkpoint(models[1]) as checkpoint:
        assert [s["frame_index"] for s in reel.samples] == list(range(len(reel.samples)))
        mine = [s for s in reel.samples if s["model_id"] == "m1"]
        streamer = MemoryEfficientParameterStreamer(StreamingConfig(256, adaptive_chunk_sizing=False))
        chunks = [chunk for _, chunk, _ in streamer.stream(checkpoint, max_total_params=3000)]
        for sample, chunk in zip(mine, chunks, strict=True):
            assert sample["original_parameter_count"] == checkpoint.total_parameters
            assert sample["frame_timestamp"] == sample["frame_index"] / 5
            for name in ("chunk_id", "layer_name", "layer_type", "parameter_count", "chunk_size"):
                assert sample[name] == getattr(chunk, name)
            assert (sample["start_index"], sample["end_index"]) == (chunk.start_index, chunk.end_index)
            assert sample["fill"] == chunk.parameter_count <= 256
            assert sample["grid_side"] == 16


def test_without_a_preview_only_the_front_is_missing(models, tmp_path):
    samples = [sample_model(m, 1000) for m in models]
    assert encode_samples(samples, tmp_path / "a", preview=False).frames == 0
    encode_samples(samples, tmp_path / "b")
    with ReelFile.open(tmp_path / "a") as a, ReelFile.open(tmp_path / "b") as b:
        assert a.manifest["front"] is None
        assert a.manifest["samples"] == b.manifest["samples"]


def test_same_samples_same_bytes(models, tmp_path):
    samples = [sample_model(m, 1000) for m in models]
    assert (
        encode_samples(samples, tmp_path / "a").reel.sha256
        == encode_samples(samples, tmp_path / "b").reel.sha256
    )


def sample_of(values, **others):
    facts = {"model_id": "m", "parameters": len(values), "content_key": bytes(32), "rule": {}} | others
    return ModelSample(values=values, **facts)


def test_every_kind_of_value(tmp_path):
    odd = np.array([0x80000000, 0, 0x7F800001, 0xFFC12345, 0x7F800000, 0xFF800000, 1, 0x7F7FFFFF], "<u4")
    for values in (odd.view("<f4"), np.zeros(300_000, np.float32), np.full(5, np.nan, np.float32)):
        encode_samples([sample_of(values)], tmp_path / "x")
        with Reel.open(tmp_path / "x") as reel:
            assert reel.sample_values(reel.samples[0]).tobytes() == values.tobytes()


def test_the_largest_frame(tmp_path):
    values = np.random.default_rng(0).standard_normal(MAX_VALUES + 1).astype(np.float32)
    encode_samples([sample_of(values[1:])], tmp_path / "x", preview=False)
    with Reel.open(tmp_path / "x") as reel:
        assert reel.samples[0]["grid_side"] == 2048
        assert reel.sample_values(reel.samples[0]).tobytes() == values[1:].tobytes()
    for samples in ([sample_of(values)], [], [sample_of(values[:3]), sample_of(values[:0])]):
        with pytest.raises(UsageError, match="fit"):
            encode_samples(samples, tmp_path / "y")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("preview", [False, True])
def test_a_full_disk_leaves_nothing(models, tmp_path, full_disk, preview):
    samples = [sample_model(m, None) for m in models]
    with pytest.raises((StorageError, EncoderError)):
        encode_samples(samples, tmp_path / "x", preview=preview)
    assert list(tmp_path.iterdir()) == []
