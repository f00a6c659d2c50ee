"""Encode: a checkpoint bit for bit into a reel."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from hilm.errors import SourceChanged
from hilm.reel.crc32c import crc32c
from hilm.reel.head import Coder
from hilm.reel.layout import SLAB_ELEMENTS, chunk_lengths, coded_view, cut_slabs
from hilm.reel.manifest import CODING, tensor_digest
from hilm.reel.pictures import draw_checkpoint
from hilm.reel.records import RECORD, Kind
from hilm.reel.sections import EMPTY_FRONT
from hilm.reel.slab import encode_slab
from hilm.reel.video import PIXEL_FORMAT, decode_preview, encode_preview
from hilm.reel.writer import ReelFacts, ReelWriter
from hilm.weights.content import ContentDigest, content_key
from hilm.weights.dtypes import DTYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from hilm.reel.layout import Slab
    from hilm.reel.schema import Frame as FrameEntry
    from hilm.reel.schema import Front, Manifest, SourceFile, Tensor
    from hilm.weights.checkpoint import Checkpoint, TensorInfo
    from hilm.weights.streamer import Block

_CODERS = ("symbols", "const", "raw")  # a tensor is filed under the first that any slab uses

BLOB_BYTES = 16 << 20
SIDE_FILE_LIMIT = 64 << 20
"""Files beside the weights up to this size travel with an archive, so that it decodes to a working folder."""

SIDE_FILES = (".json", ".txt", ".model", ".md", ".jinja", ".py")
PREVIEW_FPS = 5
PREVIEW_SHARE = 150
"""The front video is budgeted at one part in this many of the source, and at least 4 MiB."""


@dataclass(frozen=True, slots=True)
class EncodeReport:
    """What was written.

    Attributes:
        reel: The file: path, size, SHA-256, manifest SHA-256, payload bytes and bits per weight.
        mode: ``archive`` or ``sample``.
        weights: Values coded.
        frames: Frames of the front video.
        file_digests: SHA-256 of every weight file of an archive, in the order of the checkpoint's files.
    """

    reel: ReelFacts
    mode: str
    weights: int
    frames: int
    file_digests: tuple[bytes, ...] = ()


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
    video, front = _draw_archive(checkpoint) if preview else (EMPTY_FRONT, None)
    with ReelWriter(out, video) as writer:
        archive = _ArchiveSink(writer, threads or os.cpu_count() or 1)
        content = ContentDigest(checkpoint)
        for block in checkpoint.blocks(include_integer=True):
            archive.update(block)
            content.update(block)
            for sink in sinks:
                sink(block)
        digests = content.finish()
        tensors = archive.finish(checkpoint)
        files = _weight_files(checkpoint, digests, writer) + _side_files(checkpoint, writer)
        key = content_key(digests)
        weights = sum(t.numel for t in checkpoint.tensors.values() if t.alias_of is None)
        lines = [(t["name"], t["dtype"], t["shape"], t["sha256"]) for t in tensors]
        manifest = new_manifest("archive", {"tile": 512, "slab_elements": SLAB_ELEMENTS}, front)
        manifest["source"] = {
            "digest": tensor_digest(lines),
            "content_key": key.hex(),
            "files": files,
            "metadata": checkpoint.metadata,
        }
        manifest["tensors"] = tensors
        manifest["totals"] = {"weights": weights, "bytes_source": sum(f["size"] for f in files)}
        facts = writer.finish(manifest)
    return EncodeReport(facts, "archive", weights, len(front["frames"]) if front else 0, digests)


def new_manifest(mode: str, settings: dict[str, Any], front: Front | None) -> Manifest:
    """Manifest of a first generation without tensors, samples or totals."""
    return {
        "format": "hilm-reel",
        "version": [1, 0],
        "mode": mode,
        "carrier": "packed",
        "generation": 1,
        "writer": {name: version(name) for name in ("hilm", "numpy", "numba", "av")},
        "settings": settings,
        "coding": CODING,
        "source": None,
        "base": None,
        "companion": None,
        "front": front,
        "tensors": [],
        "totals": {"weights": 0, "bytes_source": 0},
    }


class _ArchiveSink:
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
        coded = encode_slab(words, DTYPES[entry["dtype"]], slab.rows, slab.columns, threads=self._threads)
        first = self._writer.add_record(Kind.HEAD, coded.head, 0)
        for chunk, elements in zip(coded.chunks, chunk_lengths(slab.elements), strict=False):
            self._writer.add_record(Kind.DATA, chunk, elements)
        records = 1 + len(coded.chunks)
        entry["slabs"].append([slab.begin, slab.end, first, records])
        entry["coder"] = min(entry["coder"], Coder(coded.head[0]).name.lower(), key=_CODERS.index)
        entry["bits"] += 8 * (coded.nbytes + records * RECORD.itemsize)
        self._fill = 0

    def _end(self, info: TensorInfo) -> None:
        self._entry["sha256"] = self._sha256.hexdigest()
        self._done[info.name] = self._entry


def _weight_files(checkpoint: Checkpoint, digests: tuple[bytes, ...], writer: ReelWriter) -> list[SourceFile]:
    """Each weight file as the tensors in it and, as blobs, everything between them."""
    by_file: list[list[TensorInfo]] = [[] for _ in checkpoint.files]
    for info in checkpoint.tensors.values():
        if info.alias_of is None and info.nbytes:
            by_file[info.span.file].append(info)
    files = []
    for number, file in enumerate(checkpoint.files):
        segments, position = [], 0
        for info in sorted(by_file[number], key=lambda t: t.span.start):
            if info.span.start > position:
                segments.append(_add_blob(writer, checkpoint, number, position, info.span.start))
            segments.append(["tensor", info.name])
            position = info.span.stop
        if position < file.size:
            segments.append(_add_blob(writer, checkpoint, number, position, file.size))
        files.append(_file(file.name, file.size, digests[number], segments))
    return files


def _add_blob(writer: ReelWriter, checkpoint: Checkpoint, number: int, start: int, stop: int) -> list[Any]:
    pieces = range(start, stop, BLOB_BYTES)
    records = [
        writer.add_record(Kind.BLOB, checkpoint.read_file(number, p, min(p + BLOB_BYTES, stop)), 0)
        for p in pieces
    ]
    return ["blob", records[0], len(records)]


def _side_files(checkpoint: Checkpoint, writer: ReelWriter) -> list[SourceFile]:
    """Configuration, tokenizer and card, which make the decoded folder load as the original did."""
    weights = {file.name for file in checkpoint.files}
    files = []
    for path in sorted(checkpoint.root.iterdir()):
        if path.name in weights or path.suffix not in SIDE_FILES or not path.is_file():
            continue
        if path.stat().st_size > SIDE_FILE_LIMIT:
            continue
        data = path.read_bytes()
        if len(data) > SIDE_FILE_LIMIT:
            raise SourceChanged(f"{path} grew while it was read")
        records = [
            writer.add_record(Kind.BLOB, data[p : p + BLOB_BYTES], 0) for p in range(0, len(data), BLOB_BYTES)
        ]
        segments: list[list[Any]] = [["blob", records[0], len(records)]] if records else []
        files.append(_file(path.name, len(data), hashlib.sha256(data).digest(), segments))
    return files


def _file(name: str, size: int, digest: bytes, segments: list[list[Any]]) -> SourceFile:
    return {"name": name, "size": size, "sha256": digest.hex(), "segments": segments}


def _draw_archive(checkpoint: Checkpoint) -> tuple[bytes, Front]:
    """Draw one frame per tensor, in checkpoint order, and encode them as they come."""
    owners = [t for t in checkpoint.tensors.values() if t.alias_of is None]
    shown: list[FrameEntry] = []
    budget = max(sum(t.nbytes for t in owners) // PREVIEW_SHARE, 4 << 20)
    video = encode_preview(
        _draw_tensors(checkpoint, shown), fps=PREVIEW_FPS, chapters=_chapters(owners), budget_bytes=budget
    )
    return video, describe_front(video, shown)


def describe_front(video: bytes, frames: list[FrameEntry]) -> Front:
    """What the manifest says of the video in front."""
    first = next(decode_preview(video))
    return {
        "size": len(video),
        "crc32c": f"0x{crc32c(video):08x}",
        "codec": "vp9",
        "pixel_format": PIXEL_FORMAT,
        "height": first.shape[0],
        "width": first.shape[1],
        "fps": [PREVIEW_FPS, 1],
        "frames": frames,
    }


def _draw_tensors(checkpoint: Checkpoint, shown: list[FrameEntry]) -> Iterator[NDArray[np.uint8]]:
    """Pixels of every tensor's frame; what the manifest needs to know of it is added to ``shown``."""
    for info, frame, sampled in draw_checkpoint(checkpoint):
        shown.append({"tensor": info.name, "scale": frame.scale, "sampled": sampled})
        yield frame.pixels


def _chapters(tensors: Sequence[TensorInfo]) -> list[tuple[str, int]]:
    """One chapter per block of the model: title and first frame."""
    chapters: list[tuple[str, int]] = []
    for number, info in enumerate(tensors):
        parts = info.name.split(".")
        ends = [i for i, part in enumerate(parts) if part.isdigit()]
        title = ".".join(parts[: ends[0] + 1] if ends else parts[:1])
        if not chapters or chapters[-1][0] != title:
            chapters.append((title, number))
    return chapters
