"""The front of a reel: the video that players show, and what the manifest says of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hilm.reel.crc32c import crc32c
from hilm.reel.pictures import drawables
from hilm.reel.video import PIXEL_FORMAT, decode_preview, encode_preview

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from hilm.reel.delta_base import Base
    from hilm.reel.schema import Frame, Front
    from hilm.weights.checkpoint import Checkpoint
    from hilm.weights.tensor import TensorInfo

FPS = 5
_SHARE, _LEAST = 150, 4 << 20  # the budget: one part in 150 of the tensors' bytes, at least 4 MiB


def draw_front(checkpoint: Checkpoint, base: Base | None = None) -> tuple[bytes, Front]:
    """Draw one frame per stored tensor or its difference from a base, in checkpoint order, and encode them.

    Raises:
        EncoderError: The encoder or the file system failed.
        SourceChanged: A file changed while it was read.
    """
    owners = [t for t in checkpoint.stored.values() if t.alias_of is None]
    shown: list[Frame] = []
    budget = max(sum(t.nbytes for t in owners) // _SHARE, _LEAST)
    values = sum(t.numel for t in owners)

    def again(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if checkpoint.watch is not None:
            checkpoint.watch(0, values, "the film, coarser")
        return frame

    pictures, chapters = _draw_tensors(checkpoint, base, shown), _chapters(owners)
    video = encode_preview(pictures, fps=FPS, chapters=chapters, budget_bytes=budget, again=again)
    return video, describe_front(video, shown)


def describe_front(video: bytes, frames: list[Frame]) -> Front:
    """What the manifest says of the video in front."""
    height, width = next(decode_preview(video)).shape
    return {
        "size": len(video),
        "crc32c": f"0x{crc32c(video):08x}",
        "codec": "vp9",
        "pixel_format": PIXEL_FORMAT,
        "height": height,
        "width": width,
        "fps": [FPS, 1],
        "frames": frames,
    }


def _draw_tensors(
    checkpoint: Checkpoint, base: Base | None, shown: list[Frame]
) -> Iterator[NDArray[np.uint8]]:
    """Pixels of every tensor's frame; what the manifest needs to know of it is added to ``shown``."""
    for tensor in drawables(checkpoint, base=base):
        frame = tensor.draw()
        shown.append({"tensor": tensor.name, "scale": frame.scale, "sampled": tensor.sampled})
        yield frame.pixels


def _chapters(tensors: Sequence[TensorInfo]) -> list[tuple[str, int]]:
    """One chapter per block of the model: title and first frame."""
    chapters: list[tuple[str, int]] = []
    for number, info in enumerate(tensors):
        parts = info.name.split(".")
        ends = [i for i, part in enumerate(parts) if part.isdigit()]
        title = ".".join(parts[: ends[0] + 1] if ends else parts[:1])
        if not chapters or chapters[-1][0] != title:
            chapters.append((title, number))
    return chapters
