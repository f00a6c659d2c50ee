"""What is done to one model, in this process or another: read it once, return rows for the catalog."""

from __future__ import annotations

import hashlib
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hilm.errors import EmptySelection
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
from hilm.weights.folder import is_hub_id, is_remote

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from hilm.reel.encoder import EncodeReport
    from hilm.reel.rate import Rounding
    from hilm.reel.sampling import ModelSample
    from hilm.weights import Block, ChunkMetadata

    Tick = Callable[[int, int, str], None]
    Sink = Callable[[Block], None]
    Values = tuple[NDArray[np.float32], tuple[ChunkMetadata, ...]]


@dataclass(frozen=True, slots=True)
class Job:
    """One model to take in; small and picklable.

    Attributes:
        path: Where it is.
        name: What to call it.
        mode: ``index``, ``archive``, ``small``, ``delta`` or ``sample``.
        reels: The folder a reel of all weights is written to.
        preview: Whether a reel gets a front video.
        limit: For a sample, how many values.
        chunk_size: For a sample, values per frame; one frame per model when None.
        layers: For a sample, layer types to take.
        exclude_layers: For a sample, layer types to leave out.
        rounding: For ``small``, how weights are rounded.
        base: For a delta, where its base is, as ``hilm.store.bases.find_base`` says.
        base_key: Content key of the base, 32 bytes.
        bits: For a delta, to how many bits per weight differences are rounded; None keeps every bit.
        force: Write a delta whatever rounding loses.
        carrier: What the symbols of an archive or a small reel ride in, and where they lie in its frames.
        threads: Threads this job may use.
    """

    path: str
    name: str
    mode: str
    reels: str
    preview: bool = True
    limit: int | None = None
    chunk_size: int | None = None
    layers: tuple[str, ...] | None = None
    exclude_layers: tuple[str, ...] | None = None
    rounding: Rounding | None = None
    base: tuple[str, ...] = ()
    base_key: bytes = b""
    bits: float | None = None
    force: bool = False
    carrier: tuple[str, str] = ("packed", "auto")
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
        archive: What was written, for a reel of all weights.
        sample: The values, for a sample.
        seconds: How long it took.
    """

    job: Job
    model: dict[str, Any]
    fingerprint: dict[str, Any]
    archive: EncodeReport | None
    sample: ModelSample | None
    seconds: float

    def renamed(self, name: str) -> Result:
        """The same under another name."""
        sample = replace(self.sample, model_id=name) if self.sample is not None else None
        return replace(
            self, job=replace(self.job, name=name), model=self.model | {"name": name}, sample=sample
        )


def run_job(job: Job, tick: Tick | None = None) -> Result:
    """Read one model and do what the job says.

    The caller keeps BLAS to one thread, so that results do not depend on their number.

    Args:
        job: What to do.
        tick: `Checkpoint.watch`: a film is drawn in a pass of its own, before values are coded.

    Raises:
        HilmError: Whatever is wrong with the model, or with writing the reel.
    """
    started = time.perf_counter()
    archive = sample = None
    with open_checkpoint(job.path) as checkpoint:
        work, checkpoint.watch = FingerprintPass(checkpoint), tick
        sinks = [work.update]
        if job.mode in {"archive", "small", "delta"}:
            archive = _write_reel(checkpoint, job, sinks)
            digests = archive.file_digests
        else:
            picker = _Picker(checkpoint, job) if job.mode == "sample" else None
            digests = _read(checkpoint, job.threads, [*sinks, *([picker.update] if picker else [])])
            sample = picker.finish(content_key(digests)) if picker else None
        row = describe(checkpoint, job.name, digests)
        fingerprint = work.finish().to_row(row["content_key"])
    return Result(job, row, fingerprint, archive, sample, time.perf_counter() - started)


def _read(checkpoint: Checkpoint, threads: int, sinks: Sequence[Sink]) -> tuple[bytes, ...]:
    """Give every block to every sink; files are hashed beside that where there is a thread to spare."""
    content = ContentDigest(checkpoint)
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(1)) if threads > 1 else None
        for block in checkpoint.blocks(include_integer=True):
            hashed = pool.submit(content.update, block) if pool else None
            for sink in sinks if pool else (*sinks, content.update):
                sink(block)
            if hashed is not None:
                hashed.result()
        digests = content.finish()
    checkpoint.check_unchanged()
    return digests


def _write_reel(checkpoint: Checkpoint, job: Job, sinks: Sequence[Sink]) -> EncodeReport:
    from hilm.reel.delta_encoder import encode_delta  # noqa: PLC0415 - indexing needs no video library
    from hilm.reel.encoder import encode_archive, encode_small  # noqa: PLC0415 - the same
    from hilm.store.bases import open_base  # noqa: PLC0415 - the same

    state = hashlib.sha256(entry_key(job) + checkpoint.state).hexdigest()
    out = Path(job.reels) / f"{_file_stem(job.name)}-{state[:8]}.reel.mp4"
    plain = checkpoint.stored is checkpoint.tensors
    passing = sinks if plain else ()
    options: dict[str, Any] = {"preview": job.preview, "sinks": passing, "threads": job.threads}
    if job.carrier[0] != "packed":
        options |= {"carrier": job.carrier[0], "layout": job.carrier[1]}
    if job.base:
        with open_base(job.base) as base:
            report = encode_delta(
                checkpoint, out, base, content_key=job.base_key, bits=job.bits, force=job.force, **options
            )
    elif job.rounding is not None:
        report = encode_small(checkpoint, out, job.rounding, **options)
    else:
        report = encode_archive(checkpoint, out, **options)
    for block in () if plain else checkpoint.blocks(include_integer=True):
        for sink in sinks:  # packed: filmed by its parts, looked at as a whole
            sink(block)
    return report


class _Picker:
    """Takes a sample out of the blocks of a pass over everything.

    Raises:
        EmptySelection: There is no weight to take.
    """

    def __init__(self, checkpoint: Checkpoint, job: Job) -> None:
        self._checkpoint, self._job = checkpoint, job
        selection = Selection.of(checkpoint, **job.rule)
        if not selection.total:
            raise EmptySelection(f"all selected tensors of {checkpoint.name} are empty")
        self._places = {t.name: selection.positions(i) for i, t in enumerate(selection.tensors)}
        self._parts: list[NDArray[np.float32]] = []

    def update(self, block: Block) -> None:
        """Take what was selected of a block."""
        if self._job.chunk_size is not None or block.info.name not in self._places:
            return
        places = self._places[block.info.name]
        if places is None:
            self._parts.append(block.values.copy())
        else:
            first, last = np.searchsorted(places, (block.start, block.stop))
            self._parts.append(block.values[places[first:last] - block.start])

    def finish(self, key: bytes) -> ModelSample:
        """Put the sample together, under the key of the model's content."""
        from hilm.reel.sampling import ModelSample  # noqa: PLC0415 - indexing needs no video library

        values, chunks = (np.concatenate(self._parts), ()) if self._parts else self._stream()
        job, architecture = self._job, _architecture(self._checkpoint.config or {})
        metadata = {"architectures": [architecture]} if architecture else {}
        parameters = self._checkpoint.total_parameters
        return ModelSample(job.name, parameters, values, key, job.rule, metadata, chunks)

    def _stream(self) -> Values:
        """One frame per chunk: chunks are cut by the streamer, which reads only what it needs."""
        rule = self._job.rule
        config = StreamingConfig(
            self._job.chunk_size or 0,
            adaptive_chunk_sizing=False,
            target_layers=rule["layers"],
            exclude_layers=rule["exclude_layers"],
        )
        stream = MemoryEfficientParameterStreamer(config).stream(
            self._checkpoint, max_total_params=self._job.limit
        )
        parts, chunks = zip(*((part.copy(), chunk) for part, chunk, _ in stream), strict=True)
        return np.concatenate(parts), chunks


def entry_key(job: Job) -> bytes:
    """Name of one model in one mode with its settings, 32 bytes."""
    rounding = asdict(job.rounding) if job.rounding else None
    carrier = [] if job.carrier[0] == "packed" else [job.carrier]
    settings = json.dumps([job.mode, job.rule, job.chunk_size, job.preview, rounding, job.bits, *carrier])
    return hashlib.sha256(reference_key(job.path) + settings.encode() + job.base_key).digest()


def _file_stem(name: str) -> str:
    """A model's name as the start of a file name."""
    return re.sub(r"[^\w.-]+", "_", name).strip("._")[:60] or "model"


def reference_key(uri: str) -> bytes:
    """Name of a model, 32 bytes: where it is, on the Hub with the commit."""
    kind = ("hub" if uri.startswith("hf://") else "url") if is_remote(uri) else "local"
    return hashlib.sha256(f"{kind}{uri}".encode("utf-8", "surrogateescape")).digest()


def describe(checkpoint: Checkpoint, name: str, digests: tuple[bytes, ...]) -> dict[str, Any]:
    """Row of the ``models`` table, without ``run_id``."""
    roles: dict[str, list[int]] = {}
    for info in checkpoint.tensors.values():
        if info.is_weight and info.alias_of is None:
            counts = roles.setdefault(info.role.type, [0, 0])
            counts[0] += 1
            counts[1] += info.numel
    config = checkpoint.config or {}
    base = _declared_base(checkpoint)
    return {
        "ref_key": reference_key(checkpoint.uri),
        "content_key": content_key(digests),
        "name": name,
        "uri": checkpoint.uri,
        "commit": checkpoint.state.hex(),
        "format": checkpoint.format,
        "kind": checkpoint.kind,
        "architecture": _architecture(config),
        "declared_base": base or None,
        "files": [
            {"path": plain(file.name), "size": file.size, "sha256": digest}
            for file, digest in zip(checkpoint.files, digests, strict=True)
        ],
        "parameters": checkpoint.total_parameters,
        "bytes": sum(file.size for file in checkpoint.files),
        "role_counts": [
            {"role": role, "tensors": tensors, "parameters": parameters}
            for role, (tensors, parameters) in sorted(roles.items())
        ],
        "notes": [plain(note) for note in checkpoint.notes],
    }


def _declared_base(checkpoint: Checkpoint) -> list[str]:
    """What an adapter's configuration or a card on the Hub gives as base; of a local path only that."""
    base = (checkpoint.config or {}).get("base_model_name_or_path")
    if not isinstance(base, str):
        return list(checkpoint.declared_base)
    return [plain(base) if is_hub_id(base) else "<local>"]


def _architecture(config: Mapping[str, Any]) -> str | None:
    names = config.get("architectures")
    return plain(names[0]) if isinstance(names, list) and names and isinstance(names[0], str) else None


def plain(text: str) -> str:
    """Text of a file as it can be stored: at most 1,000 characters, none that UTF-8 cannot spell."""
    return text[:1000].encode("utf-8", "replace").decode()
