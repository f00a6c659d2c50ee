from __future__ import annotations

import mmap
import threading
import time

from hilm.weights.memory import MemoryMonitor

SIZE = 50 << 20


def touched(flags: int) -> mmap.mmap:
    """Fresh pages of the operating system's, which an allocator cannot have kept from earlier."""
    pages = mmap.mmap(-1, SIZE, flags=flags | mmap.MAP_ANONYMOUS)
    pages.write(b"\1" * SIZE)
    return pages


def test_private_memory_counts():
    with MemoryMonitor(interval=10) as monitor:
        before = monitor.sample()
        with touched(mmap.MAP_PRIVATE):
            assert before + 40 < monitor.sample() < before + 200
    assert monitor.peak_mb > before + 40


def test_shared_pages_do_not_count():
    with MemoryMonitor(interval=10) as monitor:
        before = monitor.sample()
        with touched(mmap.MAP_SHARED):
            assert monitor.sample() < before + 40


def test_it_samples_by_itself_and_stops():
    with MemoryMonitor(interval=0.01) as monitor:
        low = monitor.peak_mb
        with touched(mmap.MAP_PRIVATE):
            deadline = time.monotonic() + 5
            while monitor.peak_mb < low + 40 and time.monotonic() < deadline:
                time.sleep(0.01)
        assert monitor.peak_mb > low + 40
    assert not [t for t in threading.enumerate() if t.name == "hilm-memory"]
