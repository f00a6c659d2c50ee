"""Rotary position encoding over frame, row and column."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    from hilm.models.onevision.config import OneVisionConfig

SHARES = (4, 6, 6)
"""Sixteenths of the frequencies that frame, row and column get."""

Rotation: TypeAlias = tuple[Tensor, Tensor]
"""Cosines and sines, (…, N, 1, head_dim) each."""


def rotation(positions: Tensor, config: OneVisionConfig, dtype: torch.dtype) -> Rotation:
    """Angles of every channel, from the configuration alone: a model has no buffers that loading could spoil.

    Phases are float32 whatever the model: in bfloat16 the frequencies cost 0.09 rad at position 137.

    Args:
        positions: (…, N, 3) integers: slot in the virtual clip, row, column.
        config: Its ``rope_style`` says which channel turns by which phase.
        dtype: Of the activations.
    """
    at_least_single = torch.promote_types(dtype, torch.float32)
    phases = []
    for axis, share in enumerate(SHARES):
        count = config.head_dim // 32 * share
        steps = torch.arange(count, dtype=torch.float32, device=positions.device) / count
        inverse = 1 / config.rope_theta**steps
        phases.append(positions[..., axis, None].to(torch.float32) * inverse)
    half = torch.cat(phases, -1)
    angles = half.repeat_interleave(2, -1) if config.rope_style == "adjacent" else torch.cat((half, half), -1)
    angles = angles.to(at_least_single)[..., None, :]
    compute = at_least_single if config.rope_compute == "float32" else dtype
    return angles.cos().to(compute), angles.sin().to(compute)


def rotate(states: Tensor, angles: Rotation, style: str) -> Tensor:
    """Turn pairs of channels, in the precision of the angles.

    With "adjacent_tiled" channel 2i and 2i + 1 are a pair but have angles of their own, which is no rotation
    in the strict sense: the published weights were trained with it.

    Args:
        states: (…, N, heads, head_dim).
        angles: As :func:`rotation` returns them.
        style: "halves" pairs channel i with i + head_dim / 2; the others pair neighbours.
    """
    cosine, sine = angles
    values = states.to(cosine.dtype)
    if style == "halves":
        first, second = values.chunk(2, -1)
        turned = torch.cat((-second, first), -1)
    else:
        turned = torch.stack((-values[..., 1::2], values[..., ::2]), -1).flatten(-2)
    return (values * cosine + turned * sine).to(states.dtype)
