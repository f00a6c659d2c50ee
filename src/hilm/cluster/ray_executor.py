"""Ray Core tasks: the machines of a running cluster, or a Ray of one's own on this machine.

Ray lives in a child process at the other end of a socket (`hilm.cluster.ray_driver`): starting it can abort
the process that tries, and so can losing the cluster later. A Ray started here listens on the loopback
interface only, and ends with the child, which ends with its parent.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import time
from contextlib import suppress
from itertools import count
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from hilm.cluster.executor import Outcome, Pool, Task, TaskError
from hilm.cluster.process import ONE_THREAD, Child
from hilm.errors import HilmError, UsageError, WorkerError

if TYPE_CHECKING:
    from collections.abc import Callable

START_SECONDS = 120.0
_END_SECONDS = 10.0
_ADDRESS = re.compile(r"local|(\[[0-9a-fA-F:]+\]|[\w.-]+):\d{1,5}", re.ASCII)
_LOOPBACK = re.compile(r"local|(127\.[\d.]+|localhost|\[::1\]):\d+", re.ASCII)
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONWARNINGS": "ignore"}
# Otherwise Ray replaces 127.0.0.1 by the network's address.
_ON_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


class _Driver(Child):
    """The parent's end of the process that speaks with Ray."""

    def __init__(self, address: str, workers: int | None) -> None:
        # Not just anywhere: Ray's sockets lie in it, and a socket's path may have a hundred characters.
        self.folder = Path(tempfile.mkdtemp(prefix="hilm-ray-", dir="/tmp"))
        environment = ONE_THREAD | _QUIET | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        if _LOOPBACK.fullmatch(address):
            environment |= _ON_LOOPBACK
        with (self.folder / "log").open("wb") as log:
            super().__init__("hilm.cluster.ray_driver", environment, output=log.fileno(), folder=self.folder)
        answer: int | HilmError = 0
        try:
            self.connection.send((address, workers, str(self.folder)))
            late = not self.connection.poll(START_SECONDS)
            answer = self.lost(f"no Ray within {START_SECONDS:g} s") if late else self.connection.recv()
        except (EOFError, ConnectionError):
            answer = self.lost("Ray ended while it started")
        finally:
            if not answer or isinstance(answer, HilmError):
                self.kill()
        if isinstance(answer, HilmError):
            raise answer
        self.workers: int = answer

    def lost(self, message: str) -> WorkerError:
        """What to raise when the process does not answer, with the last that it said."""
        said = (self.folder / "log").read_text(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(said) if line.strip()), "it said nothing")
        return WorkerError(f"{message}: {last}", hint="run the command again: what was finished is kept")

    def kill(self) -> int:
        """End the process and every other that Ray started for it."""
        family: list[psutil.Process] = []
        with suppress(psutil.Error):
            family = psutil.Process(self.process.pid).children(recursive=True)
        status = super().kill()
        for process in family:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(family, _END_SECONDS)
        shutil.rmtree(self.folder, ignore_errors=True)
        return status


class RayExecutor(Pool):
    """Runs tasks on a Ray cluster.

    A task whose worker or machine is lost, or its result with it, is handed out again. Tasks say what source
    code of hilm they come from, and a machine that has another refuses them.

    Args:
        address: ``host:port`` of a running cluster, or ``local`` to start one on this machine.
        workers: CPUs of a local one; of a cluster, most tasks at a time. All CPUs if None.

    Raises:
        UsageError: ``address`` is none, or ``workers`` is less than 1.
        MissingExtra: Ray is not installed.
        NetworkError: There is no cluster at this address.
        WorkerError: Ray does not start.
        ClusterMismatch: The cluster runs another version of Ray or Python.
    """

    name = "ray"

    def __init__(self, address: str = "local", workers: int | None = None) -> None:
        if not _ADDRESS.fullmatch(address):
            raise UsageError(f"{address!r} is no address of a Ray cluster", hint="give host:port, or local")
        if workers is not None and workers < 1:
            raise UsageError(f"{workers} workers cannot do anything", hint="give at least 1")
        self.address = address
        self._wanted = workers
        self._numbers = count()
        self._running: dict[int, tuple[Task, int, float]] = {}
        self._driver: _Driver | None = self._start()
        self.workers = min(self._driver.workers, workers or self._driver.workers)

    def _start(self) -> _Driver:
        try:
            return _Driver(self.address, self._wanted)
        except WorkerError:  # a busy machine may need a second attempt
            return _Driver(self.address, self._wanted)

    def places(self, timeout_s: float | None) -> int:
        """One task per worker, and one that waits, unless waiting counts as time it takes."""
        return self.workers if timeout_s is not None else 2 * self.workers

    def hand_out(self, fn: Callable[[Any], Any], task: Task, attempts: int) -> None:
        """See `Pool`."""
        request = bytes(ForkingPickler.dumps((fn, task.payload)))
        self._driver = self._driver or self._start()
        number = next(self._numbers)
        self._running[number] = task, attempts, time.monotonic()
        with suppress(ConnectionError):  # collecting tells
            self._driver.connection.send((number, request))

    def collect(self, timeout_s: float | None) -> list[Outcome]:
        """See `Pool`.

        Raises:
            WorkerError: Ray itself was lost.
            ClusterMismatch: A machine runs another program.
        """
        assert self._driver is not None  # noqa: S101 - hand_out started it
        try:
            if not self._driver.connection.poll(self._patience(timeout_s)):
                return self._expire(timeout_s or 0.0)
            number, answer = self._driver.connection.recv()
        except (EOFError, ConnectionError) as gone:
            raise self._driver.lost(f"Ray at {self.address} was lost") from gone
        if isinstance(answer, HilmError):
            raise answer
        if number not in self._running:
            return []  # it had run out of time
        task, attempts, _ = self._running.pop(number)
        reply, error, seconds, worker = answer
        value = None if error else ForkingPickler.loads(reply)
        return [Outcome(task, value, error, attempts, seconds, worker)]

    def _patience(self, timeout_s: float | None) -> float | None:
        if timeout_s is None:
            return None
        oldest = min(started for _, _, started in self._running.values())
        return max(0.0, oldest + timeout_s - time.monotonic())

    def _expire(self, timeout_s: float) -> list[Outcome]:
        """Have Ray kill the workers of tasks that run for too long."""
        now, outcomes = time.monotonic(), []
        for number, (task, attempts, started) in list(self._running.items()):
            if self._driver is not None and started + timeout_s <= now:
                del self._running[number]
                with suppress(ConnectionError):
                    self._driver.connection.send((number, None))
                message = f"no result within {timeout_s:g} s; the worker was killed"
                error = TaskError("WorkerError", message, "allow more time", transient=True)
                outcomes.append(Outcome(task, None, error, attempts, now - started, self.address))
        return outcomes

    def abandon(self) -> None:
        """See `Pool`; with its driver gone, Ray ends what that had asked for."""
        self._running.clear()
        self.close()

    def close(self) -> None:
        """End the driver, and a local Ray with it."""
        if self._driver is not None:
            self._driver.kill()
            self._driver = None
