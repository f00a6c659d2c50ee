"""The parity gates name every planted fault where it was planted, and memory stays below its estimate.

The built-in witness has 12 layers of width 256 and trained-like weights of three seeds; faults are planted in
its first, sixth and last layer, and looked for in float32 (against float64) and bfloat16 (against float32),
at the default bar of 1.5. Peak memory is that of the process over its start, in a process of its own for each
run, with the padded and the packed encoder of 12 layers of width 384 and a picture of 3,000 patches.

How fast the packed encoder is, and that it computes what the padded one does: python benchmarks/onevision.py

Run: python benchmarks/parity.py
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from harness import Gate, Result, main, number
from PIL import Image

from hilm.models.onevision import PRESETS, OneVisionConfig, OneVisionModel
from hilm.parity.engine import compare
from hilm.parity.extraction import extract_features
from hilm.parity.inputs import Reading, read_inputs
from hilm.parity.memory import estimate
from hilm.parity.selftest import selftest, train_like, witness
from hilm.parity.sides import Side
from hilm.weights.memory import MemoryMonitor

if TYPE_CHECKING:
    from hilm.parity.selftest import Catch

SEEDS = 3
FIELDS = PRESETS["small"] | {"num_hidden_layers": 12}
SIZES = {"warm": (1, 1), "large": (60, 50)}
"""Rows and columns of patches; the smallest picture loads the libraries before the start."""


def write_files(folder: Path) -> None:
    torch.manual_seed(0)
    model = OneVisionModel(OneVisionConfig(**FIELDS))
    train_like(model)
    model.save_pretrained(folder / "padded")
    random = np.random.default_rng(0)
    for name, (rows, columns) in SIZES.items():
        side = FIELDS["patch_size"]
        pixels = random.integers(0, 256, (rows * side, columns * side, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")


def run_extract(folder: Path, name: str, dtype: str) -> float:
    """Extract features of one picture; returns the estimate, MiB."""
    model, given = str(folder / "padded"), [("picture", "image", str(folder / f"{name}.png"))]
    out = folder / f"{name}-{dtype}"
    return float(
        extract_features(model, "convert", given, out, reading=Reading(), dtype=dtype)["estimate"]["peak_mb"]
    )


def run_compare(folder: Path, name: str, _: str) -> float:
    """Compare a model with itself on one picture, stage by stage; returns the estimate, MiB."""
    model = str(folder / "padded")
    items = read_inputs([("picture", "image", str(folder / f"{name}.png"))], Reading(patch=16))
    sides = (Side.parse(model).runner(), Side.parse(model).runner())
    expected = estimate([model], OneVisionConfig(**FIELDS).to_dict(), items)["peak_mb"]
    if compare(*sides, items).verdict != "pass":
        raise RuntimeError("a model differs from itself")
    return expected


RUNS = {
    "extract, float32": (run_extract, "float32"),
    "extract, bfloat16": (run_extract, "bfloat16"),
    "run": (run_compare, ""),
}


def measure_one(name: str, folder: Path) -> None:
    """In a process of its own: print peak over start, and the estimate, MiB."""
    torch.set_num_threads(1)
    action, dtype = RUNS[name]
    action(folder, "warm", dtype)
    with MemoryMonitor(0.005) as monitor:
        start = monitor.sample()
        expected = action(folder, "large", dtype)
    print(json.dumps([monitor.peak_mb - start, expected]))


def peaks() -> dict[str, tuple[float, float]]:
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder))
        found = {}
        for name in RUNS:
            command = [sys.executable, __file__, name, folder]
            ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[name] = tuple(json.loads(ran.stdout.splitlines()[-1]))
    return found


def table(planted: list[Catch]) -> tuple[tuple[str, ...], ...]:
    """Smallest ratio of every fault in either format, over seeds and layers."""
    smallest: dict[str, dict[str, float]] = {}
    for catch in planted:
        if catch.ratio is not None:
            row = smallest.setdefault(catch.fault, {})
            row[catch.precision] = min(catch.ratio, row.get(catch.precision, catch.ratio))
    formats = ("float32", "bfloat16")
    rows = [
        (name, *(number(row[f], "x") if f in row else "" for f in formats)) for name, row in smallest.items()
    ]
    return (("fault: smallest error over the floor", *formats), *rows)


def measure() -> Result:
    torch.set_num_threads(1)
    catches: list[Catch] = [c for seed in range(SEEDS) for c in selftest(witness(seed=seed)).catches]
    clean = [c for c in catches if c.fault.startswith("none")]
    planted = [c for c in catches if c not in clean]
    missed = [c for c in planted if not c.caught]
    ratios = [c.ratio for c in planted if c.ratio is not None]
    memory = peaks()
    return Result(
        name="parity",
        claim="Planted faults are named where they were planted, and memory stays below its estimate",
        command="python benchmarks/parity.py",
        gates=(
            Gate("planted faults missed, or named elsewhere", len(missed), "<=", 0, ""),
            Gate("clean variants flagged", sum(not c.caught for c in clean), "<=", 0, ""),
            *(
                Gate(f"peak memory over its estimate, {name}", peak / expected, "<=", 1.1, "x")
                for name, (peak, expected) in memory.items()
            ),
        ),
        figures={
            "planted faults": (len(planted), ""),
            "clean variants": (len(clean), ""),
            "smallest error over the floor of a planted fault": (min(ratios), "x"),
            "largest error over the floor of a clean variant": (max(c.ratio or 0 for c in clean), "x"),
            **{f"peak memory, {name}": (peak, "MiB") for name, (peak, _) in memory.items()},
        },
        table=table(planted),
        misses=tuple(f"{c.fault} in {c.precision}: {c.by}, not {c.expected}" for c in missed),
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure_one(sys.argv[1], Path(sys.argv[2]))
    else:
        main(measure)
