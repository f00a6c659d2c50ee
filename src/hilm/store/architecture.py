"""Sizes of a model as its ``config.json`` states them, under whatever names its family uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    Config = Mapping[str, Any]

LARGEST = 1 << 32
"""No size of a model is larger; a greater number is a slip or an attack, and taken for absent."""

_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "encoder_layers")
_DECODER = ("num_decoder_layers", "decoder_layers")
_WIDTH = ("hidden_size", "n_embd", "d_model", "n_embed", "dim")
_INNER = (
    "moe_intermediate_size",
    "intermediate_size",
    "n_inner",
    "d_ff",
    "ffn_dim",
    "encoder_ffn_dim",
    "hidden_dim",
)
_HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads", "encoder_attention_heads")
_KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv")
_HEAD_SIZE = ("head_dim", "d_kv")
_EXPERTS = ("num_experts_per_tok", "num_experts_per_token", "moe_topk")
_TOKEN_HEADS = ("MaskedLM", "PreTraining", "LMHead", "CausalLM")
_ACTIVATION = ("hidden_act", "activation_function", "activation", "hidden_activation", "feed_forward_proj")

ENCODERS = frozenset(
    {
        *("albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "ernie"),
        *("modernbert", "mpnet", "nomic_bert", "roberta", "xlm-roberta"),
        *("beit", "clip", "convnext", "deit", "dinov2", "resnet", "siglip", "swin", "vit"),
        *("hubert", "wav2vec2"),
    }
)
"""Model types that attend to the whole input at once and keep no cache of keys and values."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """Sizes of a model.

    Attributes:
        layers: Blocks, of encoder and decoder together.
        width: Size of the residual stream.
        inner: Size within a feed-forward part; of all experts that one token visits.
        vocabulary: Scores that training computes for every token; 0 for encoders without a language model's
            head, and for classifiers.
        activation: Name of the function in the feed-forward part.
        cache: Values of the cache of keys and values per token; None where there is no such cache.
    """

    layers: int
    width: int
    inner: int
    vocabulary: int
    activation: str
    cache: int | None


def read_architecture(config: Config | None) -> Architecture | None:
    """Read what a configuration states; None where it lacks the number of layers or their width."""
    config = config or {}
    nested = config.get("text_config")
    config = nested if isinstance(nested, dict) else config
    layers, width = _size(config, _LAYERS), _size(config, _WIDTH)
    if not layers or not width:
        return None
    decoder = _size(config, _DECODER)
    encoder = config.get("model_type") in ENCODERS and not config.get("is_decoder")
    experts = _size(config, _EXPERTS) or 1
    activation = next((config[name] for name in _ACTIVATION if isinstance(config.get(name), str)), "")
    return Architecture(
        layers=layers + (decoder or 0),
        width=width,
        inner=(_size(config, _INNER) or 4 * width) * experts,
        vocabulary=(_scores_tokens(config, encoder) and _size(config, ("vocab_size",))) or 0,
        activation=activation,
        cache=None if encoder else _cache(config, decoder or layers, width),
    )


def _size(config: Config, names: tuple[str, ...]) -> int | None:
    """The first of these that is a size."""
    values = (config.get(name) for name in names)
    return next((value for value in values if type(value) is int and 0 < value < LARGEST), None)


def _scores_tokens(config: Config, encoder: bool) -> bool:  # noqa: FBT001 - private
    named = str(config.get("architectures"))
    return any(head in named for head in _TOKEN_HEADS) if encoder else "Classification" not in named


def _cache(config: Config, layers: int, width: int) -> int | None:
    """Values per token: keys and values of every layer, or what DeepSeek's latent attention keeps instead."""
    heads = _size(config, _HEADS)
    if heads is None:
        return None
    if latent := _size(config, ("kv_lora_rank",)):
        return layers * (latent + (_size(config, ("qk_rope_head_dim",)) or 0))
    if config.get("multi_query") and not config.get("new_decoder_architecture"):  # Falcon, BigCode
        key_heads = 1
    else:
        key_heads = _size(config, _KEY_HEADS) or heads
    return 2 * layers * key_heads * (_size(config, _HEAD_SIZE) or width // heads)
