from __future__ import annotations

import json

import numpy as np
import pytest

from hilm import errors
from hilm.weights import open_checkpoint
from tests.tiny import stored
from tests.weights import packing
from tests.weights.packing import BASE, write

WEIGHT = f"{BASE}.weight"
STATE = f"{WEIGHT}.quant_state.bitsandbytes__nf4"


def text(value) -> np.ndarray:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return np.frombuffer(raw, np.uint8)


def state(**changes) -> np.ndarray:
    return text({"quant_type": "nf4", "blocksize": 64, "shape": [16, 40]} | changes)


DAMAGE = [
    ("gptq4", {f"{BASE}.scales": None}, {}, "scales is missing"),
    ("gptq4", {f"{BASE}.qzeros": None}, {}, "qzeros is missing"),
    ("gptq4", {f"{BASE}.qweight": np.zeros((8, 32), np.float32)}, {}, "qweight has the type F32"),
    ("gptq4", {f"{BASE}.qweight": np.zeros((8, 31), np.int32)}, {}, "do not fit"),
    ("gptq4", {f"{BASE}.qzeros": np.zeros((2, 3), np.int32)}, {}, "3 bits|do not fit"),
    ("gptq4", {f"{BASE}.qzeros": np.zeros((2, 5), np.int32)}, {}, "5 bits"),
    ("gptq4", {f"{BASE}.scales": np.zeros(2, np.float16)}, {}, "no matrices"),
    ("gptq4", {f"{BASE}.scales": np.zeros((2, 0), np.float16)}, {}, "are empty"),
    ("gptq4", {f"{BASE}.g_idx": np.zeros(63, np.int32)}, {}, "another length"),
    ("gptq4", {}, {"group_size": 0}, "groups of 0 values"),
    ("gptq4", {WEIGHT: np.zeros(3, np.float32)}, {}, "share a name"),
    ("gptq4", {}, {"checkpoint_format": "marlin"}, "GPTQ in the layout marlin"),
    ("gptq4", {}, {"is_marlin_format": True}, "GPTQ in the layout marlin"),
    ("gptq4", {}, {"quant_method": "auto-round"}, "packed by auto-round"),
    ("gptq4", {}, {"quant_method": None}, "no quantization_config"),
    ("awq4", {}, {"version": "gemv"}, "AWQ in the layout gemv"),
    ("awq4", {f"{BASE}.scales": np.zeros((3, 32), np.float16)}, {}, "do not fit"),
    ("nf4", {f"{WEIGHT}.absmax": None}, {}, "absmax is missing"),
    ("nf4", {f"{WEIGHT}.quant_map": np.zeros(15, np.float32)}, {}, "do not fit"),
    ("nf4", {STATE: None}, {}, "is missing"),
    ("nf4", {STATE: text(b"[" * 50_000)}, {}, "not a JSON object"),
    ("nf4", {STATE: text(b"\xff\x00")}, {}, "not a JSON object"),
    ("nf4", {STATE: text([1])}, {}, "not a JSON object"),
    ("nf4", {STATE: text(b" " * 70_000)}, {}, "a quant_state of 70,000 bytes"),
    ("nf4", {STATE: state(blocksize=0)}, {}, "describes no tensor"),
    ("nf4", {STATE: state(shape=[])}, {}, "describes no tensor"),
    ("nf4", {STATE: state(shape=[16, "40"])}, {}, "describes no tensor"),
    ("nf4", {STATE: state(shape=[1 << 47] * 8)}, {}, "do not fit"),
    ("nf4", {STATE: state(shape=[16, 41])}, {}, "do not fit"),
    ("nf4-nested", {f"{WEIGHT}.nested_quant_map": np.zeros(16, np.float32)}, {}, "do not fit"),
    ("bnb8", {f"{BASE}.SCB": None}, {}, "SCB is missing"),
    ("bnb8", {f"{BASE}.SCB": np.zeros(15, np.float32)}, {}, "SCB does not fit"),
    ("fp8-blocks", {f"{WEIGHT}_scale_inv": np.zeros((4, 7), np.float32)}, {}, "groups do not fit"),
    ("fp8-blocks", {f"{WEIGHT}_scale_inv": np.zeros((1, 1, 3, 2), np.float32)}, {}, "do not fit"),
    ("fp8-blocks", {}, {"weight_block_size": [0, 0]}, "groups of 0 values"),
    ("fp8-experts", {f"{WEIGHT}_scale_inv": np.zeros((3, 2, 2), np.float32)}, {}, "do not fit"),
    ("fp8-blocks", {WEIGHT: stored(np.zeros(8, np.uint8), "F8_E4M3")}, {}, "1 dimensions"),
    ("int4", {f"{WEIGHT}_shape": np.array([24, 1 << 62])}, {}, "do not fit its words"),
    ("int4", {f"{WEIGHT}_shape": np.array([24, -1])}, {}, "do not fit its words"),
    ("int4", {f"{WEIGHT}_shape": None}, {}, "weight_shape is missing"),
    ("int4", {f"{WEIGHT}_scale": None}, {}, "weight_scale is missing"),
    ("int4", {f"{WEIGHT}_scale": np.zeros((23, 4), np.float32)}, {}, "scales do not fit"),
    ("int4", {f"{WEIGHT}_zero_point": np.zeros((24, 4), np.int32)}, {}, "zero points do not fit"),
    ("int4", {f"{WEIGHT}_g_idx": np.zeros(3, np.int32)}, {}, "another length"),
    ("int4", {}, {"format": "marlin-24"}, "in the format marlin-24"),
    ("int4", {}, {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity sparse-24-bitmask"),
    ("int4", {}, {"config_groups": [1]}, "do not fit its words"),
    ("int4", {}, {"config_groups": {"a": {"weights": {"num_bits": [4]}}, "b": 1}}, "do not fit its words"),
    ("int8-bytes", {f"{WEIGHT}_zero_point": np.zeros(2, np.int8)}, {}, "differ in shape"),
    ("int8-bytes", {}, {"quant_method": "quark"}, "packed by quark"),
    ("nvfp4", {f"{WEIGHT}_global_scale": None}, {}, "global_scale is missing"),
    ("nvfp4", {f"{WEIGHT}_global_scale": np.zeros(2, np.float32)}, {}, "do not fit"),
    ("mxfp4", {"model.layers.0.mlp.experts.gate_up_proj_scales": None}, {}, "scales is missing"),
    ("mxfp4", {"model.layers.0.mlp.experts.gate_up_proj_scales": np.zeros((3, 34), np.uint8)}, {}, "fit"),
]  # fmt: skip


@pytest.mark.parametrize(("scheme", "tensors", "settings", "message"), DAMAGE)
def test_damage_is_listed_and_refused(scheme, tensors, settings, message, tmp_path):
    sample = packing.SAMPLES[scheme](np.random.default_rng(1))
    changed = {name: t for name, t in (sample.tensors | tensors).items() if t is not None}
    sample = sample._replace(tensors=changed, settings=sample.settings | settings)
    with open_checkpoint(write(tmp_path, sample)) as checkpoint:
        assert list(checkpoint.tensors) == list(checkpoint.stored) == list(changed)
        assert checkpoint.total_parameters == 0 or WEIGHT in tensors
        assert any("cannot be decoded" in note for note in checkpoint.notes)
        with pytest.raises(errors.PackedFormatUnsupported, match=message):
            list(checkpoint.blocks())
        refused = next(name for name, info in checkpoint.tensors.items() if info.refusal)
        with pytest.raises(errors.PackedFormatUnsupported, match=message):
            checkpoint.array(refused)


def test_the_shape_of_the_scales_decides_where_the_settings_do_not_fit(tmp_path):
    sample = packing.gptq(np.random.default_rng(2), group=16)
    sample.settings["group_size"] = 48  # as where settings of single modules differ
    with open_checkpoint(write(tmp_path, sample)) as checkpoint:
        np.testing.assert_array_equal(checkpoint.array(sample.name), sample.values)


def test_zero_points_that_are_not_packed_are_read_too(tmp_path):
    sample = packing.words_int(np.random.default_rng(3), rows=8, columns=16, group=8, bits=8)
    packed = sample.tensors[f"{WEIGHT}_zero_point"].T.copy().view(np.uint8)
    sample.tensors[f"{WEIGHT}_zero_point"] = (packed.astype(int) - 128).astype(np.int8).T.copy()
    with open_checkpoint(write(tmp_path, sample)) as checkpoint:
        np.testing.assert_array_equal(checkpoint.array(sample.name), sample.values)
