"""``hilm features verify``: compare the features of a padded and a packed model; needs numpy alone.

``features_hf.npz`` holds ``(1, N, D)`` and ``features_packing.npz`` ``(N, D)`` float32 per input.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hilm.errors import InputError
from hilm.parity.inputs import read_arrays
from hilm.parity.metrics import NORM_TOLERANCE, THRESHOLD, judge, measure
from hilm.parity.verdict import Gates, Stage

if TYPE_CHECKING:
    from os import PathLike

    from numpy.typing import NDArray

    from hilm.parity.metrics import Measured

SIDES = {"hf": "features_hf.npz", "packing": "features_packing.npz"}
METADATA = "metadata.json"
RULE = "=" * 80
MAX_METADATA = 64 << 20


def flatten(array: NDArray[Any]) -> NDArray[Any]:
    """Drop a batch axis of 1: ``(1, N, D)`` and ``(N, D)`` are the same tokens."""
    return array[0] if array.ndim == 3 and array.shape[0] == 1 else array


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

    @property
    def stages(self) -> list[Stage]:
        """Every comparison as reports show it; that there is none is a failure."""
        found = [
            Stage(
                m.name, "features", "free", "", "fail" if m.reason else "pass", detail=m.reason,
                figures=m.measured.figures() if m.measured else {},
            )
            for m in self.matches
        ]  # fmt: skip
        return found or [Stage("features", "features", "free", "", "fail", detail="nothing to compare")]

    def document(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return {
            "ok": self.ok,
            "features_dir": self.folder,
            "threshold": self.threshold,
            "comparisons": [
                {"name": m.name, "ok": not m.reason, "reason": m.reason}
                | dict(zip(("hf_shape", "packing_shape"), m.shapes, strict=True))
                | (m.measured.figures() if m.measured else {})
                for m in self.matches
            ],
            "metadata": self.metadata,
        }

    def text(self) -> str:
        """Write the documented report."""
        failed, total, data = sum(bool(m.reason) for m in self.matches), len(self.matches), self.metadata
        named = {"HF Model": "hf_model_path", "Packing Model": "packing_model_path", "Device": "device"}
        facts = [f"{name + ':':14} {data.get(key)}" for name, key in named.items()]
        counts = {"Total comparisons:": total, "Passed:": total - failed, "Failed:": failed}
        good = "✅ All features match! Models are consistent."
        parts = [
            _title("Feature Verification Tool"),
            f"Loading features from: {self.folder}",
            "\n".join(["=== Metadata ===", *facts, f"Num Frames:    {data.get('num_frames')}"]),
            "\n".join(["=== Inputs ===", *(_input(*pair) for pair in data.get("inputs", {}).items())]),
            _title("Feature Comparison"),
            *("\n".join(_section(match, self.threshold)) for match in self.matches),
            "\n".join([_title("Summary"), *(f"{word:18} {count}" for word, count in counts.items())]),
            good if self.ok else f"❌ {failed} of {total} features do not match.",
        ]
        return "\n\n".join(parts)

    def details(self) -> list[str]:
        """Compare errors with the precision floor, where it was measured."""
        floors = self.metadata.get("floor") or {}
        lines = []
        for match in self.matches:
            floor = floors.get(match.name, {}).get("rel_l2")
            if match.measured is None or not floor:
                lines.append(f"{match.name}: floor not measured")
                continue
            ratio = match.measured.rel_l2 / floor
            verdict = "yes" if ratio <= Gates().k_free else "no"
            lines.append(f"{match.name}: error / floor {ratio:.2f}, at precision floor: {verdict}")
        return lines


def _title(text: str) -> str:
    return f"{RULE}\n{text}\n{RULE}"


def _input(name: str, facts: dict[str, Any]) -> str:
    size = f"Resolution: {facts.get('width')}x{facts.get('height')}"
    if "total_frames" in facts:
        size = f"Frames: {facts.get('sampled_frames')}/{facts['total_frames']}"
    return f"{name}: {facts.get('path')}\n  {size}"


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
    damaged = [
        name
        for name, digest in data.get("files", {}).items()
        if name in SIDES.values() and hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest
    ]
    damage = f"{' and '.join(damaged)} differs from what was written" if damaged else ""
    matches = []
    for name in dict.fromkeys((*data["inputs"], *hf, *packing)):
        match = match_feature(name, hf.get(name), packing.get(name), threshold, norm_tolerance)
        reason = match.reason or ("" if name in data["inputs"] else "not in metadata.json")
        matches.append(replace(match, reason=reason or damage))
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
    parts: list[Any] = [data]
    if isinstance(data, dict):
        found = data.get("inputs")
        parts += [found, data.get("files", {}), data.get("floor") or {}]
        parts += found.values() if isinstance(found, dict) else []
    if not all(isinstance(part, dict) for part in parts):
        raise InputError(f"{path}: not the documented metadata", hint="extract the features again")
    return dict(data)


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
