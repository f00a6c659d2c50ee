from __future__ import annotations

import math
import mmap
import threading
import time

import pytest

from hilm.weights.memory import MemoryMonitor, group_limit

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


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("0::/a/b", {"a/memory.max": "max", "a/b/memory.max": "104857600"}, 100),
        ("0::/a/b", {"a/memory.max": "52428800", "a/b/memory.max": "104857600"}, 50),
        ("0::/../of/the/host", {"memory.max": "104857600"}, 100),
        ("5:cpu:/x\n4:memory:/x", {"memory/x/memory.limit_in_bytes": "1048576"}, 1),
        ("4:memory:/x", {"memory/memory.limit_in_bytes": str(2**63 - 4096)}, pytest.approx(2.0**43)),
        ("0::/", {"memory.max": "max"}, math.inf),
        ("0::/", {}, math.inf),
    ],
)  # fmt: skip
def test_the_smallest_limit_of_the_groups_around_the_process_counts(tmp_path, groups, limits, expected):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(groups + "\n")
    for path, limit in limits.items():
        file = tmp_path / "sys/fs/cgroup" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(limit + "\n")
    assert group_limit(tmp_path) == expected


def test_without_control_groups_there_is_no_limit(tmp_path):
    assert group_limit(tmp_path) == math.inf
