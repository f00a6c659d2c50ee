"""Preview frames as an ordinary MP4 file that browsers and players show: the only module that imports PyAV.

VP9 in yuv420p with chroma 128. The luma plane is the frame itself, written without any scaler and tagged full
range (0 is black, 255 white), so that players show grey 128 as mid grey. Every frame is a key frame and the
index precedes the data. One encoder thread and no clock: on one installation equal frames give equal bytes.
"""

from __future__ import annotations

from fractions import Fraction
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import av
import numpy as np

from hilm.errors import EncoderError, InputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

PIXEL_FORMAT = "yuv420p"
FULL_RANGE = 2  # FFmpeg's AVCOL_RANGE_JPEG
BT709 = 1  # FFmpeg's number of these primaries, transfer curve and matrix
NO_COLOUR = 128
# Tried in turn until the file fits its budget: (CRF, step); higher CRF is coarser, step 2 halves both sides.
LADDER = ((32, 1), (48, 1), (48, 2))
_MUXER = {"movflags": "+faststart", "fflags": "+bitexact"}
_ENCODER = {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0", "b": "0"}


def encode_preview(
    frames: Iterable[NDArray[np.uint8]],
    *,
    fps: int = 5,
    chapters: Sequence[tuple[str, int]] | None = None,
    budget_bytes: int | None = None,
    comment: str = "",
) -> bytes:
    """Encode frames, one at a time, into an MP4 file.

    A file over its budget is decoded and encoded again: coarser, then at half the width and height. The last
    attempt is returned even if it is still larger. Memory is the size of the file, and of the one before it.

    Args:
        frames: uint8 ``[rows, columns]``, all of one size, both sides even.
        fps: Frames per second.
        chapters: Title and first frame of each chapter, in increasing order.
        budget_bytes: Wanted size of the file; by default the first attempt is good.
        comment: What the file's metadata says of it.

    Raises:
        UsageError: There are no frames, sizes are odd or differ, or chapters are not in order.
        EncoderError: The encoder or the file system failed.
    """
    for crf, step in LADDER:
        video = _encode(frames, crf, step, fps, chapters or (), comment)
        if budget_bytes is None or len(video) <= budget_bytes:
            break
        frames = decode_preview(video)
    return video


def decode_preview(video: bytes) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames of a preview as uint8 ``[rows, columns]``, one at a time.

    Raises:
        InputError: This is no readable video, or its pixels are of another format.
    """
    try:
        with av.open(BytesIO(video)) as container:
            for frame in container.decode(video=0):
                if frame.format.name != PIXEL_FORMAT:
                    raise InputError(f"video of {frame.format.name} pixels, not {PIXEL_FORMAT}")
                yield _luma(frame).copy()
    except av.FFmpegError as error:
        raise InputError(
            f"unreadable video: {error.strerror}", hint="the file is damaged or not a preview"
        ) from error


def _encode(
    frames: Iterable[NDArray[np.uint8]],
    crf: int,
    step: int,
    fps: int,
    chapters: Sequence[tuple[str, int]],
    comment: str,
) -> bytes:
    with (
        TemporaryDirectory() as folder
    ):  # moving the index to the front takes a file that can be opened twice
        path = Path(folder) / "preview.mp4"
        try:
            with av.open(path, "w", options=_MUXER) as container:
                container.metadata.update({"comment": comment} if comment else {})
                count = _write_frames(container, frames, crf, step, fps)
                container.set_chapters(_chapter_table(chapters, count, fps))
        except av.FFmpegError as error:
            raise EncoderError(
                f"cannot encode the preview: {error.strerror}", hint="is the disk full?"
            ) from error
        return path.read_bytes()


def _write_frames(container: Any, frames: Iterable[NDArray[np.uint8]], crf: int, step: int, fps: int) -> int:  # noqa: ANN401 - PyAV
    """Encode all frames and return their number."""
    stream, shape, count = None, None, 0
    for frame in frames:
        if stream is None:
            shape = frame.shape
            stream = _add_stream(container, shape, crf, step, fps)
        if frame.shape != shape:
            raise UsageError(f"a frame of {frame.shape} pixels among frames of {shape}")
        container.mux(stream.encode(_picture(frame[::step, ::step], count)))
        count += 1
    if stream is None:
        raise UsageError("a preview of no frames", hint="leave the preview out")
    container.mux(stream.encode(None))
    return count


def _add_stream(container: Any, shape: tuple[int, ...], crf: int, step: int, fps: int) -> Any:  # noqa: ANN401 - PyAV
    rows, columns = shape
    if rows % 2 or columns % 2:
        raise UsageError(f"frames of {rows} x {columns} pixels", hint="both sides must be even")
    stream = container.add_stream("libvpx-vp9", rate=fps, options=_ENCODER | {"crf": str(crf)})
    stream.width, stream.height, stream.pix_fmt = columns // step, rows // step, PIXEL_FORMAT
    context = stream.codec_context
    context.color_range, context.gop_size, context.thread_count = FULL_RANGE, 1, 1
    # Browsers heed the range only where the rest of the colours is named too.
    context.color_primaries = context.color_trc = context.colorspace = BT709
    return stream


def _picture(pixels: NDArray[np.uint8], index: int) -> av.VideoFrame:
    rows, columns = pixels.shape
    picture = av.VideoFrame(columns, rows, PIXEL_FORMAT)
    picture.pts, picture.color_range, picture.colorspace = index, FULL_RANGE, BT709
    for plane in picture.planes:
        np.frombuffer(plane, np.uint8)[:] = NO_COLOUR
    _luma(picture)[:] = pixels
    return picture


def _luma(frame: av.VideoFrame) -> NDArray[np.uint8]:
    """View the luma plane without the padding of its lines."""
    plane = frame.planes[0]
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: frame.height, : frame.width]


def _chapter_table(chapters: Sequence[tuple[str, int]], count: int, fps: int) -> list[dict[str, Any]]:
    bounds = [first for _, first in chapters] + [count]
    if any(start >= stop for start, stop in pairwise(bounds)):
        raise UsageError(f"chapters starting at frames {bounds[:-1]} of {count}", hint="give them in order")
    return [
        {
            "id": number,
            "start": start,
            "end": stop,
            "time_base": Fraction(1, fps),
            "metadata": {"title": title},
        }
        for number, ((title, start), stop) in enumerate(zip(chapters, bounds[1:], strict=True))
    ]
