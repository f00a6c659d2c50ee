from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from hilm.models.resnet_bk import PRESETS, create_resnet_bk_for_hf, describe
from tests.models.resnet_bk.tiny import config, tokens

COUNTS = {
    "1M": (8_298_508, 8_101_900, 1_152),
    "10M": (22_010_654, 18_029_342, 3_456),
    "100M": (99_616_876, 48_695_404, 13_824),
    "1B": (1_002_543_512, 200_382_872, 55_296),
    "10B": (9_973_568_544, 871_928_864, 147_456),
}
DOCUMENTED = {"1M": 8.31e6, "10M": 21.98e6, "100M": 100e6, "1B": 1e9, "10B": 10e9}


@pytest.mark.parametrize("size", PRESETS)
def test_counts_are_the_documented_ones(size):
    made = create_resnet_bk_for_hf(size, device="meta")
    counted = describe(made.config)
    assert sum(weight.numel() for weight in made.parameters()) == counted.parameters
    assert (counted.label, counted.parameters, counted.active_parameters, counted.state_floats) == (
        size,
        *COUNTS[size],
    )
    assert abs(counted.parameters / DOCUMENTED[size] - 1) < 0.01


def test_state_floats_are_those_of_the_cache():
    for fields in ({}, {"low_rank": 2}, {"use_semiseparable": False}, {"use_birman_schwinger": True}):
        made = create_resnet_bk_for_hf(vocab_size=50, **fields)
        cache = made(tokens(1, 3), use_cache=True).past_key_values
        floats = sum(values.numel() for layer in cache.layers for values in layer.state)
        assert floats == describe(made.config).state_floats


def test_other_configurations_are_custom():
    assert describe(config()).label == "custom"


def test_a_tokenizer_sets_the_vocabulary():
    class Tokenizer(SimpleNamespace):
        def __len__(self):
            return 384

    made = create_resnet_bk_for_hf(
        tokenizer=Tokenizer(pad_token_id=0, bos_token_id=None, eos_token_id=1), device="meta"
    )
    assert made.lm_head.out_features == 384
    assert (made.config.pad_token_id, made.config.bos_token_id, made.config.eos_token_id) == (0, None, 1)


def test_overrides_dtype_and_unknown_sizes():
    made = create_resnet_bk_for_hf("1M", vocab_size=50, dtype=torch.bfloat16, use_act=True)
    assert made.config.use_act
    assert made.dtype == torch.bfloat16
    assert made.model.layers[0].mixer.energy.dtype == torch.float32
    with pytest.raises(ValueError, match="'2M'; there are 1M, 10M, 100M, 1B, 10B"):
        create_resnet_bk_for_hf("2M")
    with pytest.raises(ValueError, match="no field d_modl"):
        create_resnet_bk_for_hf("1M", d_modl=64)
