from __future__ import annotations

import numpy as np

from hilm.reel.crc32c import crc32c
from hilm.reel.front import describe_front, draw_front
from hilm.reel.preview import draw_tensor
from hilm.reel.video import decode_preview, encode_preview
from hilm.weights.checkpoint import open_checkpoint
from tests.tiny import bert_like, write_model


def test_one_frame_per_stored_tensor(tmp_path):
    tensors = bert_like(width=32, layers=2)
    tensors["lm_head.big"] = np.random.default_rng(0).standard_normal((600, 500)).astype(np.float32)
    model = write_model(tmp_path / "m", tensors, metadata={"tied": "lm_head.big"})
    with open_checkpoint(model) as checkpoint:
        video, front = draw_front(checkpoint)
    assert [frame["tensor"] for frame in front["frames"]] == list(tensors)
    assert [frame["tensor"] for frame in front["frames"] if frame["sampled"]] == ["lm_head.big"]
    frames = list(decode_preview(video))
    assert len(frames) == len(tensors)
    assert {frame.shape for frame in frames} == {(front["height"], front["width"])} == {(576, 512)}
    for entry, pixels in zip(front["frames"], frames, strict=True):
        values = tensors[entry["tensor"]]
        if not entry["sampled"]:
            drawn = draw_tensor(
                values.ravel(), name=entry["tensor"], dtype="F32", shape=values.shape, sampled=False
            )
            assert entry["scale"] == drawn.scale
            error = np.abs(pixels.astype(int) - drawn.pixels)
            assert error.mean() < 12, entry["tensor"]  # the codec is lossy; another tensor's frame is far off


def test_chapters_are_the_blocks_of_the_model(tmp_path):
    import av  # noqa: PLC0415 - the one place outside video.py that looks into the container

    model = write_model(tmp_path / "m", bert_like(width=32, layers=3))
    with open_checkpoint(model) as checkpoint:
        (tmp_path / "front.mp4").write_bytes(draw_front(checkpoint)[0])
    with av.open(tmp_path / "front.mp4") as container:
        titles = [chapter["metadata"]["title"] for chapter in container.chapters()]
    assert titles == ["embeddings", "encoder.layer.0", "encoder.layer.1", "encoder.layer.2"]


def test_the_description_is_measured(tmp_path):
    video = encode_preview(np.full((3, 72, 64), 128, np.uint8))
    front = describe_front(video, [])
    assert (front["width"], front["height"], front["size"]) == (64, 72, len(video))
    assert front["crc32c"] == f"0x{crc32c(video):08x}"
