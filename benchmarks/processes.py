"""Commands and functions measured from outside, in processes of their own. Linux only: it reads /proc."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

HILM = str(Path(sysconfig.get_path("scripts")) / "hilm")
"""The command as it is installed beside the interpreter."""

SAMPLE_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Run:
    """A command that ended well.

    Attributes:
        wall: Seconds from start to end.
        cpu: Seconds of processor time, of its own and of the processes it waited for.
        peak: Largest sum of resident bytes of its whole process tree; shared pages count once per process.
        out: What it wrote to stdout.
        err: And to stderr.
    """

    wall: float
    cpu: float
    peak: int
    out: str
    err: str


def watch(command: Sequence[str]) -> Run:
    """Run a command to its end.

    Raises:
        RuntimeError: It exits with another code than 0.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=err)
        tree = _Tree(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        peak = max(tree.stop(), usage.ru_maxrss * 1024)
        texts = [os.pread(stream.fileno(), os.fstat(stream.fileno()).st_size, 0) for stream in (out, err)]
    written, complaint = (text.decode() for text in texts)
    if process.returncode:
        raise RuntimeError(f"{Path(command[0]).name} exited with {process.returncode}: {complaint.strip()}")
    return Run(wall, usage.ru_utime + usage.ru_stime, peak, written, complaint)


class _Tree:
    """Samples the resident memory of a process and its descendants in a thread."""

    def __init__(self, pid: int) -> None:
        self._root, self._peak, self._end = psutil.Process(pid), 0, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        self._end.set()
        self._thread.join()
        return self._peak

    def _sample(self) -> None:
        while not self._end.wait(SAMPLE_SECONDS):
            resident = 0
            with suppress(psutil.NoSuchProcess):  # what ended meanwhile holds nothing
                for process in [self._root, *self._root.children(recursive=True)]:
                    with suppress(psutil.NoSuchProcess):
                        resident += process.memory_info().rss
            self._peak = max(self._peak, resident)


def extra_memory(action: Callable[..., object], *args: object) -> int:
    """Bytes by which the peak of a fresh process exceeds what it held when all imports were done.

    Args:
        action: A function of a module; the child imports that module first.
        args: Its arguments.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_grow, (action, args))


def _grow(action: Callable[..., object], args: tuple[object, ...]) -> int:
    before = psutil.Process().memory_info().rss
    action(*args)
    return peak_resident() - before


def peak_resident() -> int:
    """Largest resident memory this process ever had, in bytes.

    The kernel's own mark, not ru_maxrss, which a child inherits from its parent.
    """
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


@contextmanager
def pinned(cores: int) -> Iterator[None]:
    """Keep every thread of this process, and what it starts meanwhile, on so many cores."""
    before = os.sched_getaffinity(0)
    _pin(set(sorted(before)[:cores]))
    try:
        yield
    finally:
        _pin(before)


def _pin(cores: set[int]) -> None:
    for thread in psutil.Process().threads():
        with suppress(ProcessLookupError):
            os.sched_setaffinity(thread.id, cores)


if sys.platform != "linux":
    raise RuntimeError("the benchmarks that measure memory and processor time need Linux")
