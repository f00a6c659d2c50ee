"""Files of pictures and clips as RGB frames, exactly: the only module here that imports PyAV and Pillow."""

from __future__ import annotations

import warnings as python_warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from hilm.errors import InputError
from hilm.extras import require

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from numpy.typing import NDArray

    from hilm.parity.inputs import Reading

    Frames = NDArray[np.uint8]

SIXTEEN_BIT = {"I;16", "I;16B", "I;16L", "I;16N"}
KINDS = {"": "picture or a video", "image": "picture", "video": "video", "arrays": "npz file"}
PLAIN = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr"}


def recognise(path: Path, kind: str = "") -> str:
    """Say whether a file is an ``image``, a ``video`` or ``arrays``, by its content.

    Args:
        path: The file.
        kind: What it must be; anything when empty.

    Raises:
        InputError: It is not there, empty, or not of that kind.
    """
    if not path.is_file():
        raise InputError(f"{path}: {'a directory' if path.is_dir() else 'there is no such file'}")
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", hint="check its permissions") from error
    if not head:
        raise InputError(f"{path}: the file is empty")
    if kind in {"", "arrays"} and head == b"PK\x03\x04":
        return "arrays"
    if kind in {"", "image"} and _is_picture(path):
        return "image"
    if kind in {"", "video"} and _has_video(path, quiet=not kind):
        return "video"
    raise InputError(f"{path}: not a {KINDS[kind]}", hint="is it the right file?")


def _is_picture(path: Path) -> bool:
    image = require("PIL.Image")
    with python_warnings.catch_warnings():
        python_warnings.simplefilter("ignore")  # sizes are checked against --max_pixels
        try:
            with image.open(path):
                return True
        except image.DecompressionBombError as error:
            raise InputError(f"{path}: {error}", hint="give a smaller picture") from error
        except (OSError, SyntaxError, ValueError):
            return False


def _has_video(path: Path, *, quiet: bool) -> bool:
    av = require("av")
    try:
        with av.open(str(path)) as container:
            if container.format.name.endswith("_pipe") or container.format.name in {"image2", "tty"}:
                return False  # a picture, or text that FFmpeg would draw
            if container.streams.video:
                return True
    except av.FFmpegError:
        return False
    if quiet and path.suffix not in {".mp4", ".mkv", ".webm", ".avi", ".mov", ".ts"}:
        return False
    raise InputError(f"{path}: no video stream", hint="is it sound alone?")


def read_picture(path: Path, reading: Reading) -> tuple[Frames, dict[str, Any], list[str]]:
    """Decode a picture to RGB ``[H, W, 3]``, with facts and warnings.

    Raises:
        InputError: It is damaged, too large, or of a mode that has no meaning as RGB.
    """
    image, ops = require("PIL.Image"), require("PIL.ImageOps")
    with python_warnings.catch_warnings():
        python_warnings.simplefilter("ignore")
        try:
            with image.open(path) as picture:
                width, height = picture.size
                if width * height > reading.max_pixels:
                    raise InputError(f"{path}: {width} x {height} pixels", hint="--max_pixels allows more")
                picture.load()
                mode, orientation = picture.mode, picture.getexif().get(0x0112, 1)
                animated = getattr(picture, "n_frames", 1) > 1
                upright = ops.exif_transpose(picture) if reading.exif == "apply" else picture
                pixels = _to_rgb(path, upright, reading.background)
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path}: a damaged picture: {error}", hint="fetch it again") from error
    notes = ["animated: its first frame is used"] if animated else []
    return pixels, {"mode": mode, "exif_orientation": orientation}, notes


def _to_rgb(path: Path, picture: Any, background: str) -> Frames:  # noqa: ANN401 - Pillow
    """Convert to RGB: 16-bit grey is scaled, not clipped; transparency lies on the background."""
    if picture.mode in SIXTEEN_BIT:
        grey = np.asarray(picture).astype(np.float64) / 65535
        return np.repeat(np.rint(grey * 255).astype(np.uint8)[..., None], 3, axis=2)
    if picture.mode not in PLAIN:
        raise InputError(f"{path}: pixels of mode {picture.mode}", hint="save it as 8-bit RGB")
    if picture.mode in {"LA", "La", "PA", "RGBA", "RGBa"} or "transparency" in picture.info:
        image = require("PIL.Image")
        layer = picture.convert("RGBA")
        try:
            ground = image.new("RGBA", layer.size, background)
        except ValueError as error:
            raise InputError(f"{background!r} is no colour", hint="--background white") from error
        picture = image.alpha_composite(ground, layer)
    return np.asarray(picture.convert("RGB"))


def resize(frames: Frames, height: int, width: int) -> Frames:
    """Resize ``[T, H, W, 3]`` with Pillow's bicubic filter."""
    image = require("PIL.Image")
    size, filter_ = (width, height), image.Resampling.BICUBIC
    return np.stack([np.asarray(image.fromarray(frame).resize(size, filter_)) for frame in frames])


def sample_frames(total: int, reading: Reading) -> list[int]:
    """Numbers of evenly spaced frames of ``total``, first and last included."""
    places = np.linspace(0, total - 1, reading.num_frames)
    rounded = np.rint(places) if reading.frame_rounding == "round" else np.floor(places)
    return [int(place) for place in rounded]


def read_clip(path: Path, reading: Reading) -> tuple[Frames, dict[str, Any], list[str]]:
    """Decode the sampled frames of a clip to RGB ``[T, H, W, 3]``, with facts and warnings.

    Raises:
        InputError: It has no decodable frames, or breaks midway and may not.
    """
    announced, fps, notes = _probe_clip(path)
    wanted = sample_frames(announced, reading) if announced and reading.sampling == "index" else []
    kept, pts, rotation, times, broken = _decode(path, wanted)
    total = len(pts)
    if broken and not reading.allow_partial:
        raise InputError(f"{path}: decoding fails after frame {total - 1}", hint="--allow_partial")
    if broken:
        notes.append(f"decoding fails after frame {total - 1}; the frames before it are used")
    if not total:
        raise InputError(f"{path}: 0 decodable frames", hint="is it a complete video?")
    if announced != total:
        notes.append(f"the container announces {announced} frames, {total} were decoded")
    indices = sample_frames(total, reading) if reading.sampling == "index" else _nearest(times, reading)
    if not set(indices) <= set(kept):
        kept, *_ = _decode(path, indices)
    if len(pts) > 2 and np.ptp(np.diff(pts)) > 1:  # a coarse clock alone makes steps differ by one
        notes.append("frames are not evenly spaced in time")
    duplicates = len(indices) - len(set(indices))
    if duplicates:
        notes.append(f"{total} frames for {reading.num_frames} samples: {duplicates} repeat")
    frames = np.stack([kept[index] for index in indices])
    if reading.rotation == "apply":
        frames = np.rot90(frames, k=round(rotation / 90) % 4, axes=(1, 2))
    facts = {
        "total_frames": total,
        "sampled_frames": len(indices),
        "frame_indices": indices,
        "fps": fps,
        "container_frames": announced,
        "decoded_frames": total,
        "frame_pts": [pts[index] for index in indices],
        "frame_times": [times[index] for index in indices],
        "rotation": rotation,
        "duplicates": duplicates,
        "decoder": f"PyAV {require('av').__version__}, sequential",
    }
    return np.ascontiguousarray(frames), facts, notes


def _nearest(times: list[float], reading: Reading) -> list[int]:
    moments = np.linspace(times[0], times[-1], reading.num_frames)
    return [int(np.argmin(np.abs(np.asarray(times) - moment))) for moment in moments]


def _probe_clip(path: Path) -> tuple[int, float, list[str]]:
    """Announced number of frames (that of packets where the container does not say), rate and warnings."""
    av = require("av")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        rate, context = stream.average_rate, stream.codec_context
        notes = []
        if context.sample_aspect_ratio not in {None, 0, 1}:
            notes.append(f"pixels are not square ({context.sample_aspect_ratio}); used as they are stored")
        announced = stream.frames
        if not announced:
            try:
                announced = sum(packet.size > 0 for packet in container.demux(stream))
            except av.FFmpegError:
                announced = 0
        return announced, float(rate) if rate else 0.0, notes


def _decode(
    path: Path, wanted: Collection[int]
) -> tuple[dict[int, Frames], list[int], int, list[float], bool]:
    """One pass: the wanted frames, pts and times of all, the rotation, and whether it broke off."""
    av, keep = require("av"), set(wanted)
    kept: dict[int, Frames] = {}
    pts: list[int] = []
    times: list[float] = []
    rotation, broken = 0, False
    with av.open(str(path)) as container:
        try:
            for index, frame in enumerate(container.decode(video=0)):
                if broken := frame.is_corrupt:
                    break
                if index in keep:
                    kept[index] = frame.to_ndarray(format="rgb24")
                rotation = frame.rotation
                pts.append(frame.pts if frame.pts is not None else index)
                times.append(frame.time if frame.time is not None else float(index))
        except av.FFmpegError:
            broken = True
    return kept, pts, rotation, times, broken
