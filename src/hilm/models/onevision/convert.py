"""Weights of one encoder in its three layouts: padded, packed, and that of the public training source."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from hilm.errors import ConversionError, UsageError
from hilm.models.onevision.config import OneVisionConfig
from hilm.models.onevision.modeling import OneVisionModel

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Layout: TypeAlias = Literal["padded", "packed", "training"]
State: TypeAlias = dict[str, Tensor]

logger = logging.getLogger("hilm.models")


@dataclass(frozen=True, slots=True)
class Rule:
    """How names of weights begin in each layout; several names are one weight cut along axis 0.

    Attributes:
        padded: Of the padded variant; ``{i}`` is the layer.
        packed: Of the packed variant.
        training: Of the public training source.
    """

    padded: tuple[str, ...]
    packed: tuple[str, ...]
    training: tuple[str, ...]


_OURS, _THEIRS = "encoder.layers.{i}.", "transformer.layers.{i}."
_QKV = tuple(f"{_OURS}self_attn.{name}_proj." for name in "qkv")

KEY_MAP: tuple[Rule, ...] = (
    Rule(("embeddings.patch_embedding.",), ("patch_embed.proj.",), ("conv1.",)),
    Rule(("layernorm_pre.",), ("layernorm_pre.",), ("ln_pre.",)),
    Rule(("layernorm_post.",), ("layernorm_post.",), ("ln_post.",)),
    Rule((f"{_OURS}layer_norm1.",), (f"{_OURS}layer_norm1.",), (f"{_THEIRS}ln_1.",)),
    Rule((f"{_OURS}layer_norm2.",), (f"{_OURS}layer_norm2.",), (f"{_THEIRS}ln_2.",)),
    Rule((f"{_OURS}mlp.fc1.",), (f"{_OURS}mlp.fc1.",), (f"{_THEIRS}mlp.0.",)),
    Rule((f"{_OURS}mlp.fc2.",), (f"{_OURS}mlp.fc2.",), (f"{_THEIRS}mlp.2.",)),
    Rule(_QKV, (f"{_OURS}self_attn.qkv.",), (f"{_THEIRS}attn.in_proj.",)),
    Rule((f"{_OURS}self_attn.out_proj.",), (f"{_OURS}self_attn.proj.",), (f"{_THEIRS}attn.out_proj.",)),
    Rule(("head.",), ("head.",), ("head.",)),
)
"""Every name of every layout; what follows the beginning is the same in all three."""

ROTARY = re.compile(r"(^|\.)(video_rope|rotary_emb)\.")
"""Buffers that are computed here; the only keys that a conversion drops."""
FUSED = re.compile(r"^(transformer\.layers\.\d+\.attn\.in_proj)_(weight|bias)$")
"""The training source's other spelling."""


def convert_state_dict(
    state: Mapping[str, Tensor], source: Layout, target: Layout, config: OneVisionConfig
) -> State:
    """Rename, join and cut weights from one layout to another; no value changes.

    Weights that keep their shape are not copied. Rotary buffers are dropped, with a warning that lists them.

    Args:
        state: All weights of one model, of one dtype.
        source: Their layout.
        target: The layout to make.
        config: Of either variant; decides which weights there are and their shapes.

    Raises:
        ConversionError: Weights are missing, left over, given twice, or of another shape or dtype;
            all are listed.
        UsageError: There is no such layout.
    """
    for layout in (source, target):
        if layout not in get_args(Layout):
            raise UsageError(f"there is no layout {layout!r}; there are {', '.join(get_args(Layout))}")
    left, problems = _spelled(state)
    out: State = {}
    for rule, name, shape in _groups(config):
        names = {layout: _named(rule, layout, *name) for layout in (source, target)}
        whole = (shape[0] * len(rule.padded), *shape[1:])
        part = (whole[0] // len(names[source]), *whole[1:])
        problems += [f"{key} is missing" for key in names[source] if key not in left]
        found = {key: left.pop(key) for key in names[source] if key in left}
        wrong = {key: tuple(value.shape) for key, value in found.items() if value.shape != part}
        problems += [f"{key} is {has}, not {part}" for key, has in wrong.items()]
        if len(found) == len(names[source]) and not wrong:
            out.update(zip(names[target], _regrouped(list(found.values()), len(names[target])), strict=True))
    problems += [f"{key} is left over" for key in left]
    dtypes = sorted({str(value.dtype) for value in state.values()})
    problems += [f"dtypes are mixed: {', '.join(dtypes)}"] if len(dtypes) > 1 else []
    if problems:
        raise ConversionError(f"these are not the weights of the {source} layout: {'; '.join(problems)}")
    return out


def _spelled(state: Mapping[str, Tensor]) -> tuple[State, list[str]]:
    """Take out rotary buffers and alternative spellings; also return what was given twice."""
    rotary = [key for key in state if ROTARY.search(key)]
    if rotary:
        logger.warning("rotary buffers are computed, not converted: %s", ", ".join(rotary))
    out: State = {}
    twice = []
    for key in state.keys() - set(rotary):
        name = FUSED.sub(r"\1.\2", key)
        twice += [f"{name} is given twice"] if name in out else []
        out[name] = state[key]
    return out, twice


def _groups(config: OneVisionConfig) -> Iterator[tuple[Rule, tuple[str, str], torch.Size]]:
    """Yield for every group its rule, (layer, end of the name), and the shape of one padded weight."""
    fields = {name: value for name, value in config.to_dict().items() if name != "model_type"}
    with torch.device("meta"):
        weights = OneVisionModel(OneVisionConfig(**fields)).state_dict()
    for key, value in weights.items():
        layer = key.split(".")[2] if key.startswith("encoder.") else ""
        for rule in KEY_MAP:
            begin = rule.padded[0].format(i=layer)
            if key.startswith(begin):
                yield rule, (layer, key.removeprefix(begin)), value.shape


def _named(rule: Rule, layout: Layout, layer: str, end: str) -> list[str]:
    return [begin.format(i=layer) + end for begin in getattr(rule, layout)]


def _regrouped(parts: list[Tensor], count: int) -> list[Tensor]:
    if len(parts) == count:
        return parts
    return [torch.cat(parts)] if count == 1 else [part.clone() for part in parts[0].chunk(count)]
