"""Models being taken in while people look at pages: two at a time, the rest wait."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Event, Lock
from typing import TYPE_CHECKING, Any

import psutil

import hilm
from hilm.errors import Cancelled, HilmError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

AT_ONCE, MOST, REMEMBERED = 2, 50, 100
MODES = ("archive", "small", "index")


@dataclass(frozen=True, slots=True)
class Job:
    """One model that is, was or will be taken in.

    Attributes:
        number: Counts from 1.
        model: What was asked for.
        mode: ``archive``, ``small`` or ``index``.
        state: ``waiting``, ``running``, ``done``, ``failed`` or ``cancelled``.
        values: Values read so far in this pass.
        total: Values of a pass; 0 before that is known.
        passes: Passes that ended: a film is drawn in one of its own, before the one that codes values.
        layer: Tensor that was read last.
        memory: Resident bytes of the server when it was last heard of.
        seconds: Of work so far.
        name: What the store calls the model, once it is there.
        problem: Message and hint of what went wrong.
    """

    number: int
    model: str
    mode: str
    state: str = "waiting"
    values: int = 0
    total: int = 0
    passes: int = 0
    layer: str = ""
    memory: int = 0
    seconds: float = 0.0
    name: str = ""
    problem: tuple[str, str] = ("", "")

    @property
    def active(self) -> bool:
        """Whether it is yet to end."""
        return self.state in {"waiting", "running"}


class Jobs:
    """The jobs of one server.

    Args:
        path: The store's folder.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, Lock()
        self._jobs: dict[int, Job] = {}
        self._stops: dict[int, Event] = {}
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="hilm-job")

    def start(self, model: str, mode: str) -> Job:
        """Take a model in, as soon as there is room.

        Raises:
            UsageError: There is no model or mode given, or too many are waiting.
        """
        if not model or mode not in MODES:
            raise UsageError("give a folder, file or Hub id", hint=f"modes: {', '.join(MODES)}")
        with self._lock:
            if sum(job.active for job in self._jobs.values()) >= MOST:
                raise UsageError(f"{MOST} models are waiting already", hint="wait until some are done")
            job = Job(max(self._jobs, default=0) + 1, model, mode)
            self._jobs[job.number], self._stops[job.number] = job, Event()
            for number in sorted(n for n, old in self._jobs.items() if not old.active)[:-REMEMBERED]:
                del self._jobs[number], self._stops[number]
        self._pool.submit(self._work, job.number)
        return job

    def cancel(self, number: int) -> None:
        """Stop a job at its next block; one that has ended stays as it is."""
        if number in self._stops:
            self._stops[number].set()

    def list(self) -> tuple[Job, ...]:
        """All jobs, the newest first."""
        with self._lock:
            return tuple(sorted(self._jobs.values(), key=lambda job: -job.number))

    def close(self) -> None:
        """Stop everything and wait for it."""
        for stop in tuple(self._stops.values()):
            stop.set()
        self._pool.shutdown()

    def _update(self, number: int, **changes: Any) -> Job:  # noqa: ANN401 - fields of Job
        with self._lock:
            self._jobs[number] = job = replace(self._jobs[number], **changes)
        return job

    def _work(self, number: int) -> None:
        started, process, stop = time.monotonic(), psutil.Process(), self._stops[number]

        def progress(done: int, total: int, layer: str) -> None:
            if stop.is_set():
                raise Cancelled("cancelled on request")
            memory, seconds = process.memory_info().rss, time.monotonic() - started
            before = self._jobs[number]
            passes = before.passes + (done < before.values)
            self._update(
                number, values=done, total=total, passes=passes, layer=layer, memory=memory, seconds=seconds
            )

        if stop.is_set():
            self._update(number, state="cancelled")
            return
        job = self._update(number, state="running")
        store = hilm.Store(self._path)
        try:
            if job.mode == "index":
                found = store.index([job.model], jobs=1, progress=progress)
                names = [*found["indexed"], *found["skipped"]]
            else:
                found = store.encode([job.model], mode=job.mode, jobs=1, progress=progress)
                names = [made["model"] for made in found["models"]]
            problem = next(((f["message"], f["hint"]) for f in found["failed"]), ("", ""))
        except (HilmError, OSError) as error:
            names, problem = [], (str(error), getattr(error, "hint", ""))
        state = "done" if names else "cancelled" if stop.is_set() else "failed"
        seconds = time.monotonic() - started
        self._update(number, state=state, name="".join(names), problem=problem, seconds=seconds)
