"""The reel file: a playable video in front, one atom of checked records behind it.

    front          a complete MP4, or the smallest one
    uuid atom      32-byte atom header │ 64-byte section header │ records │ index │ manifest │ 128-byte footer

Offsets count from the first section header, the *origin*. An appended generation is a further atom with
the same parts; its index and manifest replace the earlier ones. Every byte is covered by exactly one check.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from bisect import bisect_right
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import quote, urljoin

import numpy as np

from hilm.errors import ChecksumMismatch, HeaderError, MissingCompanion, NotAReel, NotFound
from hilm.reel.carrier import CARRIERS
from hilm.reel.crc32c import crc32c
from hilm.reel.manifest import parse_manifest
from hilm.reel.records import RECORD, RECORD_LIMIT, Kind, check_records
from hilm.reel.sections import (
    ATOM,
    FOOTER_BYTES,
    HEADER_BYTES,
    TAIL,
    Tail,
    check_place,
    find_sections,
    front_crc32c,
)
from hilm.weights.byte_source import FileSource
from hilm.weights.folder import is_remote
from hilm.weights.places import open_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from os import PathLike
    from types import TracebackType

    from hilm.reel.records import Claim, Index
    from hilm.reel.schema import Manifest
    from hilm.reel.sections import Section
    from hilm.weights.byte_source import ByteSource

_PIECE = 8 << 20
_GAP = 1 << 20  # between packets of a video: what its container has to say


class ReelFile:
    """A reel open for reading: its manifest and index are checked, its records are checked when read.

    Safe to use from several threads, as long as its source is.

    Attributes:
        manifest: What the reel says about itself.
        index: Its records, [n] of dtype :data:`hilm.reel.manifest.RECORD`.
        carrier: The video codec that symbols ride in; None where they are packed.
        trailing: Bytes behind the last complete generation: an unfinished append, or foreign.

    Raises:
        NotAReel: No reel section.
        Truncated: The first section is not complete.
        ChecksumMismatch: Atom header, section header, index, manifest or footer are damaged.
        UnsupportedVersion: Written by a newer format.
        HeaderError: The parts contradict each other.
        MissingCompanion: The video that carries the symbols is not beside the reel.
    """

    def __init__(self, source: ByteSource, sibling: Callable[[str], ByteSource] | None = None) -> None:
        self._source, tail = source, Tail(source)
        self._origin, self._sections = find_sections(tail)
        last = self._sections[-1]
        self.trailing = source.size - self._origin - last.footer - FOOTER_BYTES
        raw = tail.read(self._origin + last.index, self._origin + last.footer)
        for fault in last.faults(raw):
            raise ChecksumMismatch(f"the {fault} is damaged")
        self.index: Index = np.frombuffer(raw[: last.manifest - last.index], RECORD)
        self.manifest = parse_manifest(raw[last.manifest - last.index :])
        _check_index(self.index, self._sections, self.manifest)
        check_place(self.manifest, len(self._sections), self._origin - ATOM.size)
        self._claims: list[Claim] = check_records(self.manifest, self.index)
        self.carrier = CARRIERS.get(self.manifest["carrier"])
        self._video = self._find_companion(sibling) if self.manifest["companion"] else source

    @classmethod
    def open(cls, place: str | PathLike[str]) -> Self:
        """Open a file, or by ranges what is behind an http or https URL.

        Raises:
            NotAReel: There is no such file; further errors as the class.
            NetworkError: The server does not answer, or sends whole files only.
        """
        source: ByteSource
        sibling: Callable[[str], ByteSource]
        if is_remote(text := os.fspath(place)):
            source, sibling = open_url(text, tail=TAIL), lambda name: open_url(urljoin(text, quote(name)))
        elif Path(place).is_file():
            source = FileSource.open(Path(place))
            sibling = lambda name: FileSource.open(Path(place).with_name(name))
        else:
            raise NotAReel(f"{text} is not a file", hint="name the reel itself, such as model.reel.mp4")
        with contextlib.ExitStack() as undo:
            undo.callback(source.close)
            reel = cls(source, sibling)
            undo.pop_all()
        return reel

    @property
    def front(self) -> bytes:
        """The video in front.

        Raises:
            ChecksumMismatch: It is damaged.
        """
        if self._front_is_damaged():
            raise ChecksumMismatch("the front video is damaged")
        return self._source.read(0, self._origin - ATOM.size)

    @property
    def traffic(self) -> dict[str, int | None]:
        """``requests`` and ``fetched`` (bytes) so far; None for a local file."""
        return {figure: getattr(self._source, figure, None) for figure in ("requests", "fetched")}

    def record(self, number: int) -> bytes:
        """Return the bytes of one record.

        Raises:
            ChecksumMismatch: They are damaged.
        """
        return self.records(number, 1)[0]

    def records(self, first: int, count: int) -> list[bytes]:
        """Return neighbouring records, fetched in one read; raises as :meth:`record` does."""
        entries = self.index[first : first + count].tolist()
        packets = {entry[3] == Kind.PACKET for entry in entries}
        runs, found = {packet: self._run(entries, packet=packet) for packet in packets}, []
        for number, (offset, size, checksum, kind, *_) in enumerate(entries, first):
            begin, raw = runs[kind == Kind.PACKET]
            data = raw[offset - begin : offset - begin + size]
            if crc32c(data) != checksum:
                raise ChecksumMismatch(f"{self._describe(number)} is damaged")
            found.append(data)
        return found

    def _run(self, entries: list[tuple[int, ...]], *, packet: bool) -> tuple[int, bytes]:
        """Read all packets, or all other records, in one range; also where it begins."""
        places = [
            (offset, offset + size)
            for offset, size, _, kind, *_ in entries
            if (kind == Kind.PACKET) == packet
        ]
        begin, end = places[0][0], places[-1][1]
        return begin, self._video.read(begin, end) if packet else self._read(begin, end)

    def _find_companion(self, sibling: Callable[[str], ByteSource] | None) -> ByteSource:
        companion = self.manifest["companion"]
        name, size = (companion["file"], companion["size"]) if companion else ("", 0)
        try:
            if sibling is None:
                raise FileNotFoundError(name)
            video = sibling(name)
        except (OSError, NotFound) as error:
            raise MissingCompanion(
                f"{name}, the video that carries the weights, is not beside the reel"
            ) from error
        if video.size != size:
            video.close()
            raise ChecksumMismatch(f"{name} has {video.size:,} bytes where {size:,} belong")
        return video

    def check_coverage(self) -> Iterator[str]:
        """Read every byte of the file once and name the damaged regions.

        Atom headers, section headers and footers were checked when the file was opened.
        """
        self._source.expect([(0, self._origin + self._sections[0].index)])
        if self._front_is_damaged():
            yield "front"
        for generation, section in enumerate(self._sections, 1):
            for fault in section.faults(self._read(section.index, section.footer)):
                yield f"{fault} of generation {generation}"
        for number, entry in enumerate(self.index):
            offset, size, checksum, kind, *_ = entry.item()
            source, start = (self._video, 0) if kind == Kind.PACKET else (self._source, self._origin)
            if _crc32c(source, start + offset, start + offset + size) != checksum:
                yield self._describe(number)
        if (companion := self.manifest["companion"]) and _sha256(self._video) != companion["sha256"]:
            yield f"companion {companion['file']}"
        if self.trailing:
            yield f"{self.trailing:,} trailing bytes"

    def close(self) -> None:
        """Close the source, and the video beside it."""
        self._source.close()
        if self._video is not self._source:
            self._video.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, start: int, stop: int) -> bytes:
        return self._source.read(self._origin + start, self._origin + stop)

    def _front_is_damaged(self) -> bool:
        return _crc32c(self._source, 0, self._origin - ATOM.size) != front_crc32c(self.manifest)

    def _describe(self, number: int) -> str:
        place = bisect_right(self._claims, (number, math.inf)) - 1
        if place >= 0 and number < self._claims[place][1]:
            return f"record {number} ({self._claims[place][2]})"
        return f"record {number}"


def _crc32c(source: ByteSource, start: int, stop: int) -> int:
    checksum = 0
    for begin in range(start, stop, _PIECE):
        checksum = crc32c(source.read(begin, min(begin + _PIECE, stop)), checksum)
    return checksum


def _sha256(source: ByteSource) -> str:
    digest = hashlib.sha256()
    for begin in range(0, source.size, _PIECE):
        digest.update(source.read(begin, min(begin + _PIECE, source.size)))
    return digest.hexdigest()


def _check_index(index: Index, sections: list[Section], manifest: Manifest) -> None:
    """Records fill the space before each generation's index, and packets lie in their video, all in order."""
    packets, video = index["kind"] == Kind.PACKET, manifest["companion"] or manifest["front"]
    beside = packets if manifest["companion"] else np.False_
    known = (index["kind"] <= Kind.SAMPLES) & (index["file"] == beside) & (index["zero"] == 0)
    known &= ~packets | (manifest["carrier"] != "packed")
    sound = known & (index["size"] > 0) & (index["size"] <= RECORD_LIMIT)
    if not sound.all():
        raise HeaderError("record", f"record {int(np.argmin(sound))} is impossible")
    if packets.any():
        ends = np.append(np.uint64(0), index["offset"][packets] + index["size"][packets])
        gaps = index["offset"][packets].astype(np.int64) - ends[:-1].astype(np.int64)
        inside = video is not None and int(ends[-1]) <= video["size"]
        if not inside or (gaps < 0).any() or (gaps[1:] > _GAP).any():
            raise HeaderError("record", "the packets do not follow each other in their video")
        index = index[~packets]
    ends = index["offset"] + index["size"]
    edges = np.concatenate((np.array([HEADER_BYTES], np.uint64), ends))
    for before, after in pairwise(sections):
        edges[edges == before.index] = after.records
    if (edges[:-1] != index["offset"]).any() or edges[-1] != sections[-1].index:
        raise HeaderError("record", "the records leave gaps or overlap")
