"""Weights of one encoder in its three layouts: padded, packed, and that of the public training source."""

from __future__ import annotations

import logging
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from hilm.errors import ConversionError, UsageError
from hilm.models.onevision.config import OneVisionConfig
from hilm.models.onevision.modeling import OneVisionModel

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

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
    for rule, layer, end, shape in _groups(config):
        names = [begin.format(i=layer) + end for begin in getattr(rule, source)]
        wanted = [begin.format(i=layer) + end for begin in getattr(rule, target)]
        part = (shape[0] * len(rule.padded) // len(names), *shape[1:])
        found = [left.pop(name, None) for name in names]
        wrong = _wrong(names, found, part)
        problems += wrong
        if not wrong:
            out.update(zip(wanted, _regrouped(found, len(wanted)), strict=True))
    problems += [f"{key} is left over" for key in left]
    if problems:
        raise ConversionError(f"these are not the weights of the {source} layout: {'; '.join(problems)}")
    return out


def _spelled(state: Mapping[str, Tensor]) -> tuple[State, list[str]]:
    """Take out rotary buffers and other spellings; also say what is given twice, or of several dtypes."""
    rotary = [key for key in state if ROTARY.search(key)]
    if rotary:
        logger.warning("rotary buffers are computed, not converted: %s", ", ".join(rotary))
    named = [(FUSED.sub(r"\1.\2", key), value) for key, value in state.items() if key not in rotary]
    out = dict(named)
    problems = [
        f"{key} is given twice" for key, count in Counter(name for name, _ in named).items() if count > 1
    ]
    dtypes = sorted({str(value.dtype) for value in out.values()})
    return out, problems + ([f"dtypes are mixed: {', '.join(dtypes)}"] if len(dtypes) > 1 else [])


def _wrong(names: Sequence[str], found: Sequence[Tensor | None], shape: tuple[int, ...]) -> list[str]:
    shapes = [None if value is None else tuple(value.shape) for value in found]
    return [
        f"{name} is missing" if has is None else f"{name} is {has}, not {shape}"
        for name, has in zip(names, shapes, strict=True)
        if has != shape
    ]


def _groups(config: OneVisionConfig) -> Iterator[tuple[Rule, str, str, torch.Size]]:
    """Yield for every group its rule, its layer, how its names end, and the shape of one padded weight."""
    fields = {name: value for name, value in config.to_dict().items() if name != "model_type"}
    with torch.device("meta"):
        weights = OneVisionModel(OneVisionConfig(**fields)).state_dict()
    for key, value in weights.items():
        layer = key.split(".")[2] if key.startswith("encoder.") else ""
        for rule in KEY_MAP:
            begin = rule.padded[0].format(i=layer)
            if key.startswith(begin):
                yield rule, layer, key.removeprefix(begin), value.shape


def _regrouped(parts: list[Tensor], count: int) -> list[Tensor]:
    if len(parts) == count:
        return parts
    return [torch.cat(parts)] if count == 1 else [part.clone() for part in parts[0].chunk(count)]
