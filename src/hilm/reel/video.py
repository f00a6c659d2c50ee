"""Frames in video files, coarse for people or lossless for symbols: the only module that imports PyAV.

A preview is VP9 in yuv420p. The luma plane is the frame itself, written without any scaler and tagged full
range (0 is black, 255 white), so that players show grey 128 as mid grey. Every frame is a key frame and the
index precedes the data. One encoder thread and no clock: on one installation equal frames give equal bytes.
"""

from __future__ import annotations

from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from fractions import Fraction
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import av
import numpy as np

from hilm.errors import ChecksumMismatch, EncoderError, InputError, UsageError
from hilm.reel.carrier import CARRIERS, FPS, SIDE
from hilm.reel.crc32c import crc32c

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from hilm.reel.carrier import Carrier

PIXEL_FORMAT = "yuv420p"
FULL_RANGE = 2  # FFmpeg's AVCOL_RANGE_JPEG
BT709 = 1  # FFmpeg's number of these primaries, transfer curve and matrix
NO_COLOUR = 128
# Tried in turn until the file fits its budget: (CRF, step); higher CRF is coarser, step 2 halves both sides.
LADDER = ((32, 1), (48, 1), (48, 2))
_BLOCK_HEAD = 64  # bytes between where a demuxer finds a packet and where its data begin, at most
_ENCODER = {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0", "b": "0"}


def encode_preview(
    frames: Iterable[NDArray[np.uint8]],
    *,
    fps: int = 5,
    chapters: Sequence[tuple[str, int]] | None = None,
    budget_bytes: int | None = None,
    comment: str = "",
    again: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None = None,
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
        again: Is given every frame that is encoded again, and returns it.

    Raises:
        UsageError: There are no frames, sizes are odd or differ, or chapters are not in order.
        EncoderError: The encoder or the file system failed.
    """
    for crf, step in LADDER:
        video = _encode(frames, crf, step, fps, chapters or (), comment)
        if budget_bytes is None or len(video) <= budget_bytes:
            break
        frames = map(again, decode_preview(video)) if again else decode_preview(video)
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
    carrier = replace(CARRIERS["vp9"], options=_ENCODER | {"crf": str(crf)})
    with (
        TemporaryDirectory() as folder,  # to move the index to the front takes a file that opens twice
        closing(Film(Path(folder) / "preview.mp4", carrier, fps, comment)) as film,
    ):
        for frame in frames:
            rows, columns = frame.shape
            if rows % 2 or columns % 2:
                raise UsageError(f"frames of {rows} x {columns} pixels", hint="both sides must be even")
            film.add(frame[::step, ::step])
        if not film.count:
            raise UsageError("a preview of no frames", hint="leave the preview out")
        film.end(chapters)
        return film.path.read_bytes()


def _picture(pixels: NDArray[np.uint8], index: int, pixel_format: str = PIXEL_FORMAT) -> av.VideoFrame:
    rows, columns = pixels.shape
    picture = av.VideoFrame(columns, rows, pixel_format)
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


class Film:
    """A video in the making, frame by frame, in a file of its own.

    Args:
        path: The file.
        carrier: Its codec and container.
        fps: Frames per second.
        comment: What the file's metadata says of it.

    Raises:
        EncoderError: The encoder or the file system failed.
    """

    def __init__(self, path: Path, carrier: Carrier, fps: int = FPS, comment: str = "") -> None:
        self.path, self.carrier, self._fps = path, carrier, fps
        self._checks: list[int] = []
        self._chapters: list[tuple[str, int]] = []
        self._shape: tuple[int, ...] = ()
        with _encoding():
            muxer = {"fflags": "+bitexact", **carrier.muxer}
            self._file: Any = av.open(path, "w", format=carrier.container, options=muxer)
        self._file.metadata.update({"comment": comment} if comment else {})

    @property
    def count(self) -> int:
        """Frames so far."""
        return len(self._checks)

    def begin(self, title: str) -> None:
        """Begin a chapter with the next frame."""
        self._chapters.append((title, self.count))

    def add(self, frame: NDArray[np.uint8]) -> None:
        """Encode the next frame, uint8; all are of one shape.

        Raises:
            UsageError: This one is not.
            EncoderError: The encoder or the file system failed.
        """
        with _encoding():
            if not self._shape:
                options = dict(self.carrier.options)
                self._stream: Any = self._file.add_stream(
                    self.carrier.encoder, rate=self._fps, options=options
                )
                _set_up(self._stream.codec_context, self.carrier.pixel_format, *frame.shape)
                self._shape = frame.shape
            if frame.shape != self._shape:
                raise UsageError(f"a frame of {frame.shape} pixels among frames of {self._shape}")
            self._file.mux(self._stream.encode(_picture(frame, self.count, self.carrier.pixel_format)))
        self._checks.append(crc32c(frame.tobytes()))

    def end(self, chapters: Sequence[tuple[str, int]]) -> None:
        """Complete the file."""
        with _encoding():
            self._file.mux(self._stream.encode(None))
            self._file.set_chapters(_chapter_table(chapters, self.count, self._fps))
            self._file.close()

    def finish(self) -> tuple[list[tuple[int, int, int]], bytes]:
        """Complete the file of a lossless video, decode it, and compare every frame.

        Returns:
            Offset, size and CRC32C of every packet, in order; and what a decoder needs to know besides.

        Raises:
            UsageError: There are no frames.
            EncoderError: The encoder lost something.
        """
        if not self.count:
            raise UsageError(
                "the model has no tensor that a video carries", hint="--carrier packed serves all of them"
            )
        self.end([c for c, later in pairwise([*self._chapters, ("", self.count)]) if c[1] < later[1]])
        with _encoding():
            return self._read_back()

    def _read_back(self) -> tuple[list[tuple[int, int, int]], bytes]:
        found: list[tuple[int, int, int]] = []
        with self.path.open("rb") as raw, av.open(self.path) as file:
            stream = file.streams.video[0]
            extradata = stream.codec_context.extradata or b""
            for packet in file.demux(stream):
                if not packet.size:
                    continue
                data = bytes(packet)
                raw.seek(packet.pos or 0)
                inside = raw.read(len(data) + _BLOCK_HEAD).find(data)
                expected = self._checks[len(found)] if len(found) < len(self._checks) else -1
                if inside < 0 or crc32c(decode_frame(self.carrier, extradata, data).tobytes()) != expected:
                    raise EncoderError(f"{self.carrier.encoder} did not keep frame {len(found)}")
                found.append(((packet.pos or 0) + inside, len(data), crc32c(data)))
        if len(found) != len(self._checks):
            raise EncoderError(f"{self.carrier.encoder} kept {len(found)} of {len(self._checks)} frames")
        return found, extradata

    def close(self) -> None:
        """Delete the file, unless it has been moved to its place."""
        with suppress(av.FFmpegError):
            self._file.close()
        self.path.unlink(missing_ok=True)


def decode_frame(carrier: Carrier, extradata: bytes, packet: bytes) -> NDArray[np.uint8]:
    """The one frame of a packet, uint8 [512, 512].

    Args:
        carrier: Its codec.
        extradata: What its file says besides the packets.
        packet: The packet.

    Raises:
        ChecksumMismatch: It is no such frame.
    """
    try:
        context: Any = av.CodecContext.create(carrier.codec, "r")
        context.width = context.height = SIDE
        context.extradata, context.thread_count = extradata or None, 1
        if carrier.tag:
            context.codec_tag = carrier.tag
        frames = context.decode(av.Packet(packet))
    except (av.FFmpegError, ValueError) as error:
        raise ChecksumMismatch(f"a packet is no frame of {carrier.codec}") from error
    shapes = [(frame.format.name, frame.height, frame.width) for frame in frames]
    if shapes != [(carrier.pixel_format, SIDE, SIDE)]:
        raise ChecksumMismatch(f"a packet holds {shapes!r:.80}, not one frame of {carrier.codec}")
    return _luma(frames[0]).copy()


def encode_frames(carrier: Carrier, frames: Sequence[NDArray[np.uint8]]) -> int:
    """Bytes that a carrier's codec makes of frames.

    Raises:
        EncoderError: The encoder failed.
    """
    with _encoding():
        context: Any = av.CodecContext.create(carrier.encoder, "w")
        _set_up(context, carrier.pixel_format)
        context.framerate, context.time_base, context.options = FPS, Fraction(1, FPS), dict(carrier.options)
        packets = [
            p for n, f in enumerate(frames) for p in context.encode(_picture(f, n, carrier.pixel_format))
        ]
        return sum(packet.size for packet in packets + context.encode(None))


def _set_up(context: Any, pixel_format: str, rows: int = SIDE, columns: int = SIDE) -> None:  # noqa: ANN401 - PyAV
    context.pix_fmt, context.height, context.width = pixel_format, rows, columns
    context.color_range, context.gop_size, context.thread_count = FULL_RANGE, 1, 1
    # Browsers heed the range only where the rest of the colours is named too.
    context.color_primaries = context.color_trc = context.colorspace = BT709


@contextmanager
def _encoding() -> Iterator[None]:
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        hint = "is the disk full?"
        raise EncoderError(f"cannot write the video: {error.strerror}", hint=hint) from error
