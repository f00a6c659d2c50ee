"""The recurrences of scan.py for exported graphs: real arithmetic, any length, gradients not needed.

The sequence is cut into blocks, which run side by side; a loop over the blocks carries the state. A runtime
pays for every operation in a loop, however small, so what can be done for all steps at once is done outside.
Complex numbers are (real, imaginary) tuples.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan as loop
from torch.nn import functional

BLOCK = 16
"""Tokens per block."""

Complex = tuple[Tensor, Tensor]


def times(left: Complex, right: Complex) -> Complex:
    """Multiply."""
    (a, b), (c, d) = left, right
    return a * c - b * d, a * d + b * c


def plus(left: Complex, right: Complex) -> Complex:
    """Add."""
    return left[0] + right[0], left[1] + right[1]


def inverse(value: Complex) -> Complex:
    """Invert."""
    size = value[0] * value[0] + value[1] * value[1]
    return value[0] / size, -value[1] / size


def matrix(real: Tensor, imaginary: Tensor) -> Tensor:
    """Return the real matrices (…, 2 R, 2 S) that act like complex ones (…, R, S) on (real, imaginary)."""
    rows = ((real, -imaginary), (imaginary, real))
    return torch.stack([torch.stack(row, -1).flatten(-2) for row in rows], -2).flatten(-3, -2)


def run(step: Any, start: Any, inputs: Any, axis: int) -> tuple[Any, Any]:
    """Run ``state, answer = step(state, *inputs)`` along an axis; return the last state and all answers."""
    owned = tuple(part.clone(memory_format=torch.contiguous_format) for part in start)  # loop allows no alias
    last, answers = loop(lambda state, values: step(state, *values), owned, inputs, dim=axis)
    return last, answers


def carried(step: Any, start: Tensor, maps: tuple[Tensor, ...]) -> Tensor:
    """Take the state from block to block, axis 1; return it as it is before each."""
    answers = run(lambda state, *maps: ((step(state[0], *maps),), (state[0].clone(),)), (start,), maps, 1)[1]
    before: Tensor = answers[0]
    return before


def blocks(values: Tensor) -> Tensor:
    """Cut axis 1 of (B, N, …) into (B, C, BLOCK, …), filled up at the end.

    There are always two blocks: the exporter would take a single one for a constant.
    """
    length = values.shape[1]
    count = (length + BLOCK - 1) // BLOCK + 1
    padding = (0, 0) * (values.ndim - 2) + (0, count * BLOCK - length)
    return functional.pad(values, padding).unflatten(1, (count, BLOCK))


def exported_fraction(a: Tensor, start: Tensor, keep: Tensor | None) -> Tensor:
    """Continued fraction on float64 pairs; shapes as :func:`.scan.fraction_scan`.

    As there, a step acts on n = s/f as (f, s) <- (a f + s, f); float64 does not overflow within a block.
    """
    steps = [blocks(part) for part in a.unbind(-1)]
    steps += [] if keep is None else [blocks(keep)[..., None]]

    def kept(mask: tuple[Tensor, ...], new: Any, old: Any) -> Any:
        return tuple(torch.where(mask[0], *pair) for pair in zip(new, old, strict=True)) if mask else new

    def extend(state: Any, real: Tensor, imaginary: Tensor, *mask: Tensor) -> tuple[Any, Any]:
        f, s = state[:2], state[2:]
        new = (*plus(times((real, imaginary), f), s), f[0].clone(), f[1].clone())
        return kept(mask, new, state), ()

    def over(state: Tensor, block: Tensor) -> Tensor:
        after = block @ state
        return after / after.abs().amax(-2, keepdim=True)

    def again(n: Any, real: Tensor, imaginary: Tensor, *mask: Tensor) -> tuple[Any, Any]:
        n = kept(mask, inverse((real + n[0], imaginary + n[1])), n)
        return n, (n[0].clone(), n[1].clone())

    zero = torch.zeros_like(steps[0][:, :, 0])
    unit = torch.stack([zero + 1, zero]), torch.stack([zero, zero + 1])  # two columns
    none = torch.zeros_like(unit[0])
    last = run(extend, (unit[0], none, unit[1], none), steps, 2)[0]
    maps = matrix(*(torch.stack(part).movedim((0, 1), (-2, -1)) for part in (last[::2], last[1::2])))
    maps = maps / maps.abs().amax((-1, -2), keepdim=True)
    first = functional.pad(functional.pad(start, (1, 0)), (1, 0), value=1.0)  # f = 1, s = n_0
    before = carried(over, first[..., None], (maps,))[..., 0].unbind(-1)
    n = times(before[2:], inverse(before[:2]))
    values = run(again, n, steps, 2)[1]  # from the right values: forgets the rounding of the maps
    return torch.stack(values, -1).flatten(1, 2)[:, : a.shape[1]]


def exported_values(n: Tensor, x: Tensor, start: Tensor, keep: Tensor | None) -> Tensor:
    """Linear recurrence y_i = i n_i (x_i - y_{i-1}) on pairs; shapes as :func:`.scan.value_scan`.

    A further column starts at 1 and gets no values: it shows what is left of the state before the block.
    """
    u, alpha = (-n[..., 1:] * x, n[..., :1] * x), (n[..., 1:], -n[..., :1])
    if keep is not None:
        mask = keep[..., None, None]
        u = (u[0] * mask, u[1] * mask)
        alpha = torch.where(mask, alpha[0], 1.0), alpha[1] * mask
    steps = [blocks(part) for part in (*alpha, *(functional.pad(part, (0, 1)) for part in u))]

    def extend(y: Any, *inputs: Tensor) -> tuple[Any, Any]:
        y = plus(times(inputs[:2], y), inputs[2:])
        return y, (y[0].clone(), y[1].clone())

    none = torch.zeros_like(steps[2][:, :, 0])
    one = functional.pad(none[..., 1:], (0, 1), value=1.0)
    last, trajectory = run(extend, (one, none), steps, 2)
    maps = matrix(*(part[..., -1:, None] for part in last)), torch.stack(last, -2)[..., :-1]
    before = carried(lambda y, decay, added: decay @ y + added, start.movedim(-1, -2), maps)
    left = times((trajectory[0][..., -1:], trajectory[1][..., -1:]), before[:, :, None].unbind(-2))
    values = plus((trajectory[0][..., :-1], trajectory[1][..., :-1]), left)
    return torch.stack(values, -1).flatten(1, 2)[:, : x.shape[1]]
