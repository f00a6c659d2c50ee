"""Token mixing by the resolvents of tridiagonal operators. Complex numbers are real pairs (…, 2)."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from .blocked import exported_fraction, exported_values
from .scan import fraction_scan, shifted, value_scan

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .cache_resnet_bk import ResNetBKCacheLayer
    from .configuration_resnet_bk import ResNetBKConfig


def reciprocal(pairs: Tensor) -> Tensor:
    """Invert complex numbers."""
    real, imaginary = pairs.unbind(-1)
    size = real.square() + imaginary.square()
    return torch.stack([real / size, -imaginary / size], -1)


def turned(n: Tensor, values: Tensor) -> Tensor:
    """Return i n times values: (B, N, H, 2) and (B, N, H, K, 2)."""
    real, imaginary = n[..., None, :].unbind(-1)
    x, y = values.unbind(-1)
    return torch.stack([-imaginary * x - real * y, real * x - imaginary * y], -1)


def scattering_phase(n: Tensor) -> Tensor:
    """Return the mean phase of g = i n / b in units of pi: (…, H, 2) → (…) in (0, 1)."""
    return torch.atan2(n[..., 0], -n[..., 1]).mean(-1) / math.pi


def free_closure(p: Tensor, q: Tensor) -> Tensor:
    """Continued fraction n = 1/(a + n) of the free half line, a = p - iq with p >= 0: (H, 2).

    n = 2/(a + sqrt(a^2 + 4)): with the root of positive real part both terms lie in one quadrant, so nothing
    cancels.
    """
    real, imaginary = p.square() - q.square() + 4, 2 * p * q.abs()
    modulus = (real.square() + imaginary.square()).sqrt()
    large = ((modulus + real.abs()) / 2).clamp_min(1e-12).sqrt()  # zero only at the very edge of the band
    small = imaginary / (2 * large)
    root_real, root_imaginary = torch.where(real >= 0, large, small), torch.where(real >= 0, small, large)
    signed = torch.where(q < 0, root_imaginary, -root_imaginary)
    return 2 * reciprocal(torch.stack([p + root_real, signed - q], -1))


def prime_bumps(size: int, k_max: int, epsilon: float) -> Tensor:
    """Return von Mangoldt weights log p / n^(1/2 + epsilon) at n = p^k, k <= k_max, else 0; the largest is 1.

    Args:
        size: Largest n; at least 16, because the maximum lies at n <= 8.
        k_max: Highest power.
        epsilon: Extra decay.

    Returns:
        (size + 1,) float64, indexed by n.
    """
    return torch.from_numpy(bump_table(size, k_max, epsilon))


@lru_cache(maxsize=16)
def bump_table(size: int, k_max: int, epsilon: float) -> NDArray[np.float64]:
    """Compute :func:`prime_bumps`, in numpy: a tensor cached while tracing would be a fake one."""
    prime = np.ones(size + 1, bool)
    prime[:2] = False
    for n in range(2, math.isqrt(size) + 1):
        prime[2 * n :: n] = False
    primes = prime.nonzero()[0]
    table = np.zeros(size + 1)
    for k in range(1, min(k_max, size.bit_length()) + 1):
        base = primes[primes.astype(float) ** k <= size]
        table[base**k] = np.log(base) * base.astype(float) ** (-k * (0.5 + epsilon))
    scaled: NDArray[np.float64] = table / table.max()
    return scaled


class Operator(NamedTuple):
    """Coefficients of a layer's operators, (H,) each.

    Attributes:
        eta: Width: imaginary part of the energy.
        b: Coupling of neighbours.
        energy: Real part of the energy.
    """

    eta: Tensor
    b: Tensor
    energy: Tensor

    def closure(self, eta: Tensor) -> Tensor:
        """Return the continued fraction of the free half line at width ``eta``: (H, 2)."""
        return free_closure(eta / self.b, self.energy / self.b)


class ResNetBKMixer(nn.Module):
    """H tridiagonal operators whose potential is written by the tokens."""

    def __init__(self, config: ResNetBKConfig) -> None:
        super().__init__()
        width, channels = config.d_model, config.bk_channels
        self.config = config
        self.v_proj = nn.Linear(width, channels)
        self.feature_proj = nn.Linear(2 * channels, width)
        self.bk_scale = nn.Parameter(torch.empty(1))
        self.eta_raw, self.energy, self.b_raw = (
            nn.Parameter(torch.empty(channels, dtype=torch.float32)) for _ in range(3)
        )
        if config.use_semiseparable:
            self.x_proj = nn.Linear(width, width)
            self.y_proj = nn.Linear(2 * width, width)
        if config.low_rank:
            self.k_proj = nn.Linear(width, channels * config.low_rank, bias=False)
            self.q_proj = nn.Linear(width, channels * config.low_rank, bias=False)
        if config.use_prime_bump:
            self.bump_gain = nn.Parameter(torch.empty(channels, dtype=torch.float32))

    def forward(
        self, hidden: Tensor, keep: Tensor | None, bumps: Tensor | None, past: ResNetBKCacheLayer | None
    ) -> tuple[Tensor, Tensor]:
        """Mix tokens.

        Args:
            hidden: (B, N, d).
            keep: (B, N) bool; masked tokens change nothing.
            bumps: (B, N) prime bumps.
            past: State before the first token; it is advanced.

        Returns:
            (B, N, d), and the Green's functions as continued fractions, (B, N, H, 2).
        """
        core = getattr(torch, self.config.core_dtype)
        v = self.v_proj(hidden).double()  # rounding of the potential is enlarged by up to 1 / eta^2
        x = self._values(hidden, v.shape[-1]).to(core) if self.config.use_semiseparable else None
        with torch.autocast(hidden.device.type, enabled=False):
            operator, start = self.operator(torch.float64), self._start(v, x, past)
            v, strength = self._potential(v, operator, bumps, keep, start)
            a = torch.stack(
                [(operator.eta / operator.b).expand_as(v), (v - operator.energy) / operator.b], -1
            )
            trajectory = swept(a, x, start, keep)
            green, y = self._answer(a, x, operator, start, keep, trajectory)
            features = self._features(v, green, operator).flatten(2)
        if past is not None:
            past.update(*trajectory, *strength)
        mixed = self.bk_scale * self.feature_proj(features.to(hidden.dtype))
        return mixed if x is None else mixed + self._read(hidden, y), green.float()

    def operator(self, dtype: torch.dtype) -> Operator:
        """Return the operators' coefficients."""
        eta = functional.softplus(self.eta_raw.to(dtype)) + self.config.eta_min
        b = self.b_raw.to(dtype).tanh().exp()
        energy = self.energy.to(dtype)
        if self.config.use_birman_schwinger and self.config.use_mourre:
            energy = 1.9 * b * (energy / (1.9 * b)).tanh()
        return Operator(eta, b, energy)

    def _values(self, hidden: Tensor, channels: int) -> Tensor:
        """Return what is mixed, (B, N, H, K); every key sees all values of its channel."""
        x = self.x_proj(hidden).unflatten(-1, (channels, -1))
        if not self.config.low_rank:
            return x
        keys = self.k_proj(hidden).unflatten(-1, (channels, -1))
        return (keys[..., None] * x[..., None, :]).flatten(-2)

    def _read(self, hidden: Tensor, y: Tensor) -> Tensor:
        """Project mixed values (B, N, H, K, 2) back to the stream; queries weigh what their keys stored."""
        if self.config.low_rank:
            queries = self.q_proj(hidden).to(y.dtype).unflatten(-1, (y.shape[2], -1))
            y = torch.einsum("bnhr,bnhrkc->bnhkc", queries, y.unflatten(3, (self.config.low_rank, -1)))
            y = y / math.sqrt(self.config.low_rank)
        return self.y_proj(y.flatten(2).to(hidden.dtype))

    def _start(self, v: Tensor, x: Tensor | None, past: ResNetBKCacheLayer | None) -> list[Tensor]:
        """Return the state before the first token: n, then y and the potential's strength where used."""
        if past is not None and past.is_initialized:
            return past.state
        batch, _, channels = v.shape
        state = [v.new_zeros(batch, channels, 2)]
        if x is not None:
            state.append(x.new_zeros(batch, *x.shape[2:], 2))
        if self.config.use_birman_schwinger:
            state.append(v.new_zeros(batch, channels))
        return state

    def _potential(
        self, v: Tensor, operator: Operator, bumps: Tensor | None, keep: Tensor | None, start: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Bound the potential; with Birman-Schwinger also its prefix operators' Hilbert-Schmidt norm.

        That norm is at most s_i, s_i^2 = (2 |g_0| / eta) sum of v^2 up to i, by Schur's test and the
        resolvent identity; g_0 is the free Green's function.
        """
        v = self.config.v_max * (v / self.config.v_max).tanh()
        if bumps is not None:
            gain = self.config.prime_bump_scale * self.bump_gain.to(v.dtype)
            v = v + gain * bumps.to(v.dtype)[..., None]
        if not self.config.use_birman_schwinger:
            return v, []
        squares = v.square() if keep is None else v.square() * keep[..., None]
        strength = start[-1][:, None] + squares.cumsum(1)
        free = operator.closure(operator.eta)
        g = reciprocal(reciprocal(free) + free).norm(dim=-1) / operator.b
        total = strength if self.config.causal else strength[:, -1:]
        limit = self.config.schatten_threshold
        s = (2 * g / operator.eta * total + torch.finfo(v.dtype).tiny).sqrt()
        return v * (limit / s).clamp_max(1), [strength]

    def _answer(
        self,
        a: Tensor,
        x: Tensor | None,
        operator: Operator,
        start: list[Tensor],
        keep: Tensor | None,
        trajectory: list[Tensor],
    ) -> tuple[Tensor, Tensor | None]:
        """Return the Green's functions, and the mixed values divided by their standard deviation.

        The latter is the resolvent identity sum_j |G_ij|^2 = Im G_ii / eta.
        """
        y, before = None if x is None else trajectory[1], shifted(trajectory[0], start[0])
        n = trajectory[0] if keep is None else reciprocal(a + before)  # where all so far are masked: not 0
        if not self.config.causal:
            n, y = two_sided(a, x, start, keep, trajectory)
            green = n
        elif self.config.right_closure == "vacuum":
            lap = self.config.use_birman_schwinger and self.config.use_lap
            width = torch.zeros_like(operator.eta) if lap else operator.eta
            green = reciprocal(a + before + operator.closure(width))
        else:
            green = n
        if y is not None:
            y = y * (operator.eta / operator.b / n[..., 0]).sqrt().to(y.dtype)[..., None, None]
        return green, y

    def _features(self, v: Tensor, n: Tensor, operator: Operator) -> Tensor:
        """Return two real features of g = i n / b per channel: (B, N, H, 2)."""
        real, imaginary = -n[..., 1] / operator.b, n[..., 0] / operator.b
        if not self.config.use_birman_schwinger:
            size = 1 + (real.square() + imaginary.square()).sqrt()
            return torch.stack([real / size, imaginary / size], -1)
        coupling = v / (1 + self.config.epsilon)
        real, imaginary = 1 - coupling * real, -coupling * imaginary
        return torch.stack([(real.square() + imaginary.square()).log() / 2, torch.atan2(imaginary, real)], -1)


def swept(a: Tensor, x: Tensor | None, start: list[Tensor], keep: Tensor | None) -> list[Tensor]:
    """Run the recurrences from the left: n (B, N, H, 2), and y (B, N, H, K, 2) if there are values."""
    if keep is None and isinstance(a.shape[1], int) and a.shape[1] == 1:  # not where the length is dynamic
        n = reciprocal(a + start[0][:, None])
        if x is None:
            return [n]
        y = start[1][:, None]
        return [n, turned(n.to(x.dtype), torch.stack([x - y[..., 0], -y[..., 1]], -1))]
    exporting = torch.compiler.is_exporting()
    scans = (exported_fraction, exported_values) if exporting else (fraction_scan, value_scan)
    n = scans[0](a, start[0], keep)
    return [n] if x is None else [n, scans[1](n.to(x.dtype), x, start[1], keep)]


def two_sided(
    a: Tensor, x: Tensor | None, start: list[Tensor], keep: Tensor | None, left: list[Tensor]
) -> tuple[Tensor, Tensor | None]:
    """Join the sweep from the left with one from the right: G_ii, and row i of G applied to the values."""
    flipped = [None if values is None else values.flip(1) for values in (a, x, keep)]
    right = swept(flipped[0], flipped[1], start, flipped[2])
    before = [shifted(values, first) for values, first in zip(left, start, strict=False)]
    after = [shifted(values, first).flip(1) for values, first in zip(right, start, strict=False)]
    green = reciprocal(a + before[0] + after[0])
    if x is None:
        return green, None
    pairs = torch.stack([x, torch.zeros_like(x)], -1)
    return green, turned(green.to(x.dtype), pairs - before[1] - after[1])
