"""Transformers models as runners, loaded strictly and without running code of strangers.

The padded and the packed encoder of ``hilm.models.onevision`` share token keys.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hilm.errors import InputError, UsageError
from hilm.extras import require
from hilm.parity.audit import digests, named_weights
from hilm.parity.runners import TorchRunner, prepare_module
from hilm.reel.decoder import Reel
from hilm.weights import open_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

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


def load_transformers(path: str, weights: str = "", attention: str | None = None) -> nn.Module:
    """Load a transformers model strictly, as the class its config names, and run no code of strangers.

    Args:
        path: Folder or Hub id.
        weights: A checkpoint or reel whose weights it gets instead of its own.
        attention: Its attention implementation; its own choice when None.

    Raises:
        InputError: There is no config, no such architecture, or weights do not fit it.
    """
    transformers = require("transformers")
    config = read_config(path)
    name = (getattr(config, "architectures", None) or ["AutoModel"])[0]
    kind = getattr(transformers, name, transformers.AutoModel)
    state = read_weights(weights) if weights else None
    options = {"output_loading_info": True, "attn_implementation": attention}
    with quiet():
        try:
            if state is None:
                model, report = kind.from_pretrained(path, dtype="auto", **options)
            else:
                model, report = kind.from_pretrained(None, config=config, state_dict=state, **options)
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError(f"{path}: cannot be loaded: {first_line(error)}") from error
    lacking = sorted(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"]))
    if lacking or report["unexpected_keys"]:
        raise InputError(
            f"{weights or path}: weights do not fit: missing or misshapen {lacking or 'none'}, "
            f"unexpected {sorted(report['unexpected_keys']) or 'none'}",
            hint="the config must be that of the weights",
        )
    return model


def load_adapter(base: str, folder: str) -> nn.Module:
    """Load a PEFT adapter, not merged, into its base model.

    Args:
        base: Folder or Hub id.
        folder: The adapter.

    Raises:
        InputError: The adapter cannot be read, or does not fit the base.
    """
    peft, plain = require("peft"), load_transformers(base)
    try:
        with quiet():
            adapted = peft.PeftModel.from_pretrained(plain, folder, autocast_adapter_dtype=False)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder}: no adapter of {base}: {first_line(error)}", hint="BASE+ADAPTER names both"
        ) from error
    model: nn.Module = adapted.base_model.model
    return model


def read_config(path: str) -> Any:  # noqa: ANN401 - transformers' config
    """Read a transformers config.

    Raises:
        InputError: There is none, or of a type that is not known.
    """
    transformers = require("transformers")
    try:
        return transformers.AutoConfig.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{path}: no usable config.json: {first_line(error)}", hint="give a model folder"
        ) from error


def first_line(error: Exception) -> str:
    """The first line of an error's text."""
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers and peft from drawing bars, and from warning of their own old names."""
    logging = require("transformers").utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(category=FutureWarning, action="ignore"):
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def read_weights(spec: str) -> dict[str, Tensor]:
    """Read a reel or any checkpoint as a state dict of float32 tensors."""
    torch = require("torch")
    kind, colon, rest = spec.partition(":")
    if colon and kind == "reel":
        with Reel.open(rest) as reel:
            return {name: torch.from_numpy(reel.tensor(name)) for name in reel.tensors}
    with open_checkpoint(rest if colon and kind in {"safetensors", "gguf"} else spec) as checkpoint:
        weights = [name for name, info in checkpoint.tensors.items() if info.is_weight]
        return {name: torch.from_numpy(checkpoint.array(name).copy()) for name in weights}
