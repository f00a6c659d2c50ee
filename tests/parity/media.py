"""Pictures and clips that tell what they are: every frame of a clip carries its number."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import av
import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path

BITS = 8
CONTAINERS = {
    "plain.mp4": ("mpeg4", {}),
    "b-frames.mp4": ("libx264", {"bf": "2", "g": "12"}),
    "open-gop.ts": ("libx264", {"bf": "2", "g": "12", "x264-params": "open-gop=1"}),
    "plain.avi": ("mpeg4", {}),
    "plain.webm": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
    "plain.mkv": ("libx264", {"bf": "0"}),
}


def numbered_frame(number: int, width: int = 64, height: int = 48) -> np.ndarray:
    """A frame whose columns are the bits of its number, black or white."""
    bits = [255 * (number >> bit & 1) for bit in range(BITS)]
    row = np.repeat(np.array(bits, np.uint8), width // BITS)
    return np.broadcast_to(row[None, :, None], (height, width, 3)).copy()


def read_number(frame: np.ndarray) -> int:
    """The number a frame carries."""
    width = frame.shape[1]
    centres = (np.arange(BITS) * width // BITS) + width // BITS // 2
    return sum(1 << bit for bit, value in enumerate(frame[frame.shape[0] // 2, centres, 1]) if value > 127)


def write_clip(path: Path, frames: int, *, uneven: bool = False, rotation: int = 0) -> Path:
    """Write a clip of numbered frames; the name's ending says how."""
    codec, options = CONTAINERS.get(path.name, CONTAINERS["plain.mp4"])
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 30)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")
            frame.pts = number + (number // 4 if uneven else 0)
            frame.time_base = Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    if rotation:
        rotate_mp4(path, rotation)
    return path


def cut_mp4(path: Path, frames: int) -> None:
    """Let the edit list of an mp4 file begin some frames later, at 30 frames per second."""
    data = bytearray(path.read_bytes())

    def shift(place: int, by: float) -> None:
        value = int.from_bytes(data[place : place + 4], "big", signed=True) + round(by)
        data[place : place + 4] = value.to_bytes(4, "big", signed=True)

    scales = [int.from_bytes(data[data.index(box) + 16 :][:4], "big") for box in (b"mvhd", b"mdhd")]
    place = data.index(b"elst") + 4 + 8  # version 0: flags and count; duration, then where the media begins
    shift(place, -frames * scales[0] / 30)
    shift(place + 4, frames * scales[1] / 30)
    path.write_bytes(data)


def rotate_mp4(path: Path, degrees: int) -> None:
    """Write a rotation into the display matrix of an mp4 file's track header."""
    cosine, sine = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    matrix = b"".join(
        int(value * (1 << shift)).to_bytes(4, "big", signed=True)
        for value, shift in zip((cosine, sine, 0, -sine, cosine, 0, 0, 0, 1), (16, 16, 30) * 3, strict=True)
    )
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 40  # version 0: flags, times, ids, duration, layer, group, volume
    data[place : place + 36] = matrix
    path.write_bytes(data)


def write_picture(
    path: Path, width: int = 70, height: int = 56, mode: str = "RGB", **options: object
) -> Path:
    """Write a smooth picture with some noise."""
    random = np.random.default_rng(3)
    coarse = random.integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(coarse).resize((width, height)).convert(mode).save(path, **options)
    return path
