"""Checkpoints of this encoder, also those written by other programs; no code of theirs runs."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hilm.errors import ConversionError, InputError
from hilm.models.onevision.config import OneVisionConfig, OneVisionPackedConfig
from hilm.models.onevision.convert import Layout, convert_state_dict
from hilm.models.onevision.modeling import OneVisionModel, OneVisionPackedModel, OneVisionPreTrainedModel

PADDED = (OneVisionConfig.model_type, "onevision_encoder", "llava_vit")
PACKED = (OneVisionPackedConfig.model_type, "llava_vit_packing")
CONFIG_LIMIT = 1 << 20
"""Bytes; configurations have a few thousand."""


def load_onevision(
    path: str | Path,
    packed: bool | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> OneVisionPreTrainedModel:
    """Load a checkpoint strictly, in eval mode, converted if it is of the other variant.

    Args:
        path: Folder with config.json and weights, safetensors if there are any.
        packed: The variant wanted; that of the checkpoint when None.
        dtype: Of the model; that of the weights when None.
        device: Where to put it.

    Raises:
        InputError: The folder has no usable configuration or weights.
        ConversionError: The weights are not exactly those that the configuration describes.
    """
    folder = Path(path)
    fields = _read_config(folder / "config.json")
    kind = fields.pop("model_type", None)
    if kind not in PADDED + PACKED:
        raise InputError(f"{folder} is of type {kind!r}; known are {', '.join(PADDED + PACKED)}")
    source = kind in PACKED
    target = source if packed is None else packed
    if target != source:
        fields.pop("rope_compute", None)  # each variant has its own
    config = (OneVisionPackedConfig if target else OneVisionConfig)(**fields)
    layouts: tuple[Layout, Layout] = ("padded", "packed")
    state = convert_state_dict(_read_weights(folder), layouts[source], layouts[target], config)
    with torch.device("meta"):
        model = (OneVisionPackedModel if target else OneVisionModel)(config)
    model.load_state_dict(state, assign=True)
    loaded: OneVisionPreTrainedModel = model.to(device=device, dtype=dtype or model.dtype).eval()
    return loaded


def as_packed(model: OneVisionModel) -> OneVisionPackedModel:
    """Copy a padded model into the packed variant, in eval mode."""
    fields = {k: v for k, v in model.config.to_dict().items() if k not in {"model_type", "rope_compute"}}
    packed: OneVisionPackedModel = OneVisionPackedModel(OneVisionPackedConfig(**fields)).to(model.dtype)
    packed.load_state_dict(convert_state_dict(model.state_dict(), "padded", "packed", packed.config))
    packed.eval()
    return packed


def _read_config(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as stream:
            text = stream.read(CONFIG_LIMIT + 1)
        fields = json.loads(text) if len(text) <= CONFIG_LIMIT else None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise InputError(f"{path} is no configuration: no JSON object, or more than {CONFIG_LIMIT} bytes")
    for name in ("auto_map", "architectures", "transformers_version"):
        fields.pop(name, None)
    return fields


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """Read all weight files of a folder.

    Raises:
        InputError: There are none, or one cannot be read.
        ConversionError: Two files hold the same weight.
    """
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise InputError(f"{folder} has neither *.safetensors nor pytorch_model*.bin")
    state: dict[str, Tensor] = {}
    for file in files:
        try:
            part = load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)
        except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError) as error:
            raise InputError(f"{file} cannot be read: {str(error).splitlines()[0]}") from error
        if not isinstance(part, dict) or not all(isinstance(value, Tensor) for value in part.values()):
            raise InputError(f"{file} holds more than named tensors")
        twice = sorted(state.keys() & part.keys())
        if twice:
            raise ConversionError(f"{file} repeats weights of another file: {', '.join(twice)}")
        state |= part
    return state
