"""``hilm features extract``: hidden states of a padded and a packed model of the same inputs.

``metadata.json`` is written last, so that its presence means a complete set.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import TYPE_CHECKING, Any

import numpy as np

from hilm.errors import UsageError
from hilm.extras import require
from hilm.files import write_file
from hilm.parity.encoders import describe, encoder_runner, fit_reading, read_fields
from hilm.parity.features import METADATA, SIDES, flatten
from hilm.parity.inputs import read_inputs, recognise_inputs
from hilm.parity.memory import estimate, refusing
from hilm.parity.metrics import measure

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from numpy.typing import NDArray

    from hilm.parity.inputs import Item, Reading
    from hilm.parity.runners import TorchRunner

SHAPES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size")
ROTARY = ("rope_theta", "rope_style", "rope_temporal_size", "layer_norm_type")
LIBRARIES = ("numpy", "torch", "transformers", "av", "PIL")
PREPROCESS = ("fit", "frame_rounding", "sampling", "virtual_frames", "exif", "rotation", "background")


def extract_features(
    hf_model_path: str,
    packing_model_path: str,
    inputs: Sequence[tuple[str, str, str]],
    output_dir: str | PathLike[str] = "features",
    *,
    reading: Reading,
    dtype: str = "bfloat16",
    device: str = "auto",
    attention: str = "sdpa",
    layer: int = -2,
    floor: bool = False,
    memory_limit_mb: float | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a hidden state of both models for every input; one model is in memory at a time.

    Args:
        hf_model_path: Padded model.
        packing_model_path: Packed model; ``convert`` makes it of the padded one.
        inputs: Name, kind (empty: by content) and path of each, as ``parse_inputs`` returns them.
        output_dir: Made if need be.
        reading: How inputs become pixels; the patch is the model's.
        dtype: Number format of the models.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        attention: ``sdpa``, ``eager`` or ``flash``.
        layer: Index of ``hidden_states``.
        floor: Also measure the padded model against itself in float32.
        memory_limit_mb: Refuse to start what is estimated to take more; 80 % of what is free when None.
        overwrite: Replace earlier results.

    Returns:
        What ``metadata.json`` holds.

    Raises:
        InputError: A model or an input cannot be used.
        UsageError: Options contradict each other, or the estimate is over the limit.
    """
    out = prepare_folder(Path(output_dir), overwrite=overwrite)
    device = choose_device(device)
    converted = packing_model_path == "convert"
    paths = {"hf": hf_model_path, "packing": hf_model_path if converted else packing_model_path}
    runners = {
        side: encoder_runner(path, packed=side == "packing", attention=attention, device=device)
        for side, path in paths.items()
    }
    recognise_inputs(inputs)
    config = read_fields(hf_model_path)
    refuse_other_shape(config, read_fields(paths["packing"]))
    items = read_inputs(inputs, fit_reading(hf_model_path, config, reading))
    widest = "float32" if floor else dtype
    expected = estimate([*paths.values()], config, items, widest, memory_limit_mb, device)
    features, models = {}, dict[str, Any]()
    with refusing(expected):
        for side, runner in runners.items():
            features[side], models[side] = _run_side(runner, items, dtype, layer)
        floors = _measure_floor(runners["hf"], items, features["hf"], layer) if floor else None
    models["same_weights"] = models["hf"]["weights_sha256"] == models["packing"]["weights_sha256"]
    document = {
        "hf_model_path": hf_model_path,
        "packing_model_path": packing_model_path,
        "num_frames": reading.num_frames,
        "device": device.partition(":")[0],
        "inputs": {item.name: item.facts for item in items},
        "features": {s: {n: list(a.shape) for n, a in arrays.items()} for s, arrays in features.items()},
        "schema": 1,
        "hilm_version": version("hilm"),
        "dtype": dtype,
        "layer": layer,
        "attn": attention,
        "preprocess": {name: getattr(reading, name) for name in PREPROCESS},
        "versions": {name: require(name).__version__ for name in LIBRARIES} | {"python": python_version()},
        "models": models,
        "estimate": expected,
        "floor": floors,
    }
    return write_features(out, features, document)


def write_features(
    out: Path, features: dict[str, dict[str, NDArray[np.float32]]], document: dict[str, Any]
) -> dict[str, Any]:
    """Write both npz files, then the metadata with their digests; earlier metadata goes first."""
    blobs = {SIDES[side]: save_arrays(arrays) for side, arrays in features.items()}
    document |= {"files": {name: hashlib.sha256(blob).hexdigest() for name, blob in blobs.items()}}
    (out / METADATA).unlink(missing_ok=True)
    for name, blob in blobs.items():
        write_file(out / name, blob)
    write_file(out / METADATA, json.dumps(document, indent=2).encode())
    return document


def prepare_folder(out: Path, *, overwrite: bool) -> Path:
    """Make the output folder; earlier results are an error unless they shall be replaced."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not overwrite and any((out / name).exists() for name in (*SIDES.values(), METADATA)):
            raise UsageError(f"{out} holds features already", hint="--overwrite replaces them")
    except OSError as error:
        raise UsageError(f"{out}: {error.strerror}", hint="give a folder that can be written") from error
    if not os.access(out, os.W_OK):
        raise UsageError(f"{out}: cannot be written", hint="give another --output_dir")
    return out


def choose_device(device: str) -> str:
    """Settle ``auto``; an accelerator that is not there is an error."""
    torch = require("torch")
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return "cuda" if there["cuda"] else "cpu"
    if not there.get(device.partition(":")[0], False):
        raise UsageError(f"this machine has no device {device!r}", hint="--device auto")
    return device


def refuse_other_shape(left: dict[str, Any], right: dict[str, Any]) -> None:
    """Raise where two configs differ in a field that shapes the model or its rotary embedding.

    Raises:
        UsageError: They do.
    """
    differing = [name for name in SHAPES + ROTARY if left.get(name) != right.get(name)]
    if differing:
        text = ", ".join(f"{name} {left.get(name)} and {right.get(name)}" for name in differing)
        raise UsageError(f"the models are not of one shape: {text}", hint="give two variants of one model")


def _run_side(
    runner: TorchRunner, items: Sequence[Item], dtype: str, layer: int
) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any]]:
    """Hidden states by input, those of a packed model without a batch axis, and what the model is."""
    runner.open(dtype)
    facts, states = describe(runner.model), {}
    for item in items:
        states[item.name] = runner.hidden_state(item, layer)
        if not np.isfinite(states[item.name]).all():
            item.facts["warnings"].append(f"features of {runner.label} are not finite everywhere")
    runner.close()
    return states, facts


def _measure_floor(
    runner: TorchRunner, items: Sequence[Item], low: dict[str, NDArray[np.float32]], layer: int
) -> dict[str, Any]:
    high, _ = _run_side(runner, items, "float32", layer)
    trials = {name: measure(flatten(array), flatten(low[name])) for name, array in high.items()}
    return {name: {"rel_l2": m.rel_l2, "min_cosine": m.cosine_min} for name, m in trials.items()}


def save_arrays(arrays: dict[str, NDArray[np.float32]]) -> bytes:
    """Write an npz file to memory."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()
