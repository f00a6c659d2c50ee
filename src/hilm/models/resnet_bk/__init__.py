"""ResNet-BK: a causal language model in linear time, at home in transformers."""

from __future__ import annotations

from hilm.extras import require

require("torch")
require("transformers")

from transformers import (  # noqa: E402 - MissingExtra must come first
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from hilm.models.resnet_bk.cache_resnet_bk import ResNetBKCache  # noqa: E402 - the same
from hilm.models.resnet_bk.configuration_resnet_bk import ResNetBKConfig  # noqa: E402 - the same
from hilm.models.resnet_bk.modeling_resnet_bk import (  # noqa: E402 - the same
    ResNetBKForCausalLM,
    ResNetBKForMaskedLM,
    ResNetBKForQuestionAnswering,
    ResNetBKForSequenceClassification,
    ResNetBKForTokenClassification,
    ResNetBKModel,
)
from hilm.models.resnet_bk.presets import (  # noqa: E402 - the same
    PRESETS,
    ModelSize,
    checked_config,
    create_resnet_bk_for_hf,
    describe,
)
from hilm.models.resnet_bk.remote_code import save_with_code  # noqa: E402 - the same

__all__ = [
    "PRESETS",
    "ModelSize",
    "ResNetBKCache",
    "ResNetBKConfig",
    "ResNetBKForCausalLM",
    "ResNetBKForMaskedLM",
    "ResNetBKForQuestionAnswering",
    "ResNetBKForSequenceClassification",
    "ResNetBKForTokenClassification",
    "ResNetBKModel",
    "checked_config",
    "create_resnet_bk_for_hf",
    "describe",
    "save_with_code",
]

AutoConfig.register(ResNetBKConfig.model_type, ResNetBKConfig, exist_ok=True)
for auto, model in (
    (AutoModelForCausalLM, ResNetBKForCausalLM),
    (AutoModelForMaskedLM, ResNetBKForMaskedLM),
    (AutoModelForQuestionAnswering, ResNetBKForQuestionAnswering),
    (AutoModelForSequenceClassification, ResNetBKForSequenceClassification),
    (AutoModelForTokenClassification, ResNetBKForTokenClassification),
):
    auto.register(ResNetBKConfig, model, exist_ok=True)
