from __future__ import annotations

import os
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hilm import errors
from hilm.weights import MemoryEfficientParameterStreamer, StreamingConfig, open_checkpoint
from hilm.weights.blocks import RING, STALE
from hilm.weights.streamer import as_runs
from hilm.weights.tensor import BLOCK_VALUES
from tests.tiny import bert_like, file_bytes, stored, write_model

SHAPES = st.lists(st.integers(0, 40), max_size=3).map(tuple) | st.tuples(
    st.integers(1, 9), st.integers(1, 700)
)


def joined(streamer, model, **options) -> dict[str, np.ndarray]:
    parts: dict[str, list] = {}
    for values, metadata, _ in streamer.stream(model, **options):
        assert metadata.parameter_count == len(values)
        parts.setdefault(metadata.layer_name, []).append(values)
    return {name: np.concatenate(values) for name, values in parts.items()}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_chunks_are_exactly_the_values_once_and_in_order(tmp_path, data):
    """Whatever the sizes, shards, dtypes, and whatever a monitor claims at whatever moment."""
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
    config = StreamingConfig(size, max_memory_mb=100, min_chunk_size=low, max_chunk_size=high)
    streamer = MemoryEfficientParameterStreamer(config)
    turn = iter(readings * 10_000)
    streamer._adapt = lambda _used, adapt=streamer._adapt: adapt(next(turn))
    found = joined(streamer, folder)
    with open_checkpoint(folder) as checkpoint:
        for name in tensors:
            np.testing.assert_array_equal(found.get(name, np.empty(0)), checkpoint.values(name))
    assert streamer.progress.processed_parameters == total
    assert streamer.progress.progress_percent == 100.0


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


def test_cancelling_ends_the_stream(tmp_path):
    folder = write_model(tmp_path, bert_like())
    streamer = MemoryEfficientParameterStreamer(
        cancel=lambda: streamer.progress.processed_parameters > 70_000
    )
    with pytest.raises(errors.Cancelled):
        for _ in streamer.stream(folder):
            pass


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
