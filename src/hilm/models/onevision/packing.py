"""Pictures and clips as rows of patches, one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hilm.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Samples of any sizes, ready for the packed encoder.

    Attributes:
        patches: (S, C · p · p), S the sum of all patches; frame, row, column order within a sample.
        grid_thw: (n, 3) int64: frames, rows and columns of patches per sample.
        patch_positions: (S, 3) int64: slot, row, column.
    """

    patches: Tensor
    grid_thw: Tensor
    patch_positions: Tensor

    @property
    def cu_seqlens(self) -> Tensor:
        """Where samples begin and end, (n + 1,) int32."""
        return torch.nn.functional.pad(self.grid_thw.prod(-1).cumsum(0), (1, 0)).to(torch.int32)


def pixel_grid(pixels: Tensor, patch_size: int) -> Tensor:
    """View pixels (…, H, W) as patches (…, h, p, w, p).

    Raises:
        InputError: A side is no multiple of the patch, or empty.
    """
    if pixels.shape[-2] % patch_size or pixels.shape[-1] % patch_size or not pixels.numel():
        raise InputError(
            f"pixels are {tuple(pixels.shape)}; height and width must be multiples of {patch_size}",
            hint="resize, crop or pad them first",
        )
    return pixels.unflatten(-1, (-1, patch_size)).unflatten(-3, (-1, patch_size))


def patchify(pixels: Tensor, patch_size: int) -> Tensor:
    """Cut pixels (C, H, W) or (C, T, H, W) into rows (T · h · w, C · p · p), each laid out (C, y, x).

    Raises:
        InputError: A side is no multiple of the patch.
    """
    clip = pixels[:, None] if pixels.ndim == 3 else pixels
    return pixel_grid(clip, patch_size).permute(1, 2, 4, 0, 3, 5).flatten(3).flatten(0, 2)


def unpatchify(patches: Tensor, grid: Sequence[int], patch_size: int) -> Tensor:
    """Put rows (t · h · w, C · p · p) together again: (C, t, h · p, w · p)."""
    tiles = patches.unflatten(-1, (-1, patch_size, patch_size)).unflatten(0, tuple(grid))
    return tiles.permute(3, 0, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def grid_positions(t_ids: Tensor, h: int, w: int) -> Tensor:
    """Positions (T · h · w, 3) of a clip whose frames have the slots ``t_ids``, (T,) int64."""
    rows, columns = (torch.arange(size, device=t_ids.device) for size in (h, w))
    return torch.cartesian_prod(t_ids, rows, columns)


def virtual_slots(n: int, frames: int) -> Tensor:
    """Spread n sampled frames over a virtual clip: (n,) int64, from 0 to ``frames`` - 1.

    Raises:
        InputError: There are no frames, or more than slots.
    """
    if not 1 <= n <= frames:
        raise InputError(
            f"{n} frames do not fit the {frames} slots of the virtual clip",
            hint=f"sample 1 to {frames} frames, or enlarge the virtual clip",
        )
    steps = torch.arange(n, dtype=torch.float64) * (frames - 1) / max(n - 1, 1)
    return steps.round().long()  # ties to even


def pack(samples: Sequence[tuple[Tensor, Tensor | None]], patch_size: int) -> PackedBatch:
    """Cut samples into patches and join them.

    Args:
        samples: Pixels (C, H, W) or (C, T, H, W), and the slots (T,) of the frames; 0 … T - 1 when None.
        patch_size: Side of a patch.

    Raises:
        InputError: There is no sample, a side is no multiple of the patch, or slots do not match frames.
    """
    if not samples:
        raise InputError("there is nothing to pack")
    patches, grids, positions = [], [], []
    for index, (pixels, slots) in enumerate(samples):
        patches.append(patchify(pixels, patch_size))
        frames = 1 if pixels.ndim == 3 else pixels.shape[1]
        h, w = (side // patch_size for side in pixels.shape[-2:])
        t_ids = torch.arange(frames, device=pixels.device) if slots is None else slots.to(pixels.device)
        if t_ids.shape != (frames,):
            raise InputError(f"sample {index} has {frames} frames but slots {tuple(t_ids.shape)}")
        grids.append((frames, h, w))
        positions.append(grid_positions(t_ids, h, w))
    grid_thw = torch.tensor(grids, device=patches[0].device)
    return PackedBatch(torch.cat(patches), grid_thw, torch.cat(positions))


def unpack(rows: Tensor, grid_thw: Tensor) -> list[Tensor]:
    """Split rows (S, …) into one tensor per sample."""
    return list(rows.split(segment_lengths(grid_thw, len(rows))))


def segment_lengths(grid_thw: Tensor, rows: int) -> list[int]:
    """Rows of every segment of a pack.

    Raises:
        InputError: The grid is no (n, 3) int64, or a segment does not fit the rows; it is named.
    """
    if grid_thw.ndim != 2 or grid_thw.shape[1] != 3 or not len(grid_thw) or grid_thw.dtype != torch.int64:
        raise InputError(f"grid_thw is {grid_thw.dtype} {tuple(grid_thw.shape)}; it must be int64 (n, 3)")
    lengths: list[int] = []
    for index, (t, h, w) in enumerate(grid_thw.tolist()):
        lengths.append(t * h * w)
        if min(t, h, w) < 1 or sum(lengths) > rows:
            raise InputError(f"segment {index}, {t} x {h} x {w}, ends at row {sum(lengths)} of {rows}")
    if sum(lengths) < rows:
        raise InputError(f"the last segment, {len(lengths) - 1}, ends at row {sum(lengths)} of {rows}")
    return lengths
