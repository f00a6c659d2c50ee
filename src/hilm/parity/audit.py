"""Look before running: the same weights, buffers that were restored, settings that agree."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hilm.extras import require

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hilm.parity.runners import Runner

SCALARS = ("eps", "variance_epsilon", "theta", "approximate", "num_heads", "scale", "scaling", "p", "base")
"""Attributes of modules that change what they compute."""

PASSING = {"transformers_version", "dtype", "torch_dtype", "_name_or_path", "architectures"}
"""Config fields that do not."""

HUGE = 1e20
ADAPTED = re.compile(r"\.(lora_\w+|base_layer|original_module|modules_to_save)\.")


@dataclass(frozen=True, slots=True)
class Survey:
    """What a loaded model holds.

    Attributes:
        weights: Digest of every parameter's values, as float32, bfloat16 and float16.
        buffers: Digest of every buffer, and what is odd about its values.
        settings: Scalar attributes and activations by path.
        config: Fields of its config.
        training: Whether it was in train mode.
        partial: Whether weights may lie under other names or in another form, as in an exported graph.
    """

    weights: dict[str, tuple[str, str, str]]
    buffers: dict[str, tuple[str, str]] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    training: bool = False
    partial: bool = False


@dataclass(frozen=True, slots=True)
class Audit:
    """What two models have in common before they run; ``faults`` make running them pointless."""

    weights: dict[str, int]
    different: list[str]
    unmapped: list[str]
    config: dict[str, list[Any]]
    settings: dict[str, list[str | None]]
    buffers: list[str]
    faults: list[str]
    warnings: list[str]


def digests(values: Tensor) -> tuple[str, str, str]:
    """SHA-256 of a tensor's shape and values as float32, bfloat16 and float16."""
    torch = require("torch")
    kinds = (torch.float32, torch.bfloat16, torch.float16)
    wide = values.detach().cpu()
    rounded = (wide.to(kind).float().contiguous().numpy() for kind in kinds)
    shape = repr(tuple(values.shape)).encode()
    return tuple(hashlib.sha256(shape + array.tobytes()).hexdigest() for array in rounded)  # type: ignore[return-value]


def named_weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters by name but adapted ones; of the packed encoder as the padded one names and cuts them."""
    weights = {n: v.detach() for n, v in model.named_parameters() if not ADAPTED.search(n)}
    config = getattr(model, "config", None)
    if getattr(config, "model_type", "") == "hilm_onevision_packed":
        convert = require("hilm.models.onevision").convert_state_dict
        weights = convert(weights, "packed", "padded", config)
    return weights


def survey(model: nn.Module) -> Survey:
    """Look at a loaded torch module."""
    settings = {}
    for path, module in model.named_modules():
        name = type(module).__name__
        if "activation" in type(module).__module__:
            settings[f"{path}:class"] = name
        for key in SCALARS:
            value = getattr(module, key, None)
            if isinstance(value, int | float | str):
                settings[f"{path}.{key}" if path else key] = repr(value)
    config = model.config.to_dict() if hasattr(model, "config") and hasattr(model.config, "to_dict") else {}
    return Survey(
        {name: digests(value) for name, value in named_weights(model).items()},
        {name: (digests(value)[0], oddity(value)) for name, value in model.named_buffers()},
        settings,
        {key: value for key, value in config.items() if key not in PASSING},
        model.training,
        partial=any(ADAPTED.search(name) for name, _ in model.named_parameters()),
    )


def oddity(values: Tensor) -> str:
    """Say what makes a buffer look uninitialised, or nothing."""
    if not values.is_floating_point() or not values.numel():
        return ""
    array = np.abs(values.detach().double().cpu().numpy())
    tiny = (array > 0) & (array < float(np.finfo(np.float32).tiny))
    finite = array[np.isfinite(array)]
    if len(finite) < array.size and not np.isneginf(values.double().cpu().numpy()).any():
        return "NaN or infinite values"
    if tiny.any():
        return "denormal values"
    return "huge values" if len(finite) and finite.max() > HUGE and not math.isinf(finite.max()) else ""


def audit(reference: Runner, candidate: Runner) -> Audit | None:
    """Compare weights, buffers, settings and configs; None where a side has none to look at."""
    left, right = reference.survey(), candidate.survey()
    if left is None or right is None:
        return None
    counts, different, unmapped = _pair_weights(left, right)
    config = _differences(left.config, right.config) if left.config and right.config else {}
    settings = _differences(left.settings, right.settings) if left.settings and right.settings else {}
    settings = {key: pair for key, pair in settings.items() if None not in pair}
    sides = ((reference.label, left), (candidate.label, right))
    buffers = [
        f"{side}: buffer {name} not restored: {odd}"
        for side, found in sides
        for name, (_, odd) in found.buffers.items()
        if odd
    ]
    shared = left.buffers.keys() & right.buffers.keys()
    buffers += [f"buffer {n} differs" for n in sorted(shared) if left.buffers[n][0] != right.buffers[n][0]]
    faults = [f"not the same weights: {name} differs" for name in different]
    faults += [f"not the same weights: only one side has {name}" for name in unmapped] + buffers
    warnings = [f"{key} is {a} here and {b} there" for key, (a, b) in {**config, **settings}.items()]
    warnings += [f"{side} was in train mode; it runs in eval mode" for side, found in sides if found.training]
    if (left.partial or right.partial) and counts["unpaired"]:
        warnings.append(f"{counts['unpaired']} parameters have another form on one side; outputs decide")
    return Audit(dict(counts), different, unmapped, config, settings, buffers, faults, warnings)


def _pair_weights(left: Survey, right: Survey) -> tuple[Counter[str], list[str], list[str]]:
    """Pair parameters by name, then by value; names left over on both sides may be fused or split."""
    counts, different = Counter[str](), []
    first, second = dict(left.weights), dict(right.weights)
    for name in sorted(first.keys() & second.keys()):
        a, b = first.pop(name), second.pop(name)
        word = "identical" if a[0] == b[0] else "cast" if a[1] == b[1] or a[2] == b[2] else "different"
        counts[word] += 1
        different += [name] if word == "different" else []
    by_value: dict[tuple[str, str, str], list[str]] = {}
    for name, digest in second.items():
        by_value.setdefault(digest, []).append(name)
    for name, digest in list(first.items()):
        if same := by_value.get(digest):
            del first[name], second[same.pop()]
            counts["identical"] += 1
    counts["unpaired"] = len(first) + len(second)
    one_sided = not (first and second) and not (left.partial or right.partial)
    return counts, different, sorted({*first, *second}) if one_sided else []


def _differences(left: dict[str, Any], right: dict[str, Any]) -> dict[str, list[Any]]:
    keys = sorted(left.keys() | right.keys())
    return {key: [left.get(key), right.get(key)] for key in keys if left.get(key) != right.get(key)}
