from __future__ import annotations

import json

import pytest
from transformers.utils import logging

from hilm.models.resnet_bk import ResNetBKConfig, ResNetBKForCausalLM
from tests.models.resnet_bk.tiny import config


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vocab_size", 0), ("d_model", 2.5), ("n_layers", "8"), ("num_experts", True), ("low_rank", 0),
        ("top_k", 4), ("bk_channels", 5), ("dropout_p", 1.0), ("epsilon", -0.1), ("schatten_threshold", 0),
        ("scattering_scale", 0.0), ("k_max", 0), ("act_halt_threshold", 1.0), ("v_max", 0), ("eta_min", 1e-3),
        ("eta_init", 0.01), ("right_closure", "open"), ("core_dtype", "float16"), ("use_act", 1),
        ("position_embedding", "rotary"), ("prime_bump_scale", -1.0), ("router_aux_loss_coef", float("nan")),
    ],
)  # fmt: skip
def test_every_rule_names_field_value_and_rule(field, value):
    with pytest.raises(ValueError, match=rf"{field} is .*; it must be ") as caught:
        config(**{field: value})
    assert repr(value) in str(caught.value)


def test_rules_that_join_fields():
    with pytest.raises(ValueError, match="n_layers is 1; it must be at least 2 with use_act"):
        config(use_act=True, n_layers=1)
    with pytest.raises(ValueError, match="low_rank is 2; it must be None without use_semiseparable"):
        config(use_semiseparable=False, low_rank=2)
    assert config(core_dtype="float64", eta_min=1e-4, eta_init=1e-3).eta_min == 1e-4
    assert config(use_semiseparable=False, bk_channels=5).bk_channels == 5


def test_derived_widths():
    made = ResNetBKConfig(d_model=64)
    assert (made.d_ff, made.bk_channels) == (128, 8)
    assert ResNetBKConfig(d_model=4).bk_channels == 1


def test_names_of_the_library():
    made = config(top_k=2)
    names = ("hidden_size", "num_hidden_layers", "max_position_embeddings", "intermediate_size")
    assert [getattr(made, name) for name in names] == [16, 2, 32, 32]
    assert (made.num_experts_per_tok, made.num_local_experts) == (2, 3)


def test_round_trip(tmp_path):
    made = config(top_k=2, use_act=True, low_rank=2, eos_token_id=[2, 3])
    made.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["num_experts_per_tok"] == 2
    assert "top_k" not in written
    assert ResNetBKConfig.from_pretrained(tmp_path).to_dict() == made.to_dict()


def test_the_experts_top_k_is_no_sampling_parameter(tmp_path):
    made = ResNetBKForCausalLM(config(top_k=2))
    assert made.generation_config.top_k is None
    made.save_pretrained(tmp_path)
    loaded = ResNetBKForCausalLM.from_pretrained(tmp_path)
    assert (loaded.config.top_k, loaded.generation_config.top_k) == (2, None)


def test_settings_without_effect_are_pointed_out(monkeypatch):
    said = []
    logger = logging.get_logger("hilm.models.resnet_bk.configuration_resnet_bk")
    monkeypatch.setattr(logger, "warning_once", said.append)
    config(k_max=2, epsilon=0.5)
    config(use_prime_bump=True, k_max=2, epsilon=0.5)
    assert said == [
        "epsilon is set but has no effect without use_birman_schwinger or use_prime_bump",
        "k_max is set but has no effect without use_prime_bump",
    ]
