"""How much memory the process itself takes, watched in the background."""

from __future__ import annotations

import math
import threading
from contextlib import suppress
from pathlib import Path
from typing import Self

import psutil

MIB = float(1 << 20)

_GROUP_FILES = {"": ("", "memory.max"), "memory": ("memory", "memory.limit_in_bytes")}


def group_limit(root: Path = Path("/")) -> float:
    """Smallest memory limit of the control groups around this process, MiB; infinite where there is none.

    Args:
        root: Where ``proc`` and ``sys`` are mounted.
    """
    limits = [math.inf]
    with suppress(OSError):  # no such system, or none of its files for us
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers in _GROUP_FILES:  # version 2 has no list of controllers
                folder, name = _GROUP_FILES[controllers]
                top = root / "sys/fs/cgroup" / folder
                limits += [_read_limit(top / inner / name) for inner in _outwards(path)]
    return min(limits)


def _outwards(path: str) -> list[str]:
    """The group and those around it, as relative paths; a container may see only the outermost."""
    parts = [part for part in path.split("/") if part not in {"", ".."}]
    return ["/".join(parts[:count]) for count in range(len(parts), -1, -1)]


def _read_limit(path: Path) -> float:
    with suppress(OSError, ValueError):  # not visible from here, or "max"
        return int(path.read_text(encoding="ascii")) / MIB
    return math.inf


class MemoryMonitor:
    """Samples the process every ``interval`` seconds in a daemon thread; a context manager.

    File-backed pages are the kernel's to reclaim and do not count, so a checkpoint in the page cache is no
    memory used.

    Attributes:
        current_mb: Latest sample, MiB.
        peak_mb: Largest sample, MiB.
        samples: How many were taken.
    """

    def __init__(self, interval: float = 0.5) -> None:
        self.interval = interval
        self.current_mb = 0.0
        self.peak_mb = 0.0
        self.samples = 0
        self._process = psutil.Process()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def sample(self) -> float:
        """Take one reading now; MiB."""
        info = self._process.memory_info()
        self.current_mb = (info.rss - getattr(info, "shared", 0)) / MIB
        self.peak_mb = max(self.peak_mb, self.current_mb)
        self.samples += 1
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
