"""How far a run moved the weights, role by role, read from the files and never from memory."""

from __future__ import annotations

import io
import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hilm.extras import require
from hilm.lineage.adapter import low_rank_pairs, scale
from hilm.quantities import figure
from hilm.weights.tensor import BLOCK_VALUES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from hilm.weights.checkpoint import Checkpoint
    from hilm.weights.tensor import TensorInfo

RANKED = 1024
"""Largest smaller side of a matrix whose difference is decomposed."""

SMALL = 1e-6
"""Singular values below this share of the first do not count for the rank."""


@dataclass(slots=True)
class Change:
    """Sums over the tensors of a role.

    Attributes:
        tensors: How many there are.
        changed: How many differ.
        moved: ‖ΔW‖².
        base: ‖W‖².
        dot: <W, ΔW>.
        max_abs: Largest change of a value; None where it was not formed.
        ranks: Numerical rank of every changed matrix.
        effective: Effective rank of each.
    """

    tensors: int = 0
    changed: int = 0
    moved: float = 0.0
    base: float = 0.0
    dot: float = 0.0
    max_abs: float | None = 0.0
    ranks: list[int] = field(default_factory=list)
    effective: list[float] = field(default_factory=list)

    def add_spectrum(self, values: NDArray[Any]) -> None:
        """Count the ranks of one changed matrix from its singular values."""
        numerical, effective = ranks(values)
        self.ranks.append(numerical)
        self.effective.append(effective)

    def document(self) -> dict[str, Any]:
        """Figures: relative change, cosine of before and after, ranks (medians)."""
        after = self.base + 2 * self.dot + self.moved
        norm = math.sqrt(self.base * max(after, 0.0))
        return {
            "tensors": self.tensors,
            "changed": self.changed,
            "relative_change": math.sqrt(self.moved / self.base) if self.base else None,
            "cosine": min(1.0, (self.base + self.dot) / norm) if norm else None,
            "max_abs": self.max_abs,
            "rank": float(np.median(self.ranks)) if self.ranks else None,
            "effective_rank": float(np.median(self.effective)) if self.effective else None,
        }


def ranks(values: NDArray[Any]) -> tuple[int, float]:
    """Numerical rank, and effective rank exp(-Σ p ln p) of singular values s with p = s/Σs."""
    largest = values.max(initial=0.0)
    if not largest:
        return 0, 0.0
    share = values[values > SMALL * largest]
    share = share / share.sum()
    return len(share), float(np.exp(-np.sum(share * np.log(share))))


def full_difference(base: Checkpoint, child: Checkpoint, pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Compare tensors of a model with those it started from, a block at a time.

    Args:
        base: What it started from.
        child: The result.
        pairs: Names of tensors: of the base, and of the child.

    Returns:
        Role → figures of :class:`Change`.
    """
    roles: dict[str, Change] = defaultdict(Change)
    for before, after in pairs:
        info = base.tensors[before]
        if child.tensors[after].shape == info.shape:
            _add_tensor(roles[info.role.type], base, child, info, after)
    return {role: change.document() for role, change in sorted(roles.items())}


def _add_tensor(change: Change, base: Checkpoint, child: Checkpoint, info: TensorInfo, after: str) -> None:
    whole = len(info.shape) == 2 and min(info.shape) <= RANKED and info.numel <= 64 * BLOCK_VALUES
    step = info.numel if whole else BLOCK_VALUES
    moved, last = 0.0, np.zeros(0)
    for start in range(0, info.numel, max(1, step)):
        stop = min(info.numel, start + step)
        old = base.values(info.name, start, stop).astype(np.float64)
        last = child.values(after, start, stop) - old
        moved += float(last @ last)
        change.base += float(old @ old)
        change.dot += float(old @ last)
        change.max_abs = max(change.max_abs or 0.0, float(np.abs(last).max(initial=0.0)))
    change.tensors += 1
    change.changed += moved > 0
    change.moved += moved
    if whole and moved > 0:
        change.add_spectrum(np.linalg.svd(last.reshape(info.shape), compute_uv=False))


def low_rank_difference(base: Checkpoint, adapter: Checkpoint) -> dict[str, Any]:
    """The same for a LoRA, whose product s·BA is never formed: its spectrum is that of R_B R_Aᵀ, r x r.

    Returns:
        Role → figures; ``max_abs`` is None. Roles that the adapter leaves alone are there with zeros.
    """
    roles: dict[str, Change] = defaultdict(Change)
    adapted = {module_name(down.name): (down, up) for down, up in low_rank_pairs(adapter)}
    for info in base.tensors.values():
        change = roles[info.role.type]
        change.tensors += 1
        norm = 0.0
        for start in range(0, info.numel, BLOCK_VALUES):
            old = base.values(info.name, start, min(info.numel, start + BLOCK_VALUES)).astype(np.float64)
            norm += float(old @ old)
        change.base += norm
        if pair := adapted.get(info.name):
            _add_product(change, base, adapter, info, pair)
    return {role: change.document() for role, change in sorted(roles.items())}


def module_name(adapted: str) -> str:
    """Name of the weight that an adapter's tensor changes."""
    return adapted.removeprefix("base_model.model.").partition(".lora_")[0] + ".weight"


def _add_product(
    change: Change,
    base: Checkpoint,
    adapter: Checkpoint,
    info: TensorInfo,
    pair: tuple[TensorInfo, TensorInfo],
) -> None:
    config = adapter.config or {}
    a, b = (adapter.array(tensor.name).astype(np.float64) for tensor in pair)
    factor = scale(config, pair[0].name, len(a))
    if config.get("fan_in_fan_out") is True:
        a, b = b.T, a.T
    values = abs(factor) * singular_values(a, b)
    dot, step = 0.0, max(1, BLOCK_VALUES // a.shape[1])
    for start in range(0, len(b), step):
        rows = base.read_rows(info.name, start, min(len(b), start + step))
        dot += float(np.sum((b[start : start + step].T @ rows) * a))
    change.max_abs = None
    change.changed += bool(values.any())
    change.moved += float(values @ values)
    change.dot += factor * dot
    change.add_spectrum(values)


def singular_values(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Singular values of b @ a, ``[R, r] @ [r, C]``, from the r x r product of QR factors."""
    upper_b, upper_a = np.linalg.qr(b)[1], np.linalg.qr(a.T)[1]
    values: NDArray[np.float64] = np.linalg.svd(upper_b @ upper_a.T, compute_uv=False)
    return values


def draw_difference(roles: dict[str, Any]) -> bytes:
    """Draw the relative change and the effective rank of every role, as PNG."""
    require("matplotlib").use("Agg")
    canvas = require("matplotlib.figure").Figure(
        figsize=(9.6, 0.5 * len(roles) + 1.6), dpi=100, layout="constrained"
    )
    left, right = canvas.subplots(1, 2, sharey=True)
    for axes, key, title in (
        (left, "relative_change", "relative change ‖ΔW‖ / ‖W‖"),
        (right, "effective_rank", "effective rank of ΔW, median"),
    ):
        values = [role[key] for role in roles.values()]
        bars = axes.barh(list(roles), [value or 0.0 for value in values], color="#1f4e9a")
        axes.bar_label(bars, [figure(value) for value in values], padding=3)
        axes.set_title(title)
        axes.margins(x=0.2)
        axes.locator_params(axis="x", nbins=4)
        axes.grid(axis="x", alpha=0.3)
    left.invert_yaxis()
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png")
    return buffer.getvalue()
