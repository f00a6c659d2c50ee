"""The two recurrences of ResNet-BK as PyTorch operators, in O(N) work and about 4 sqrt(N) dependent steps.

A tridiagonal operator T = b(S + S*) + diag(v) is eliminated from left to right at energy E + i eta. With
a = (eta + i(v - E)) / b, the scaled Green's function n = -i b [(T - z)^-1]_ii of the growing leading block
obeys

    n_i = 1 / (a_i + n_{i-1})                  Re a > 0, hence Re n > 0: a contraction, which needs no clamp
    y_i = i n_i (x_i - y_{i-1})                last row of (T - z)^-1 applied to b x

Masked tokens are identity steps. Complex numbers cross the operators as real tensors with a last axis of 2.
Gradients are exact adjoints: reverse linear recurrences, run by the same scan. Convention: the gradient with
respect to q = r + is is dL/dr + i dL/ds.
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

RESCALE_EVERY = 8
NAMESPACE = re.sub(r"\W", "_", __name__)
"""Two copies of this module, installed and from a model's folder, keep operators of their own."""


def chunk_size(length: int) -> int:
    """Steps per chunk: all of a short sequence, else the power of two next to sqrt(length / 2)."""
    return length if length <= 32 else 1 << max(3, round(math.log2(length / 2) / 2))


def chunked(values: Tensor, size: int, fill: float) -> Tensor:
    """Cut axis 1 of (B, N, …) into (B, C, size, …), filled up at the end."""
    missing = -values.shape[1] % size
    if missing:
        values = torch.cat([values, values.new_full((len(values), missing, *values.shape[2:]), fill)], 1)
    return values.unflatten(1, (-1, size))


def fraction(a: Tensor, start: Tensor, keep: Tensor | None) -> Tensor:
    """Continued fraction n_i = 1/(a_i + n_{i-1}).

    Args:
        a: (B, N, H) complex.
        start: (B, H), n_0.
        keep: (B, N) bool; False repeats n_{i-1}.

    Returns:
        (B, N, H).
    """
    length = a.shape[1]
    size = chunk_size(length)
    if not length:
        return torch.empty_like(a)
    steps = chunked(a, size, 1.0)
    kept = None if keep is None else chunked(keep, size, fill=True)[..., None]
    n = entries(steps, start, kept)
    values = torch.empty_like(steps)
    for i in range(size):
        step = (steps[:, :, i] + n).reciprocal_()
        n = step if kept is None else torch.where(kept[:, :, i], step, n)
        values[:, :, i] = n
    return values.flatten(1, 2)[:, :length]


def entries(steps: Tensor, start: Tensor, kept: Tensor | None) -> Tensor:
    """Return n before each chunk: (B, C, H).

    A step acts on n = s/f as (f, s) <- (a f + s, f). All chunks run at once on two columns, which are divided
    by their size now and then (the map is projective), and then map the start value from chunk to chunk.
    """
    batch, chunks, size, width = steps.shape
    values = start.new_empty((batch, chunks, width))
    values[:, 0] = start
    if chunks == 1:
        return values
    f, s = steps.new_zeros((2, 2, batch, chunks, width)).unbind()
    f[0], s[1] = 1, 1
    for i in range(size):
        step = torch.addcmul(s, steps[:, :, i], f)
        if kept is None:
            f, s = step, f
        else:
            f, s = torch.where(kept[:, :, i], step, f), torch.where(kept[:, :, i], f, s)
        if i % RESCALE_EVERY == RESCALE_EVERY - 1:
            scale = f.abs().amax(0).reciprocal_()
            f, s = f * scale, s * scale
    for c in range(chunks - 1):
        n = values[:, c]
        values[:, c + 1] = torch.addcmul(s[0, :, c], s[1, :, c], n) / torch.addcmul(f[0, :, c], f[1, :, c], n)
    return values


def linear(alpha: Tensor, u: Tensor, start: Tensor) -> Tensor:
    """Linear recurrence y_i = alpha_i y_{i-1} + u_i.

    Args:
        alpha: (B, N, H) complex.
        u: (B, N, H, K); overwritten when its length is a multiple of the chunk.
        start: (B, H, K), y_0.

    Returns:
        (B, N, H, K).
    """
    length = alpha.shape[1]
    if not length:
        return torch.empty_like(u)
    size = chunk_size(length)
    factors = chunked(alpha, size, 0.0)[..., None]
    values = chunked(u, size, 0.0)
    values[:, 0, 0].addcmul_(factors[:, 0, 0], start)
    for i in range(1, size):
        values[:, :, i].addcmul_(factors[:, :, i], values[:, :, i - 1])
    if values.shape[1] > 1:
        products = factors.cumprod(2)
        ends, through = values[:, :, -1].clone(), products[:, :, -1]
        for c in range(1, values.shape[1]):
            ends[:, c].addcmul_(through[:, c], ends[:, c - 1])
        values[:, 1:].addcmul_(products[:, 1:], ends[:, :-1, None])
    return values.flatten(1, 2)[:, :length]


def reverse_linear(alpha: Tensor, grad: Tensor) -> Tensor:
    """Adjoint recurrence mu_i = grad_i + conj(alpha_{i+1}) mu_{i+1}, shapes as in :func:`linear`."""
    after = functional.pad(alpha[:, 1:], (0, 0, 0, 1)).conj_physical().flip(1)
    return linear(after, grad.flip(1), torch.zeros_like(grad[:, 0])).flip(1)


def shifted(values: Tensor, start: Tensor) -> Tensor:
    """Return the sequence of previous values: ``start`` first, the last one dropped; axis 1."""
    return torch.cat([start[:, None], values[:, :-1]], 1)


def paired(pairs: Tensor) -> Tensor:
    """Look at real pairs (…, 2) as complex numbers (…)."""
    return torch.view_as_complex(pairs.contiguous())


def decay(n: Tensor, keep: Tensor | None) -> Tensor:
    """Return alpha of the value recurrence: -i n, and 1 where masked."""
    alpha = n * -1j
    return alpha if keep is None else torch.where(keep[..., None], alpha, 1.0)


@torch.library.custom_op(f"{NAMESPACE}::fraction_scan", mutates_args=())
def fraction_scan(a: Tensor, start: Tensor, keep: Tensor | None) -> Tensor:
    """Run :func:`fraction` on real pairs: (B, N, H, 2), (B, H, 2), (B, N) → (B, N, H, 2)."""
    return torch.view_as_real(fraction(paired(a), paired(start), keep)).contiguous()


@torch.library.custom_op(f"{NAMESPACE}::fraction_scan_backward", mutates_args=())
def fraction_scan_backward(
    grad: Tensor, values: Tensor, start: Tensor, keep: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`fraction_scan` with respect to ``a`` and ``start``."""
    if not grad.shape[1]:
        return torch.zeros_like(grad), torch.zeros_like(start)
    slope = -paired(values).square()  # dn_i/da_i = dn_i/dn_{i-1}
    passed = slope if keep is None else torch.where(keep[..., None], slope, 1.0)
    total = reverse_linear(passed, paired(grad)[..., None])[..., 0]
    grad_start = passed[:, 0].conj() * total[:, 0]
    grad_a = slope.conj() * total
    if keep is not None:
        grad_a = torch.where(keep[..., None], grad_a, 0.0)
    return torch.view_as_real(grad_a.resolve_conj()), torch.view_as_real(grad_start.resolve_conj())


@torch.library.custom_op(f"{NAMESPACE}::value_scan", mutates_args=())
def value_scan(n: Tensor, x: Tensor, start: Tensor, keep: Tensor | None) -> Tensor:
    """Run y_i = i n_i (x_i - y_{i-1}).

    Args:
        n: (B, N, H, 2) pairs.
        x: (B, N, H, K) real.
        start: (B, H, K, 2) pairs, y_0.
        keep: (B, N) bool; False repeats y_{i-1}.

    Returns:
        (B, N, H, K, 2) pairs.
    """
    turned = paired(n) * 1j
    if keep is not None:
        turned = torch.where(keep[..., None], turned, 0.0)
    alpha = decay(paired(n), keep)
    return torch.view_as_real(linear(alpha, turned[..., None] * x, paired(start))).contiguous()


@torch.library.custom_op(f"{NAMESPACE}::value_scan_backward", mutates_args=())
def value_scan_backward(
    grad: Tensor, n: Tensor, x: Tensor, start: Tensor, keep: Tensor | None, values: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`value_scan` with respect to ``n``, ``x`` and ``start``."""
    if not grad.shape[1]:
        return torch.zeros_like(n), torch.zeros_like(x), torch.zeros_like(start)
    fraction_values = paired(n)
    alpha = decay(fraction_values, keep)
    total = reverse_linear(alpha, paired(grad))
    grad_start = alpha[:, 0, :, None].conj() * total[:, 0]
    before = shifted(paired(values), paired(start))
    grad_n = ((before - x).conj() * total).sum(-1) * 1j
    factors = (fraction_values * 1j)[..., None]
    grad_x = factors.real * total.real + factors.imag * total.imag
    if keep is not None:
        grad_n = torch.where(keep[..., None], grad_n, 0.0)
        grad_x = torch.where(keep[..., None, None], grad_x, 0.0)
    return torch.view_as_real(grad_n), grad_x, torch.view_as_real(grad_start.resolve_conj())


fraction_scan.register_fake(lambda a, *_: torch.empty_like(a))
fraction_scan_backward.register_fake(
    lambda _, values, start, *__: tuple(map(torch.empty_like, (values, start)))
)
value_scan.register_fake(lambda _, x, *__: x.new_empty((*x.shape, 2)))
value_scan_backward.register_fake(lambda _, n, x, start, *__: tuple(map(torch.empty_like, (n, x, start))))


def save_fraction(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    """Keep what the adjoint of :func:`fraction_scan` needs."""
    _, start, keep = inputs
    ctx.save_for_backward(output, start, keep)


def save_value(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    """Keep what the adjoint of :func:`value_scan` needs."""
    ctx.save_for_backward(*inputs, output)


fraction_scan.register_autograd(
    lambda ctx, grad: (*fraction_scan_backward(grad, *ctx.saved_tensors), None), setup_context=save_fraction
)
value_scan.register_autograd(
    lambda ctx, grad: (*value_scan_backward(grad, *ctx.saved_tensors), None), setup_context=save_value
)
