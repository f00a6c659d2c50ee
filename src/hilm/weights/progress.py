"""Where a stream is: counts, rate, time left, memory."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hilm.weights.memory import MemoryMonitor

REFRESH = 0.1
"""Seconds between two looks at memory and rate."""


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
    notes: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)
    finished: float | None = None
    _seen: tuple[float, int] = (0.0, 0)
    _recent: float = 0.0

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
        """Seconds left at the rate of the last seconds; None in the first half second."""
        left = self.total_parameters - self.processed_parameters
        if not left:
            return 0.0
        if self.elapsed_time < 0.5 or not self.processed_parameters:
            return None
        return left / (self._recent or self.processing_rate)

    def figures(self) -> dict[str, Any]:
        """The nine documented figures."""
        names = (
            "model_name", "progress_percent", "processed_parameters", "total_parameters", "chunks_encoded",
            "processing_rate", "elapsed_time", "memory_usage_mb", "current_layer",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

    def refresh(self, monitor: MemoryMonitor) -> None:
        """Note memory and rate, at most every 100 ms; the rate is an exponential mean over 5 seconds."""
        before, done = self._seen if self._seen[0] else (self.started, 0)
        span = time.perf_counter() - before
        if span < REFRESH:
            return
        rate, weight = (self.processed_parameters - done) / span, -math.expm1(-span / 5)
        self._recent += (rate - self._recent) * (weight if self._recent else 1)
        self._seen = before + span, self.processed_parameters
        self.memory_usage_mb, self.peak_memory_mb = monitor.current_mb, monitor.peak_mb
