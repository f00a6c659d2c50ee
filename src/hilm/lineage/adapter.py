"""Unmerged low-rank adapters: what they add to a model's matrices, sketched without the model.

A sketch is linear in its matrix: that of W + s·BA is the sketch of W and s times that of BA. So
adapters are compared by their products BA, and with differences between models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hilm.lineage.anatomy import MIN_SIDE
from hilm.lineage.sketch import RUNS, SketchAccumulator, code, fixed, matrix_key, quantise
from hilm.lineage.statistics import adjust, level, normal_tail
from hilm.lineage.tables import RUN_VALUES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hilm.lineage.search import Print
    from hilm.lineage.tensor_pass import Row
    from hilm.weights.checkpoint import Checkpoint
    from hilm.weights.tensor import TensorInfo

IS_ADAPTER = 64
"""Flag of a fingerprint whose sketch is of products BA."""

_DOWN, _UP = ".lora_A", ".lora_B"


@dataclass(frozen=True, slots=True)
class Applied:
    """A pair of models that differ by an adapter.

    Attributes:
        base: Number of the model without it.
        model: Number of the model with it.
        cosine: Of the difference of their sketches and the adapter's sketch.
        p_value: Its chance between independent models, corrected for the number of ordered pairs.
    """

    base: int
    model: int
    cosine: float
    p_value: float


def low_rank_pairs(checkpoint: Checkpoint) -> list[tuple[TensorInfo, TensorInfo]]:
    """The tensors A [r, C] and B [R, r] of an adapter whose product is an eligible matrix."""
    pairs = []
    for name, down in checkpoint.tensors.items():
        up = checkpoint.tensors.get(name.replace(_DOWN, _UP))
        if _DOWN not in name or up is None or len(down.shape) != 2 or len(up.shape) != 2:
            continue
        if down.shape[0] == up.shape[1] and min(up.shape[0], down.shape[1]) >= MIN_SIDE:
            pairs.append((down, up))
    return pairs


def sketch_product(
    checkpoint: Checkpoint, down: TensorInfo, up: TensorInfo
) -> tuple[Row, np.ndarray[Any, np.dtype[np.int64]]] | None:
    """Sketch s·BA, formed by runs of rows.

    Returns:
        Columns of ``records.CODES`` from the second on, and the fixed-point unit sketch; None for B = 0.
    """
    config = checkpoint.config or {}
    a = checkpoint.read_rows(down.name, 0, down.shape[0])
    b = checkpoint.read_rows(up.name, 0, up.shape[0])
    left, right = (a.T, b.T) if config.get("fan_in_fan_out") is True else (b, a)
    rows, columns = len(left), right.shape[1]
    accumulator = SketchAccumulator(rows, columns, matrix_key(rows, columns))
    step = max(1, RUN_VALUES // columns)
    for start in range(0, rows, step):
        product = np.ascontiguousarray(left[start : start + step] @ right, np.float32)
        accumulator.update(product.reshape(-1), start * columns)
    sketch = accumulator.finish()
    if sketch is None:
        return None
    position = fixed(sketch.vector)
    norm = abs(scale(config, down.name, down.shape[0])) * sketch.weight_norm
    return (rows, columns, 0, norm, code(quantise(position), RUNS)), position


def scale(config: Mapping[str, Any], name: str, rank: int) -> float:
    """S = alpha/r, or alpha/√r as rank-stabilised adapters have it; 1 where nothing is said."""
    alpha, patterns = config.get("lora_alpha"), config.get("alpha_pattern")
    module = name.partition(_DOWN)[0]
    for ending, other in patterns.items() if isinstance(patterns, dict) else ():
        alpha = other if module.endswith(ending) else alpha
    if not isinstance(alpha, int | float):
        return 1.0
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") is True else rank)


def fits(adapter: Print, model: Print) -> bool:
    """Whether a model has a matrix for each of the adapter's; that is no evidence."""
    shapes = model.side().shapes
    return all(shapes.get(shape, 0) >= count for shape, count in adapter.side().shapes.items())


def find_applied(adapter: Print, models: Sequence[Print]) -> list[Applied]:
    """Models that differ from another by what the adapter adds, each with the best base, the surest first."""
    sums = np.stack([model.sums[0] for model in models])
    unit = adapter.sums[0] / max(float(np.linalg.norm(adapter.sums[0])), 1e-30)
    found = []
    for base, row in enumerate(sums):
        change = sums - row
        lengths = np.linalg.norm(change, axis=1)
        cosines = np.divide(change @ unit, lengths, out=np.zeros(len(sums)), where=lengths > 0)
        for model in np.flatnonzero(cosines > 0).tolist():
            p = adjust(normal_tail(math.sqrt(RUNS) * float(cosines[model])), len(sums) ** 2)
            if level(p) == "established":
                found.append(Applied(base, model, float(cosines[model]), p))
    best: dict[int, Applied] = {}
    for pair in sorted(found, key=lambda pair: -pair.cosine):
        best.setdefault(pair.model, pair)
    return list(best.values())
