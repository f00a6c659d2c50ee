"""Take models in: index or encode any number of them, on one core or many, safe against any interruption.

A batch is acknowledged by one commit to the catalog; what was not acknowledged leaves no trace that matters
and is done again by running the command again.
"""

from __future__ import annotations

import os
import time
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from threadpoolctl import threadpool_limits

from hilm import errors
from hilm.cluster import Task, TaskError, open_executor
from hilm.errors import HilmError, UsageError
from hilm.store.batch import commit
from hilm.store.shelf import hold, sweep
from hilm.store.work import Result, run_job

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hilm.cluster import Executor, Outcome
    from hilm.store.planning import Plan
    from hilm.store.reading import Progress

BATCH = 128
"""Models of one commit, and of one reel of samples."""

BATCH_VALUES = 1 << 24
"""Sampled values of one commit: 64 MiB."""

PATIENCE = {"archive": 0.0, "small": 0.0, "delta": 0.0, "index": 5.0, "sample": 60.0}
"""Seconds a result waits for others to be committed with."""

PROCESSES_FROM = 4
"""Fewer models are done one by one, each with all cores."""


@dataclass(slots=True)
class Intake:
    """One run over many models.

    Args:
        plan: Says which are to be done.
        progress: Called with models done, models in all, and the name of the last; for a single model with
            its values and tensors instead.

    Attributes:
        done: Name to what ``encode`` prints, of models now acknowledged.
        failed: Model, message, hint and exit code of each failure.
    """

    plan: Plan
    progress: Progress
    done: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: list[dict[str, Any]] = field(default_factory=list)
    _run: bytes = field(default_factory=lambda: uuid.uuid4().bytes)
    _ended: int = 0
    _pending: list[Result] = field(default_factory=list)
    _since: float = field(default_factory=time.monotonic)
    _writing: Future[None] | None = None

    def run(self, targets: Sequence[str], *, name: str | None, jobs: int | None, ray: str | None) -> None:
        """Take in every target; what fails is listed and stops nothing else.

        Raises:
            UsageError: No models, one name for several, or fewer than one job.
            MissingExtra: Ray is asked for and not installed.
            NetworkError: There is no Ray cluster at that address.
            WorkerError: Ray does not start, or is lost; what was acknowledged stays.
            StorageError: The store cannot be written.
        """
        if not targets or (name is not None and len(targets) > 1):
            raise UsageError(f"{len(targets)} models{' for one name' if name else ''}", hint="name one model")
        if jobs is not None and jobs < 1:
            raise UsageError(f"{jobs} jobs; at least 1 is needed")
        cores = os.cpu_count() or 1
        workers = min(jobs or cores, len(targets))
        if jobs is None and len(targets) < PROCESSES_FROM:
            workers = 1
        kind = "ray" if ray else "process" if workers > 1 else "serial"
        with ExitStack() as stack:
            stack.callback(self._sweep)
            stack.enter_context(threadpool_limits(1, "blas"))
            writer = stack.enter_context(ThreadPoolExecutor(1))
            executor = stack.enter_context(open_executor(kind, jobs if ray else workers, address=ray))
            tasks = self._tasks(targets, name, threads=cores if kind == "serial" else 1)
            try:
                self._work(executor, tasks, len(targets), writer)
            finally:
                self._flush(writer)
                self._settle()

    def _tasks(self, targets: Sequence[str], name: str | None, threads: int) -> Iterator[Task]:
        """What is to be done, found out just ahead of the work."""
        for target in targets:
            try:
                job = self.plan.add(target, name)
            except HilmError as error:
                self._fail(target, TaskError.of(error))
                continue
            if job is None:
                self._ended += 1
            else:
                yield Task(os.fsencode(target), replace(job, threads=threads))

    def _work(
        self, executor: Executor, tasks: Iterator[Task], total: int, writer: ThreadPoolExecutor
    ) -> None:
        """Do the jobs; meanwhile ``writer`` makes reels of samples and commits."""
        function = (
            partial(run_job, tick=self.progress) if executor.name == "serial" and total == 1 else run_job
        )
        for outcome in executor.map_unordered(function, tasks):
            error = outcome.error or _find_nothing(outcome)
            if error is not None:
                self._fail(os.fsdecode(outcome.task.key), error)
            else:
                self._take(outcome.value, writer)
            if total > 1:
                self.progress(self._ended, total, outcome.task.payload.name)

    def _fail(self, target: str, error: TaskError) -> None:
        ours = hasattr(errors, error.name)
        self._ended += 1
        self.failed.append(
            {
                "model": target,
                "message": error.message if ours else f"{error.name}: {error.message}",
                "hint": error.hint,
                "exit_code": error.exit_code,
            }
        )

    def _take(self, result: Result, writer: ThreadPoolExecutor) -> None:
        self._ended += 1
        self._pending.append(result)
        values = sum(len(r.sample.values) for r in self._pending if r.sample is not None)
        waited = time.monotonic() - self._since >= PATIENCE[self.plan.mode]
        if waited or values >= BATCH_VALUES or len(self._pending) >= BATCH:
            self._flush(writer)

    def _flush(self, writer: ThreadPoolExecutor) -> None:
        """Have everything pending committed, behind the batch before it."""
        self._settle()
        pending, self._pending, self._since = self._pending, [], time.monotonic()
        if pending:
            self._writing = writer.submit(self._commit, pending)

    def _settle(self) -> None:
        """Wait for the batch that is being committed; raises what went wrong there."""
        if self._writing is not None:
            self._writing.result()

    def _commit(self, pending: list[Result]) -> None:
        self.done |= commit(self.plan, self._run, pending)

    def _sweep(self) -> None:
        store = self.plan.store
        if store.exists and not store.address:
            with hold(store.reels):
                sweep(store.catalog, store.reels)


def _find_nothing(outcome: Outcome) -> TaskError | None:
    """What is wrong if a worker on another machine wrote an archive that is not here."""
    archive = outcome.value.archive
    if archive is None or archive.reel.path.is_file():
        return None
    return TaskError(
        "WorkerError",
        f"{outcome.worker} wrote {archive.reel.path}, which is not here",
        hint="keep the store on storage that all machines share",
    )
