from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from hilm.errors import EncoderError, UsageError
from hilm.weights import (
    MemoryEfficientParameterStreamer,
    RealTimeEncoder,
    Sink,
    StreamingConfig,
    open_checkpoint,
)
from hilm.weights.tensor import BLOCK_VALUES
from tests.tiny import bert_like, write_model


class Copy(Sink):
    """Remembers what happens to it."""

    def __init__(self, fail_at: int = -1, pause: float = 0.0) -> None:
        self.events, self.chunks = [], []
        self.fail_at, self.pause = fail_at, pause

    def begin(self, checkpoint):
        self.events.append(f"begin {checkpoint.name}")

    def encode(self, values, metadata):
        time.sleep(self.pause)
        if metadata.chunk_id == self.fail_at:
            raise OSError("disk full")
        self.chunks.append((metadata, values))  # kept, not copied

    def finish(self):
        self.events.append("finish")
        return {m.layer_name: None for m, _ in self.chunks}.keys()

    def abort(self, error):
        self.events.append(f"abort {type(error).__name__}")


def idle() -> bool:
    return not [t for t in threading.enumerate() if t.name.startswith("hilm")]


def test_every_chunk_arrives_in_order_with_its_values(tmp_path):
    tensors = bert_like(hidden=3000, vocabulary=9000)
    sink = Copy()
    encoder = RealTimeEncoder(sink)
    streamer = MemoryEfficientParameterStreamer(encoder=encoder)
    delivered = [metadata for _, metadata, _ in streamer.stream(write_model(tmp_path / "m", tensors))]
    assert [metadata for metadata, _ in sink.chunks] == delivered
    for name, array in tensors.items():
        found = np.concatenate([values for metadata, values in sink.chunks if metadata.layer_name == name])
        np.testing.assert_array_equal(found, array.ravel())
    assert sink.events == ["begin m", "finish"]
    assert encoder.result == tensors.keys()
    assert streamer.get_streaming_statistics()["chunks_encoded"] == encoder.chunks_encoded == len(delivered)
    assert idle()


def test_a_slow_sink_slows_the_stream_and_loses_nothing(tmp_path):
    folder = write_model(tmp_path, {"w": np.arange(12 * BLOCK_VALUES, dtype=np.float32)})
    sink = Copy(pause=0.01)
    encoder = RealTimeEncoder(sink, queue_blocks=2)
    config = StreamingConfig(BLOCK_VALUES, adaptive_chunk_sizing=False)
    for _, metadata, _ in MemoryEfficientParameterStreamer(config, encoder=encoder).stream(folder):
        assert metadata.chunk_id - len(sink.chunks) <= 2  # two in the queue, one of them being encoded
    assert len(sink.chunks) == 12
    np.testing.assert_array_equal(
        np.concatenate([values for _, values in sink.chunks]), np.arange(12 * BLOCK_VALUES)
    )


def test_a_failing_sink_stops_the_stream_at_that_chunk(tmp_path):
    folder = write_model(tmp_path, {"w": np.zeros(12 * BLOCK_VALUES, np.float32)})
    sink = Copy(fail_at=3)
    encoder = RealTimeEncoder(sink, queue_blocks=1)
    config = StreamingConfig(BLOCK_VALUES // 2, adaptive_chunk_sizing=False)
    streamer = MemoryEfficientParameterStreamer(config, encoder=encoder)
    with pytest.raises(EncoderError, match="chunk 3 of w: OSError: disk full") as caught:
        for _ in streamer.stream(folder):
            pass
    assert isinstance(caught.value.__cause__, OSError)
    assert [metadata.chunk_id for metadata, _ in sink.chunks] == [0, 1, 2]
    assert encoder.chunks_encoded == 3
    assert streamer.progress.chunks_processed < 10
    assert sink.events[1:] == ["abort EncoderError"]
    assert idle()


def test_a_failure_at_the_last_chunk_is_not_missed(tmp_path):
    folder = write_model(tmp_path, {"w": np.zeros(10, np.float32)})
    sink = Copy(fail_at=0, pause=0.1)
    with pytest.raises(EncoderError):
        list(MemoryEfficientParameterStreamer(encoder=RealTimeEncoder(sink)).stream(folder))
    assert "finish" not in sink.events


def test_a_closed_stream_aborts_the_sink_and_the_next_one_starts_anew(tmp_path):
    folder = write_model(tmp_path, {"w": np.zeros(6 * BLOCK_VALUES, np.float32)})
    sink = Copy()
    streamer = MemoryEfficientParameterStreamer(encoder=RealTimeEncoder(sink))
    stream = streamer.stream(folder)
    next(stream)
    stream.close()
    assert sink.events[1:] == ["abort GeneratorExit"]
    assert idle()
    sink.chunks.clear()
    for _ in streamer.stream(folder):
        pass
    assert sink.events[-1] == "finish"
    assert sum(metadata.parameter_count for metadata, _ in sink.chunks) == 6 * BLOCK_VALUES


def test_a_sink_that_needs_fixed_chunks_gets_them(tmp_path, monkeypatch):
    monkeypatch.setattr(Copy, "requires_fixed_chunks", True)
    sink = Copy()
    streamer = MemoryEfficientParameterStreamer(
        StreamingConfig(500, max_memory_mb=1), encoder=RealTimeEncoder(sink)
    )
    with open_checkpoint(write_model(tmp_path, {"w": np.zeros(100_000, np.float32)})) as checkpoint:
        for _ in streamer.stream(checkpoint):
            pass
    assert {metadata.parameter_count for metadata, _ in sink.chunks} == {500}


def test_a_queue_without_room_is_refused():
    with pytest.raises(UsageError):
        RealTimeEncoder(Copy(), queue_blocks=0)
