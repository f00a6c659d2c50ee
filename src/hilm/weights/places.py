"""Where the files of a checkpoint are: a folder, a repository on the Hub, or a URL."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

from hilm.errors import CorruptCheckpoint, OfflineError, StorageError
from hilm.weights.byte_source import FileSource

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from hilm.weights.byte_source import ByteSource
    from hilm.weights.http_source import HttpSource
    from hilm.weights.hub_files import HubRepository

OPENERS = 8
"""Remote files opened at a time."""


class Place(Protocol):
    """A flat view of some files; names use ``/``."""

    @property
    def label(self) -> str:
        """What messages call it."""

    @property
    def is_listed(self) -> bool:
        """Whether all files in it are known."""

    @property
    def offline(self) -> bool:
        """Whether files that are not here exist elsewhere, out of reach."""

    def names(self) -> list[str]:
        """Sorted names of the files in it, without those in folders of it."""

    def deep_names(self) -> list[str]:
        """The same with the files of its folders, hidden ones and foreign links left out."""

    def inside(self, folder: str) -> Place:
        """A folder in it."""

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
    offline, is_listed = False, True

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

    def inside(self, folder: str) -> LocalPlace:
        """A folder in it."""
        return LocalPlace(self.root / folder)

    def contains(self, name: str) -> bool:
        """Whether a file, links followed, lies in the folder or in the blobs of the Hub cache around it."""
        real = (self.root / name).resolve()
        caches = (folder.parent / "blobs" for folder in self.root.parents if folder.name == "snapshots")
        return real.is_relative_to(self.root) or any(real.is_relative_to(cache) for cache in caches)

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
    is_listed = True

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

    def inside(self, folder: str) -> HubPlace:
        """A folder in it."""
        return HubPlace(self.repository, f"{self.prefix}{folder}/")

    def contains(self, name: str) -> bool:
        """Links do not exist there."""
        return bool(name)

    def open(self, names: Sequence[str]) -> list[ByteSource]:
        """Open files at the same time, all or none."""
        return open_together(self.repository.open, [self.prefix + name for name in names])

    def sha256(self, name: str) -> bytes | None:
        """Digest of a large file, as the Hub states it."""
        stated = self.repository.files[self.prefix + name].sha256
        return bytes.fromhex(stated) if stated else None


@dataclass(frozen=True, slots=True)
class UrlPlace:
    """One file behind a URL; what it names as lying beside it is asked for there."""

    url: str
    label: str
    offline: bool
    is_listed = False

    def names(self) -> list[str]:
        """The name of the file."""
        return [self.label.rpartition("/")[2]]

    deep_names = names

    def inside(self, folder: str) -> UrlPlace:
        """The same: it has no folders."""
        del folder
        return self

    def contains(self, name: str) -> bool:
        """Links do not exist there."""
        return bool(name)

    def open(self, names: Sequence[str]) -> list[ByteSource]:
        """Open the file and others beside it, at the same time, all or none.

        Raises:
            OfflineError: The network may not be used.
        """
        (own,), folder = self.names(), self.label.rpartition("/")[0]
        urls = [self.url if name == own else f"{folder}/{quote(name)}" for name in names]
        return open_together(partial(open_url, offline=self.offline), urls)

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
    from hilm.weights.hub_files import is_offline  # noqa: PLC0415 - the same

    if is_offline(asked=offline):
        raise OfflineError(f"{shown(url)} is not a local file")
    return HttpSource.open(url, tail=tail)


def open_together(open_one: Callable[[str], ByteSource], names: Sequence[str]) -> list[ByteSource]:
    """Open several files at the same time, in the order given; all or none."""
    with ThreadPoolExecutor(OPENERS, "hilm-open") as pool:
        futures = [pool.submit(open_one, name) for name in names]
    failures = [error for future in futures if (error := future.exception())]
    if failures:
        for future in futures:
            if not future.exception():
                future.result().close()
        raise failures[0]
    return [future.result() for future in futures]


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
