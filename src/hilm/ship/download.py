"""Download a repository at one commit, and check every byte of it."""

from __future__ import annotations

import hashlib
import json
import shutil
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hilm.errors import ChecksumMismatch, StorageError, UsageError
from hilm.files import write_file
from hilm.ship.card_rules import PICKLES
from hilm.ship.hub import attempt, client
from hilm.weights.hub_files import HubFile, cache_folder, locate_hub

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from os import PathLike

    from hilm.weights.hub_files import HubRepository

RECORD = "pull.json"
_OTHER_FORMATS = PICKLES | {".msgpack", ".h5"}
_PIECE = 4 << 20


def pull(
    repo_id: str,
    local_dir: str | PathLike[str] | None = None,
    *,
    revision: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    token: str | None = None,
    offline: bool | None = None,
) -> dict[str, Any]:
    """Fetch the files of a repository at one commit, and check them; what is there already is kept.

    Args:
        repo_id: ``owner/name``.
        local_dir: Folder to put the files in; the cache of the Hub's own client by default.
        revision: Branch, tag or commit.
        include: Patterns of file names; by default all, but of several formats only safetensors.
        exclude: Patterns of what to leave out.
        token: Instead of ``HF_TOKEN`` or the stored login.
        offline: Take what the cache has; as ``HF_HUB_OFFLINE`` says when None.

    Returns:
        ``repo``, ``commit``, ``path``, ``bytes``; ``files``: name, size, digest (``sha256:`` or ``git:``).

    Raises:
        UsageError: The patterns select nothing.
        ChecksumMismatch: A file was damaged on the way twice.
        StorageError: There is not enough room.
        NetworkError: The Hub does not have it, or does not answer.
    """
    repository = locate_hub(repo_id, revision=revision, token=token, offline=offline)
    files = select(repository.files.values(), include, exclude)
    if not files:
        raise UsageError(
            f"no file of {repo_id} is wanted", hint=f"it has {', '.join(sorted(repository.files)[:8])}"
        )
    folder = Path(local_dir) if local_dir is not None else None
    home = cache_folder() / f"models--{repo_id.replace('/', '--')}"
    path = folder or home / "snapshots" / repository.commit
    _obtain(repository, files, path, folder, token)
    document = {
        "repo": repo_id,
        "commit": repository.commit,
        "files": [{"name": f.name, "size": f.size, "digest": _digest(f)} for f in files],
        "bytes": sum(f.size for f in files),
    }
    if folder is not None:
        write_file(folder / RECORD, json.dumps(document, indent=2).encode())
    elif not repository.offline and revision != repository.commit:  # what the name meant, for offline use
        write_file(home / "refs" / (revision or "main"), repository.commit.encode())
    return document | {"path": str(path)}


def select(files: Iterable[HubFile], include: Sequence[str], exclude: Sequence[str]) -> list[HubFile]:
    """The files wanted, by name."""
    files = sorted(files, key=lambda file: file.name)
    if include:
        files = [file for file in files if any(fnmatchcase(file.name, pattern) for pattern in include)]
    elif any(file.name.endswith(".safetensors") for file in files):
        files = [file for file in files if Path(file.name).suffix not in _OTHER_FORMATS]
    return [file for file in files if not any(fnmatchcase(file.name, pattern) for pattern in exclude)]


def _drop_damaged(folder: Path, files: Sequence[HubFile]) -> list[HubFile]:
    """The files that are not what the Hub states; they are deleted, also what they link to."""
    damaged = [file for file in files if not is_intact(folder / file.name, file)]
    for file in damaged:
        (folder / file.name).resolve().unlink(missing_ok=True)
        (folder / file.name).unlink(missing_ok=True)
    return damaged


def is_intact(path: Path, file: HubFile) -> bool:
    """Whether a copy has the size and the digest that the Hub states."""
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    return not file.etag or content_id(path, large=bool(file.sha256)) == file.etag


def content_id(path: Path, *, large: bool) -> str:
    """What the Hub calls a file's content: SHA-256 of large ones, the Git blob id of others."""
    digest = (
        hashlib.sha256() if large else hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    )
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _check_room(files: Sequence[HubFile], folder: Path) -> None:
    place = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    needed, free = sum(file.size for file in files if file.path is None), shutil.disk_usage(place).free
    if needed > free:
        raise StorageError(
            f"{needed:,} bytes are to be fetched, {free:,} are free in {place}",
            hint="choose a larger disk with --local-dir, or fewer files with --include",
        )


def _obtain(
    repository: HubRepository,
    files: Sequence[HubFile],
    path: Path,
    folder: Path | None,
    token: str | None,
) -> None:
    """Have all files in ``path``, whole; what came damaged is fetched once more.

    Raises:
        ChecksumMismatch: It was damaged again.
    """
    damaged = files
    if not repository.offline:
        _check_room(files, folder or cache_folder())
        _fetch(repository, files, folder, token)
        if damaged := _drop_damaged(path, files):
            _fetch(repository, damaged, folder, token)
    if damaged := _drop_damaged(path, damaged):
        message = f"{damaged[0].name} of {repository.repo_id} does not match its digest"
        raise ChecksumMismatch(message, hint="pull it again")


def _digest(file: HubFile) -> str:
    return f"{'sha256' if file.sha256 else 'git'}:{file.etag}"


def _fetch(
    repository: HubRepository, files: Sequence[HubFile], folder: Path | None, token: str | None
) -> None:
    attempt(
        repository.repo_id,
        client(token).snapshot_download,
        repository.repo_id,
        revision=repository.commit,
        allow_patterns=[escape(file.name) for file in files],
        cache_dir=cache_folder(),
        local_dir=folder,
    )
