"""The journal of a reel in the making: what an interrupted run has written and the next need not do again.

``<out>.part.journal`` holds lines of JSON, each followed by its CRC32C. The first says what is encoded and
how, and describes the front; each further one is a slab: the entries of its records in the index, in hex. A
line is written once the bytes it speaks of are on the disk. A run below 2 s and 64 MiB leaves no journal.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypedDict

from hilm.reel.crc32c import crc32c
from hilm.reel.manifest import canonical_json
from hilm.reel.schema import Front, find_fault
from hilm.reel.sections import EMPTY_FRONT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SYNC_BYTES = 64 << 20
SYNC_SECONDS = 2.0
_CRC = 9  # a space and eight digits


class _Head(TypedDict):
    key: str
    front: Front | None


class Journal:
    """The journal of one reel.

    Args:
        part: The file it speaks of.
        key: Hash of everything the bytes of the reel depend on.
        front: What the manifest will say of the front.

    Attributes:
        started: Whether it is on the disk.
        slabs: Index entries of every slab of the same reel that an interrupted run has noted, in order.
    """

    def __init__(self, part: Path, key: str, front: Front | None) -> None:
        self._path = journal_of(part)
        self._head = _Head(key=key, front=front)
        self._pending: list[bytes] = []
        self._position, self._safe, self._since = 0, 0, time.monotonic()
        lines = list(_lines(self._path))
        self.started = lines[:1] == [self._head]
        self.slabs = [bytes.fromhex(line) for line in lines[1:]] if self.started else []

    def keep(self, count: int) -> None:
        """Go on behind the first ``count`` slabs, and forget those that follow."""
        if not self.started or count < len(self.slabs):
            self.remove()
            self._pending = self.slabs[:count]
            if self._pending:
                self.write()

    def note(self, entries: bytes, position: int) -> bool:
        """Take note of a slab that ends at ``position``; whether it is time to sync and :meth:`write`."""
        self._pending.append(entries)
        self._position = position
        return position - self._safe >= SYNC_BYTES or time.monotonic() - self._since >= SYNC_SECONDS

    def write(self) -> None:
        """Append what was noted, all of which is on the disk."""
        lines: list[Any] = [] if self.started else [self._head]
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        with os.fdopen(os.open(self._path, flags, 0o666), "ab") as file:
            for line in [*lines, *(entries.hex() for entries in self._pending)]:
                raw = canonical_json(line)
                file.write(b"%b %08x\n" % (raw, crc32c(raw)))
            file.flush()
            os.fsync(file.fileno())
        self._pending, self._safe, self._since, self.started = [], self._position, time.monotonic(), True

    def remove(self) -> None:
        """Delete it."""
        self._path.unlink(missing_ok=True)
        self.started = False


def journal_of(part: Path) -> Path:
    """Where the journal of an unfinished reel is."""
    return part.with_name(part.name + ".journal")


def film_of(part: Path) -> Path:
    """Where the video of a reel is while both are written."""
    return part.with_name(part.name + ".film")


def find_front(part: Path, key: str) -> tuple[bytes, Front | None] | None:
    """The front that an interrupted run of the same reel has drawn, and what the manifest says of it."""
    head: Any = next(_lines(journal_of(part)), None)
    if find_fault(head, _Head) or head["key"] != key:
        return None
    front: Front | None = head["front"]
    with suppress(FileNotFoundError), part.open("rb") as file:
        video = file.read(front["size"] if front else len(EMPTY_FRONT))
        if f"0x{crc32c(video):08x}" == (front["crc32c"] if front else f"0x{crc32c(EMPTY_FRONT):08x}"):
            return video, front
    return None


def _lines(path: Path) -> Iterator[Any]:
    """Documents of a journal, up to the first line that is torn or damaged."""
    with suppress(FileNotFoundError, ValueError, RecursionError), path.open("rb") as file:
        for line in file:
            raw, check = line[: -_CRC - 1], line[-_CRC - 1 :]
            if check != b" %08x\n" % crc32c(raw):
                return
            yield json.loads(raw)
