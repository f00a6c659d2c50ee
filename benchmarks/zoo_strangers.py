"""Pairs of models without a common ancestor, drawn at random, and whether their p-values are honest.

Gaussian weights with log-normal column scales and, as models of one language have, embeddings that share a
low-rank part. No pair shares a model with another pair.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from zoo_data import stream
from zoo_files import write_safetensors

from hilm.lineage.fingerprint import fingerprint
from hilm.lineage.search import Print, weigh
from hilm.lineage.units import match_units
from hilm.lineage.verdict import verdict
from hilm.weights import open_checkpoint

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from hilm.lineage.verdict import Verdict

WIDTHS, HIDDEN, LAYERS, TOKENS, RANK = (48, 64), (2, 3), 4, 400, 12
READ = 10
"""Of so many pairs one is also judged by its hidden units, which takes ten times as long."""


@dataclass(frozen=True, slots=True)
class Stranger:
    """What was found of one pair."""

    judged: Verdict

    def p(self, layer: str) -> float | None:
        """Chance of what that statistic says; None if it was not measured."""
        found = self.judged.details["statistics"].get(layer)
        return found and float(found["p"])

    def z(self, layer: str) -> float | None:
        """Standard score of that statistic."""
        found = self.judged.details["statistics"].get(layer)
        return found and float(found["z"])


def strangers(pairs: int, folder: Path) -> list[Stranger]:
    """Judge so many pairs by everything that a search looks at."""
    shared = stream("strangers", "language").standard_normal((TOKENS, RANK))
    found = []
    for number in range(pairs):
        shape = stream("strangers", number, "shape")
        width, hidden = int(shape.choice(WIDTHS)), int(shape.choice(HIDDEN))
        paths = [folder / f"{number}-{side}.safetensors" for side in "ab"]
        for side, path in zip("ab", paths, strict=True):
            write_safetensors(path, drawn(stream("strangers", number, side), width, hidden, shared))
        with open_checkpoint(paths[0]) as a, open_checkpoint(paths[1]) as b:
            evidence = weigh(*(Print(c.name, fingerprint(c, threads=1).to_row(bytes(32))) for c in (a, b)))
            units = match_units(a, b) if number % READ == 0 else None
        if units is not None:
            evidence = replace(evidence, units=units.cosine, units_z=units.z, controls=units.controls)
        found.append(Stranger(verdict(evidence)))
        for path in paths:
            path.unlink()
    return found


def drawn(
    rng: np.random.Generator, width: int, hidden: int, shared: NDArray[np.float64]
) -> dict[str, NDArray[np.float32]]:
    """An untrained gated model."""
    scale = np.exp(0.3 * rng.standard_normal(width))

    def matrix(rows: int, columns: int) -> NDArray[np.float32]:
        values = rng.standard_normal((rows, columns))
        return (0.02 * (values * scale if columns == width else values)).astype(np.float32)

    common = shared @ rng.standard_normal((RANK, width)) / math.sqrt(RANK)
    tensors = {"model.embed_tokens.weight": (matrix(TOKENS, width) + 0.02 * common).astype(np.float32)}
    for number in range(LAYERS):
        block = f"model.layers.{number}."
        tensors |= {f"{block}self_attn.{part}_proj.weight": matrix(width, width) for part in "qkvo"}
        tensors |= {
            f"{block}mlp.{part}_proj.weight": matrix(hidden * width, width) for part in ("gate", "up")
        }
        tensors[f"{block}mlp.down_proj.weight"] = matrix(width, hidden * width)
    return tensors


def uniform_p(values: Sequence[float]) -> float:
    """Kolmogorov-Smirnov: chance of such values, or less even ones, if they were uniform from 0 to 1."""
    ordered, n = np.sort(values), len(values)
    steps = np.arange(n + 1) / n
    distance = float(max((steps[1:] - ordered).max(), (ordered - steps[:-1]).max()))
    x = (math.sqrt(n) + 0.12 + 0.11 / math.sqrt(n)) * distance  # Stephens' correction
    return min(1.0, 2 * sum((-1) ** (k - 1) * math.exp(-2 * (k * x) ** 2) for k in range(1, 101)))


def conservative_p(values: Sequence[float]) -> float:
    """The same, one-sided: whether too many values are too small."""
    ordered, n = np.sort(values), len(values)
    excess = float((np.arange(1, n + 1) / n - ordered).max())
    return math.exp(-2 * n * max(excess, 0.0) ** 2)
