"""Take models in: index or encode any number of them, on one core or many, safely against any interruption.

A batch is acknowledged by one commit to the catalog; what was not acknowledged leaves no trace that matters and
is done again by running the command again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hilm.cluster import Task, open_executor
from hilm.cluster.executor import TaskError
from hilm.errors import HilmError, UsageError
from hilm.store.work import Job, Result, reference_key, run_job
from hilm.weights import open_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hilm.lineage.catalog import Catalog
    from hilm.reel.container import ReelFacts
    from hilm.store.reading import Progress

BATCH = 256
"""Models of one commit, and of one reel of samples."""

BATCH_SECONDS = 5.0
"""Results wait no longer than this for others to be committed with."""

PROCESSES_FROM = 4
"""Fewer models are done one by one, each with all cores."""

CODEC = "hilm-rans-1"


@dataclass(slots=True)
class Intake:
    """One run over many models.

    Args:
        catalog: Where rows go.
        reels: Folder of the reels.
        mode: ``index``, ``archive`` or ``sample``.
        options: Fields of ``Job`` beside path, name and mode.
        force: Do models again that are there already.
        progress: Called with models done, models in all, and the name of the last; for a single model with
            its values instead.
    """

    catalog: Catalog
    reels: Path
    mode: str
    options: dict[str, Any]
    force: bool
    progress: Progress
    done: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: list[dict[str, Any]] = field(default_factory=list)
    _run: bytes = field(default_factory=lambda: uuid.uuid4().bytes)
    _pending: list[Result] = field(default_factory=list)
    _since: float = field(default_factory=time.monotonic)

    def run(self, targets: Sequence[str], *, name: str | None, jobs: int | None) -> None:
        """Take in every target; what fails is listed and stops nothing else.

        Raises:
            UsageError: One name for several models, or fewer than one job.
        """
        if name is not None and len(targets) > 1:
            raise UsageError("one name for several models", hint="give --name with a single model")
        if jobs is not None and jobs < 1:
            raise UsageError(f"{jobs} jobs; at least 1 is needed")
        cores = os.cpu_count() or 1
        workers = min(jobs or cores, len(targets))
        alone = workers == 1 or (jobs is None and len(targets) < PROCESSES_FROM)
        queue = self._prepare(targets, name, threads=cores if alone else 1)
        try:
            if alone:
                self._run_here(queue, len(targets))
            else:
                self._run_apart(queue, len(targets), workers)
        finally:
            self._commit()

    def _prepare(self, targets: Sequence[str], name: str | None, threads: int) -> Iterator[Job]:
        """Open headers, choose names, and leave out what is there already; lazily, one ahead of the work."""
        models = {row["ref_key"]: row for row in self.catalog.models()}
        entries = {row["entry_key"]: row for row in self.catalog.rows("reels")}
        owners = {row["name"]: row["ref_key"] for row in models.values()}
        for target in targets:
            try:
                with open_checkpoint(target) as checkpoint:
                    path, state = checkpoint.path, checkpoint.state.hex()
                    ref_key = reference_key(path)
                    known = models.get(ref_key)
                    chosen = name or (known["name"] if known else _free_name(path, checkpoint.name, ref_key, owners))
            except HilmError as error:
                self._fail(target, TaskError.of(error))
                continue
            owners[chosen] = ref_key
            job = Job(str(path), chosen, self.mode, threads=threads, **self.options)
            entry = entries.get(entry_key(job))
            fresh = known is not None and known["commit"] == state and known["name"] == chosen
            there = self.mode == "index" or (entry is not None and Path(self.reels / entry["uri"]).is_file())
            if fresh and there and not self.force:
                self.skipped[chosen] = {} if entry is None else describe_entry(entry, self.reels, known)
                continue
            if self.mode == "archive":
                job = dataclasses.replace(job, reel=str(self.reels / f"{file_stem(chosen)}-{entry_key(job).hex()[:8]}.reel.mp4"))
            yield job

    def _run_here(self, queue: Iterator[Job], total: int) -> None:
        for job in queue:
            try:
                result = run_job(job)
            except HilmError as error:
                self._fail(job.path, TaskError.of(error))
            else:
                self._take(result)
            self._report(total, job.name)

    def _run_apart(self, queue: Iterator[Job], total: int, workers: int) -> None:
        tasks = (Task(job.path.encode("utf-8", "surrogateescape"), job) for job in queue)
        with open_executor("process", workers) as executor:
            for outcome in executor.map_unordered(run_job, tasks):
                job: Job = outcome.task.payload
                if outcome.error is not None:
                    self._fail(job.path, outcome.error)
                else:
                    self._take(outcome.value)
                self._report(total, job.name)

    def _report(self, total: int, label: str) -> None:
        count = len(self.done) + len(self._pending) + len(self.skipped) + len(self.failed)
        self.progress(min(count, total), total, label)

    def _fail(self, target: str, error: TaskError) -> None:
        self.failed.append(
            {"model": target, "message": error.message, "hint": error.hint, "exit_code": error.exit_code}
        )

    def _take(self, result: Result) -> None:
        self._pending.append(result)
        waited = time.monotonic() - self._since > BATCH_SECONDS and self.mode != "sample"
        if self.mode == "archive" or len(self._pending) >= BATCH or waited:
            self._commit()

    def _commit(self) -> None:
        """Write the reel of pending samples, then acknowledge everything pending in one commit."""
        pending, self._pending, self._since = self._pending, [], time.monotonic()
        if not pending:
            return
        entries = self._write_samples(pending) if self.mode == "sample" else self._archive_rows(pending)
        run = {"run_id": self._run}
        self.catalog.commit(
            {
                "fingerprints": [r.fingerprint | run for r in pending],
                "reels": [row | run for row in entries],
                "models": [r.model | run for r in pending],
            },
            replace=True,
        )
        rows = {row["name"]: row for row in entries}
        for result in pending:
            entry = rows.get(result.job.name)
            facts = describe_entry(entry, self.reels, result.model) if entry else {"model": result.job.name}
            self.done[result.job.name] = facts | {"seconds": result.seconds}

    def _archive_rows(self, pending: list[Result]) -> list[dict[str, Any]]:
        return [
            self._entry(r, r.archive.reel, r.archive.weights, r.archive.frames, models=1)
            for r in pending
            if r.archive is not None
        ]

    def _write_samples(self, pending: list[Result]) -> list[dict[str, Any]]:
        from hilm.reel.sampling import encode_samples  # noqa: PLC0415 - indexing needs no video library

        pending.sort(key=lambda r: r.job.name)
        keys = hashlib.sha256(b"".join(entry_key(r.job) + r.model["content_key"] for r in pending))
        out = self.reels / f"sample-{keys.hexdigest()[:16]}.reel.mp4"
        samples = [r.sample for r in pending if r.sample is not None]
        report = encode_samples(samples, out, preview=pending[0].job.preview)
        return [
            self._entry(r, report.reel, len(r.sample.values), max(len(r.sample.chunks), 1), models=len(pending))
            for r in pending
            if r.sample is not None
        ]

    def _entry(
        self, result: Result, reel: ReelFacts, values: int, frames: int, *, models: int
    ) -> dict[str, Any]:
        """Row of the ``reels`` table; models in one file share its bytes evenly."""
        return {
            "entry_key": entry_key(result.job),
            "name": result.job.name,
            "content_key": result.model["content_key"],
            "reel_sha256": bytes.fromhex(reel.sha256),
            "uri": reel.path.name,
            "mode": self.mode,
            "format_version": 1,
            "codec": CODEC,
            "layout": "flat",
            "frames": frames,
            "bytes": reel.size // models,
            "values": values,
            "bits_per_value": reel.bits_per_weight,
            "nmse": 0.0,
            "manifest_sha256": bytes.fromhex(reel.manifest_sha256),
            "lossless": True,
        }


def entry_key(job: Job) -> bytes:
    """Name of one model in one mode with its settings, 32 bytes."""
    settings = json.dumps([job.mode, job.rule, job.chunk_size, job.preview])
    return hashlib.sha256(reference_key(Path(job.path)) + settings.encode()).digest()


def describe_entry(entry: dict[str, Any], reels: Path, model: dict[str, Any]) -> dict[str, Any]:
    """What ``encode`` prints of one model."""
    return {
        "model": entry["name"],
        "reel": str(reels / entry["uri"]),
        "mode": entry["mode"],
        "parameters": model["parameters"],
        "values": entry["values"],
        "frames": entry["frames"],
        "bits_per_weight": entry["bits_per_value"],
        "bytes": entry["bytes"],
        "nmse": entry["nmse"],
        "seconds": 0.0,
    }


def file_stem(name: str) -> str:
    """A model's name as the start of a file name."""
    return re.sub(r"[^\w.-]+", "_", name).strip("._")[:100] or "model"


def _free_name(path: Path, name: str, ref_key: bytes, owners: dict[str, bytes]) -> str:
    """The model's own name, with as many folders before it as it takes to be the only one."""
    parts = path.parts
    for start in range(len(parts) - 1, 0, -1):
        candidate = name if start == len(parts) - 1 else "/".join((*parts[start:-1], name))
        if owners.get(candidate, ref_key) == ref_key:
            return candidate
    return str(path)
