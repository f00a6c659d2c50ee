"""The documented stream: chunks of float32 with metadata, progress and a memory limit.

Chunks are cut from blocks: a chunk is a view, and costs neither a read nor a conversion of its own.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hilm.errors import Cancelled, UsageError
from hilm.weights.checkpoint import Checkpoint, open_checkpoint
from hilm.weights.memory import MemoryMonitor
from hilm.weights.selection import Selection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from os import PathLike

    from numpy.typing import NDArray

    from hilm.weights.selection import Piece
    from hilm.weights.tensor import TensorInfo


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


@dataclass(slots=True)
class StreamingProgress:
    """Where a stream is. One live object, exact whenever a chunk is delivered.

    Rates are values per second, times seconds, memory MiB of the process without shared pages.
    """

    model_name: str
    total_parameters: int
    processed_parameters: int = 0
    current_layer: str = ""
    current_layer_type: str = ""
    chunks_processed: int = 0
    chunks_encoded: int = 0
    memory_usage_mb: float = 0.0
    peak_memory_mb: float = 0.0
    layer_type_counts: Counter[str] = field(default_factory=Counter)
    started: float = field(default_factory=time.perf_counter)
    finished: float | None = None

    @property
    def progress_percent(self) -> float:
        """Share of the values delivered, 0 to 100."""
        return 100.0 * self.processed_parameters / self.total_parameters if self.total_parameters else 100.0

    @property
    def elapsed_time(self) -> float:
        """Seconds since the start, or what the whole stream took."""
        return (self.finished or time.perf_counter()) - self.started

    @property
    def processing_rate(self) -> float:
        """Mean values per second."""
        return self.processed_parameters / max(self.elapsed_time, 1e-9)

    @property
    def eta_seconds(self) -> float | None:
        """Seconds left at the mean rate; None before anything was delivered."""
        left = self.total_parameters - self.processed_parameters
        if not left:
            return 0.0
        return left / self.processing_rate if self.processed_parameters else None


@dataclass(frozen=True, slots=True)
class ChunkMetadata:
    """What one chunk is.

    ``start_index`` and ``end_index`` are flat positions in the tensor; a sampled chunk lists its half-open
    ``runs`` between them, a contiguous one has None.
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
    runs: tuple[tuple[int, int], ...] | None = None


class MemoryEfficientParameterStreamer:
    """Streams the parameters of a checkpoint in chunks of float32.

    Args:
        config: Sizes, limits and filters.
        cancel: Asked before every block; a true answer ends the stream with ``Cancelled``.
    """

    def __init__(
        self, config: StreamingConfig | None = None, *, cancel: Callable[[], bool] | None = None
    ) -> None:
        self.config = config or StreamingConfig()
        self.progress: StreamingProgress | None = None
        self._cancel = cancel
        self._size = self.config.chunk_size
        self._calm = 0
        self._carry = np.empty(0, np.float32)

    def stream(
        self, model: str | PathLike[str] | Checkpoint, *, max_total_params: int | None = None
    ) -> Iterator[tuple[NDArray[np.float32], ChunkMetadata, StreamingProgress]]:
        """Yield ``(values, metadata, progress)`` until every selected value was delivered once.

        Args:
            model: A path, Hub id or URL, or an open checkpoint.
            max_total_params: Deliver this many values, spread evenly over all selected tensors.

        Raises:
            UnknownLayerType: A filter names no layer type.
            EmptySelection: The filters leave nothing.
            Cancelled: ``cancel`` said so.
        """
        if not isinstance(model, Checkpoint):
            with open_checkpoint(model) as opened:
                yield from self.stream(opened, max_total_params=max_total_params)
            return
        config = self.config
        selection = Selection.of(model, max_total_params, config.target_layers, config.exclude_layers)
        progress = self.progress = StreamingProgress(model.name, selection.total)
        self._carry = np.empty(0, np.float32)
        progress.layer_type_counts.update(t.role.type for t in selection.tensors)
        with MemoryMonitor() as monitor:
            for piece in selection.read(model):
                if self._cancel is not None and self._cancel():
                    raise Cancelled(f"cancelled after {progress.processed_parameters:,} values")
                self._adapt(monitor.current_mb)
                progress.memory_usage_mb, progress.peak_memory_mb = monitor.current_mb, monitor.peak_mb
                for values, metadata in self._cut(piece, progress):
                    yield values, metadata, progress
        progress.finished = time.perf_counter()

    stream_model_parameters = stream

    def _adapt(self, used_mb: float) -> None:
        """Halve above 90 % of the limit; double after two looks below 50 %."""
        config = self.config
        if not config.adaptive_chunk_sizing:
            return
        if used_mb > 0.9 * config.max_memory_mb:
            self._size, self._calm = max(self._size // 2, config.min_chunk_size), 0
        elif used_mb < 0.5 * config.max_memory_mb:
            self._calm += 1
            if self._calm >= 2:
                self._size, self._calm = min(self._size * 2, config.max_chunk_size), 0
        else:
            self._calm = 0

    def _cut(
        self, piece: Piece, progress: StreamingProgress
    ) -> Iterator[tuple[NDArray[np.float32], ChunkMetadata]]:
        """Cut selected values into chunks.

        A chunk that would straddle two pieces waits for the second: only a tensor's last may be short.
        """
        info, values, begin = piece.info, piece.values, 0
        progress.current_layer, progress.current_layer_type = info.name, info.role.type
        while begin < len(values):
            carried = len(self._carry)
            part = values[begin : begin + max(self._size - carried, 1)]
            origin = piece.start + begin - carried
            begin += len(part)
            if carried:
                part = np.concatenate([self._carry, part])
                self._carry = part[:0]
            if len(part) < self._size and begin == len(values) and not piece.last:
                self._carry = part.copy()
                return
            places = None if piece.positions is None else piece.positions[origin : origin + len(part)]
            yield part, self._describe(info, origin, part, places, progress)

    def _describe(
        self,
        info: TensorInfo,
        origin: int,
        part: NDArray[np.float32],
        place: NDArray[np.int64] | None,
        progress: StreamingProgress,
    ) -> ChunkMetadata:
        part.flags.writeable = False
        start, end, runs = origin, origin + len(part), None
        if place is not None:
            start, end, runs = int(place[0]), int(place[-1]) + 1, as_runs(place)
        number = progress.chunks_processed
        progress.chunks_processed += 1
        progress.processed_parameters += len(part)
        return ChunkMetadata(
            number, info.name, info.role.type, len(part), self._size, start, end, info.shape, info.dtype,
            info.role.block, time.time(), progress.memory_usage_mb, runs,
        )  # fmt: skip

    def get_streaming_statistics(self) -> dict[str, Any]:
        """The nine documented figures of the current or last stream; empty before the first."""
        progress = self.progress
        if progress is None:
            return {}
        names = (
            "model_name", "progress_percent", "processed_parameters", "total_parameters", "chunks_encoded",
            "processing_rate", "elapsed_time", "memory_usage_mb", "current_layer",
        )  # fmt: skip
        return {name: getattr(progress, name) for name in names}


def as_runs(positions: NDArray[np.int64]) -> tuple[tuple[int, int], ...]:
    """Ascending positions as half-open runs of consecutive ones."""
    breaks = np.flatnonzero(np.diff(positions) != 1) + 1
    starts, stops = np.r_[0, breaks], np.r_[breaks, len(positions)] - 1
    return tuple(zip(positions[starts].tolist(), (positions[stops] + 1).tolist(), strict=True))
