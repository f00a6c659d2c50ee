"""The five sizes, and what a configuration weighs."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch

from hilm.models.resnet_bk.configuration_resnet_bk import ResNetBKConfig
from hilm.models.resnet_bk.modeling_resnet_bk import ResNetBKForCausalLM

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedTokenizerBase

PRESETS: Mapping[str, Mapping[str, int]] = {
    "1M": {"d_model": 128, "n_layers": 4, "num_experts": 2, "n_seq": 512, "d_ff": 192},
    "10M": {"d_model": 256, "n_layers": 6, "num_experts": 4, "n_seq": 1024, "d_ff": 432},
    "100M": {"d_model": 512, "n_layers": 12, "num_experts": 8, "n_seq": 2048, "d_ff": 592},
    "1B": {"d_model": 1024, "n_layers": 24, "num_experts": 16, "n_seq": 4096, "d_ff": 1088},
    "10B": {"d_model": 2048, "n_layers": 32, "num_experts": 32, "n_seq": 8192, "d_ff": 2240},
}
"""Documented label → what differs from the defaults of :class:`ResNetBKConfig`."""


@dataclasses.dataclass(frozen=True, slots=True)
class ModelSize:
    """What a model weighs, counted on the model itself.

    Attributes:
        label: Name of the preset it is made from, or "custom". A label tells a class of sizes, not a count.
        parameters: All of them.
        active_parameters: Those that one token uses.
        state_floats: Floats that generation carries from token to token, per sequence.
    """

    label: str
    parameters: int
    active_parameters: int
    state_floats: int


def describe(config: ResNetBKConfig) -> ModelSize:
    """Count a configuration's parameters; no memory is taken for them."""
    with torch.device("meta"):
        model = ResNetBKForCausalLM(config)
    total = sum(parameter.numel() for parameter in model.parameters())
    idle = (config.num_experts - config.top_k) * 2 * config.d_model * config.d_ff
    state = 2 * config.bk_channels + config.use_birman_schwinger * config.bk_channels
    if config.use_semiseparable:
        state += 2 * config.d_model * (config.low_rank or 1)
    shapes = {name: getattr(config, name) for name in PRESETS["1M"]}
    label = next((label for label, preset in PRESETS.items() if shapes == preset), "custom")
    return ModelSize(label, total, total - config.n_layers * idle, config.n_layers * state)


def checked_config(**fields: Any) -> ResNetBKConfig:
    """Make a configuration of known fields only: a saved one may carry others, a misspelt one must not pass.

    Raises:
        ValueError: There is no such field, or one is wrong.
    """
    known = {field.name for field in dataclasses.fields(ResNetBKConfig)} | set(ResNetBKConfig.attribute_map)
    unknown = sorted(fields.keys() - known)
    if unknown:
        raise ValueError(f"ResNetBKConfig has no field {', '.join(unknown)}")
    return ResNetBKConfig(**fields)


def create_resnet_bk_for_hf(
    model_size: str = "1M",
    *,
    vocab_size: int = 30000,
    tokenizer: PreTrainedTokenizerBase | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    **overrides: Any,
) -> ResNetBKForCausalLM:
    """Make a randomly initialised model of a documented size.

    Args:
        model_size: A label of :data:`PRESETS`.
        vocab_size: Rows of the embedding, unless a tokenizer is given.
        tokenizer: Sets the vocabulary's size and the special tokens.
        device: Where to make it; "meta" takes no memory.
        dtype: Of the weights; the recurrences keep their own.
        overrides: Further fields of :class:`ResNetBKConfig`.

    Raises:
        ValueError: There is no such size or field, or a field is wrong.
    """
    if model_size not in PRESETS:
        raise ValueError(f"there is no size {model_size!r}; there are {', '.join(PRESETS)}")
    fields: dict[str, Any] = {"vocab_size": vocab_size, **PRESETS[model_size]}
    if tokenizer is not None:
        special = ("pad_token_id", "bos_token_id", "eos_token_id")
        fields |= {"vocab_size": len(tokenizer)} | {name: getattr(tokenizer, name) for name in special}
    with torch.device(device or "cpu"):
        model: ResNetBKForCausalLM = ResNetBKForCausalLM._from_config(  # noqa: SLF001 - what AutoModel.from_config calls
            checked_config(**fields | overrides), dtype=dtype or torch.float32
        )
    return model
