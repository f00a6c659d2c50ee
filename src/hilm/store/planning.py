"""Which models of a command are to be done, and what each is called."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hilm.errors import InputError, UsageError
from hilm.store.work import Job, entry_key, reference_key
from hilm.weights import open_checkpoint
from hilm.weights.folder import is_remote, locate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hilm.lineage.schema import Row
    from hilm.store.store import Store
    from hilm.weights.weight_files import Location


_COMMIT = re.compile(r"(@[0-9a-f]{8})[0-9a-f]{32}")


@dataclass(slots=True)
class Plan:
    """What a store has and what it is to have.

    Args:
        store: The store.
        mode: ``index``, ``archive``, ``small``, ``delta`` or ``sample``.
        options: Fields of ``Job`` that are the same for all.
        force: Do models again that are there already.

    Attributes:
        skipped: Name to what ``encode`` prints, of the models that are there already.
        owners: Name to ``ref_key`` of the models that are there or planned.
    """

    store: Store
    mode: str
    options: dict[str, Any]
    force: bool
    skipped: dict[str, dict[str, Any]] = field(default_factory=dict)
    owners: dict[str, bytes] = field(default_factory=dict)
    _known: dict[bytes, Row] = field(default_factory=dict)
    _seen: set[bytes] = field(default_factory=set)

    def __post_init__(self) -> None:
        if self.store.exists:
            known = self.store.catalog.models(columns=["name", "commit", "parameters"])
            self._known = {row["ref_key"]: row for row in known}
            self.owners = {row["name"]: row["ref_key"] for row in self._known.values()}

    def add(self, target: str, name: str | None = None) -> Job | None:
        """The job for one model, or None where there is nothing to do; makes the store if need be.

        Raises:
            InputError: There is no checkpoint.
            UsageError: The name is taken, or the model has another.
            StorageError: The store cannot be made.
        """
        location = locate(target)
        key, path = reference_key(location.uri), location.uri
        chosen = self._choose_name(location, name, key)
        job = Job(path, chosen, self.mode, str(self.store.reels.absolute()), **self.options)
        if key in self._seen or self._is_there(job, key):
            return None
        if not self.store.exists:
            open_checkpoint(path).close()  # no store is made for what is no checkpoint
        self.store.make()
        self.owners[chosen] = key
        self._seen.add(key)
        return job

    def _choose_name(self, location: Location, name: str | None, key: bytes) -> str:
        try:
            f"{location.uri}{name}".encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{location.uri!r} is not UTF-8", hint="rename it") from error
        known = self._known.get(key)
        if known is not None:
            if name not in {None, known["name"]}:
                raise UsageError(
                    f"{location.uri} is in the store as {known['name']!r}",
                    hint=f"hilm rm {known['name']} first",
                )
            return str(known["name"])
        if name is None:
            return free_name(location.uri, location.name, key, self.owners)
        if self.owners.get(name, key) != key:
            raise UsageError(f"another model in the store is called {name!r}", hint="give another --name")
        return name

    def _is_there(self, job: Job, key: bytes) -> bool:
        """Whether the store has what the job would make, of the model as it is now."""
        known = self._known.get(key)
        if known is None or self.force:
            return False
        with open_checkpoint(job.path) as checkpoint:
            if checkpoint.state.hex() != known["commit"]:
                return False
        if self.mode == "index":
            self.skipped[job.name] = {}
            return True
        for entry in self.store.catalog.rows("reels", {"entry_key": entry_key(job)}):
            if entry["content_key"] == known["content_key"] and (self.store.reels / entry["uri"]).is_file():
                self.skipped[job.name] = describe_entry(entry, self.store.reels, known)
                return True
        return False


def describe_entry(entry: Row, reels: Path, model: Row) -> dict[str, Any]:
    """What ``encode`` prints of one model."""
    return {
        "model": entry["name"],
        "reel": str(reels / entry["uri"]),
        "mode": entry["mode"],
        "parameters": model["parameters"],
        "values": entry["values"],
        "frames": entry["frames"],
        "bits_per_weight": entry["bits_per_value"],
        "bytes": entry["bytes"],
        "nmse": entry["nmse"],
        "seconds": 0.0,
    }


def free_name(uri: str, name: str, key: bytes, owners: Mapping[str, bytes]) -> str:
    """The model's own name, with as many folders before it as it takes to be the only one.

    On the Hub that is its id, and the commit after it if need be.
    """
    if is_remote(uri):
        address = uri.partition("://")[2]
        candidates = [_COMMIT.sub("", address), _COMMIT.sub(r"\1", address)]
    else:
        folders = Path(uri).parts[1:-1]
        candidates = ["/".join((*folders[start:], name)) for start in range(len(folders), -1, -1)]
    return next((c for c in candidates if owners.get(c, key) == key), uri)
