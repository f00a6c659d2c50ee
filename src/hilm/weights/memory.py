"""How much memory the process itself takes, watched in the background."""

from __future__ import annotations

import threading
from typing import Self

import psutil

MIB = float(1 << 20)


class MemoryMonitor:
    """Samples the process every ``interval`` seconds in a daemon thread; a context manager.

    File-backed pages are the kernel's to reclaim and do not count, so a checkpoint in the page cache is no
    memory used.

    Attributes:
        current_mb: Latest sample, MiB.
        peak_mb: Largest sample, MiB.
    """

    def __init__(self, interval: float = 0.5) -> None:
        self.interval = interval
        self.current_mb = 0.0
        self.peak_mb = 0.0
        self._process = psutil.Process()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def sample(self) -> float:
        """Take one reading now; MiB."""
        info = self._process.memory_info()
        self.current_mb = (info.rss - getattr(info, "shared", 0)) / MIB
        self.peak_mb = max(self.peak_mb, self.current_mb)
        return self.current_mb

    def start(self) -> None:
        """Start sampling."""
        self.sample()
        self._stop.clear()
        self._thread = threading.Thread(target=self._watch, name="hilm-memory", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take a last sample and stop."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.sample()

    def _watch(self) -> None:
        while not self._stop.wait(self.interval):
            self.sample()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
