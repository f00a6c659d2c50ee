"""A checkpoint on disk: its tensors, and the ways to read their values.

Opening reads headers only. A tensor is a byte range of a file.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from hilm.errors import CorruptCheckpoint, DuplicateTensor, HeaderError, NotACheckpoint, UsageError
from hilm.weights.blocks import Block, read_blocks
from hilm.weights.byte_source import FileSource
from hilm.weights.dtypes import decode
from hilm.weights.folder import MAX_CONFIG, Location, locate, read_json
from hilm.weights.roles import classify
from hilm.weights.safetensors import Header, parse_header
from hilm.weights.tensor import Span, TensorInfo

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from os import PathLike
    from pathlib import Path

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One weight file: bare name, path, size in bytes."""

    name: str
    path: Path
    size: int


class Checkpoint:
    """A readable checkpoint; a context manager.

    Attributes:
        name: What people call it.
        path: What names it: its folder, or the one file.
        root: Folder of the files.
        format: ``safetensors``.
        files: Weight files in name order.
        tensors: Tensors in storage order, by name.
        metadata: Text pairs stored beside the tensors.
        notes: Irregularities that were tolerated.
    """

    format = "safetensors"

    def __init__(self, location: Location) -> None:
        self.name = location.name
        self.path = location.path
        self.root = location.root
        self._sources: list[FileSource] = []
        notes = [f"{name} is not part of the checkpoint" for name in location.unused]
        try:
            headers = [self._open(path) for path in location.weights]
            self.files = tuple(FileInfo(s.path.name, s.path, s.size) for s in self._sources)
            self.tensors: Mapping[str, TensorInfo] = MappingProxyType(
                _merge(self.files, headers, location, notes)
            )
        except BaseException:
            self.close()
            raise
        self.metadata: dict[str, str] = {}
        for header in headers:
            self.metadata.update(header.metadata)
        self.notes = tuple(notes)

    def _open(self, path: Path) -> Header:
        source = FileSource.open(path)
        self._sources.append(source)
        try:
            return parse_header(source.read, source.size)
        except HeaderError as error:
            _explain_foreign(source)
            error.args = (f"{path}: {error.message}",)
            error.message = error.args[0]
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all files."""
        for source in self._sources:
            source.close()

    @cached_property
    def config(self) -> Mapping[str, Any] | None:
        """``config.json`` (or ``adapter_config.json``) as data, or None when there is none."""
        for name in ("config.json", "adapter_config.json"):
            if (self.root / name).is_file():
                return read_json(self.root / name, MAX_CONFIG)
        return None

    @property
    def total_parameters(self) -> int:
        """Weight values, aliases not counted."""
        return sum(t.numel for t in self.tensors.values() if t.is_weight and t.alias_of is None)

    @property
    def state(self) -> bytes:
        """32 bytes that change when any weight file's name, size, time stamp or inode does."""
        lines = [f"{s.path}|{s.identity}" for s in self._sources]
        return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).digest()

    def source(self, info: TensorInfo) -> FileSource:
        """The open file that holds a tensor."""
        return self._sources[info.span.file]

    def words(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Stored little-endian bytes of values ``start`` to ``stop`` (flat) of one tensor."""
        info = self.tensors[name]
        stop = info.numel if stop is None else stop
        if not 0 <= start <= stop <= info.numel:
            raise UsageError(f"{name} has {info.numel:,} values; {start} to {stop} is no range of them")
        bits = info.type.bits
        out = np.empty((stop - start) * bits // 8, np.uint8)
        self.source(info).read_into(info.span.start + start * bits // 8, out)
        return out

    def values(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Values ``start`` to ``stop`` (flat) of one tensor as float32, one-dimensional."""
        info = self.tensors[name]
        words = self.words(name, start, stop)
        out = np.empty(len(words) * 8 // info.type.bits, np.float32)
        decode(info.type, words, out)
        return out

    def array(self, name: str) -> NDArray[np.float32]:
        """One whole tensor as float32, in its own shape (complex: with a trailing axis of 2)."""
        info = self.tensors[name]
        return self.values(name).reshape((*info.shape, 2) if info.type.values > 1 else info.shape)

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows ``start`` to ``stop`` of the tensor seen as matrices, float32 ``[stop - start, C]``."""
        columns = self.tensors[name].matrices[2]
        return self.values(name, start * columns, stop * columns).reshape(-1, columns)

    def blocks(
        self, names: frozenset[str] | None = None, *, include_integer: bool = False, poison: bool = False
    ) -> Iterator[Block]:
        """Deliver every value once, in storage order, in reused buffers.

        Args:
            names: Tensors wanted; all when None.
            include_integer: Deliver tensors that are not weights too.
            poison: Overwrite buffers before they are reused, so that a stale view shows at once.

        Raises:
            SourceChanged: A file was modified while it was read.
            TruncatedFile: A file ends too early.
        """
        wanted = (
            (info, self.source(info))
            for info in self.tensors.values()
            if info.alias_of is None
            and (include_integer or info.is_weight)
            and (names is None or info.name in names)
        )
        yield from read_blocks(wanted, poison=poison)
        self.check_unchanged()

    def read_file(self, number: int, start: int, stop: int) -> bytes:
        """Bytes of ``files[number]``, tensor data or not."""
        return self._sources[number].read(start, stop)

    def check_unchanged(self) -> None:
        """Raise ``SourceChanged`` if any file is no longer the one that was opened."""
        for source in self._sources:
            source.check_unchanged()


def open_checkpoint(target: str | PathLike[str]) -> Checkpoint:
    """Open a folder, a weight file or an index file; no weights are read and no code is run.

    Raises:
        InputError: Whatever is wrong with what is there; see ``hilm.errors`` for the kinds.
    """
    return Checkpoint(locate(target))


def _explain_foreign(source: FileSource) -> None:
    """Say so if the file is what a failed download leaves behind."""
    if source.size == 0:
        raise NotACheckpoint(f"{source.path} is empty")
    start = source.read(0, min(64, source.size)).lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        raise NotACheckpoint(f"{source.path} is a Git LFS pointer, not the weights", hint="git lfs pull")
    if start.startswith((b"<!doctype", b"<html")):
        raise NotACheckpoint(f"{source.path} is an HTML page, not weights", hint="fetch the file again")


def _merge(
    files: tuple[FileInfo, ...], headers: list[Header], location: Location, notes: list[str]
) -> dict[str, TensorInfo]:
    """One table over all shards; the index decides where a name stands twice."""
    tensors: dict[str, TensorInfo] = {}
    shard_of = location.shard_of
    for number, (file, header) in enumerate(zip(files, headers, strict=True)):
        for entry in header.entries:
            if entry.name in tensors or shard_of.get(entry.name, file.name) != file.name:
                if entry.name not in shard_of:
                    raise DuplicateTensor(f"{entry.name!r} is in {file.name} and in another shard")
                notes.append(f"{entry.name} in {file.name} is shadowed by the index")
                continue
            span = Span(number, entry.start, entry.stop)
            role = classify(entry.name, entry.shape)
            tensors[entry.name] = TensorInfo(entry.name, entry.dtype, entry.shape, span, role)
        _add_aliases(tensors, header)
    absent = [name for name in shard_of if name not in tensors]
    if absent:
        raise CorruptCheckpoint(f"the index places {absent[0]!r} in a shard that does not hold it")
    return tensors


def _add_aliases(tensors: dict[str, TensorInfo], header: Header) -> None:
    """Savers of shared tensors note removed names as ``removed: kept`` in the metadata."""
    for removed, kept in header.metadata.items():
        if kept in tensors and removed not in tensors and tensors[kept].alias_of is None:
            owner = tensors[kept]
            role = classify(removed, owner.shape)
            tensors[removed] = TensorInfo(removed, owner.dtype, owner.shape, owner.span, role, kept)
