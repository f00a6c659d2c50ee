from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
import threading
import time
from itertools import cycle, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hilm import errors
from hilm.weights import (
    MemoryEfficientParameterStreamer,
    MemoryMonitor,
    StreamingConfig,
    open_checkpoint,
)
from hilm.weights.blocks import RING, STALE
from hilm.weights.streamer import as_runs
from hilm.weights.tensor import BLOCK_VALUES
from tests.tiny import bert_like, file_bytes, stored, write_model, write_sparse

if TYPE_CHECKING:
    from collections.abc import Iterator

PROC = Path("/proc/self/fd")
needs_proc = pytest.mark.skipif(not PROC.is_dir(), reason="looks at itself in /proc")
SHAPES = st.lists(st.integers(0, 40), max_size=3).map(tuple) | st.tuples(
    st.integers(1, 9), st.integers(1, 700)
)


def joined(streamer, model, **options) -> dict[str, np.ndarray]:
    parts: dict[str, list] = {}
    for values, metadata, _ in streamer.stream(model, **options):
        assert metadata.parameter_count == len(values)
        parts.setdefault(metadata.layer_name, []).append(values)
    return {name: np.concatenate(values) for name, values in parts.items()}


class Readings(MemoryMonitor):
    """Claims whatever memory it was told to, a new sample at every look."""

    claims: Iterator[float]

    def start(self) -> None:
        pass

    @property
    def current_mb(self) -> float:
        self.samples += 1
        return next(self.claims)

    @current_mb.setter
    def current_mb(self, _: float) -> None:
        pass


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_chunks_are_exactly_the_values_once_and_in_order(tmp_path, monkeypatch, data):
    """Whatever the sizes, shards, dtypes, threads, and whatever a monitor claims at whatever moment."""
    shapes = data.draw(st.lists(SHAPES, min_size=1, max_size=5))
    rng = np.random.default_rng(7)
    tensors = {}
    for i, shape in enumerate(shapes):
        dtype = data.draw(st.sampled_from(["F32", "BF16", "F16"]))
        drawn = rng.standard_normal(shape).astype(np.float32)
        tensors[f"t{i}"] = stored(drawn.astype(np.float16)) if dtype == "F16" else stored(drawn, dtype)
    total = sum(int(np.prod(shape)) for shape in shapes)
    folder = write_model(
        Path(tempfile.mkdtemp(dir=tmp_path)), tensors, shards=data.draw(st.sampled_from([1, 2]))
    )
    low = data.draw(st.integers(1, 50))
    high = data.draw(st.integers(low, 900))
    size = data.draw(st.integers(low, high))
    readings = data.draw(st.lists(st.floats(0, 200), min_size=1, max_size=20))
    threads = data.draw(st.booleans())
    block = data.draw(st.sampled_from([1 << 6, 1 << 9, 1 << 12]))
    monkeypatch.setattr("hilm.weights.tensor.BLOCK_VALUES", block)
    monkeypatch.setattr("hilm.weights.streamer.MemoryMonitor", Readings)
    Readings.claims = cycle(readings)
    config = StreamingConfig(size, 100, min_chunk_size=low, max_chunk_size=high, parallel_processing=threads)
    streamer = MemoryEfficientParameterStreamer(config)
    found: dict[str, list] = {}
    for values, m, _ in streamer.stream(folder):
        assert m.parameter_count == len(values) == m.end_index - m.start_index
        assert m.start_index == sum(map(len, found.setdefault(m.layer_name, [])))
        found[m.layer_name].append(values)
        assert len(values) <= high
        assert len(values) >= low or m.end_index == int(np.prod(m.tensor_shape))
    with open_checkpoint(folder) as checkpoint:
        for name in tensors:
            joined = np.concatenate([np.empty(0, np.float32), *found.get(name, [])])
            np.testing.assert_array_equal(joined, checkpoint.values(name))
    assert streamer.progress.processed_parameters == total
    assert streamer.progress.progress_percent == 100.0


@pytest.mark.parametrize(("size", "limit"), [(256, None), (1000, None), (400_000, None), (777, 200_000)])
def test_blocks_are_the_same_values_and_count_the_same_chunks(tmp_path, size, limit):
    folder = write_model(tmp_path, bert_like(hidden=3000, vocabulary=9000))
    config = StreamingConfig(size, adaptive_chunk_sizing=False)
    chunked, whole = (MemoryEfficientParameterStreamer(config) for _ in range(2))
    values = [v for v, _, _ in chunked.stream(folder, max_total_params=limit)]
    blocks = [b.values for b, _ in whole.stream_blocks(folder, max_total_params=limit)]
    np.testing.assert_array_equal(np.concatenate(values), np.concatenate(blocks))
    assert chunked.progress.chunks_processed == whole.progress.chunks_processed == len(values)
    assert whole.progress.progress_percent == 100.0


def test_only_the_last_chunk_of_a_tensor_is_short(tmp_path):
    folder = write_model(tmp_path, {"w": np.arange(2 * BLOCK_VALUES + 77, dtype=np.float32)})
    config = StreamingConfig(chunk_size=1000, adaptive_chunk_sizing=False)
    chunks = [m for _, m, _ in MemoryEfficientParameterStreamer(config).stream(folder)]
    assert {m.parameter_count for m in chunks[:-1]} == {1000}
    assert chunks[-1].end_index == 2 * BLOCK_VALUES + 77
    assert all(a.end_index == b.start_index for a, b in pairwise(chunks))
    assert [m.chunk_id for m in chunks] == list(range(len(chunks)))


def test_kept_chunks_stay_right_and_released_buffers_are_poisoned(tmp_path):
    values = np.arange(8 * BLOCK_VALUES, dtype=np.float32)
    folder = write_model(tmp_path, {"w": values})
    with open_checkpoint(folder) as checkpoint:
        kept = [block.values for block in checkpoint.blocks(poison=True)]
        np.testing.assert_array_equal(np.concatenate(kept), values)
        # Looking at memory behind the stream's back: an address is no reference.
        addresses = {b.values.__array_interface__["data"][0] for b in checkpoint.blocks(poison=True)}
        assert len(addresses) == RING


def test_poison_shows_in_a_buffer_that_is_reused(tmp_path):
    folder = write_model(
        tmp_path, {"a": np.zeros(2 * BLOCK_VALUES, np.float32), "b": np.zeros(5, np.float32)}
    )
    with open_checkpoint(folder) as checkpoint:
        for block in checkpoint.blocks(poison=True):
            tail = block._out.base[len(block._out) :].view(np.uint32)
            assert (tail == STALE).all()


def test_a_layer_filter_selects_by_role(tmp_path):
    folder = write_model(tmp_path, bert_like())
    config = StreamingConfig(target_layers=["Attention", "mlp"], exclude_layers=["ffn"])
    streamer = MemoryEfficientParameterStreamer(config)
    kinds = {m.layer_type for _, m, _ in streamer.stream(folder)}
    assert kinds == {"attention"}
    assert streamer.progress.total_parameters == 4 * (4 * 64 * 64 + 3 * 64)


def test_a_filter_that_leaves_nothing_says_what_there_is(tmp_path):
    folder = write_model(tmp_path, bert_like())
    streamer = MemoryEfficientParameterStreamer(StreamingConfig(target_layers=["output"]))
    with pytest.raises(errors.EmptySelection) as caught:
        next(streamer.stream(folder))
    assert "attention 28" in caught.value.hint


def test_a_sample_is_exact_spread_and_the_same_for_every_chunk_size(tmp_path):
    folder = write_model(tmp_path, bert_like())
    whole = {}
    for size in (64, 1000, 8192):
        config = StreamingConfig(chunk_size=size, min_chunk_size=1)
        streamer = MemoryEfficientParameterStreamer(config)
        found = joined(streamer, folder, max_total_params=12_000)
        assert sum(map(len, found.values())) == 12_000
        assert set(found) == set(bert_like())
        whole.setdefault("first", found)
        for name, values in found.items():
            np.testing.assert_array_equal(values, whole["first"][name])


def test_sampled_chunks_list_the_runs_they_hold(tmp_path):
    tensors = bert_like()
    folder = write_model(tmp_path, tensors)
    for values, metadata, _ in MemoryEfficientParameterStreamer().stream(folder, max_total_params=5000):
        flat = tensors[metadata.layer_name].ravel()
        runs = metadata.runs or ((metadata.start_index, metadata.end_index),)
        np.testing.assert_array_equal(np.concatenate([flat[a:b] for a, b in runs]), values)


def test_adaptive_sizing_halves_above_ninety_and_doubles_below_fifty_percent():
    streamer = MemoryEfficientParameterStreamer(StreamingConfig(1024, max_memory_mb=100))
    sizes = []
    for used in (91, 91, 91, 70, 49, 49, 49, 49, 10, 10, 10, 10, 10, 10, 10, 10):
        streamer._adapt(used)
        sizes.append(streamer._size)
    assert sizes == [512, 256, 256, 256, 256, 512, 512, 1024, 1024, 2048, 2048, 4096, 4096, 8192, 8192, 8192]
    fixed = MemoryEfficientParameterStreamer(StreamingConfig(1024, adaptive_chunk_sizing=False))
    fixed._adapt(1e9)
    assert fixed._size == 1024


@pytest.mark.parametrize(
    "options",
    [
        {"chunk_size": 0},
        {"min_chunk_size": 9, "max_chunk_size": 8},
        {"max_memory_mb": 0},
        {"max_memory_mb": -1},
    ],
)
def test_impossible_configurations_are_refused(options):
    with pytest.raises(errors.UsageError):
        StreamingConfig(**options)


def test_documented_defaults():
    config = StreamingConfig()
    assert [config.chunk_size, config.max_memory_mb, config.min_chunk_size, config.max_chunk_size] == [
        1024, 1024.0, 256, 8192,
    ]  # fmt: skip
    assert config.enable_progress
    assert config.adaptive_chunk_sizing
    assert not config.parallel_processing
    assert StreamingConfig(chunk_size=12_000).max_chunk_size == 12_000


def test_statistics_have_the_nine_documented_keys(tmp_path):
    streamer = MemoryEfficientParameterStreamer()
    assert streamer.get_streaming_statistics() == {}
    for _ in streamer.stream(write_model(tmp_path, bert_like())):
        pass
    figures = streamer.get_streaming_statistics()
    assert list(figures) == [
        "model_name", "progress_percent", "processed_parameters", "total_parameters", "chunks_encoded",
        "processing_rate", "elapsed_time", "memory_usage_mb", "current_layer",
    ]  # fmt: skip
    assert figures["progress_percent"] == 100.0
    assert figures["total_parameters"] == figures["processed_parameters"]


@pytest.mark.parametrize("event", [True, False])
def test_cancelling_ends_the_stream(tmp_path, event):
    folder = write_model(tmp_path, bert_like())
    asked = threading.Event()
    streamer = MemoryEfficientParameterStreamer(cancel=asked if event else asked.is_set)
    stream = streamer.stream(folder)
    while next(stream)[2].processed_parameters <= 70_000:
        pass
    asked.set()
    with pytest.raises(errors.Cancelled, match=f"after {streamer.progress.processed_parameters:,} values"):
        next(stream)
    blocks = streamer.stream_blocks(folder)
    with pytest.raises(errors.Cancelled, match="after 0 values"):
        next(blocks)


def held() -> tuple[int, set[str]]:
    """Open descriptors, and threads of hilm."""
    gc.collect()
    return sum(1 for _ in PROC.iterdir()), {t.name for t in threading.enumerate() if "hilm" in t.name}


@needs_proc
@pytest.mark.parametrize("method", ["stream", "stream_blocks"])
def test_whatever_ends_a_stream_leaves_no_thread_and_no_descriptor(tmp_path, method):
    values = np.zeros(4 * BLOCK_VALUES, np.float16)
    folder = write_model(tmp_path, {"a": values, "b": values}, shards=2)
    before = held()
    streamer = MemoryEfficientParameterStreamer(StreamingConfig(parallel_processing=True))
    stream = getattr(streamer, method)(folder)
    next(stream)
    assert held() != before
    stream.close()
    assert held() == before

    def interrupted():
        for _ in getattr(streamer, method)(folder):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert held() == before
    for _ in getattr(streamer, method)(folder):
        pass
    assert held() == before


def test_kept_chunks_are_an_error_where_that_was_asked_for(tmp_path):
    folder = write_model(tmp_path, {"w": np.zeros(12 * BLOCK_VALUES, np.float32)})
    with pytest.raises(errors.LeaseError, match="values 0 to 262,144 of w were kept"):
        list(MemoryEfficientParameterStreamer(on_escape="error").stream(folder))
    for _ in MemoryEfficientParameterStreamer(on_escape="error").stream(folder):
        pass


def test_above_the_limit_a_stream_runs_at_the_floor_and_says_so(tmp_path, monkeypatch):
    folder = write_model(tmp_path, bert_like())
    monkeypatch.setattr("hilm.weights.streamer.group_limit", lambda: 2.0)
    streamer = MemoryEfficientParameterStreamer()
    assert {m.chunk_size for _, m, _ in streamer.stream(folder)} == {256}
    assert streamer.progress.notes[0].startswith("limit-below-baseline: of 2 MiB, ")
    assert streamer.progress.peak_memory_mb > 2


def test_chunks_adapt_once_per_sample_of_memory(tmp_path, monkeypatch):
    """However many blocks pass meanwhile."""
    folder = write_model(tmp_path, {f"t{i}": np.zeros(500, np.float32) for i in range(40)})
    monkeypatch.setattr("hilm.weights.streamer.group_limit", lambda: 1e6)
    streamer = MemoryEfficientParameterStreamer(StreamingConfig(max_memory_mb=1e6))
    assert {m.chunk_size for _, m, _ in streamer.stream(folder)} == {1024}


def test_memory_is_looked_at_only_where_progress_is_wanted(tmp_path):
    folder = write_model(tmp_path, {f"t{i}": np.zeros(500, np.float32) for i in range(3)})

    def seen(wanted):
        streamer = MemoryEfficientParameterStreamer(
            StreamingConfig(enable_progress=wanted, max_memory_mb=1e6)
        )
        stream = streamer.stream(folder)
        next(stream)
        time.sleep(0.12)
        _, metadata, progress = next(stream)
        assert progress.processed_parameters == 1000
        assert metadata.memory_mb > 1
        return progress._seen

    assert seen(wanted=True)[1] == 500
    assert seen(wanted=False) == (0.0, 0)


def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path):
    folder = write_model(tmp_path, {"a": np.zeros(10, np.float32), "b": np.zeros(10, np.float32)})
    path = folder / "model.safetensors"
    with open_checkpoint(folder) as checkpoint:
        blocks = checkpoint.blocks()
        next(blocks)
        os.utime(path, ns=(5, 5))
        with pytest.raises(errors.SourceChanged):
            list(blocks)
    with open_checkpoint(folder) as checkpoint:
        path.write_bytes(file_bytes({"a": stored(np.zeros(1, np.float32))}))
        with pytest.raises(errors.SourceChanged):
            list(checkpoint.blocks())


def test_as_runs():
    assert as_runs(np.array([1, 2, 3, 7, 9, 10])) == ((1, 4), (7, 8), (9, 11))


GROWTH = """
import sys
from pathlib import Path
from hilm.weights import MemoryEfficientParameterStreamer, StreamingConfig

def marks():
    lines = Path("/proc/self/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) // 1024 for line in lines if line.endswith("kB")}

parallel = StreamingConfig(chunk_size=8192, parallel_processing=sys.argv[2] == "parallel")
before = marks()["VmRSS"]
total = sum(m.parameter_count for _, m, _ in MemoryEfficientParameterStreamer(parallel).stream(sys.argv[1]))
print(total, marks()["VmHWM"] - before)
"""


@needs_proc
@pytest.mark.parametrize(("dtype", "way"), [("BF16", "serial"), ("F16", "parallel")])
def test_a_file_of_two_gigabytes_takes_a_few_megabytes(tmp_path, dtype, way):
    folder = write_sparse(tmp_path, (1 << 20, 1024), dtype)
    words = [sys.executable, "-c", GROWTH, str(folder), way]
    ran = subprocess.run(words, capture_output=True, text=True, check=True)
    total, growth = map(int, ran.stdout.split())
    assert total == 1 << 30
    assert growth <= 64
