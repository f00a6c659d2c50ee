"""Where the files of a checkpoint are: a folder, a repository on the Hub, or a URL."""

from __future__ import annotations

import json
import os
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from hilm.errors import CorruptCheckpoint, OfflineError, StorageError
from hilm.weights.byte_source import FileSource

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from hilm.weights.byte_source import ByteSource
    from hilm.weights.http_source import HttpSource
    from hilm.weights.hub_files import HubRepository


class Place(Protocol):
    """A flat view of some files; names use ``/``."""

    @property
    def label(self) -> str:
        """What messages call it."""

    @property
    def offline(self) -> bool:
        """Whether files that are not here exist elsewhere, out of reach."""

    def names(self) -> list[str]:
        """Sorted names of the files in it, without those in folders of it."""

    def deep_names(self) -> list[str]:
        """The same with the files of its folders, hidden ones and foreign links left out."""

    def contains(self, name: str) -> bool:
        """Whether a file that is here is really in here, links followed."""

    def open(self, names: Sequence[str]) -> list[ByteSource]:
        """Open files by name, all or none."""

    def sha256(self, name: str) -> bytes | None:
        """Digest of a file, 32 bytes, where it is known without reading."""


@dataclass(frozen=True, slots=True)
class LocalPlace:
    """A local folder."""

    root: Path
    offline = False

    @property
    def label(self) -> str:
        """Its path."""
        return str(self.root)

    def names(self) -> list[str]:
        """Sorted names of the files in it."""
        try:
            with os.scandir(self.root) as found:
                return sorted(entry.name for entry in found if entry.is_file())
        except OSError as error:
            raise StorageError(f"{self.root}: {error.strerror}") from error

    def deep_names(self) -> list[str]:
        """The same with the files of its folders, hidden ones and foreign links left out."""
        found = (*self.root.glob("[!.]*"), *self.root.glob("[!.]*/[!.]*"))
        files = (path.relative_to(self.root).as_posix() for path in sorted(found) if path.is_file())
        return [name for name in files if self.contains(name)]

    def contains(self, name: str) -> bool:
        """Whether a file, links followed, lies in the folder or in the blobs of the Hub cache around it."""
        real, snapshots = (self.root / name).resolve(), self.root.parent
        cache = snapshots.parent / "blobs" if snapshots.name == "snapshots" else self.root
        return real.is_relative_to(self.root) or real.is_relative_to(cache)

    def open(self, names: Sequence[str]) -> list[ByteSource]:
        """Open files by name, all or none."""
        opened: list[ByteSource] = []
        try:
            for name in names:
                opened.append(FileSource.open(self.root / name))  # noqa: PERF401 - what was opened is closed
        except StorageError:
            for source in opened:
                source.close()
            raise
        return opened

    def sha256(self, name: str) -> bytes | None:
        """Unknown."""
        del name
        return None


@dataclass(frozen=True, slots=True)
class HubPlace:
    """A repository on the Hub at one commit, or a folder of it; ``prefix`` is empty or ends in ``/``."""

    repository: HubRepository
    prefix: str = ""

    @property
    def offline(self) -> bool:
        """Whether only the local cache is looked at."""
        return self.repository.offline

    @property
    def label(self) -> str:
        """Its address, with the commit."""
        folder = f"/{self.prefix[:-1]}" if self.prefix else ""
        return f"hf://{self.repository.repo_id}@{self.repository.commit}{folder}"

    def names(self) -> list[str]:
        """Sorted names of the files in it."""
        return [name for name in self._all_names() if "/" not in name]

    def deep_names(self) -> list[str]:
        """The same with the files of its folders, hidden ones left out."""
        names = (name for name in self._all_names() if name.count("/") <= 1)
        return [name for name in names if not any(part.startswith(".") for part in name.split("/"))]

    def _all_names(self) -> list[str]:
        found = (name for name in self.repository.files if name.startswith(self.prefix))
        return sorted(name.removeprefix(self.prefix) for name in found)

    def contains(self, name: str) -> bool:
        """Links do not exist there."""
        return bool(name)

    def open(self, names: Sequence[str]) -> list[ByteSource]:
        """Open files at the same time, all or none."""
        return [*self.repository.open_all([self.prefix + name for name in names])]

    def sha256(self, name: str) -> bytes | None:
        """Digest of a large file, as the Hub states it."""
        stated = self.repository.files[self.prefix + name].sha256
        return bytes.fromhex(stated) if stated else None


@dataclass(frozen=True, slots=True)
class UrlPlace:
    """One file behind a URL; nothing is beside it."""

    url: str
    label: str
    offline: bool

    def names(self) -> list[str]:
        """The name of the file."""
        return [self.label.rpartition("/")[2]]

    deep_names = names

    def contains(self, name: str) -> bool:
        """Links do not exist there."""
        return bool(name)

    def open(self, names: Sequence[str]) -> list[ByteSource]:
        """Open the file.

        Raises:
            OfflineError: The network may not be used.
        """
        return [open_url(self.url, offline=self.offline) for _ in names]

    def sha256(self, name: str) -> bytes | None:
        """Unknown."""
        del name
        return None


def open_url(url: str, *, offline: bool | None = None, tail: int = 0) -> HttpSource:
    """Open a remote file, and fetch its first bytes or its last ``tail``; None: as ``HF_HUB_OFFLINE`` says.

    Raises:
        OfflineError: The network may not be used.
        NetworkError: As ``HttpSource``.
    """
    from hilm.weights.http_pool import shown  # noqa: PLC0415 - local files need no network code
    from hilm.weights.http_source import HttpSource  # noqa: PLC0415 - the same
    from hilm.weights.hub_files import is_true  # noqa: PLC0415 - the same

    if is_true("HF_HUB_OFFLINE") if offline is None else offline:
        raise OfflineError(f"{shown(url)} is not a local file")
    return HttpSource.open(url, tail=tail)


def read_small(place: Place, name: str, limit: int) -> bytes | None:
    """A whole small file; None if it is larger than ``limit`` bytes."""
    (source,) = place.open([name])
    with closing(source):
        if source.size > limit:
            return None
        data = source.read(0, source.size)
        source.check_unchanged()
        return data


def read_json(place: Place, name: str, limit: int) -> dict[str, Any]:
    """Read a small JSON object.

    Raises:
        CorruptCheckpoint: It is larger than ``limit`` bytes or not a JSON object.
    """
    raw = read_small(place, name, limit)
    try:
        table = None if raw is None else json.loads(raw)
    except (ValueError, RecursionError):
        table = None
    if not isinstance(table, dict):
        raise CorruptCheckpoint(f"{place.label}/{name} is not a JSON object of at most {limit >> 20} MiB")
    return table
