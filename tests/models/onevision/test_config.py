from __future__ import annotations

import pytest
import torch

from hilm.errors import InputError
from hilm.models.onevision import (
    PRESETS,
    OneVisionConfig,
    OneVisionModel,
    OneVisionPackedConfig,
    OneVisionPackedModel,
)

PARAMETERS = {
    "small": 12_716_928,
    "base": 92_733_696,
    "base-p14": 92_595_456,
    "large": 315_509_760,
    "huge": 650_110_720,
    "huge27": 662_025_216,
    "giant": 1_162_498_560,
}


@pytest.mark.parametrize("size", PRESETS)
def test_sizes_have_the_published_number_of_parameters(size):
    with torch.device("meta"):
        models = (
            OneVisionModel(OneVisionConfig(**PRESETS[size])),
            OneVisionPackedModel(OneVisionPackedConfig(**PRESETS[size])),
        )
    assert [sum(p.numel() for p in model.parameters()) for model in models] == [PARAMETERS[size]] * 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", 100), ("hidden_size", 48), ("num_hidden_layers", 0), ("num_hidden_layers", 1025),
        ("patch_size", 14.0),
        ("rope_temporal_size", 0), ("layer_norm_type", "batch_norm"), ("rope_style", "none"),
        ("rope_compute", "bfloat16"), ("patch_embed", "mlp"), ("num_attention_heads", True),
    ],
)  # fmt: skip
def test_every_rule_names_field_value_and_rule(field, value):
    fields = {"hidden_size": 128, "num_attention_heads": 2} | {field: value}
    with pytest.raises(InputError, match=rf"{field} is {value!r}; it must be "):
        OneVisionConfig(**fields)


def test_the_variants_differ_in_the_precision_of_rotation():
    assert OneVisionConfig().rope_compute == "input"
    assert OneVisionPackedConfig().rope_compute == "float32"


def test_round_trip_keeps_unknown_fields(tmp_path):
    made = OneVisionPackedConfig(hidden_size=128, num_attention_heads=2, of_the_future=3)
    made.save_pretrained(tmp_path)
    loaded = OneVisionPackedConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == made.to_dict()
    assert loaded.of_the_future == 3
    assert "packed" not in made.to_dict()
