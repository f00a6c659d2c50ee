"""The files an archive was made from, as segments: tensors, and as blobs the bytes that belong to none."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from hilm.reel.records import Kind
from hilm.weights.places import read_small

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hilm.reel.schema import SourceFile
    from hilm.reel.writer import ReelWriter
    from hilm.weights.checkpoint import Checkpoint
    from hilm.weights.tensor import TensorInfo

_BLOB_BYTES = 16 << 20
_SIDE_LIMIT = 64 << 20
_SIDE_FILES = 1000
_SIDE_SUFFIXES = (".json", ".txt", ".model", ".md", ".jinja", ".py")


def store_weight_files(
    checkpoint: Checkpoint, digests: Sequence[bytes], decoded: Sequence[bytes], writer: ReelWriter
) -> list[SourceFile]:
    """Describe each weight file as its tensors, and write what is between them.

    A tensor that is not stored in order, or whose bytes are part of another's, counts as between them.

    Args:
        checkpoint: Whose tensors the reel holds.
        digests: SHA-256 of every weight file, 32 bytes each.
        decoded: The same of the files that will be decoded.
        writer: Takes the blobs.
    """
    by_file: list[list[TensorInfo]] = [[] for _ in checkpoint.files]
    for info in checkpoint.stored.values():
        if info.alias_of is None and info.nbytes and info.in_order:
            by_file[info.span.file].append(info)
    files = []
    for number, file in enumerate(checkpoint.files):
        segments, position = [], 0
        for info in sorted(by_file[number], key=lambda t: t.span.start):
            if info.span.start < position:
                continue
            if info.span.start > position:
                segments.append(_add_blob(writer, checkpoint, number, position, info.span.start))
            segments.append(["tensor", info.name])
            position = info.span.stop
        if position < file.size:
            segments.append(_add_blob(writer, checkpoint, number, position, file.size))
        files.append(_describe(file.name, file.size, decoded[number], segments))
        if decoded[number] != digests[number]:
            files[-1]["sha256_source"] = digests[number].hex()
    return files


def store_side_files(checkpoint: Checkpoint, writer: ReelWriter) -> list[SourceFile]:
    """Write configuration, tokenizer and card, so that an archive decodes to a working folder.

    Files in folders of it count too (modules of sentence-transformers). Files over 64 MiB, and links that
    lead elsewhere, stay behind. A checkpoint that is one file of a folder has no side files: its neighbours
    may be anything.

    Raises:
        SourceChanged: A file changed while it was read.
    """
    if checkpoint.alone:
        return []
    weights = {file.name for file in checkpoint.files}
    files = []
    names = [name for name in checkpoint.place.deep_names() if name.endswith(_SIDE_SUFFIXES)]
    for name in names[:_SIDE_FILES]:
        data = None if name in weights else read_small(checkpoint.place, name, _SIDE_LIMIT)
        if data is None:
            continue
        segments = [["blob", writer.add_record(Kind.BLOB, data, 0), 1]] if data else []
        files.append(_describe(name, len(data), hashlib.sha256(data).digest(), segments))
    return files


def _add_blob(writer: ReelWriter, checkpoint: Checkpoint, number: int, start: int, stop: int) -> list[Any]:
    pieces = range(start, stop, _BLOB_BYTES)
    records = [
        writer.add_record(Kind.BLOB, checkpoint.read_file(number, p, min(p + _BLOB_BYTES, stop)), 0)
        for p in pieces
    ]
    return ["blob", records[0], len(records)]


def _describe(name: str, size: int, digest: bytes, segments: list[list[Any]]) -> SourceFile:
    return {"name": name, "size": size, "sha256": digest.hex(), "segments": segments}
