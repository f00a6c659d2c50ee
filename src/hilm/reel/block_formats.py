"""Block formats: how far other programs round weights, so that rounding can be compared on the same weights.

A format cuts weights into blocks of a few, gives each block a scale, and rounds to a few levels of it; its
price per weight is fixed. Scales are searched as the programs that write a format do it: q4_k, q5_k, q6_k
and q8_0 as llama.cpp does without an importance matrix, nf4 as QLoRA does (Dettmers et al. 2023, scales
quantised in turn). Blocks follow each other through a whole tensor: a row need not be full of them. Nothing
is packed; only the values that come back are worked out.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import numpy as np

from hilm.reel.kernel import kernel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    Values = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """A format.

    Attributes:
        bits: Per weight, scales included.
        block: Weights that share all scales.
        rounding: float32 [n, block] → what comes back, [n, block].
    """

    bits: float
    block: int
    rounding: Callable[[Values], Values]

    def size(self, weights: int) -> float:
        """Bits of so many weights; the last block is stored in full."""
        return -(-weights // self.block) * self.block * self.bits

    def round(self, values: Values) -> Values:
        """Round weights, float32 of any shape but empty; zeros fill the last block."""
        padded = np.concatenate([values.ravel(), np.zeros(-values.size % self.block, np.float32)])
        rounded = self.rounding(padded.reshape(-1, self.block))
        return rounded.reshape(-1)[: values.size].reshape(values.shape)


def _half(scales: Values) -> Values:
    """Scales as they are stored, float16."""
    return scales.astype(np.float16).astype(np.float32)


def _over(values: Values, scales: Values) -> Values:
    """Quotient; 0 where the scale is 0."""
    quotient: Values = np.divide(values, scales, out=np.zeros_like(values), where=scales != 0)
    return quotient


def _round_evenly(blocks: Values, top: int) -> Values:
    """2 top + 1 even levels up to the largest magnitude: q8_0 and int4."""
    unit = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(top)
    scaled = blocks * _over(np.ones_like(unit), unit)
    rounded: Values = np.copysign(np.floor(np.abs(scaled) + np.float32(0.5)), scaled) * _half(unit)
    return rounded


NF4: Final = np.array([
    -1, -0.69619280, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0,
    0.07958030, 0.16093020, 0.24611230, 0.33791524, 0.44070983, 0.56261700, 0.72295684, 1,
], np.float32)  # fmt: skip
"""Quantiles of a Gaussian, as QLoRA publishes them."""


def _dynamic_levels() -> Values:
    """256 levels: 2^i even steps in each decade 10^(i-7) … 10^(i-6), of both signs, 0 and 1."""
    edges = [np.linspace(0.1, 1, (1 << i) + 1) * 10.0 ** (i - 6) for i in range(7)]
    middles = np.concatenate([(e[1:] + e[:-1]) / 2 for e in edges])
    return np.sort(np.concatenate([-middles, middles, [0, 1]])).astype(np.float32)


_DYNAMIC: Final = _dynamic_levels()


def _nearest(values: Values, levels: Values) -> Values:
    return levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, values)]


def _round_nf4(blocks: Values) -> Values:
    """Blocks of 64 with scales of 8 bits, 256 of which share one of 32 bits."""
    groups = blocks.reshape(-1, 64)
    largest = np.abs(groups).max(axis=1, keepdims=True)
    centred = largest - largest.mean()
    padded = np.concatenate([centred.ravel(), np.zeros(-len(centred) % 256, np.float32)]).reshape(-1, 256)
    unit = np.abs(padded).max(axis=1, keepdims=True)
    scales = (_nearest(_over(padded, unit), _DYNAMIC) * unit).reshape(-1, 1)[: len(groups)] + largest.mean()
    rounded: Values = _nearest(_over(groups, largest), NF4) * scales
    return rounded.reshape(blocks.shape)


def _round_affine(blocks: Values, top: int, first: int, tries: int) -> Values:
    """q4_k and q5_k: 32 weights share a scale and a minimum, of 6 bits in units that 256 share."""
    parts = blocks.reshape(-1, 32)
    fits = np.empty((2, len(parts)), np.float32)
    _fit_affine(parts, top, first, tries, fits)
    grouped = fits.reshape(2, -1, 8)
    unit = grouped.max(axis=2, keepdims=True) / np.float32(63)
    codes = np.minimum(np.rint(_over(grouped, unit)), 63)
    scale, low = (codes * _half(unit)).reshape(2, -1, 1)
    levels = np.clip(np.rint(_over(parts + low, scale)), 0, top)
    rounded: Values = levels * scale - low
    return rounded.reshape(blocks.shape)


@kernel
def _fit_affine(parts: Values, top: int, first: int, tries: int, fits: Values) -> None:
    """Search scales and minima [2, n] of weights [n, 32], where x is level * scale - minimum.

    Levels come from steps of (high - low) / top, or the ``tries`` next of / (top + first/10), / (top +
    (first + 1)/10) …; the latter are fitted by least squares in which large weights count more.
    """
    emphasis, levels = np.empty(32), np.empty(32)
    for n in range(len(parts)):
        x = parts[n].astype(np.float64)
        low, high = min(x.min(), 0.0), x.max()
        fits[0, n], fits[1, n] = 0.0, -low
        if high <= low:
            continue
        emphasis[:] = np.sqrt((x * x).mean()) + np.abs(x)
        best = np.inf
        for t in range(-1, tries):
            steps = top + (0.0 if t < 0 else (first + t) / 10)
            for i in range(32):
                levels[i] = min(max(np.rint((x[i] - low) * steps / (high - low)), 0.0), float(top))
            scale, offset = (high - low) / top, low
            if t >= 0:
                scale, offset = _regress(x, levels, emphasis)
            error = (emphasis * (scale * levels + offset - x) ** 2).sum()
            if error < best:
                best, fits[0, n], fits[1, n] = error, scale, -offset


@kernel
def _regress(
    x: NDArray[np.float64], levels: NDArray[np.float64], emphasis: NDArray[np.float64]
) -> tuple[float, float]:
    """Scale and offset, at most 0, of the line through weighted points; infinite where there is none."""
    sum_w = sum_x = sum_l = sum_ll = sum_lx = 0.0
    for i in range(x.size):
        part = emphasis[i] * levels[i]
        sum_w += emphasis[i]
        sum_x += emphasis[i] * x[i]
        sum_l += part
        sum_ll += part * levels[i]
        sum_lx += part * x[i]
    spread = sum_w * sum_ll - sum_l * sum_l
    if spread <= 0:
        return np.inf, 0.0
    offset = (sum_ll * sum_x - sum_l * sum_lx) / spread
    if offset > 0:
        return sum_lx / sum_ll, 0.0
    return (sum_w * sum_lx - sum_x * sum_l) / spread, offset


def _round_symmetric(blocks: Values) -> Values:
    """q6_k: 16 weights share a scale, of 8 bits in units that 256 share."""
    parts = blocks.reshape(-1, 16)
    fits = np.empty(len(parts), np.float32)
    _fit_symmetric(parts, fits)
    grouped = fits.reshape(-1, 16)
    largest = np.take_along_axis(grouped, np.abs(grouped).argmax(axis=1)[:, None], axis=1)
    unit = largest / np.float32(-128)
    scale = (np.minimum(np.rint(_over(grouped, unit)), 127) * _half(unit)).reshape(-1, 1)
    rounded: Values = np.clip(np.rint(_over(parts, scale)), -32, 31) * scale
    return rounded.reshape(blocks.shape)


@kernel
def _fit_symmetric(parts: Values, fits: Values) -> None:
    """Search scales [n] of weights [n, 16] for levels -32 … 31, weighted by squares."""
    for n in range(len(parts)):
        x = parts[n].astype(np.float64)
        largest = x[np.abs(x).argmax()]
        fits[n] = 0.0
        if largest == 0.0:
            continue
        best = 0.0
        for t in range(-9, 10):
            sum_lx = sum_ll = 0.0
            for i in range(16):
                level = min(max(np.rint(x[i] * -(32 + 0.1 * t) / largest), -32.0), 31.0)
                sum_lx += x[i] ** 3 * level
                sum_ll += (x[i] * level) ** 2
            if sum_ll > 0 and sum_lx * sum_lx > best * sum_ll:
                fits[n] = sum_lx / sum_ll
                best = sum_lx * sum_lx / sum_ll


FORMATS: Final[Mapping[str, BlockFormat]] = MappingProxyType({
    "q4_k": BlockFormat(4.5, 256, lambda blocks: _round_affine(blocks, 15, -10, 21)),
    "q5_k": BlockFormat(5.5, 256, lambda blocks: _round_affine(blocks, 31, -5, 16)),
    "q6_k": BlockFormat(6.5625, 256, _round_symmetric),
    "q8_0": BlockFormat(8.5, 32, lambda blocks: _round_evenly(blocks, 127)),
    "nf4": BlockFormat(4 + 8 / 64 + 32 / (64 * 256), 64, _round_nf4),
    "int4": BlockFormat(4.25, 64, lambda blocks: _round_evenly(blocks, 7)),
})  # fmt: skip
"""Formats by the names `hilm.reel.rate.LIKE` gives them; int4 has even levels and groups of 64."""
