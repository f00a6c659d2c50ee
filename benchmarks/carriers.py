"""A lossless video carries coded weights, at a price in bits that is known before it is paid.

Layer 2 of the real MiniLM and the first 1536 rows of its vocabulary, brought to one root mean square and
stacked in rows of 1536: 2.4 million weights, nine full frames. They are rounded with a step of 0.18 and
carried in each layout; bits count heads, records, index entries and packets, not the few bytes that a
container adds to each. The same matrices one by one show what partly filled frames cost. Then all of MiniLM,
rounded to bfloat16, is archived with each carrier, as a reel.

Run: python benchmarks/carriers.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from harness import Figure, Gate, Result, main
from models import round_to_bf16
from trained import MINILM, minilm_matrices

from hilm.reel.carrier import CARRIERS, LAYOUTS, Placement
from hilm.reel.encoder import EncodeReport, encode_archive
from hilm.reel.quantizer import Quantizer
from hilm.reel.records import RECORD
from hilm.reel.slab import carry_slab, encode_slab
from hilm.reel.video import encode_frames
from hilm.weights import open_checkpoint
from hilm.weights.dtypes import DTYPES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Matrix = NDArray[np.float32]

F32, STEP = DTYPES["F32"], 0.18
REQUIRED = {"utvideo": (3.72, 3.65), "vp9": (3.86, 3.80)}


def packed(weights: Sequence[Matrix]) -> float:
    """Bits per weight of rounded matrices without a video."""
    slabs = [encode_slab(m.view(np.uint8).ravel(), F32, *m.shape, planner=Quantizer(STEP)) for m in weights]
    total = sum(slab.nbytes + RECORD.itemsize * (1 + len(slab.chunks)) for slab in slabs)
    return 8 * total / sum(matrix.size for matrix in weights)


def carried(weights: Sequence[Matrix], layout: str) -> dict[str, float]:
    """The same by carrier."""
    totals = dict.fromkeys(CARRIERS, 0)
    for matrix in weights:
        place = Placement(*matrix.shape, layout)
        slab = carry_slab(matrix.view(np.uint8).ravel(), F32, place, planner=Quantizer(STEP))
        if slab is None:
            raise RuntimeError("no video carries this matrix")
        rest = slab.nbytes + RECORD.itemsize * (1 + 2 * len(slab.chunks))
        for name, carrier in CARRIERS.items():
            totals[name] += rest + encode_frames(carrier, slab.frames)
    return {name: 8 * total / sum(m.size for m in weights) for name, total in totals.items()}


def archives(folder: Path) -> dict[str, EncodeReport]:
    """Reels of MiniLM in bfloat16 by carrier."""
    model = round_to_bf16(MINILM, folder / "bf16")
    reports = {}
    for name in ("packed", *CARRIERS):
        with open_checkpoint(model) as checkpoint:
            reports[name] = encode_archive(
                checkpoint, folder / f"{name}.reel.mp4", preview=False, carrier=name
            )
    return reports


def measure() -> Result:
    weights = minilm_matrices()
    level = [m / np.sqrt(np.square(m, dtype=np.float64).mean()) for m in weights]
    stack = [np.concatenate([m.reshape(-1, 1536) for m in level]).astype(np.float32)]
    layouts = {layout: carried(stack, layout) for layout in LAYOUTS}
    alone, whole = carried(weights, "flat"), packed(weights)
    with tempfile.TemporaryDirectory() as temporary:
        reports = archives(Path(temporary))
    gates = [
        Gate(f"{name}, rounded, full frames", layouts["flat"][name], "<=", limit, "bits/weight", aim)
        for name, (limit, aim) in REQUIRED.items()
    ]
    figures: dict[str, Figure] = {"packed, rounded": (packed(stack), "bits/weight")}
    figures["packed, rounded, matrices one by one"] = whole, "bits/weight"
    for name in CARRIERS:
        figures |= {
            f"{name}, rounded, {layout}": (layouts[layout][name], "bits/weight") for layout in LAYOUTS
        }
        figures[f"{name}, rounded, matrices one by one"] = alone[name], "bits/weight"
    for name, report in reports.items():
        figures[f"{name}, MiniLM in bfloat16"] = report.reel.bits_per_weight, "bits/weight"
        for layout in LAYOUTS if report.layouts else ():
            gains = [gain for chosen, gain in report.layouts.values() if chosen == layout]
            figures[f"{name}, tensors in {layout} layout"] = len(gains), ""
            if any(gains):
                figures[f"{name}, most that {layout} saved"] = max(gains), "%"
    return Result(
        name="carriers",
        claim="A lossless video carries coded weights, at a known price",
        command="python benchmarks/carriers.py",
        gates=tuple(gates),
        figures=figures,
    )


if __name__ == "__main__":
    main(measure)
