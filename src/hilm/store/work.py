"""What is done to one model, in this process or another: read it once, return rows for the catalog."""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from threadpoolctl import threadpool_limits

from hilm.lineage.fingerprint import FingerprintPass
from hilm.weights import (
    Checkpoint,
    ContentDigest,
    MemoryEfficientParameterStreamer,
    Selection,
    StreamingConfig,
    content_key,
    open_checkpoint,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from hilm.reel.encoder import EncodeReport
    from hilm.reel.sampling import ModelSample
    from hilm.weights import Block


@dataclass(frozen=True, slots=True)
class Job:
    """One model to take in; small and picklable.

    Attributes:
        path: Where it is.
        name: What to call it.
        mode: ``index``, ``archive`` or ``sample``.
        reel: For an archive, the file to write.
        preview: Whether a reel gets a front video.
        limit: For a sample, how many values.
        chunk_size: For a sample, values per frame; one frame per model when None.
        layers: For a sample, layer types to take.
        exclude_layers: For a sample, layer types to leave out.
        threads: Threads this job may use.
    """

    path: str
    name: str
    mode: str
    reel: str | None = None
    preview: bool = True
    limit: int | None = None
    chunk_size: int | None = None
    layers: tuple[str, ...] | None = None
    exclude_layers: tuple[str, ...] | None = None
    threads: int = 1

    @property
    def rule(self) -> dict[str, Any]:
        """How a sample is chosen, as the arguments of ``Selection.of``."""
        return {
            "limit": self.limit,
            "layers": list(self.layers) if self.layers else None,
            "exclude_layers": list(self.exclude_layers) if self.exclude_layers else None,
        }


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What came of a job.

    Attributes:
        job: The job.
        model: Row of ``models``, without ``run_id``.
        fingerprint: Row of ``fingerprints``, without ``run_id``.
        archive: What was written, for an archive.
        sample: The values, for a sample.
        seconds: How long it took.
    """

    job: Job
    model: dict[str, Any]
    fingerprint: dict[str, Any]
    archive: EncodeReport | None
    sample: ModelSample | None
    seconds: float


def ignore(_: int) -> None:
    """Report no progress."""


def run_job(job: Job, tick: Callable[[int], None] = ignore) -> Result:
    """Read one model and do what the job says.

    Args:
        job: What to do.
        tick: Called with the number of values of every block read.

    Raises:
        HilmError: Whatever is wrong with the model, or with writing the reel.
    """
    started = time.perf_counter()
    archive = sample = None
    with open_checkpoint(job.path) as checkpoint, ExitStack() as stack:
        stack.enter_context(threadpool_limits(1, "blas"))
        work = FingerprintPass(checkpoint)
        if job.mode == "archive":
            archive, digests = _archive(checkpoint, job, work, tick)
        else:
            digests = _read(checkpoint, job.threads, work, tick)
        found = work.finish()
        key = content_key(digests)
        if job.mode == "sample":
            sample = _sample(checkpoint, job, key)
        row = describe(checkpoint, job.name, digests)
    return Result(job, row, found.to_row(key), archive, sample, time.perf_counter() - started)


def _read(
    checkpoint: Checkpoint, threads: int, work: FingerprintPass, tick: Callable[[int], None]
) -> tuple[bytes, ...]:
    """Fingerprint every block; file hashes run beside it where there is a thread to spare."""
    content = ContentDigest(checkpoint)
    with ThreadPoolExecutor(1) as pool:
        for block in checkpoint.blocks(include_integer=True):
            hashed = pool.submit(content.update, block) if threads > 1 else content.update(block)
            work.update(block)
            if hashed is not None:
                hashed.result()
            tick(block.stop - block.start)
        return content.finish()


def _archive(
    checkpoint: Checkpoint, job: Job, work: FingerprintPass, tick: Callable[[int], None]
) -> tuple[EncodeReport, tuple[bytes, ...]]:
    from hilm.reel.encoder import encode_archive  # noqa: PLC0415 - indexing needs no video library

    def count(block: Block) -> None:
        tick(block.stop - block.start)

    report = encode_archive(
        checkpoint, Path(job.reel or ""), preview=job.preview, sinks=(work.update, count), threads=job.threads
    )
    return report, report.file_digests


def _sample(checkpoint: Checkpoint, job: Job, key: bytes) -> ModelSample:
    from hilm.reel.sampling import ModelSample  # noqa: PLC0415 - indexing needs no video library

    chunks = []
    if job.chunk_size is None:
        values = Selection.of(checkpoint, **job.rule).values(checkpoint)
    else:
        config = StreamingConfig(
            job.chunk_size,
            adaptive_chunk_sizing=False,
            target_layers=job.rule["layers"],
            exclude_layers=job.rule["exclude_layers"],
        )
        streamer = MemoryEfficientParameterStreamer(config)
        streamed = [(part, chunk) for part, chunk, _ in streamer.stream(checkpoint, max_total_params=job.limit)]
        chunks = [chunk for _, chunk in streamed]
        values = np.concatenate([part for part, _ in streamed])
    config_json = checkpoint.config or {}
    metadata = {k: config_json[k] for k in ("model_type", "architectures") if k in config_json}
    return ModelSample(
        job.name, checkpoint.total_parameters, values, key, job.rule, metadata, tuple(chunks)
    )


def reference_key(path: Path) -> bytes:
    """Name of a local model, 32 bytes: where it is."""
    return hashlib.sha256(b"local" + str(path).encode("utf-8", "surrogateescape")).digest()


def describe(checkpoint: Checkpoint, name: str, digests: tuple[bytes, ...]) -> dict[str, Any]:
    """Row of the ``models`` table, without ``run_id``."""
    roles: dict[str, list[int]] = {}
    for info in checkpoint.tensors.values():
        if info.is_weight and info.alias_of is None:
            counts = roles.setdefault(info.role.type, [0, 0])
            counts[0] += 1
            counts[1] += info.numel
    config = checkpoint.config or {}
    architectures = config.get("architectures")
    base = config.get("base_model_name_or_path")
    return {
        "ref_key": reference_key(checkpoint.path),
        "content_key": content_key(digests),
        "name": name,
        "uri": str(checkpoint.path),
        "commit": checkpoint.state.hex(),
        "format": checkpoint.format,
        "kind": "adapter" if base else "model",
        "architecture": str(architectures[0]) if isinstance(architectures, list) and architectures else None,
        "declared_base": [base] if isinstance(base, str) else None,
        "files": [
            {"path": file.name, "size": file.size, "sha256": digest}
            for file, digest in zip(checkpoint.files, digests, strict=True)
        ],
        "parameters": checkpoint.total_parameters,
        "bytes": sum(file.size for file in checkpoint.files),
        "role_counts": [
            {"role": role, "tensors": tensors, "parameters": parameters}
            for role, (tensors, parameters) in sorted(roles.items())
        ],
        "notes": list(checkpoint.notes),
    }
