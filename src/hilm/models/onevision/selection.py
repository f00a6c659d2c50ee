"""Which patches of a padded batch are seen, and where they stand in the virtual clip."""

from __future__ import annotations

import torch
from torch import Tensor

from hilm.errors import InputError


def select_tokens(
    grid: tuple[int, int, int, int], virtual: int | None, visible: Tensor | None, slots: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Choose tokens of a batch of clips.

    Args:
        grid: Clips B, frames T, rows h and columns w of patches.
        virtual: Frames of the virtual clip; T when None.
        visible: (B, N) int64 indices into the virtual clip, row-major; all tokens when None.
        slots: (B, T) int64 slots of the frames. When None they are 0 … T - 1 if there are as many frames as
            slots or ``visible`` is None; else they are what ``visible`` says, if it names T whole frames.

    Returns:
        (B, N, 3) frame, row and column in the pixels, and (B, N, 3) slot, row and column in the virtual clip.

    Raises:
        InputError: Indices or slots have another shape, are out of range, or do not say which frame is meant.
    """
    batch, frames, rows, columns = grid
    virtual, area = virtual or frames, rows * columns
    if slots is not None:
        _check_slots(slots, (batch, frames), virtual)
    if visible is None:
        index = torch.arange(frames * area).expand(batch, -1)
        frame = index // area
        slot = frame if slots is None else slots.to(frame.device).gather(1, frame)
    else:
        _check_visible(visible, batch, virtual * area)
        index, slot = visible, visible // area
        slots = _slots_of(visible, frames, area, virtual) if slots is None else slots.to(slot.device)
        frame = _frame_of(slot, slots, virtual)
    place = (index % area // columns, index % columns)
    return torch.stack((frame, *place), -1), torch.stack((slot, *place), -1)


def _check_slots(slots: Tensor, shape: tuple[int, int], virtual: int) -> None:
    if slots.shape != shape or slots.dtype != torch.int64:
        raise InputError(f"frame_slots is {slots.dtype} {tuple(slots.shape)}; it must be int64 {shape}")
    if slots.min() < 0 or slots.max() >= virtual or (slots.sort(1).values.diff() == 0).any():
        raise InputError(f"frame_slots must be distinct and from 0 to {virtual - 1}: {slots.tolist()}")


def _check_visible(visible: Tensor, batch: int, size: int) -> None:
    if visible.ndim != 2 or len(visible) != batch or not visible.numel() or visible.dtype != torch.int64:
        raise InputError(
            f"visible_indices is {visible.dtype} {tuple(visible.shape)}; it must be int64 ({batch}, tokens)"
        )
    low, high = map(int, visible.aminmax())
    if low < 0 or high >= size:
        raise InputError(f"visible_indices from {low} to {high}; the virtual clip has {size} tokens, from 0")


def _slots_of(visible: Tensor, frames: int, area: int, virtual: int) -> Tensor:
    """Find the slots of all frames, (B, T), from the indices."""
    if frames == virtual:
        return torch.arange(frames, device=visible.device).expand(len(visible), -1)
    ordered = visible.sort(1).values
    slots = ordered[:, ::area] // area
    whole = slots[..., None] * area + torch.arange(area, device=visible.device)
    distinct = bool((slots.diff() > 0).all())
    if slots.shape[1] != frames or not distinct or not torch.equal(whole.flatten(1), ordered):
        raise InputError(
            f"visible_indices do not name {frames} whole frames of a virtual clip of {virtual}",
            hint="say with frame_slots which slot each frame has",
        )
    return slots


def _frame_of(slot: Tensor, slots: Tensor, virtual: int) -> Tensor:
    """Find the frame of every token, (B, N), from its slot."""
    owners = torch.full((len(slots), virtual), -1, device=slot.device)
    numbers = torch.arange(slots.shape[1], device=slot.device).expand(len(slots), -1)
    frame = owners.scatter(1, slots, numbers).gather(1, slot)
    if (frame < 0).any():
        raise InputError(f"visible_indices name slots without a frame: {slot[frame < 0].unique().tolist()}")
    return frame
