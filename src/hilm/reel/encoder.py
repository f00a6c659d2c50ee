"""Encode: a checkpoint bit for bit into a reel."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from hilm.reel.front import draw_front
from hilm.reel.head import Coder
from hilm.reel.journal import find_front
from hilm.reel.layout import SLAB_ELEMENTS, chunk_lengths, coded_view, cut_slabs
from hilm.reel.manifest import CODING, canonical_json, tensor_digest
from hilm.reel.records import RECORD, Kind
from hilm.reel.sections import EMPTY_FRONT
from hilm.reel.slab import EncodedSlab, encode_slab
from hilm.reel.source_files import store_side_files, store_weight_files
from hilm.reel.writer import ReelFacts, ReelWriter, part_of
from hilm.weights.content import ContentDigest, content_key
from hilm.weights.dtypes import DTYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from hilm.reel.layout import Slab
    from hilm.reel.schema import Front, Manifest, Tensor
    from hilm.weights.blocks import Block
    from hilm.weights.checkpoint import Checkpoint
    from hilm.weights.tensor import TensorInfo

_CODERS = ("symbols", "const", "raw")  # a tensor is filed under the first that any slab uses


@dataclass(frozen=True, slots=True)
class EncodeReport:
    """What was written.

    Attributes:
        reel: The file: path, size, SHA-256, manifest SHA-256, payload bytes and bits per weight.
        mode: ``archive`` or ``sample``.
        weights: Values coded.
        frames: Frames of the front video.
        file_digests: SHA-256 of every weight file of an archive, in the order of the checkpoint's files.
        resumed: Slabs that an interrupted run had written already.
    """

    reel: ReelFacts
    mode: str
    weights: int
    frames: int
    file_digests: tuple[bytes, ...] = ()
    resumed: int = 0


def encode_archive(
    checkpoint: Checkpoint,
    out: Path,
    *,
    preview: bool = True,
    sinks: Sequence[Callable[[Block], None]] = (),
    threads: int | None = None,
) -> EncodeReport:
    """Write a reel from which every byte of the checkpoint's files comes back.

    Args:
        checkpoint: An open checkpoint.
        out: Name of the reel.
        preview: Draw the front video, one frame per tensor.
        sinks: Called with every block of the same pass: a fingerprint, a progress bar.
        threads: Chunks coded at a time; all cores by default. The bytes do not depend on it.

    Raises:
        StorageError: The reel cannot be written; nothing appears under its name.
        SourceChanged: A file changed while it was read.
    """
    settings = {"tile": 512, "slab_elements": SLAB_ELEMENTS}
    key = _key(checkpoint, "archive", settings, preview)
    drawn = find_front(part_of(out), key)  # by an interrupted run
    if drawn is None:
        drawn = draw_front(checkpoint) if preview and checkpoint.tensors else (EMPTY_FRONT, None)
    video, front = drawn
    with ReelWriter(out, video, key=key, described=front) as writer:
        slabs, content = _SlabSink(writer, threads or os.cpu_count() or 1), ContentDigest(checkpoint)
        for block in checkpoint.blocks(include_integer=True):
            for sink in (slabs.update, content.update, *sinks):
                sink(block)
        digests, tensors = content.finish(), slabs.finish(checkpoint)
        files = store_weight_files(checkpoint, digests, writer) + store_side_files(checkpoint, writer)
        checkpoint.check_unchanged()
        weights = sum(t.numel for t in checkpoint.tensors.values() if t.alias_of is None)
        manifest = new_manifest("archive", settings, front)
        manifest["source"] = {
            "digest": tensor_digest((t["name"], t["dtype"], t["shape"], t["sha256"]) for t in tensors),
            "content_key": content_key(digests).hex(),
            "files": files,
            "metadata": checkpoint.metadata,
        }
        manifest["tensors"] = tensors
        manifest["totals"] = {"weights": weights, "bytes_source": sum(file["size"] for file in files)}
        facts = writer.finish(manifest)
        resumed = writer.resumed
    return EncodeReport(facts, "archive", weights, len(front["frames"]) if front else 0, digests, resumed)


def _key(checkpoint: Checkpoint, *settings: object) -> str:
    """Hash of everything the bytes of a reel depend on."""
    return hashlib.sha256(canonical_json([checkpoint.state.hex(), _writers(), *settings])).hexdigest()


def _writers() -> dict[str, str]:
    return {name: version(name) for name in ("hilm", "numpy", "numba", "av")}


def new_manifest(mode: str, settings: dict[str, Any], front: Front | None) -> Manifest:
    """Manifest of a first generation without tensors, samples or totals."""
    return {
        "format": "hilm-reel",
        "version": [1, 0],
        "mode": mode,
        "carrier": "packed",
        "generation": 1,
        "writer": _writers(),
        "settings": settings,
        "coding": CODING,
        "source": None,
        "base": None,
        "companion": None,
        "front": front,
        "tensors": [],
        "totals": {"weights": 0, "bytes_source": 0},
    }


class _SlabSink:
    """Collects stored words into slabs and writes each as soon as it is full."""

    def __init__(self, writer: ReelWriter, threads: int) -> None:
        self._writer, self._threads = writer, threads
        self._buffer = np.empty(0, np.uint8)
        self._done: dict[str, Tensor] = {}

    def update(self, block: Block) -> None:
        """Take the next block of the checkpoint."""
        if block.first:
            self._begin(block.info)
        words = block.words
        self._sha256.update(words.data)
        while len(words):
            size = self._pending[0].elements * self._word
            taken = min(size - self._fill, len(words))
            self._buffer[self._fill : self._fill + taken] = words[:taken]
            self._fill += taken
            words = words[taken:]
            if self._fill == size:
                self._flush(self._pending.pop(0))
        if block.last:
            self._end(block.info)

    def finish(self, checkpoint: Checkpoint) -> list[Tensor]:
        """Entries of the manifest, in checkpoint order; an alias repeats its owner's facts."""
        entries = []
        for name, info in checkpoint.tensors.items():
            owner = self._done[info.alias_of or name]
            if info.alias_of is not None:
                owner = {**owner, "name": name, "alias_of": info.alias_of, "slabs": [], "bits": 0}
            entries.append(owner)
        return entries

    def _begin(self, info: TensorInfo) -> None:
        rows, columns, self._word = coded_view(info.dtype, info.shape)
        self._pending, by_element = cut_slabs(rows, columns, self._word)
        largest = max((slab.elements for slab in self._pending), default=0) * self._word
        if len(self._buffer) < largest:
            self._buffer = np.empty(largest, np.uint8)
        self._sha256, self._fill = hashlib.sha256(), 0
        self._entry: Tensor = {
            "name": info.name,
            "dtype": info.dtype,
            "shape": list(info.shape),
            "nbytes": info.nbytes,
            "coder": "raw",
            "slabs": [],
            "layout": "flat",
            "sha256": "",
            "bits": 0,
        }
        if by_element:
            self._entry["unit"] = "element"

    def _flush(self, slab: Slab) -> None:
        words, entry = self._buffer[: self._fill], self._entry
        first, written = self._writer.count, self._writer.replay()
        if written is not None:
            coded = EncodedSlab(written[0], written[1:])
        else:
            coded = encode_slab(words, DTYPES[entry["dtype"]], slab.rows, slab.columns, threads=self._threads)
            self._writer.add_record(Kind.HEAD, coded.head, 0)
            for chunk, elements in zip(coded.chunks, chunk_lengths(slab.elements), strict=False):
                self._writer.add_record(Kind.DATA, chunk, elements)
            self._writer.end_slab(first)
        records = 1 + len(coded.chunks)
        entry["slabs"].append([slab.begin, slab.end, first, records])
        entry["coder"] = min(entry["coder"], Coder(coded.head[0]).name.lower(), key=_CODERS.index)
        entry["bits"] += 8 * (coded.nbytes + records * RECORD.itemsize)
        self._fill = 0

    def _end(self, info: TensorInfo) -> None:
        self._entry["sha256"] = self._sha256.hexdigest()
        self._done[info.name] = self._entry
