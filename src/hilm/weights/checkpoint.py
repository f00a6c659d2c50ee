"""A checkpoint, here or elsewhere: its tensors, and the ways to read their values.

Opening reads headers only. A tensor is a byte range of a file.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import groupby
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from hilm.errors import UsageError
from hilm.html import Document
from hilm.weights.blocks import Block, read_blocks
from hilm.weights.content import content_key
from hilm.weights.dtypes import decode
from hilm.weights.folder import locate
from hilm.weights.formats import open_listings
from hilm.weights.packed import combine
from hilm.weights.packed_schemes import PackedSource, Parts
from hilm.weights.places import read_json
from hilm.weights.strided import OrderedSource, read_strided
from hilm.weights.tensor_table import merge_listings
from hilm.weights.weight_files import MAX_CONFIG

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from os import PathLike

    from numpy.typing import NDArray

    from hilm.weights.byte_source import Reader
    from hilm.weights.tensor import TensorInfo
    from hilm.weights.weight_files import Location

REORDERED = 4
"""Tensors not stored in order that are kept in memory, in order, at a time."""

UNPACKED = 2
"""Packed tensors whose scales (and transposed codes) are kept in memory at a time."""


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One weight file.

    Attributes:
        name: Bare name.
        size: In bytes.
        sha256: Digest, 32 bytes, where the Hub states it.
    """

    name: str
    size: int
    sha256: bytes | None = None


class Checkpoint:
    """A readable checkpoint; a context manager.

    Attributes:
        name: What people call it.
        uri: What names it: path of its folder or of the one file, ``hf://`` address with the commit, URL.
        place: Where its files are.
        alone: Whether it is one file in a folder of strangers.
        declared_base: Models that its card on the Hub says it was made from.
        format: ``safetensors``, ``torch``, ``gguf`` or ``onnx``; in a pipeline that of the first file.
        kind: ``model``, ``adapter`` or ``pipeline``.
        files: Weight files in name order, those that hold tensors of others last.
        stored: What the files hold: tensors in storage order, by name.
        tensors: The same, packed weights as one decoded tensor each; ``stored`` itself without any.
        metadata: Text pairs stored beside the tensors.
        notes: Irregularities that were tolerated.
        watch: Called after every block of every pass: values of that pass delivered, all of it, the tensor.
    """

    def __init__(self, location: Location) -> None:
        self.name, self.uri, self.place = location.name, location.uri, location.place
        self.alone, self.declared_base = location.alone, location.declared_base
        self.format, self.kind = location.format, location.kind
        self._pinned = location.pinned
        notes = [f"{name} is not part of the checkpoint" for name in location.unused]
        self._ordered = lru_cache(REORDERED)(self._put_in_order)
        self._unpacked = lru_cache(UNPACKED)(self._find_parts)
        names, self._sources, listings = open_listings(location)
        try:
            tensors, self._scattered = merge_listings(names, listings, location.shard_of, notes)
            self.stored: Mapping[str, TensorInfo] = MappingProxyType(tensors)
            self.tensors, packed = combine(self.stored, self._quantization, self._read_small)
        except BaseException:
            self.close()
            raise
        self.files = tuple(
            FileInfo(name, source.size, self.place.sha256(name))
            for name, source in zip(names, self._sources, strict=True)
        )
        self.metadata = {key: text for listing in listings for key, text in listing.metadata.items()}
        self.notes = (*notes, *packed)
        self.watch: Callable[[int, int, str], None] | None = None

    def _repr_html_(self) -> str:
        told = {
            "model": self.name,
            "format": self.format,
            "parameters": self.total_parameters,
            "bytes": sum(file.size for file in self.files),
            "notes": self.notes,
        }
        tensors = [
            {"name": t.name, "shape": "x".join(map(str, t.shape)), "dtype": t.dtype, "role": t.role.type}
            for t in self.tensors.values()
        ]
        return Document(told, tensors=tensors)._repr_html_()

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
        names = self.place.names()
        found = [name for name in ("config.json", "adapter_config.json") if name in names]
        return read_json(self.place, found[0], MAX_CONFIG) if found else None

    def _quantization(self) -> Mapping[str, Any]:
        """What ``config.json`` says about quantisation, of the model or of its text part."""
        config = self.config or {}
        for settings in (config, config.get("text_config")):
            found = settings.get("quantization_config") if isinstance(settings, dict) else None
            if isinstance(found, dict):
                return found
        return {}

    @property
    def total_parameters(self) -> int:
        """Weight values, aliases not counted."""
        return sum(t.numel for t in self.tensors.values() if t.is_weight and t.alias_of is None)

    @property
    def state(self) -> bytes:
        """32 bytes that change when any weight file does: path, size, time, inode, commit, ETag."""
        lines = [self.uri] if self._pinned else [source.state for source in self._sources]
        return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).digest()

    def content_key(self) -> bytes | None:
        """Name of the bytes of all weight files, 32 bytes, where the Hub states their digests; else None."""
        digests = [file.sha256 for file in self.files if file.sha256 is not None]
        return content_key(digests) if len(digests) == len(self.files) else None

    def source(self, info: TensorInfo) -> Reader:
        """What reads a tensor's bytes in order, by positions within its span."""
        if info.in_order:
            return self._sources[info.span.file]
        owner = info.alias_of or info.name
        if info.packed:
            return PackedSource(info.packed, partial(self._unpacked, owner), info.span.start)
        return OrderedSource(partial(self._ordered, owner), info.span.start)

    def _put_in_order(self, name: str) -> NDArray[np.uint8]:
        return read_strided(self._sources[self.stored[name].span.file].read_into, self._scattered[name])

    def _find_parts(self, name: str) -> Parts:
        packed = self.tensors[name].packed
        return Parts(dict(packed.parts if packed else ()), self.source)

    def _read_small(self, info: TensorInfo) -> bytes:
        out = np.empty(info.nbytes, np.uint8)
        self.source(info).read_into(info.span.start, out)
        return out.tobytes()

    def words(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Stored little-endian bytes of values ``start`` to ``stop`` (flat) of one tensor.

        Where values share bytes, all bytes of the blocks that hold these values; a packed tensor counts as
        stored as float32.
        """
        info = self.tensors[name]
        stop = info.numel if stop is None else stop
        if not 0 <= start <= stop <= info.numel:
            raise UsageError(f"{name} has {info.numel:,} values; {start} to {stop} is no range of them")
        first, last = info.type.nbytes(start), info.type.nbytes(stop + -stop % info.type.block)
        out = np.empty(last - first, np.uint8)
        self.source(info).read_into(info.span.start + first, out)
        return out

    def values(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Values ``start`` to ``stop`` (flat) of one tensor as float32, one-dimensional.

        Raises:
            PackedFormatUnsupported: The tensor is part of a packed one that cannot be decoded.
        """
        info = self.tensors[name]
        info.require_values()
        stop = info.numel if stop is None else stop
        words = self.words(name, start, stop)
        out = np.empty(info.type.count(len(words)), np.float32)
        decode(info.type, words, out)
        surplus = start % info.type.block
        return out[surplus : surplus + stop - start]

    def array(self, name: str) -> NDArray[np.float32]:
        """One whole tensor as float32, in its own shape (complex: with a trailing axis of 2)."""
        info = self.tensors[name]
        return self.values(name).reshape((*info.shape, 2) if info.type.values > 1 else info.shape)

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows ``start`` to ``stop`` of the tensor seen as matrices, float32 ``[stop - start, C]``."""
        columns = self.tensors[name].matrices[2]
        return self.values(name, start * columns, stop * columns).reshape(-1, columns)

    def blocks(
        self,
        names: frozenset[str] | None = None,
        *,
        include_integer: bool = False,
        stored: bool = False,
        poison: bool = False,
    ) -> Iterator[Block]:
        """Deliver every value once, in storage order, in reused buffers.

        Args:
            names: Tensors wanted; all when None.
            include_integer: Deliver tensors that are not weights too, and parts that cannot be decoded.
            stored: Deliver everything that is stored, packed tensors by their parts.
            poison: Overwrite buffers before they are reused, so that a stale view shows at once.

        Raises:
            PackedFormatUnsupported: Weights are packed in a way that cannot be decoded.
            SourceChanged: A file was modified while it was read.
            TruncatedFile: A file ends too early.
        """
        everything = stored or include_integer
        wanted = [
            info
            for info in (self.stored if stored else self.tensors).values()
            if info.alias_of is None
            and (everything or info.is_weight or info.refusal)
            and (names is None or info.name in names)
        ]
        for info in () if everything else wanted:
            info.require_values()
        done, total = 0, sum(info.numel for info in wanted)
        for block in read_blocks(self._announce(wanted), poison=poison):
            yield block
            done += block.stop - block.start
            if self.watch is not None:
                self.watch(done, total, block.info.name)
        self.check_unchanged()

    def _announce(self, wanted: Iterable[TensorInfo]) -> Iterator[tuple[TensorInfo, Reader]]:
        """Tensors with what reads them; a file learns what it will be asked for when its turn comes."""
        for number, group in groupby(wanted, key=lambda info: info.span.file):
            tensors = list(group)
            self.expect(number, ((info, 0, info.numel) for info in tensors))
            for info in tensors:
                yield info, self.source(info)

    def expect(self, number: int, ranges: Iterable[tuple[TensorInfo, int, int]]) -> None:
        """Announce what will be read next of ``files[number]``: tensors, each with a range of its values."""
        self._sources[number].expect(_byte_runs(number, ranges))

    def read_file(self, number: int, start: int, stop: int) -> bytes:
        """Bytes of ``files[number]``, tensor data or not."""
        return self._sources[number].read(start, stop)

    def check_unchanged(self) -> None:
        """Raise ``SourceChanged`` if any file is no longer the one that was opened."""
        for source in self._sources:
            source.check_unchanged()


def _byte_runs(number: int, ranges: Iterable[tuple[TensorInfo, int, int]]) -> Iterator[tuple[int, int]]:
    """Positions of the bytes that hold ranges of values; what is packed or not in order is read whole."""
    for info, start, stop in ranges:
        if info.packed:
            spans = (part.span for _, part in info.packed.parts)
            yield from sorted((span.start, span.stop) for span in spans if span.file == number)
            continue
        if info.in_order:
            last = info.type.nbytes(stop + -stop % info.type.block)
            yield info.span.start + info.type.nbytes(start), info.span.start + last
        else:
            yield info.span.start, info.span.stop


def open_checkpoint(
    target: str | PathLike[str],
    *,
    revision: str | None = None,
    token: str | None = None,
    offline: bool | None = None,
    weights_file: str | None = None,
    variant: str | None = None,
) -> Checkpoint:
    """Open a folder, weight file, index file, Hub id or URL; no weights are read and no code is run.

    Args:
        target: What ``hilm.weights.folder.locate`` takes.
        revision: Branch, tag or commit on the Hub.
        token: For the Hub, instead of ``HF_TOKEN`` or the stored login.
        offline: Use the local cache of the Hub only; as ``HF_HUB_OFFLINE`` says when None.
        weights_file: The one file meant, of a folder or repository.
        variant: Take files that carry it in their names, as ``model.fp16.safetensors`` does.

    Raises:
        InputError: Whatever is wrong with what is there; see ``hilm.errors`` for the kinds.
        NetworkError: The Hub or the server does not have it, or does not answer.
    """
    return Checkpoint(
        locate(
            target,
            revision=revision,
            token=token,
            offline=offline,
            weights_file=weights_file,
            variant=variant,
        )
    )
