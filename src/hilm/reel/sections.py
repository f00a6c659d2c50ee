"""Atoms, headers and footers: the frame that holds a reel's parts, and how it is found in a file."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from hilm.errors import ChecksumMismatch, HeaderError, NotAReel, Truncated, UnsupportedVersion
from hilm.reel.crc32c import crc32c
from hilm.reel.manifest import MANIFEST_LIMIT
from hilm.reel.records import RECORD

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hilm.reel.schema import Manifest
    from hilm.weights.byte_source import ByteSource

EMPTY_FRONT: Final = struct.pack(">I4s4sI4s4s", 24, b"ftyp", b"isom", 0, b"isom", b"hilm")
"""What stands in front of a reel without a video."""

UUID = bytes.fromhex("e947662ce6164cb182a751dfb8293ce7")
ATOM = struct.Struct(">I4sQ16s")
HEADER = struct.Struct("<8sHHIQQ28x")  # and its CRC32C
FOOTER = struct.Struct("<8sQQ32sQQI4xQQ28x")  # and its CRC32C
_CRC = struct.Struct("<I")
HEADER_BYTES = HEADER.size + _CRC.size
FOOTER_BYTES = FOOTER.size + _CRC.size

_INDEX_LIMIT = 256 << 20
_ATOM_LIMIT = 1 << 16
_ATOM_MINIMUM = 8
TAIL: Final = 64 << 10
"""Bytes at the end of a file that are read first."""


@dataclass(frozen=True, slots=True)
class Section:
    """One generation; all positions are offsets from the origin."""

    records: int
    index: int
    manifest: int
    footer: int
    index_crc32c: int
    manifest_sha256: bytes

    def faults(self, raw: bytes) -> Iterator[str]:
        """Name what is damaged in ``raw``: the bytes of index and manifest."""
        if crc32c(raw[: self.manifest - self.index]) != self.index_crc32c:
            yield "index"
        if hashlib.sha256(raw[self.manifest - self.index :]).digest() != self.manifest_sha256:
            yield "manifest"


class Tail:
    """A source whose last 64 KiB, where a reel keeps what opening it needs, are fetched once."""

    def __init__(self, source: ByteSource) -> None:
        self._source, self.size = source, source.size
        self._start = max(source.size - TAIL, 0)
        self._bytes = source.read(self._start, source.size)

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes of one range."""
        if start >= self._start:
            return self._bytes[start - self._start : stop - self._start]
        return self._source.read(start, stop)


def sealed(raw: bytes) -> bytes:
    """Append the CRC32C of ``raw`` to it."""
    return raw + _CRC.pack(crc32c(raw))


def _is_sealed(raw: bytes, magic: bytes) -> bool:
    return raw.startswith(magic) and raw == sealed(raw[: -_CRC.size])


def find_sections(source: Tail) -> tuple[int, list[Section]]:
    """Return the origin and every complete generation, oldest first."""
    footer = source.read(max(source.size - FOOTER_BYTES, 0), source.size)
    intact = _is_sealed(footer, b"HILMEND1")
    if intact:
        origin = source.size - FOOTER_BYTES - FOOTER.unpack_from(footer)[-1]
        if origin < ATOM.size:
            raise HeaderError("footer", "the footer does not belong to this file")
    else:
        origin = _walk_atoms(source) + ATOM.size
    sections = [_read_section(source, origin, [])]
    while origin + sections[-1].footer + FOOTER_BYTES < source.size:
        if len(sections) == _ATOM_LIMIT:
            raise HeaderError("limit", f"more than {_ATOM_LIMIT:,} generations")
        try:
            sections.append(_read_section(source, origin, sections))
        except (Truncated, ChecksumMismatch):
            if intact:
                raise
            break  # an append that was interrupted: the generations before it are whole
    return origin, sections


def _walk_atoms(source: Tail) -> int:
    """Return where the first reel atom starts."""
    position = 0
    for _ in range(_ATOM_LIMIT):
        head = source.read(position, min(position + ATOM.size, source.size))
        if len(head) < ATOM.size:
            break
        size, kind, large, uuid = ATOM.unpack(head)
        if kind == b"uuid" and uuid == UUID:
            return position
        size = large if size == 1 else size
        if not _ATOM_MINIMUM <= size <= source.size - position:
            break
        position += size
    raise NotAReel("the file has no reel section" if source.size else "the file is empty")


def _read_section(source: Tail, origin: int, earlier: list[Section]) -> Section:
    """Read the headers and the footer of the generation behind the earlier ones."""
    start = earlier[-1].footer + FOOTER_BYTES + ATOM.size if earlier else 0
    position = origin + start - ATOM.size
    head = source.read(position, min(position + ATOM.size + HEADER_BYTES, source.size))
    if len(head) < ATOM.size + HEADER_BYTES:
        raise Truncated("the reel ends inside its section header")
    size = _check_heads(head, earlier)
    end = start - ATOM.size + size
    if origin + end > source.size:
        raise Truncated(f"the reel ends {origin + end - source.size:,} bytes before its footer")
    if size < ATOM.size + HEADER_BYTES + FOOTER_BYTES:
        raise ChecksumMismatch("the atom header is damaged")
    footer = source.read(origin + end - FOOTER_BYTES, origin + end)
    if not _is_sealed(footer, b"HILMEND1"):
        raise ChecksumMismatch("the footer is damaged")
    _, manifest, manifest_size, sha256, index, index_size, crc, generation, own = FOOTER.unpack_from(footer)
    in_order = start + HEADER_BYTES <= index and index + index_size == manifest
    if not in_order or manifest + manifest_size != own or own != end - FOOTER_BYTES:
        raise HeaderError("footer", "the footer's offsets do not fit the file")
    if generation != len(earlier) + 1:
        raise HeaderError("generation", f"footer {len(earlier) + 1} is of generation {generation}")
    if index_size > _INDEX_LIMIT or index_size % RECORD.itemsize or manifest_size > MANIFEST_LIMIT:
        raise HeaderError("limit", f"an index of {index_size:,}, a manifest of {manifest_size:,} bytes")
    return Section(start + HEADER_BYTES, index, manifest, own, crc, sha256)


def _check_heads(head: bytes, earlier: list[Section]) -> int:
    """Check atom and section header; return the size of the atom."""
    size: int
    size, header = ATOM.unpack_from(head)[2], head[ATOM.size :]
    if head[: ATOM.size] != ATOM.pack(1, b"uuid", size, UUID):
        raise ChecksumMismatch("the atom header is damaged")
    if not _is_sealed(header, b"HILMREEL"):
        raise ChecksumMismatch("the section header is damaged")
    _, major, minor, flags, generation, previous = HEADER.unpack_from(header)
    if major != 1 or flags:
        raise UnsupportedVersion(f"format {major}.{minor} with flags {flags:#x}; this program reads 1")
    expected = (len(earlier) + 1, earlier[-1].footer if earlier else 0)
    if (generation, previous) != expected:
        raise HeaderError("generation", f"section {expected[0]} calls itself generation {generation}")
    return size


def check_place(manifest: Manifest, generation: int, front_size: int) -> None:
    """Check that a manifest belongs to its generation and stands behind the front it describes."""
    if manifest["generation"] != generation:
        raise HeaderError("generation", f"the manifest of generation {generation} names another one")
    front = manifest["front"]
    if front_size != (front["size"] if front else len(EMPTY_FRONT)):
        raise HeaderError("front", f"the manifest describes another front than the {front_size:,} bytes here")


def front_crc32c(manifest: Manifest) -> int:
    """CRC32C the video in front must have."""
    front = manifest["front"]
    return int(front["crc32c"], 16) if front else crc32c(EMPTY_FRONT)
