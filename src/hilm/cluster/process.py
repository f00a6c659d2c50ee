"""Worker processes on this machine.

A worker is a fresh interpreter at the other end of a socket. It never forks a process with threads, and
it does not run the caller's main script again, as multiprocessing would. It holds one task at a time, so
when it dies or hangs, that task alone is to blame and no other is lost. A worker ends when its socket
does: nothing survives the parent, however that ended.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any

from hilm.cluster.executor import Outcome, Pool, Task, TaskError, attempt
from hilm.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RECYCLE_AFTER = 2_000
"""Tasks after which a worker is replaced, so that what libraries leak stays bounded."""

ONE_THREAD = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
}

# Sent as the text of the program, so that a child imports from where its parent does.
_PROGRAM = "import sys; sys.path[:] = {!r}; from {} import serve; serve({})"


class Child:
    """The parent's end of a process that runs the ``serve`` of a module of this package.

    Args:
        module: The module.
        environment: Variables to add.
        output: Descriptor its stdout and stderr go to; not our stdout, which is the caller's document.
        folder: Its current directory; ours if None.
    """

    def __init__(
        self, module: str, environment: dict[str, str], *, output: int = 2, folder: Path | None = None
    ) -> None:
        self.connection, remote = Pipe()
        with remote:
            self.process = subprocess.Popen(  # noqa: S603 - our own interpreter and our own text
                [sys.executable, "-c", _PROGRAM.format(sys.path, module, remote.fileno())],
                pass_fds=[remote.fileno()],
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=folder,
                process_group=0,  # Ctrl-C is for the parent, which ends the group
            )

    def kill(self) -> int:
        """End the process and all it started; returns its exit status."""
        self.connection.close()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.wait()


class _Worker(Child):
    """The parent's end of one worker process."""

    def __init__(self) -> None:
        super().__init__(__name__, ONE_THREAD)
        self.served = 0

    def start(self, fn: Callable[[Any], Any], task: Task, attempts: int) -> None:
        self.task, self.attempts, self.started = task, attempts, time.monotonic()
        self.served += 1
        with suppress(BrokenPipeError, ConnectionResetError):  # it died; receiving its reply tells
            self.connection.send((fn, task.payload))

    def finish(self) -> Outcome:
        """Receive the reply to the running task; a closed socket is the reply of a dead worker."""
        try:
            error, seconds = self.connection.recv()
            value = self.connection.recv()
        except (EOFError, OSError):
            message = f"the worker died with status {self.kill()} while running this task"
            return self._lost(message, hint="if it ran out of memory, use fewer workers")
        return self._outcome(value, error, seconds)

    def expire(self, timeout_s: float) -> Outcome:
        self.kill()
        return self._lost(f"no result within {timeout_s:g} s; the worker was killed", hint="allow more time")

    def _lost(self, message: str, hint: str) -> Outcome:
        error = TaskError("WorkerError", message, hint, transient=True)
        return self._outcome(None, error, time.monotonic() - self.started)

    def _outcome(self, value: Any, error: TaskError | None, seconds: float) -> Outcome:  # noqa: ANN401 - of any task
        return Outcome(self.task, value, error, self.attempts, seconds, f"pid {self.process.pid}")


class ProcessExecutor(Pool):
    """Runs tasks in worker processes, which start when there is work and are kept until `close`.

    Args:
        workers: Number of processes; all usable CPUs if None.

    Raises:
        UsageError: ``workers`` is less than 1.
    """

    name = "process"

    def __init__(self, workers: int | None = None) -> None:
        self.workers = _usable_cpus() if workers is None else workers
        if self.workers < 1:
            raise UsageError(f"{self.workers} workers cannot do anything", hint="give at least 1")
        self._idle: list[_Worker] = []
        self._busy: list[_Worker] = []

    def hand_out(self, fn: Callable[[Any], Any], task: Task, attempts: int) -> None:
        """See `Pool`."""
        self._busy.append(self._idle.pop() if self._idle else _Worker())
        self._busy[-1].start(fn, task, attempts)

    def collect(self, timeout_s: float | None) -> list[Outcome]:
        """See `Pool`."""
        ended = _collect(self._busy, timeout_s)
        for worker, _ in ended:
            self._busy.remove(worker)
            self._release(worker)
        return [outcome for _, outcome in ended]

    def abandon(self) -> None:
        """See `Pool`."""
        while self._busy:
            self._busy.pop().kill()

    def close(self) -> None:
        """End every worker; an unfinished `map_unordered` ends its own when it is closed."""
        while self._idle:
            self._idle.pop().kill()

    def _release(self, worker: _Worker) -> None:
        if worker.served >= RECYCLE_AFTER:
            worker.kill()
        elif not worker.connection.closed:
            self._idle.append(worker)


def _usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _collect(busy: list[_Worker], timeout_s: float | None) -> list[tuple[_Worker, Outcome]]:
    """Wait until workers have replied, died or run out of time; return those with their outcomes."""
    limit = math.inf if timeout_s is None else timeout_s
    patience = max(0.0, min(worker.started for worker in busy) + limit - time.monotonic())
    ready = wait([worker.connection for worker in busy], None if timeout_s is None else patience)
    late = time.monotonic() - limit
    return [
        (worker, worker.finish() if worker.connection in ready else worker.expire(limit))
        for worker in busy
        if worker.connection in ready or worker.started <= late
    ]


def serve(descriptor: int) -> None:
    """Run tasks from a socket until it closes: the main function of a worker."""
    connection, inbox = listen(descriptor)
    while True:
        reply, error, seconds = attempt(call, inbox.get())
        connection.send((error, seconds))
        connection.send_bytes(ForkingPickler.dumps(None) if error else reply)


def listen(descriptor: int) -> tuple[Connection, SimpleQueue[bytes]]:
    """Take over a child's end of its socket; once the parent is gone, the whole process group ends."""
    connection, inbox = Connection(descriptor), SimpleQueue[bytes]()
    Thread(target=_receive, args=(connection, inbox), daemon=True).start()
    return connection, inbox


def _receive(connection: Connection, inbox: SimpleQueue[bytes]) -> None:
    """Take requests off the socket even while a task runs; once the parent is gone, end the whole group."""
    try:
        while True:
            inbox.put(connection.recv_bytes())
    except (EOFError, OSError):
        os.killpg(0, signal.SIGKILL)


def call(request: bytes) -> memoryview:
    """Decode, call and encode, all within one attempt: each can fail by fault of the task."""
    fn, payload = ForkingPickler.loads(request)
    return ForkingPickler.dumps(fn(payload))
