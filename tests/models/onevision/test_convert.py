from __future__ import annotations

import itertools

import pytest
import torch

from hilm.errors import ConversionError, UsageError
from hilm.models.onevision import convert_state_dict
from tests.models.onevision.tiny import packed, padded

LAYOUTS = ("padded", "packed", "training")
CONFIGS = ({}, {"use_head": False}, {"layer_norm_type": "rms_norm"})


def weights(layout="padded", **fields):
    model = padded(**fields)
    return convert_state_dict(model.state_dict(), "padded", layout, model.config), model.config


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(("source", "target"), list(itertools.permutations(LAYOUTS, 2)))
@pytest.mark.parametrize("fields", CONFIGS, ids=str)
def test_there_and_back_changes_nothing(source, target, fields):
    state, config = weights(source, **fields)
    there = convert_state_dict(state, source, target, config)
    assert there.keys() != state.keys()
    assert same(convert_state_dict(there, target, source, config), state)


def test_names_are_those_of_the_public_formats():
    state, config = weights("training")
    attention = "transformer.layers.2.attn.in_proj."
    assert state[f"{attention}weight"].shape == (384, 128)
    own = padded().state_dict()
    assert torch.equal(state[f"{attention}bias"][128:256], own["encoder.layers.2.self_attn.k_proj.bias"])
    assert torch.equal(state["transformer.layers.0.mlp.2.weight"], own["encoder.layers.0.mlp.fc2.weight"])
    assert {"conv1.weight", "ln_pre.bias", "ln_post.weight", "head.probe"} <= state.keys()
    assert same(convert_state_dict(state, "training", "packed", config), packed(padded()).state_dict())


def test_the_other_spelling_of_the_training_source():
    state, config = weights("training")
    other = {key.replace("in_proj.", "in_proj_"): value for key, value in state.items()}
    assert other.keys() != state.keys()
    assert same(convert_state_dict(other, "training", "padded", config), padded().state_dict())
    with pytest.raises(ConversionError, match=r"layers.0.attn.in_proj.weight is given twice"):
        convert_state_dict(state | other, "training", "padded", config)


def test_rotary_buffers_are_dropped_and_listed(caplog):
    state, config = weights()
    buffers = {
        "video_rope.inv_freq_t": torch.ones(8),
        "encoder.rotary_emb.inv_freq": torch.ones(8).bfloat16(),
    }
    assert same(convert_state_dict(state | buffers, "padded", "padded", config), state)
    assert all(name in caplog.text for name in buffers)


def test_everything_wrong_is_listed():
    state, config = weights()
    state["surplus"] = torch.ones(1)
    del state["layernorm_pre.bias"], state["encoder.layers.1.self_attn.k_proj.weight"]
    state["head.probe"] = torch.ones(1, 1, 64)
    state["layernorm_post.bias"] = state["layernorm_post.bias"].half()
    with pytest.raises(ConversionError) as caught:
        convert_state_dict(state, "padded", "packed", config)
    for problem in (
        "surplus is left over", "layernorm_pre.bias is missing",
        "dtypes are mixed: torch.float16, torch.float32",
        "encoder.layers.1.self_attn.k_proj.weight is missing", "head.probe is (1, 1, 64), not (1, 1, 128)",
    ):  # fmt: skip
        assert problem in str(caught.value)
    assert str(caught.value).count(";") == 4


def test_a_fused_weight_of_another_shape_is_refused():
    state, config = weights("packed")
    state["encoder.layers.0.self_attn.qkv.bias"] = torch.ones(383)
    with pytest.raises(ConversionError, match=r"qkv.bias is \(383,\), not \(384,\)"):
        convert_state_dict(state, "packed", "padded", config)


def test_the_head_is_there_if_the_configuration_says_so():
    with_head, config = weights()
    without, headless = weights(use_head=False)
    with pytest.raises(ConversionError, match=r"head.probe is left over"):
        convert_state_dict(with_head, "padded", "packed", headless)
    with pytest.raises(ConversionError, match=r"head.probe is missing"):
        convert_state_dict(without, "padded", "packed", config)


def test_layouts_are_named():
    state, config = weights()
    with pytest.raises(UsageError, match="no layout 'hf'; there are padded, packed, training"):
        convert_state_dict(state, "hf", "packed", config)
