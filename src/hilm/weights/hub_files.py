"""A repository on the Hub at one commit: its files by ranges, or from the local snapshot cache."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hilm.errors import NetworkError, NotFound, OfflineError, StorageError, UsageError
from hilm.weights.byte_source import FileSource
from hilm.weights.http_get import get_bytes
from hilm.weights.http_pool import shown
from hilm.weights.http_source import HEAD, HttpSource
from hilm.weights.retry import PATIENCE

MAX_LISTING = 64 << 20
MAX_FILES = 100_000
SMALL = 16 << 20
"""Files that are not LFS are read whole on opening, up to this size: the Hub promises no ranges of them."""

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_REVISION = re.compile(r"(?!.*(?:\.\.|//|@\{))[A-Za-z0-9][\w./+-]{0,254}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TOKEN = re.compile(r"[!-~]+")
_TRUE = frozenset({"1", "ON", "YES", "TRUE"})


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a repository.

    Attributes:
        name: Path in the repository, with ``/``.
        size: In bytes.
        sha256: Of its content, in hexadecimal, where the Hub says so (large files).
        etag: What names its content: SHA-256 of large files, the Git blob id of others.
        path: Its copy in the local cache, if there is one.
    """

    name: str
    size: int
    sha256: str | None
    etag: str
    path: Path | None


class Secret:
    """A token that neither prints nor travels: pickled, it is empty, and the environment's is used."""

    __slots__ = ("value",)

    def __init__(self, value: str | None = None) -> None:
        self.value = value

    def __repr__(self) -> str:
        return "<token>" if self.value else "<no token>"

    def __reduce__(self) -> tuple[type[Secret], tuple[()]]:
        return Secret, ()


@dataclass(frozen=True, slots=True)
class HubRepository:
    """A repository at one commit; all URLs carry it, so that its files belong together.

    Attributes:
        repo_id: ``organisation/name`` or ``name``.
        commit: 40 hexadecimal digits.
        endpoint: The Hub, without a slash at the end.
        files: By name.
        offline: Only local copies are used.
        declared_base: Models that its card says it was made from.
        token: The one given by the caller.
    """

    repo_id: str
    commit: str
    endpoint: str
    files: dict[str, HubFile]
    offline: bool
    declared_base: tuple[str, ...] = ()
    token: Secret = field(default_factory=Secret, compare=False)

    def url(self, name: str) -> str:
        """Where the Hub answers for a file of this commit."""
        return f"{self.endpoint}/{self.repo_id}/resolve/{self.commit}/{quote(name)}"

    def open(self, name: str) -> FileSource | HttpSource:
        """Open one file: its local copy, or by ranges.

        Raises:
            NotFound: The commit has no such file.
            OfflineError: It is not in the local cache and the network may not be used.
            NetworkError: As ``HttpSource``.
        """
        file = self.files.get(name)
        if file is not None and file.path is not None:
            return FileSource.open(file.path)
        if self.offline:
            raise OfflineError(f"{name} of {self.repo_id} is not in the local cache")
        if file is None:
            raise NotFound(f"{self.repo_id} has no file {name!r} at {self.commit[:12]}")
        head = min(file.size, SMALL) if file.sha256 is None else HEAD
        headers = authorization(self.token.value)
        return HttpSource.open(self.url(name), headers=headers, size=file.size, etag=file.etag, head=head)


def locate_hub(
    repo_id: str, *, revision: str | None = None, token: str | None = None, offline: bool | None = None
) -> HubRepository:
    """Pin a revision of a model repository and list its files, in one request or, offline, none.

    Args:
        repo_id: ``organisation/name`` or ``name``.
        revision: Branch, tag or commit; ``main`` when None.
        token: Instead of ``HF_TOKEN`` or the stored login.
        offline: Use the local snapshot cache only; as ``HF_HUB_OFFLINE`` says when None.

    Raises:
        UsageError: No repository or revision can be called that, or the token is malformed.
        NotFound: There is no such repository or revision.
        AuthRequired: It is gated or private, or does not exist.
        OfflineError: Offline, and this revision is not in the cache.
        NetworkError: The Hub does not answer as needed.
    """
    revision = revision or "main"
    if not _REPOSITORY.fullmatch(repo_id) or not _REVISION.fullmatch(revision):
        raise UsageError(f"{repo_id!r} at {revision!r} is not a repository on the Hub")
    endpoint = hub_address()
    folder = cache_folder() / f"models--{repo_id.replace('/', '--')}"
    if is_offline(asked=offline):
        commit, files = _list_cached(repo_id, revision, folder)
        return HubRepository(repo_id, commit, endpoint, files, offline=True)
    url = f"{endpoint}/api/models/{repo_id}/revision/{quote(revision, safe='')}?blobs=true"
    raw = get_bytes(url, private=authorization(token), limit=MAX_LISTING, patience=PATIENCE)
    try:
        listing = json.loads(raw)
        commit, files = _parse_listing(listing, folder)
        base = _parse_base(listing)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise NetworkError(f"{shown(url)} does not answer with a listing of files") from None
    return HubRepository(
        repo_id, commit, endpoint, files, offline=False, declared_base=base, token=Secret(token)
    )


def authorization(token: str | None) -> dict[str, str]:
    """The header for a token: the one given, else ``HF_TOKEN``, else the stored login; empty without any.

    Raises:
        UsageError: The token holds characters that no token has.
    """
    if token is None and not is_true("HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        token = os.environ.get("HF_TOKEN") or _stored_token()
    token = (token or "").strip()
    if not token:
        return {}
    if not _TOKEN.fullmatch(token):
        raise UsageError("the Hub token holds blanks or characters that no token has")
    return {"Authorization": f"Bearer {token}"}


def is_true(variable: str) -> bool:
    """Whether an environment variable says yes, as the Hub's own client reads it."""
    return os.environ.get(variable, "").upper() in _TRUE


def is_offline(*, asked: bool | None = None) -> bool:
    """Whether the network may not be used: as asked, else as ``HF_HUB_OFFLINE`` says."""
    return is_true("HF_HUB_OFFLINE") if asked is None else asked


def hub_address() -> str:
    """The Hub, as ``HF_ENDPOINT`` names it, without a slash at the end."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def cache_folder() -> Path:
    """The snapshot cache of the Hub's own client, as the environment places it."""
    place = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(os.path.expandvars(place)).expanduser() if place else _hub_home() / "hub"


def _hub_home() -> Path:
    place = os.environ.get("HF_HOME") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    return Path(os.path.expandvars(place)).expanduser()


def token_path() -> Path:
    """Where the Hub's own client keeps the login."""
    place = os.environ.get("HF_TOKEN_PATH")
    return Path(os.path.expandvars(place)).expanduser() if place else _hub_home() / "token"


def _stored_token() -> str:
    path = token_path()
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError):
        raise StorageError(f"{path}: the stored login cannot be read", hint="hf auth login") from None


def _parse_listing(listing: Any, folder: Path) -> tuple[str, dict[str, HubFile]]:  # noqa: ANN401  parsed JSON
    """Check a listing and look each file up in the cache; ValueError and its kin for what is none."""
    commit, siblings = listing["sha"], listing["siblings"]
    if not _COMMIT.fullmatch(commit) or len(siblings) > MAX_FILES:
        raise ValueError
    files = {}
    for sibling in siblings:
        name, size = sibling["rfilename"], sibling["size"]
        large = sibling.get("lfs")
        sha256 = large["sha256"] if large else None
        etag = sha256 or sibling["blobId"]
        known = _SHA256.fullmatch(etag) if large else _COMMIT.fullmatch(etag)
        if not known or not _is_plain(name) or type(size) is not int or size < 0:
            raise ValueError
        files[name] = HubFile(name, size, sha256, etag, _cached(folder, commit, name, etag, size))
    return commit, files


def _parse_base(listing: Any) -> tuple[str, ...]:  # noqa: ANN401  parsed JSON
    """What the card gives as base models: one repository or several."""
    card = listing.get("cardData")
    base = card.get("base_model") if isinstance(card, dict) else None
    named = base if isinstance(base, list) else [base]
    return tuple(b for b in named if isinstance(b, str) and _REPOSITORY.fullmatch(b))


def _is_plain(name: object) -> bool:
    """Whether something is a file name that stays inside the repository."""
    if not isinstance(name, str) or not name.isprintable() or "\\" in name:
        return False
    return not {"", ".", ".."} & set(name.split("/"))


def _cached(folder: Path, commit: str, name: str, etag: str, size: int) -> Path | None:
    """A complete local copy: of this commit, or of the same content under another."""
    for path in (folder / "snapshots" / commit / name, folder / "blobs" / etag):
        if path.is_file() and path.stat().st_size == size:
            return path
    return None


def _list_cached(repo_id: str, revision: str, folder: Path) -> tuple[str, dict[str, HubFile]]:
    """What the snapshot cache holds of a revision."""
    commit = revision if _COMMIT.fullmatch(revision) else _pinned(folder / "refs" / revision)
    snapshot = folder / "snapshots" / commit
    if not commit or not snapshot.is_dir():
        raise OfflineError(f"{repo_id} at {revision} is not in the local cache {folder.parent}")
    paths = sorted(path for path in snapshot.rglob("*") if path.is_file())
    names = [path.relative_to(snapshot).as_posix() for path in paths]
    return commit, {name: _describe(name, path) for name, path in zip(names, paths, strict=True)}


def _pinned(ref: Path) -> str:
    """The commit a branch or tag meant when it was last fetched, or nothing."""
    commit = ref.read_text("utf-8").strip() if ref.is_file() else ""
    return commit if _COMMIT.fullmatch(commit) else ""


def _describe(name: str, path: Path) -> HubFile:
    """A cached file; what it links to is named after its ETag."""
    blob = path.resolve().name if path.is_symlink() else ""
    sha256 = blob if _SHA256.fullmatch(blob) else None
    return HubFile(name, path.stat().st_size, sha256, blob, path)
