"""What a path, a Hub id or a URL means: the files of one checkpoint."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from hilm.errors import AuthRequired, NetworkError, NotACheckpoint, NotFound, StorageError, UsageError
from hilm.weights.places import HubPlace, LocalPlace, UrlPlace
from hilm.weights.weight_files import FORMATS, UNREAD, Location, choose, choose_file, suffix_of

if TYPE_CHECKING:
    from os import PathLike

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_HUB_URI = re.compile(
    r"hf://(?P<repo>[^/@]+(?:/[^/@]+)?)(?:@(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+))?(?:/(?P<inside>.+?))?/?"
)
_VARIANT = re.compile(r"[A-Za-z0-9_-]{1,64}")
_REMOTE = ("hf://", "http://", "https://")


def is_remote(target: str) -> bool:
    """Whether something is an address, not a path."""
    return target.startswith(_REMOTE)


def is_hub_id(target: str) -> bool:
    """Whether something can be the name of a repository on the Hub, and is not that of a weight file."""
    return bool(_HUB_ID.fullmatch(target)) and suffix_of(target) not in {*FORMATS, *UNREAD, ".json"}


def split_variant(target: str) -> tuple[str, str]:
    """An address and the variant behind its last ``#``; what exists as a path has none."""
    address, mark, variant = target.rpartition("#")
    if mark and _VARIANT.fullmatch(variant) and not os.path.exists(target):  # noqa: PTH110 - may be no path
        return address, variant
    return target, ""


def address_file(target: str, name: str) -> str:
    """The address of one file of a folder or repository."""
    if is_hub_id(target) and not os.path.exists(target):  # noqa: PTH110 - may be no path
        target = f"hf://{target}"
    return f"{target.rstrip('/')}/{name}"


def locate(
    target: str | PathLike[str],
    *,
    revision: str | None = None,
    token: str | None = None,
    offline: bool | None = None,
    weights_file: str | None = None,
    variant: str | None = None,
) -> Location:
    """Find the weight files of a folder, file, Hub id or URL. What exists as a path is one.

    Args:
        target: A path; ``organisation/name``; ``hf://organisation/name[@revision][/folder or file]``; each
            with ``#variant`` behind it if need be; a URL.
        revision: Branch, tag or commit on the Hub.
        token: For the Hub, instead of ``HF_TOKEN`` or the stored login.
        offline: Use the local cache of the Hub only; as ``HF_HUB_OFFLINE`` says when None.
        weights_file: The one file meant, of a folder or repository.
        variant: Take files that carry it in their names, as ``model.fp16.safetensors`` does.

    Raises:
        NotACheckpoint: There is nothing at ``target``, or no weights in it.
        UnsupportedFormat: Only weights of formats this version does not read.
        AmbiguousCheckpoint: Several files could be meant.
        MissingShard: An index, a shard's name or a pipeline promises files that are not there.
        UnsafePath: The index names a file outside the folder.
        CorruptCheckpoint: The index cannot be read.
        UsageError: A revision of something that is not on the Hub, or a variant of a file.
        NetworkError: The Hub does not have it; or does not answer, and the target can hardly be a path.
    """
    text = os.fspath(target)
    if variant is None:
        text, variant = split_variant(text)
    elif not _VARIANT.fullmatch(variant):
        raise UsageError(f"{variant[:80]!r} can be no variant", hint="a word such as fp16")
    if weights_file is not None:
        text = address_file(text, weights_file)
    try:
        folder, name = _find(text, revision, token, offline)
        if not name:
            return choose(folder, variant)
    except PermissionError as error:
        raise StorageError(f"{text}: {error.strerror}") from error
    if variant:
        raise UsageError(f"{text} is a file; it has no variants", hint="name its folder")
    found = choose_file(folder, name)
    return replace(found, uri=folder.place.label) if isinstance(folder.place, UrlPlace) else found


def _find(
    text: str,
    revision: str | None,
    token: str | None,
    offline: bool | None,  # noqa: FBT001 - passed on
) -> tuple[Location, str]:
    """The folder, and the name of the file in it if one is meant."""
    if text.startswith("hf://"):
        return _find_on_hub(text, revision, token, offline)
    if is_remote(text):
        return _find_url(text, offline)
    path = Path(text)
    if revision is None and path.exists():
        place = LocalPlace((path if path.is_dir() else path.parent).resolve())
        return Location(place.root.name, str(place.root), place), "" if path.is_dir() else path.name
    if not is_hub_id(text):
        raise NotACheckpoint(f"there is no file or folder {text!r}")
    try:
        return _find_on_hub(f"hf://{text}", revision, token, offline)
    except NetworkError as error:  # one word is a mistyped path more often than a Hub id
        message = f"there is no file or folder {text!r}; as a Hub id: {error.message}"
        if "/" not in text and not isinstance(error, NotFound | AuthRequired):
            raise NotACheckpoint(message, hint=error.hint) from error
        error.message, error.args = message, (message,)
        raise


def _find_on_hub(
    uri: str,
    revision: str | None,
    token: str | None,
    offline: bool | None,  # noqa: FBT001 - passed on
) -> tuple[Location, str]:
    from hilm.weights.hub_files import locate_hub  # noqa: PLC0415 - local files need no network code

    match = _HUB_URI.fullmatch(uri)
    if match is None or (revision and match["revision"]):
        raise UsageError(
            f"{uri[:200]!r} is not an address on the Hub", hint="hf://organisation/name@revision"
        )
    revision, inside = revision or unquote(match["revision"] or ""), match["inside"] or ""
    repository = locate_hub(match["repo"], revision=revision, token=token, offline=offline)
    is_file = inside in repository.files
    folder = inside.rpartition("/")[0] if is_file else inside
    place = HubPlace(repository, f"{folder}/" if folder else "")
    name = "/".join(filter(None, (match["repo"], folder)))
    found = Location(name, place.label, place, pinned=True, declared_base=repository.declared_base)
    return found, inside.rpartition("/")[2] if is_file else ""


def _find_url(url: str, offline: bool | None) -> tuple[Location, str]:  # noqa: FBT001 - passed on
    from hilm.weights.http_pool import Origin, shown  # noqa: PLC0415 - local files need no network code
    from hilm.weights.hub_files import is_offline  # noqa: PLC0415

    Origin.of(url)
    place = UrlPlace(url, shown(url), is_offline(asked=offline))
    (name,) = place.names()
    return Location(place.label.split("/")[-2], place.label.rpartition("/")[0], place), name
