"""``hilm features``: hidden states of a padded and a packed model of the same inputs, and their comparison.

``features_hf.npz`` holds ``(1, N, D)`` and ``features_packing.npz`` ``(N, D)`` float32 per input;
``metadata.json`` is written last, so that its presence means a complete set. Verifying needs numpy alone.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from hilm import __version__
from hilm.errors import InputError, StorageError, UsageError
from hilm.extras import require
from hilm.parity.encoders import describe, encoder_runner, fit_reading
from hilm.parity.inputs import read_arrays, read_inputs
from hilm.parity.metrics import NORM_TOLERANCE, THRESHOLD, judge, measure
from hilm.weights import open_checkpoint

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from numpy.typing import NDArray

    from hilm.parity.inputs import Item, Reading
    from hilm.parity.metrics import Measured
    from hilm.parity.runners import TorchRunner

SIDES = {"hf": "features_hf.npz", "packing": "features_packing.npz"}
METADATA = "metadata.json"
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
FREE_SHARE = 0.8
RULE = "=" * 80
MAX_METADATA = 64 << 20


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
    convert = packing_model_path == "convert"
    padded = encoder_runner(hf_model_path, packed=False, attention=attention, device=device)
    packed = encoder_runner(
        hf_model_path if convert else packing_model_path, packed=True, attention=attention, device=device
    )
    config, reading = fit_reading(hf_model_path, reading)
    other, _ = fit_reading(hf_model_path if convert else packing_model_path, reading)
    refuse_other_shape(config, other)
    items = read_inputs(inputs, reading)
    estimate = check_memory(hf_model_path, config, items, BYTES[dtype], memory_limit_mb)
    models: dict[str, Any] = {}
    hf, models["hf"] = _run_side(padded, items, dtype, layer)
    packing, models["packing"] = _run_side(packed, items, dtype, layer)
    packing = {name: array.reshape(-1, array.shape[-1]) for name, array in packing.items()}
    models["same_weights"] = models["hf"]["weights_sha256"] == models["packing"]["weights_sha256"]
    blobs = {side: save_arrays(arrays) for side, arrays in (("hf", hf), ("packing", packing))}
    document = {
        "hf_model_path": hf_model_path,
        "packing_model_path": packing_model_path,
        "num_frames": reading.num_frames,
        "device": device.partition(":")[0],
        "inputs": {item.name: item.facts for item in items},
        "features": {
            side: {name: list(array.shape) for name, array in arrays.items()}
            for side, arrays in (("hf", hf), ("packing", packing))
        },
        "schema": 1,
        "hilm_version": __version__,
        "dtype": dtype,
        "layer": layer,
        "attn": attention,
        "preprocess": {
            "fit": reading.fit,
            "frame_rounding": reading.frame_rounding,
            "sampling": reading.sampling,
            "virtual_frames": reading.virtual_frames,
        },
        "versions": {
            name: require(name).__version__ for name in ("numpy", "torch", "transformers", "av", "PIL")
        }
        | {"python": platform.python_version()},
        "models": models,
        "files": {SIDES[side]: hashlib.sha256(blob).hexdigest() for side, blob in blobs.items()},
        "estimate": estimate,
        "floor": _measure_floor(padded, items, hf, layer) if floor else None,
    }
    for side, blob in blobs.items():
        write_file(out / SIDES[side], blob)
    write_file(out / METADATA, json.dumps(document, indent=2).encode())
    return document


def prepare_folder(out: Path, *, overwrite: bool) -> Path:
    """Make the output folder; earlier results are an error, or lose their metadata first."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any((out / name).exists() for name in (*SIDES.values(), METADATA)):
            if not overwrite:
                raise UsageError(f"{out} holds features already", hint="--overwrite replaces them")
            (out / METADATA).unlink(missing_ok=True)
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
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size")
    names += ("rope_theta", "rope_style", "rope_temporal_size", "layer_norm_type")
    differing = [name for name in names if left.get(name) != right.get(name)]
    if differing:
        text = ", ".join(f"{name} {left.get(name)} and {right.get(name)}" for name in differing)
        raise UsageError(f"the models are not of one shape: {text}", hint="give two variants of one model")


def check_memory(
    path: str, config: dict[str, Any], items: Sequence[Item], size: int, limit_mb: float | None
) -> dict[str, Any]:
    """Estimate weights and activations, ``N s (12 D + 2 M)``, and refuse what does not fit.

    Raises:
        UsageError: It does not.
    """
    with open_checkpoint(path) as checkpoint:
        weights = checkpoint.total_parameters * size
    per_token = size * (12 * config.get("hidden_size", 0) + 2 * config.get("intermediate_size", 0))
    largest = max(items, key=lambda item: item.facts.get("tokens", 0))
    tokens = largest.facts.get("tokens", 0)
    needed, mib = (weights + tokens * per_token) / 2**20, 2**20
    limit = limit_mb or FREE_SHARE * psutil.virtual_memory().available / mib
    if needed > limit:
        room = int((limit * mib - weights) / max(per_token, 1) / max(tokens / largest.grid[0], 1))
        raise UsageError(
            f"{largest.name} needs about {needed:,.0f} MiB, the limit is {limit:,.0f} MiB",
            hint=f"--num_frames {room}" if 0 < room < largest.grid[0] else "give smaller inputs",
        )
    return {"weights_mb": weights / mib, "peak_mb": needed, "limit_mb": limit, "tokens": tokens}


def _run_side(
    runner: TorchRunner, items: Sequence[Item], dtype: str, layer: int
) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any]]:
    """Hidden states by input, and what the model is."""
    runner.open(dtype)
    facts = describe(runner.model)
    states = {item.name: runner.hidden_state(item, layer) for item in items}
    runner.close()
    return states, facts


def _measure_floor(
    runner: TorchRunner, items: Sequence[Item], low: dict[str, NDArray[np.float32]], layer: int
) -> dict[str, Any]:
    high, _ = _run_side(runner, items, "float32", layer)
    trials = {name: measure(flatten(array), flatten(low[name])) for name, array in high.items()}
    return {name: {"rel_l2": m.rel_l2, "min_cosine": m.cosine_min} for name, m in trials.items()}


def flatten(array: NDArray[Any]) -> NDArray[Any]:
    """Drop a batch axis of 1: ``(1, N, D)`` and ``(N, D)`` are the same tokens."""
    return array[0] if array.ndim == 3 and array.shape[0] == 1 else array


def save_arrays(arrays: dict[str, NDArray[np.float32]]) -> bytes:
    """Write an npz file to memory."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def write_file(path: Path, data: bytes) -> None:
    """Write a file that appears complete or not at all."""
    part = path.with_name(path.name + ".part")
    try:
        try:
            with part.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class Match:
    """One input on both sides; ``reason`` is empty where they match."""

    name: str
    shapes: tuple[tuple[int, ...] | None, tuple[int, ...] | None]
    measured: Measured | None
    reason: str


@dataclass(frozen=True, slots=True)
class FeatureReport:
    """What :func:`verify_features` found."""

    folder: str
    metadata: dict[str, Any]
    matches: tuple[Match, ...]
    threshold: float

    @property
    def ok(self) -> bool:
        """Whether there is something to compare and all of it matches."""
        return bool(self.matches) and not any(match.reason for match in self.matches)

    def document(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return {
            "ok": self.ok,
            "features_dir": self.folder,
            "threshold": self.threshold,
            "comparisons": [
                {
                    "name": match.name,
                    "ok": not match.reason,
                    "reason": match.reason,
                    "hf_shape": match.shapes[0],
                    "packing_shape": match.shapes[1],
                    **(match.measured.figures() if match.measured else {}),
                }
                for match in self.matches
            ],
            "metadata": self.metadata,
        }

    def text(self) -> str:
        """Write the documented report."""
        failed = sum(bool(match.reason) for match in self.matches)
        total, data = len(self.matches), self.metadata
        lines = [*_title("Feature Verification Tool"), "", f"Loading features from: {self.folder}", ""]
        lines += [
            "=== Metadata ===",
            f"HF Model:      {data.get('hf_model_path')}",
            f"Packing Model: {data.get('packing_model_path')}",
            f"Device:        {data.get('device')}",
            f"Num Frames:    {data.get('num_frames')}",
            "",
            "=== Inputs ===",
        ]
        for name, facts in data.get("inputs", {}).items():
            clip = "total_frames" in facts
            lines += [
                f"{name}: {facts.get('path')}",
                f"  Frames: {facts.get('sampled_frames')}/{facts['total_frames']}"
                if clip
                else f"  Resolution: {facts.get('width')}x{facts.get('height')}",
            ]
        lines += ["", *_title("Feature Comparison"), ""]
        for match in self.matches:
            lines += [*_section(match, self.threshold), ""]
        lines += [
            *_title("Summary"),
            f"Total comparisons: {total}",
            f"Passed:            {total - failed}",
            f"Failed:            {failed}",
            "",
        ]
        good = "✅ All features match! Models are consistent."
        return "\n".join([*lines, good if self.ok else f"❌ {failed} of {total} features do not match."])

    def details(self, k_free: float = 3.0) -> list[str]:
        """Compare errors with the precision floor, where it was measured."""
        floors = self.metadata.get("floor") or {}
        lines = []
        for match in self.matches:
            floor = floors.get(match.name, {}).get("rel_l2")
            if match.measured is None or not floor:
                lines.append(f"{match.name}: floor not measured")
                continue
            ratio = match.measured.rel_l2 / floor
            verdict = "yes" if ratio <= k_free else "no"
            lines.append(f"{match.name}: error / floor {ratio:.2f}, at precision floor: {verdict}")
        return lines


def _title(text: str) -> list[str]:
    return [RULE, text, RULE]


def _section(match: Match, threshold: float) -> list[str]:
    lines = [f"--- {match.name} ---"]
    for side, shape in zip(("HF shape:     ", "Packing shape:"), match.shapes, strict=True):
        lines += [f"{side} {shape}"] if shape is not None else []
    if (m := match.measured) is not None:
        lines += [
            f"Max Diff:        {m.max_abs:.6f}",
            f"Mean Diff:       {m.mean_abs:.6f}",
            f"Min Cosine Sim:  {m.cosine_min:.8f}",
            f"Mean Cosine Sim: {m.cosine_mean:.8f}",
            f"Max Cosine Sim:  {m.cosine_max:.8f}",
        ]
    if match.reason:
        return [*lines, f"❌ {match.name}: FAIL ({match.reason})"]
    return [*lines, f"✅ {match.name}: PASS (min cosine > {threshold:g})"]


def verify_features(
    features_dir: str | PathLike[str] = "features",
    *,
    threshold: float = THRESHOLD,
    norm_tolerance: float = NORM_TOLERANCE,
) -> FeatureReport:
    """Compare the features of a folder; needs numpy alone.

    Args:
        features_dir: What ``extract_features``, or the tool before it, wrote.
        threshold: Cosine that every token must exceed.
        norm_tolerance: How far the ratio of norms may be from 1.

    Raises:
        InputError: Files are absent or unreadable.
    """
    folder = Path(features_dir)
    data = read_metadata(folder / METADATA)
    hf, packing = (read_arrays(folder / name) for name in SIDES.values())
    damaged = {
        name
        for name, digest in data.get("files", {}).items()
        if name in SIDES.values() and hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest
    }
    names = dict.fromkeys((*data["inputs"], *hf, *packing))
    matches = [
        match_feature(name, hf.get(name), packing.get(name), threshold, norm_tolerance) for name in names
    ]
    if damaged:
        reason = f"{', '.join(sorted(damaged))} is not the file that was written"
        matches = [Match(m.name, m.shapes, m.measured, m.reason or reason) for m in matches]
    strangers = [m for m in matches if not m.reason and m.name not in data["inputs"]]
    matches = [
        Match(m.name, m.shapes, m.measured, "not in metadata.json") if m in strangers else m for m in matches
    ]
    return FeatureReport(str(features_dir), data, tuple(matches), threshold)


def read_metadata(path: Path) -> dict[str, Any]:
    """Read ``metadata.json``.

    Raises:
        InputError: It is absent or not what was documented.
    """
    try:
        if path.stat().st_size > MAX_METADATA:
            raise InputError(f"{path}: too large to be metadata")
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", hint="hilm features extract writes it") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON", hint="extract the features again") from error
    parts = (
        [data, data.get("inputs"), data.get("files", {}), data.get("floor") or {}]
        if isinstance(data, dict)
        else [None]
    )
    if not all(isinstance(part, dict) for part in parts) or not all(
        isinstance(facts, dict) for facts in data["inputs"].values()
    ):
        raise InputError(f"{path}: not the documented metadata", hint="extract the features again")
    return data


def match_feature(
    name: str,
    hf: NDArray[Any] | None,
    packing: NDArray[Any] | None,
    threshold: float = THRESHOLD,
    norm_tolerance: float = NORM_TOLERANCE,
) -> Match:
    """Compare the features of one input; differing counts of tokens fail, nothing is cut to fit."""
    shapes = (None if hf is None else hf.shape, None if packing is None else packing.shape)
    if hf is None or packing is None:
        sides = [side for side, array in (("HF", hf), ("packing", packing)) if array is None]
        return Match(name, shapes, None, f"missing in the {' and the '.join(sides)} features")
    left, right = flatten(hf), flatten(packing)
    if left.ndim != 2 or not left.size or left.dtype.kind != "f" or right.dtype.kind != "f":
        return Match(name, shapes, None, "no table of tokens")
    if left.shape[:1] != right.shape[:1]:
        return Match(name, shapes, None, f"{len(right)} tokens for {len(left)}")
    if left.shape != right.shape:
        return Match(name, shapes, None, f"width {right.shape[-1]} for {left.shape[-1]}")
    measured = measure(left, right)
    reason = judge(measured, threshold=threshold, norm_tolerance=norm_tolerance)
    return Match(name, shapes, measured, reason)
