from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilm import errors
from hilm.weights import (
    MemoryEfficientParameterStreamer,
    StreamingConfig,
    open_checkpoint,
    packed_schemes,
)
from tests.weights import packing
from tests.weights.packing import write


@pytest.mark.parametrize("scheme", packing.SAMPLES)
def test_values_are_those_of_the_published_formula_to_the_bit(scheme, tmp_path):
    sample = packing.SAMPLES[scheme](np.random.default_rng(1))
    with open_checkpoint(write(tmp_path, sample)) as checkpoint:
        (info,) = checkpoint.tensors.values()
        assert info.name == sample.name
        assert info.shape == sample.values.shape
        np.testing.assert_array_equal(checkpoint.array(sample.name), sample.values)
        blocks = [block.values.copy() for block in checkpoint.blocks()]
        np.testing.assert_array_equal(np.concatenate(blocks), sample.values.ravel())


@given(
    seed=st.integers(0, 99),
    bits=st.sampled_from([2, 3, 4, 8]),
    rows=st.integers(1, 3).map(lambda n: 32 * n),
    columns=st.integers(1, 4).map(lambda n: 32 * n),
    group=st.integers(1, 140),
    v2=st.booleans(),
    order=st.booleans(),
    step=st.integers(1, 700),
)
def test_any_range_of_any_gptq_tensor_is_that_of_the_whole(tmp_path_factory, step, seed, **shape):
    sample = packing.gptq(np.random.default_rng(seed), **shape)
    folder = tmp_path_factory.mktemp("model")
    with open_checkpoint(write(folder, sample)) as checkpoint:
        flat = sample.values.ravel()
        parts = [
            checkpoint.values(sample.name, start, min(start + step, flat.size))
            for start in range(0, flat.size, step)
        ]
        np.testing.assert_array_equal(np.concatenate(parts), flat)
        np.testing.assert_array_equal(checkpoint.read_rows(sample.name, 5, 17), sample.values[5:17])


@pytest.mark.parametrize("scheme", packing.SAMPLES)
def test_chunk_size_does_not_change_what_is_streamed(scheme, tmp_path):
    sample = packing.SAMPLES[scheme](np.random.default_rng(2))
    folder = write(tmp_path, sample)
    for size in (7, 100, 1 << 14):
        streamer = MemoryEfficientParameterStreamer(
            StreamingConfig(size, min_chunk_size=1, adaptive_chunk_sizing=False)
        )
        chunks = [values.copy() for values, *_ in streamer.stream(folder)]
        np.testing.assert_array_equal(np.concatenate(chunks), sample.values.ravel())


def test_a_tensor_of_several_blocks_is_decoded_by_groups_of_rows(tmp_path):
    sample = packing.fp8(np.random.default_rng(3), shape=(700, 600), scales=(6, 5))
    with open_checkpoint(write(tmp_path, sample)) as checkpoint:
        blocks = [(block.start, block.values.copy()) for block in checkpoint.blocks()]
        assert [start for start, _ in blocks] == [0, 256 * 600, 512 * 600]
        np.testing.assert_array_equal(np.concatenate([v for _, v in blocks]), sample.values.ravel())


def test_scales_of_mxfp4_reach_from_subnormal_to_not_a_number(tmp_path):
    scales = np.array([[0, 1, 254, 255]], np.uint8)
    tensors = {"w_blocks": np.full((1, 4, 16), 0x22, np.uint8), "w_scales": scales}
    sample = packing.Sample(tensors, {"quant_method": "mxfp4"}, np.empty(0))
    with open_checkpoint(write(tmp_path, sample)) as checkpoint:
        values = checkpoint.array("w")[0, ::32]
        np.testing.assert_array_equal(values, np.array([2.0**-127, 2.0**-126, 2.0**127, np.nan], np.float32))


def test_a_group_that_does_not_exist_is_found_when_values_are_asked_for(tmp_path):
    sample = packing.gptq(np.random.default_rng(4), order=True)
    sample.tensors[f"{packing.BASE}.g_idx"][3] = 9
    with (
        open_checkpoint(write(tmp_path, sample)) as checkpoint,
        pytest.raises(errors.CorruptCheckpoint, match="names group 9 or 0 of 2"),
    ):
        checkpoint.array(sample.name)


def test_int8_in_the_order_of_a_gpu_is_refused(tmp_path):
    sample = packing.int8(np.random.default_rng(5))
    sample.tensors[f"{packing.BASE}.weight_format"] = np.array(2, np.uint8)
    with (
        open_checkpoint(write(tmp_path, sample)) as checkpoint,
        pytest.raises(errors.PackedFormatUnsupported, match="one kind of GPU"),
    ):
        checkpoint.array(sample.name)


def test_parts_that_cannot_be_kept_in_memory_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(packed_schemes, "PART_MEMORY", 100)
    sample = packing.gptq(np.random.default_rng(6))
    with (
        open_checkpoint(write(tmp_path, sample)) as checkpoint,
        pytest.raises(errors.MemoryLimitError, match=r"qweight has 1,024 bytes"),
    ):
        checkpoint.array(sample.name)
