"""The recurrences of scan.py for exported graphs: real arithmetic, any length, gradients not needed.

The sequence is cut into blocks, which run side by side; a loop over the blocks carries the state. In a block
the continued fraction depends on the value n before it as

    n -> A + p n / (1 + C n)        one more step:  A' = 1/(a + A),  p' = -p A'^2,  C' = C + p A'

where A and C are Green's functions of the block's last and first site and p is the square of the one between
them (Schur complement), so every term is bounded and nothing needs rescaling. The first row is the identity,
A = 0, p = 1, C = 0, which is also what masked tokens do. Complex numbers are (real, imaginary) tuples.
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
    size = value[0].square() + value[1].square()
    return value[0] / size, -value[1] / size


def kept(keep: Tensor | None, new: Complex, old: Complex) -> Complex:
    """Take the new value where ``keep`` holds, or everywhere."""
    if keep is None:
        return new
    keep = keep.reshape(*keep.shape, *[1] * (new[0].ndim - keep.ndim))
    return torch.where(keep, new[0], old[0]), torch.where(keep, new[1], old[1])


def run(step: Any, start: Any, inputs: Any, axis: int) -> tuple[Any, Any]:
    """Run ``state, answer = step(state, *inputs)`` along an axis; return the last state and all answers."""
    owned = tuple(part.clone(memory_format=torch.contiguous_format) for part in start)  # loop allows no alias
    last, answers = loop(lambda state, values: step(state, *values), owned, inputs, dim=axis)
    return last, answers


def carried(step: Any, start: Any, maps: Any) -> Any:
    """Take the state from block to block, axis 1; return it as it is before each."""
    return run(lambda state, *maps: (step(state, *maps), tuple(map(torch.clone, state))), start, maps, 1)[1]


def blocks(values: Tensor) -> Tensor:
    """Cut axis 1 of (B, N, …) into (B, C, BLOCK, …), filled up at the end.

    There are always two blocks: the exporter would take a single one for a constant.
    """
    length = values.shape[1]
    count = (length + BLOCK - 1) // BLOCK + 1
    padding = (0, 0) * (values.ndim - 2) + (0, count * BLOCK - length)
    return functional.pad(values, padding).unflatten(1, (count, BLOCK))


def is_step(values: Tensor, keep: Tensor | None) -> bool:
    """Say whether the graph takes one token at a time; a dynamic length does not."""
    return keep is None and isinstance(values.shape[1], int) and values.shape[1] == 1


def exported_fraction(a: Tensor, start: Tensor, keep: Tensor | None) -> Tensor:
    """Continued fraction on pairs; shapes as :func:`.scan.fraction_scan`."""
    if is_step(a, keep):
        return torch.stack(inverse(plus(a.unbind(-1), start[:, None].unbind(-1))), -1)
    steps = [blocks(part) for part in (*a.unbind(-1), *(() if keep is None else (keep,)))]

    def extend(state: Any, *inputs: Tensor) -> tuple[Any, Any]:
        last, first, product = (state[i : i + 2] for i in (0, 2, 4))
        mask = None if keep is None else inputs[2]
        new = inverse(plus(inputs[:2], last))
        passed = times(product, new)
        further = times(passed, new)
        maps = (
            *kept(mask, new, last),
            *kept(mask, plus(first, passed), first),
            *kept(mask, (-further[0], -further[1]), product),
        )
        return maps, ()

    def over(n: Any, *maps: Tensor) -> Complex:
        last, first, product = (maps[i : i + 2] for i in (0, 2, 4))
        below = times(first, n)
        return plus(last, times(times(product, n), inverse((below[0] + 1, below[1]))))

    def again(n: Any, *inputs: Tensor) -> tuple[Any, Any]:
        n = kept(None if keep is None else inputs[2], inverse(plus(inputs[:2], n)), n)
        return n, (n[0].clone(), n[1].clone())

    zero = torch.zeros_like(steps[0][:, :, 0])
    maps = run(extend, (zero, zero, zero, zero, zero + 1, zero), steps, 2)[0]
    n = carried(over, start.unbind(-1), maps)
    values = run(again, n, steps, 2)[1]  # from the right values: forgets the rounding of the maps
    return torch.stack(values, -1).flatten(1, 2)[:, : a.shape[1]]


def exported_values(n: Tensor, x: Tensor, start: Tensor, keep: Tensor | None) -> Tensor:
    """Linear recurrence y_i = i n_i (x_i - y_{i-1}) on pairs; shapes as :func:`.scan.value_scan`."""
    if is_step(n, keep):
        return torch.stack(turned(n.unbind(-1), x, start[:, None].unbind(-1)), -1)
    steps = [blocks(part) for part in (*n.unbind(-1), x, *(() if keep is None else (keep,)))]

    def extend(state: Any, *inputs: Tensor) -> tuple[Any, Any]:
        y, decay, mask = state[:2], state[2:], None if keep is None else inputs[3]
        y = kept(mask, turned(inputs[:2], inputs[2], y), y)
        decay = kept(mask, times((inputs[1], -inputs[0]), decay), decay)
        return (*y, *decay), tuple(map(torch.clone, (*y, *decay)))

    def over(y: Any, *maps: Tensor) -> Complex:
        return plus(maps[:2], times((maps[2][..., None], maps[3][..., None]), y))

    zero, one = torch.zeros_like(steps[2][:, :, 0]), torch.ones_like(steps[0][:, :, 0])
    maps, trajectory = run(extend, (zero, zero, one, torch.zeros_like(one)), steps, 2)
    before = carried(over, start.unbind(-1), maps)
    decay = (trajectory[2][..., None], trajectory[3][..., None])
    values = plus(trajectory[:2], times(decay, (before[0][:, :, None], before[1][:, :, None])))
    return torch.stack(values, -1).flatten(1, 2)[:, : x.shape[1]]


def turned(n: Complex, x: Tensor, y: Complex) -> Complex:
    """Return i n (x - y), n (…, H) and x (…, H, K)."""
    return times((-n[1][..., None], n[0][..., None]), (x - y[0], -y[1]))
