"""The documented stream: chunks of float32 with metadata, progress and a memory limit.

Chunks are cut from blocks: a chunk is a view, and costs neither a read nor a conversion of its own.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import count, pairwise, repeat
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from hilm.errors import Cancelled, UsageError
from hilm.weights.checkpoint import Checkpoint, open_checkpoint
from hilm.weights.memory import MemoryMonitor, group_limit
from hilm.weights.progress import StreamingProgress
from hilm.weights.selection import Selection

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from os import PathLike
    from threading import Event

    from numpy.typing import NDArray

    from hilm.weights.real_time import RealTimeEncoder
    from hilm.weights.selection import OnEscape, Piece

Runs: TypeAlias = tuple[tuple[int, int], ...]

THREADS = 4
"""Threads at most that decode where ``parallel_processing`` is asked for."""


@dataclass
class StreamingConfig:
    """How parameters are streamed; sizes count values, memory counts MiB.

    Raises:
        UsageError: A size below 1, ``min_chunk_size`` above ``max_chunk_size``, no memory at all.
    """

    chunk_size: int = 1024
    max_memory_mb: float = 1024.0
    enable_progress: bool = True
    adaptive_chunk_sizing: bool = True
    min_chunk_size: int = 256
    max_chunk_size: int = 8192
    target_layers: list[str] | None = None
    exclude_layers: list[str] | None = None
    parallel_processing: bool = False

    def __post_init__(self) -> None:
        for name in ("chunk_size", "min_chunk_size", "max_chunk_size"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it counts values and is at least 1")
        if self.min_chunk_size > self.max_chunk_size:
            raise UsageError(f"min_chunk_size {self.min_chunk_size} is above max {self.max_chunk_size}")
        if not self.max_memory_mb > 0:
            raise UsageError(f"max_memory_mb is {self.max_memory_mb}; it must be above 0")
        # Documented commands pass chunk sizes beyond the documented bounds: the bounds give way.
        self.min_chunk_size = min(self.min_chunk_size, self.chunk_size)
        self.max_chunk_size = max(self.max_chunk_size, self.chunk_size)


class ChunkMetadata(NamedTuple):
    """What one chunk is.

    ``start_index`` and ``end_index`` are flat positions in the tensor; a sampled chunk lists its half-open
    ``runs`` between them, a contiguous one has None. ``timestamp`` is when its block was cut into chunks.
    """

    chunk_id: int
    layer_name: str
    layer_type: str
    parameter_count: int
    chunk_size: int
    start_index: int
    end_index: int
    tensor_shape: tuple[int, ...]
    source_dtype: str
    block: int | None
    timestamp: float
    memory_mb: float
    runs: Runs | None = None


class MemoryEfficientParameterStreamer:
    """Streams the parameters of a checkpoint in chunks of float32.

    Args:
        config: Sizes, limits and filters.
        encoder: Is fed every chunk of ``stream``, before the consumer sees it.
        cancel: An event or a function, asked before every block and chunk; when set or true the stream ends
            with ``Cancelled``.
        on_escape: What to do when a consumer keeps the chunks of more than seven blocks: ``retire`` leaves it
            the buffers and takes fresh ones, ``error`` raises ``LeaseError``.
    """

    def __init__(
        self,
        config: StreamingConfig | None = None,
        *,
        encoder: RealTimeEncoder | None = None,
        cancel: Event | Callable[[], bool] | None = None,
        on_escape: OnEscape = "retire",
    ) -> None:
        self.config = config or StreamingConfig()
        self.progress: StreamingProgress | None = None
        self._encoder, self._on_escape = encoder, on_escape
        self._cancel = cancel if cancel is None or callable(cancel) else cancel.is_set
        self._adaptive = self.config.adaptive_chunk_sizing
        if encoder is not None and encoder.sink.requires_fixed_chunks:
            self._adaptive = False
        self._limit = min(self.config.max_memory_mb, 0.8 * group_limit())
        self._size = self.config.chunk_size
        self._calm = self._waiting = 0

    def stream(
        self, model: str | PathLike[str] | Checkpoint, *, max_total_params: int | None = None
    ) -> Generator[tuple[NDArray[np.float32], ChunkMetadata, StreamingProgress], None, None]:
        """Yield ``(values, metadata, progress)`` until every selected value was delivered once.

        Only the last chunk of a tensor may be shorter than the chunk size in force.

        Args:
            model: A path, Hub id or URL, or an open checkpoint.
            max_total_params: Deliver this many values, spread evenly over all selected tensors.

        Raises:
            UnknownLayerType: A filter names no layer type.
            EmptySelection: The filters leave nothing.
            Cancelled: ``cancel`` said so.
            EncoderError: The encoder's sink failed.
            LeaseError: Chunks were kept, and ``on_escape`` is ``error``.
        """
        encoder, cancel, values, places = self._encoder, self._cancel, _Cutter(), _Cutter()
        with (
            self._passing(model, max_total_params) as (checkpoint, pieces, progress),
            encoder.encoding(checkpoint) if encoder else nullcontext(),
        ):
            for piece in pieces:
                chunks = self._cut(piece, values, places, progress)
                if encoder:
                    encoder.put(chunks)
                    progress.chunks_encoded = encoder.chunks_encoded
                for chunk, metadata in chunks:
                    if cancel is not None and cancel():
                        raise Cancelled(f"cancelled after {progress.processed_parameters:,} values")
                    progress.chunks_processed += 1
                    progress.processed_parameters += metadata.parameter_count
                    yield chunk, metadata, progress
        progress.chunks_encoded = encoder.chunks_encoded if encoder else 0

    stream_model_parameters = stream

    def stream_blocks(
        self, model: str | PathLike[str] | Checkpoint, *, max_total_params: int | None = None
    ) -> Generator[tuple[Piece, StreamingProgress], None, None]:
        """Yield the same values by block, for consumers to whom chunks mean nothing: statistics, copies.

        What is computed by block depends neither on the chunk size nor on memory; chunks are only counted.
        Takes and raises what ``stream`` does; no encoder is fed.
        """
        with self._passing(model, max_total_params) as (_, pieces, progress):
            for piece in pieces:
                progress.chunks_processed += len(self._ends(piece))
                progress.processed_parameters += len(piece.values)
                yield piece, progress

    @contextmanager
    def _passing(
        self, model: str | PathLike[str] | Checkpoint, limit: int | None
    ) -> Iterator[tuple[Checkpoint, Iterator[Piece], StreamingProgress]]:
        """One pass: the checkpoint open, memory watched, progress begun and in the end finished."""
        config = self.config
        self._size, self._calm, self._waiting = config.chunk_size, 0, 0
        with ExitStack() as stack:
            opened = nullcontext(model) if isinstance(model, Checkpoint) else open_checkpoint(model)
            checkpoint = stack.enter_context(opened)
            selection = Selection.of(checkpoint, limit, config.target_layers, config.exclude_layers)
            progress = self.progress = StreamingProgress(checkpoint.name, selection.total)
            progress.layer_type_counts.update(t.role.type for t in selection.tensors)
            monitor = stack.enter_context(MemoryMonitor())
            progress.memory_usage_mb, progress.peak_memory_mb = monitor.current_mb, monitor.peak_mb
            if monitor.current_mb > self._limit:
                progress.notes.append(
                    f"limit-below-baseline: of {self._limit:,.0f} MiB, {monitor.current_mb:,.0f} were taken "
                    "before the stream began"
                )
                self._size = config.min_chunk_size if self._adaptive else self._size
            yield checkpoint, self._pieces(checkpoint, selection, monitor, progress), progress
        progress.memory_usage_mb, progress.peak_memory_mb = monitor.current_mb, monitor.peak_mb
        progress.finished = time.perf_counter()

    def _pieces(
        self,
        checkpoint: Checkpoint,
        selection: Selection,
        monitor: MemoryMonitor,
        progress: StreamingProgress,
    ) -> Iterator[Piece]:
        """Selected values, with a look at cancellation, memory and rate before each piece is used."""
        threads = min(THREADS, os.cpu_count() or 1) if self.config.parallel_processing else 1
        samples = 0
        for piece in selection.read(checkpoint, threads=threads, on_escape=self._on_escape):
            if self._cancel is not None and self._cancel():
                raise Cancelled(f"cancelled after {progress.processed_parameters:,} values")
            if monitor.samples != samples:
                samples = monitor.samples
                self._adapt(monitor.current_mb)
            if self.config.enable_progress:
                progress.refresh(monitor)
            progress.current_layer, progress.current_layer_type = piece.info.name, piece.info.role.type
            piece.values.flags.writeable = False
            yield piece

    def _adapt(self, used_mb: float) -> None:
        """Halve above 90 % of the limit; double after two samples below 50 %."""
        if not self._adaptive:
            return
        if used_mb > 0.9 * self._limit:
            self._size, self._calm = max(self._size // 2, self.config.min_chunk_size), 0
        elif used_mb < 0.5 * self._limit:
            self._calm += 1
            if self._calm >= 2:
                self._size, self._calm = min(self._size * 2, self.config.max_chunk_size), 0
        else:
            self._calm = 0

    def _ends(self, piece: Piece) -> Sequence[int]:
        """Where chunks end in a piece; what follows the last end waits for the next piece.

        A chunk that would straddle two pieces waits for the second: only a tensor's last may be short.
        """
        stop = len(piece.values)
        ends = range(max(self._size - self._waiting, 1), stop + 1, self._size)
        left = stop - ends[-1] if ends else stop + self._waiting
        self._waiting = 0 if piece.last else left
        return [*ends, stop] if piece.last and left else ends

    def _cut(
        self, piece: Piece, values: _Cutter, places: _Cutter, progress: StreamingProgress
    ) -> list[tuple[NDArray[np.float32], ChunkMetadata]]:
        info, start = piece.info, piece.start - self._waiting
        edges = [0, *self._ends(piece)]
        parts = values.cut(piece.values, edges)
        runs: list[Runs | None]
        if piece.positions is None:
            stops = [piece.start + edge for edge in edges[1:]]
            starts, runs = [start, *stops[:-1]], [None] * len(parts)
        else:
            spots = places.cut(piece.positions, edges)
            starts, stops = [int(p[0]) for p in spots], [int(p[-1]) + 1 for p in spots]
            runs = [as_runs(p) for p in spots]
        metadata = zip(
            count(progress.chunks_processed), repeat(info.name), repeat(info.role.type), map(len, parts),
            repeat(self._size), starts, stops, repeat(info.shape), repeat(info.dtype),
            repeat(info.role.block), repeat(time.time()), repeat(progress.memory_usage_mb), runs,
        )  # fmt: skip
        return list(zip(parts, map(ChunkMetadata._make, metadata), strict=True))

    def get_streaming_statistics(self) -> dict[str, Any]:
        """The nine documented figures of the current or last stream; empty before the first."""
        return self.progress.figures() if self.progress else {}


class _Cutter:
    """Cuts arrays that arrive in pieces; what one piece leaves begins the first part of the next."""

    def __init__(self) -> None:
        self._left: list[NDArray[Any]] = []

    def cut(self, array: NDArray[Any], edges: list[int]) -> list[NDArray[Any]]:
        parts = [array[start:stop] for start, stop in pairwise(edges)]
        if parts and self._left:
            parts[0] = np.concatenate([*self._left, parts[0]])
            parts[0].flags.writeable = False
            self._left.clear()
        if edges[-1] < len(array):
            self._left.append(array[edges[-1] :].copy())
        return parts


def as_runs(positions: NDArray[np.int64]) -> Runs:
    """Ascending positions as half-open runs of consecutive ones."""
    breaks = np.flatnonzero(np.diff(positions) != 1) + 1
    starts, stops = np.r_[0, breaks], np.r_[breaks, len(positions)] - 1
    return tuple(zip(positions[starts].tolist(), (positions[stops] + 1).tolist(), strict=True))
