"""Run one pure function over many tasks: the contract, and the serial executor that defines it.

Every executor keeps the same promises. Tasks are pulled lazily. Each yields exactly one `Outcome`, in any
order; a task that fails does not disturb the others. Execution is at least once, so the function writes
nothing but files that it renames into place. Only transient failures (network, timeout, a dead worker)
are tried again. Closing an iterator early leaves nothing running.
"""

from __future__ import annotations

import os
import re
import time
import traceback
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

from hilm.errors import HilmError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_TRACEBACK_TAIL = 2_000
_SECRET = re.compile(
    r"hf_[A-Za-z0-9]{20,}|(?<=://)[^/\s@]+(?=@)|(?<=[?&])[^=&\s]*(?:token|signature|key)[^=&\s]*=[^&\s'\"]+",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Task:
    """One piece of work; ``payload`` is small, picklable, free of secrets and open handles."""

    key: bytes
    payload: Any


@dataclass(frozen=True, slots=True)
class TaskError:
    """Why a task failed, as plain text, so that it survives any process border.

    Attributes:
        name: Class name of the exception.
        message: What it said, without tokens or passwords.
        hint: What to do about it; empty for errors that are not hilm's own.
        exit_code: Exit code that fits the error.
        transient: Whether trying again could help.
        traceback: The last lines of the traceback; empty if the worker itself was lost.
    """

    name: str
    message: str
    hint: str = ""
    exit_code: int = 1
    transient: bool = False
    traceback: str = ""

    @classmethod
    def of(cls, error: Exception) -> Self:
        """Describe an exception."""
        return cls(
            name=type(error).__name__,
            message=without_secrets(str(error)),
            hint=error.hint if isinstance(error, HilmError) else "",
            exit_code=error.exit_code if isinstance(error, HilmError) else 1,
            transient=isinstance(error, ConnectionError | TimeoutError),
            traceback=without_secrets("".join(traceback.format_exception(error))[-_TRACEBACK_TAIL:]),
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a task: a value or an error.

    Attributes:
        attempts: How often it was tried.
        seconds: Duration of the last attempt.
        worker: Where that ran, such as ``pid 4711``.
    """

    task: Task
    value: Any
    error: TaskError | None
    attempts: int
    seconds: float
    worker: str


class Executor(Protocol):
    """Something that runs tasks; a context manager that closes itself."""

    name: str
    workers: int

    def map_unordered(
        self,
        fn: Callable[[Any], Any],
        tasks: Iterable[Task],
        *,
        max_in_flight: int | None = None,
        retries: int = 3,
        timeout_s: float | None = None,
    ) -> Iterator[Outcome]:
        """Yield ``fn(task.payload)`` for every task, in any order.

        Args:
            fn: A pure function that workers can import.
            tasks: Pulled as workers get free.
            max_in_flight: Most tasks handed out at a time.
            retries: Further attempts after a transient failure.
            timeout_s: Seconds one attempt may take before its worker is killed.
        """
        ...

    def close(self) -> None:
        """End every worker."""
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Pool(Executor):
    """What executors with several workers share: the loop that keeps them busy.

    A pool serves one `map_unordered` at a time.
    """

    def map_unordered(
        self,
        fn: Callable[[Any], Any],
        tasks: Iterable[Task],
        *,
        max_in_flight: int | None = None,
        retries: int = 3,
        timeout_s: float | None = None,
    ) -> Iterator[Outcome]:
        """See `Executor`; ``timeout_s`` counts from the hand-over, so a worker's start-up is part of it."""
        limit = self.places(timeout_s)
        limit = min(limit, max_in_flight or limit)
        fresh = ((task, 1) for task in tasks)
        again: list[tuple[Task, int]] = []
        outcomes: list[Outcome] = []
        busy = 0
        try:
            while True:
                while busy < limit and (job := again.pop() if again else next(fresh, None)):
                    self.hand_out(fn, *job)
                    busy += 1
                yield from outcomes  # only now, so that workers run while the caller handles these
                if not busy:
                    return
                outcomes = []
                for outcome in self.collect(timeout_s):
                    busy -= 1
                    if outcome.error and outcome.error.transient and outcome.attempts <= retries:
                        again.append((outcome.task, outcome.attempts + 1))
                    else:
                        outcomes.append(outcome)
        finally:
            if busy:
                self.abandon()

    def places(self, timeout_s: float | None) -> int:  # noqa: ARG002 - whether a task may wait for its worker
        """Most tasks handed out at a time."""
        return self.workers

    @abstractmethod
    def hand_out(self, fn: Callable[[Any], Any], task: Task, attempts: int) -> None:
        """Have a worker start a task; ``attempts`` counts this one."""

    @abstractmethod
    def collect(self, timeout_s: float | None) -> list[Outcome]:
        """Wait until tasks have ended, one way or another; return what became of them."""

    @abstractmethod
    def abandon(self) -> None:
        """Stop every task handed out."""


class SerialExecutor(Executor):
    """Runs tasks one after the other in this process, which no timeout can interrupt."""

    name = "serial"
    workers = 1

    def map_unordered(
        self,
        fn: Callable[[Any], Any],
        tasks: Iterable[Task],
        *,
        max_in_flight: int | None = None,  # noqa: ARG002 - one is in flight
        retries: int = 3,
        timeout_s: float | None = None,  # noqa: ARG002 - a function cannot be stopped from within its process
    ) -> Iterator[Outcome]:
        """See `Executor`; outcomes come in the order of the tasks."""
        for task in tasks:
            attempts = 1
            value, error, seconds = attempt(fn, task.payload)
            while error and error.transient and attempts <= retries:
                attempts += 1
                value, error, seconds = attempt(fn, task.payload)
            yield Outcome(task, value, error, attempts, seconds, f"pid {os.getpid()}")


def attempt(fn: Callable[[Any], Any], payload: Any) -> tuple[Any, TaskError | None, float]:  # noqa: ANN401
    """Call ``fn`` once and return its value, its error and the seconds it took."""
    start = time.perf_counter()
    try:
        value, error = fn(payload), None
    except Exception as caught:  # noqa: BLE001 - whatever a task raises is its outcome, not the fleet's
        value, error = None, TaskError.of(caught)
    return value, error, time.perf_counter() - start


def without_secrets(text: str) -> str:
    """The text with tokens, passwords in addresses and signatures in queries blanked out."""
    return _SECRET.sub("***", text)
