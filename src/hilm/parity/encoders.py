"""The padded and the packed encoder of ``hilm.models.onevision`` as runners that share token keys."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hilm.errors import InputError, UsageError
from hilm.extras import require
from hilm.parity.audit import digests, named_weights
from hilm.parity.loading import load_adapter, load_transformers, read_config, read_weights
from hilm.parity.runners import TorchRunner, prepare_module

if TYPE_CHECKING:
    from torch import nn

    from hilm.parity.inputs import Item, Reading
    from hilm.parity.metrics import Keys

FAMILY = ("hilm_onevision", "onevision_encoder", "llava_vit")
"""Beginnings of the ``model_type`` of what ``load_onevision`` reads."""


def read_fields(path: str) -> dict[str, Any]:
    """Read ``config.json`` as data; of the pair, also foreign ones, with defaults for what is not said.

    Raises:
        InputError: There is none, or of a type that is not known.
    """
    file = Path(path) / "config.json"
    if file.is_file():
        try:
            fields = json.loads(file.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{file}: not JSON", hint="give a model folder") from error
        if isinstance(fields, dict) and is_onevision(fields):
            return {**require("hilm.models.onevision").OneVisionConfig().to_dict(), **fields}
    return dict(read_config(path).to_dict())


def fit_reading(path: str, fields: dict[str, Any], reading: Reading) -> Reading:
    """Return the reading with a model's patch and, where it takes but one, its size.

    Raises:
        InputError: It is no vision model.
    """
    patch, size = fields.get("patch_size"), fields.get("image_size")
    sides = [size, size] if isinstance(size, int) else size
    if not isinstance(patch, int) or patch < 1:
        raise InputError(f"{path}: its config has no patch_size", hint="give a vision model")
    if is_onevision(fields) or not isinstance(sides, list | tuple):
        return replace(reading, patch=patch)
    return replace(reading, patch=patch, size=(int(sides[0]), int(sides[1])))


def describe(model: nn.Module) -> dict[str, Any]:
    """Say what a loaded model is: type, digest of config and weights, parameters."""
    weights, config = named_weights(model), model.config
    lines = [f"{name} {digests(weights[name])[0]}" for name in sorted(weights)]
    return {
        "model_type": config.model_type,
        "config_sha256": hashlib.sha256(config.to_json_string(use_diff=False).encode()).hexdigest(),
        "weights_sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
        "parameters": sum(value.numel() for value in weights.values()),
    }


def is_onevision(config: dict[str, Any]) -> bool:
    """Say whether a config is one of the pair."""
    return str(config.get("model_type", "")).startswith(FAMILY)


def encoder_runner(
    path: str,
    *,
    packed: bool | None = None,
    attention: str = "sdpa",
    weights: str = "",
    adapter: str = "",
    blocks: str = "",
    device: str = "cpu",
) -> TorchRunner:
    """Make the runner of a transformers model; one of the pair is fed patches or pixels as it needs.

    Args:
        path: Folder or Hub id.
        packed: The variant of the pair wanted, converted if need be; as it is stored when None.
        attention: ``sdpa``, ``eager`` or ``flash``.
        weights: A checkpoint or reel whose weights it gets instead of its own.
        adapter: Folder of an adapter for it.
        blocks: Path of the stack of blocks.
        device: Where it runs.

    Raises:
        UsageError: Flash attention has no accelerator.
        InputError: There is no usable config.
    """
    if attention == "flash" and not device.startswith("cuda"):
        raise UsageError(f"flash attention does not run on {device}", hint="--attn sdpa")
    kind = {"flash": "flash_attention_2"}.get(attention, attention)
    if adapter:
        load = partial(load_adapter, path, adapter)
        return TorchRunner(load, prepare_module, f"{path}+{adapter}", blocks, device)
    config = read_fields(path)
    if not is_onevision(config):
        load = partial(load_transformers, path, weights, kind)
        return TorchRunner(load, prepare_module, weights or path, blocks, device)
    is_packed = "pack" in config["model_type"] if packed is None else packed
    load = partial(_load_onevision, path, is_packed, kind, weights)
    prepare = prepare_packed if is_packed else prepare_padded
    return TorchRunner(load, prepare, weights or path, blocks, device)


def _load_onevision(path: str, packed: bool, attention: str, weights: str) -> nn.Module:  # noqa: FBT001 - called through partial
    model = require("hilm.models.onevision").load_onevision(path, packed=packed)
    model.set_attn_implementation(attention)
    if weights:
        model.load_state_dict(read_weights(weights))
    return model


def prepare_padded(item: Item, model: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any], Keys]:
    """Feed pixels ``(1, 3, H, W)``, or ``(1, 3, T, H, W)`` with the slot of each frame."""
    torch = require("torch")
    first = next(model.parameters())
    pixels = torch.from_numpy(item.pixels).to(first.device, first.dtype)
    if item.kind == "image":
        return (), {"pixel_values": pixels[:, :, 0]}, item.keys()
    slots = torch.tensor([item.slots], device=first.device)
    return (), {"pixel_values": pixels, "frame_slots": slots}, item.keys()


def prepare_packed(item: Item, model: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any], Keys]:
    """Feed patches ``(N, 3 p p)`` with their grid and places."""
    torch = require("torch")
    first = next(model.parameters())
    onevision = require("hilm.models.onevision")
    slots = torch.tensor(item.slots) if item.kind == "video" else None
    batch = onevision.pack([(torch.from_numpy(item.pixels[0]), slots)], item.patch)
    given = {
        "hidden_states": batch.patches.to(first.device, first.dtype),
        "grid_thw": batch.grid_thw.to(first.device),
        "patch_positions": batch.patch_positions.to(first.device),
    }
    return (), given, item.keys()
