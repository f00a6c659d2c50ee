"""Which files make up a checkpoint: from a path, a Hub id or a URL to a list of weight files."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from hilm.errors import (
    AmbiguousCheckpoint,
    AuthRequired,
    CorruptCheckpoint,
    MissingShard,
    NetworkError,
    NotACheckpoint,
    NotFound,
    OfflineError,
    StorageError,
    UnsafePath,
    UnsupportedFormat,
    UsageError,
)
from hilm.weights.formats import FORMATS
from hilm.weights.places import HubPlace, LocalPlace, Place, UrlPlace, read_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

MAX_INDEX = 32 << 20
MAX_CONFIG = 4 << 20

INDEX = "model.safetensors.index.json"
_INDEXES = {INDEX: ".safetensors", "pytorch_model.bin.index.json": ".bin"}
_ONLY = {
    ".safetensors": ("model.safetensors", "adapter_model.safetensors"),
    ".bin": ("pytorch_model.bin", "adapter_model.bin"),
    ".gguf": (),
    ".pt": (),
}
"""Kinds of weights in the order they are preferred, and the names that count before any other."""

_KINDS = {".pth": ".pt", ".ckpt": ".pt"}
_UNREAD = (".onnx", ".ort", ".h5", ".msgpack", ".tflite", ".npz")
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.[a-z]+)")
_TORCH_SHARD = re.compile(r"pytorch_model-\d{5}-of-\d{5}\.bin")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_HUB_URI = re.compile(
    r"hf://(?P<repo>[^/@]+(?:/[^/@]+)?)(?:@(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+))?(?:/(?P<inside>.+?))?/?"
)
_REMOTE = ("hf://", "http://", "https://")


@dataclass(frozen=True, slots=True)
class Location:
    """The files of one checkpoint.

    Attributes:
        name: What people call it: the folder's name, the file's without its suffix, the Hub id.
        uri: What names the checkpoint: path of its folder or one file, ``hf://…`` with the commit, URL.
        place: Where the files are.
        weights: Names of the weight files, in order.
        shard_of: Tensor name → file name where an index says so, else empty.
        unused: Weight files beside these that are not part of the checkpoint.
        alone: Whether it is one file in a folder of strangers.
        pinned: Whether ``uri`` can only ever mean these bytes.
        declared_base: Models it says it was made from.
    """

    name: str
    uri: str
    place: Place
    weights: tuple[str, ...] = ()
    shard_of: Mapping[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    alone: bool = False
    pinned: bool = False
    declared_base: tuple[str, ...] = ()

    @property
    def format(self) -> str:
        """Format of the weight files."""
        return FORMATS[os.path.splitext(self.weights[0])[1]]  # noqa: PTH122 - may be no path


def is_remote(target: str) -> bool:
    """Whether something is an address, not a path."""
    return target.startswith(_REMOTE)


def is_hub_id(target: str) -> bool:
    """Whether something can be the name of a repository on the Hub, and is not that of a weight file."""
    suffix = os.path.splitext(target)[1]  # noqa: PTH122 - an id is no path
    return bool(_HUB_ID.fullmatch(target)) and suffix not in {*FORMATS, *_UNREAD, ".json"}


def locate(
    target: str | PathLike[str],
    *,
    revision: str | None = None,
    token: str | None = None,
    offline: bool | None = None,
) -> Location:
    """Find the weight files of a folder, file, Hub id or URL. What exists as a path is one.

    Args:
        target: A path; ``organisation/name``; ``hf://organisation/name[@revision][/folder or file]``; a URL.
        revision: Branch, tag or commit on the Hub.
        token: For the Hub, instead of ``HF_TOKEN`` or the stored login.
        offline: Use the local cache of the Hub only; as ``HF_HUB_OFFLINE`` says when None.

    Raises:
        NotACheckpoint: There is nothing at ``target``, or no weights in it.
        UnsupportedFormat: Only weights of formats this version does not read.
        AmbiguousCheckpoint: Several files could be meant.
        MissingShard: An index or shard name promises files that are not there.
        UnsafePath: The index names a file outside the folder.
        CorruptCheckpoint: The index cannot be read.
        UsageError: A revision of something that is not on the Hub.
        NetworkError: The Hub does not have it; or does not answer, and the target can hardly be a path.
    """
    text = os.fspath(target)
    if text.startswith("hf://"):
        return _locate_on_hub(text, revision, token, offline)
    if is_remote(text):
        return _locate_url(text, offline)
    path = Path(target)
    try:
        if revision is None and path.is_dir():
            place = LocalPlace(path.resolve())
            return _choose(Location(place.root.name, str(place.root), place))
        if revision is None and path.is_file():
            return _locate_file(path)
    except PermissionError as error:
        raise StorageError(f"{path}: {error.strerror}") from error
    if not is_hub_id(text):
        raise NotACheckpoint(f"there is no file or folder {text!r}")
    return _ask_hub(text, revision, token, offline=offline)


def _ask_hub(text: str, revision: str | None, token: str | None, *, offline: bool | None) -> Location:
    """Take what is no path for a Hub id; one word is a mistyped path more often than that."""
    try:
        return _locate_on_hub(f"hf://{text}", revision, token, offline)
    except NetworkError as error:
        message = f"there is no file or folder {text!r}; as a Hub id: {error.message}"
        if "/" not in text and not isinstance(error, NotFound | AuthRequired):
            raise NotACheckpoint(message, hint=error.hint) from error
        error.message, error.args = message, (message,)
        raise


def _locate_file(path: Path) -> Location:
    place = LocalPlace(path.parent.resolve())
    return _in_folder(Location(place.root.name, str(place.root), place), path.name)


def _in_folder(folder: Location, name: str) -> Location:
    """One file of a folder; the folder itself if that is what the file stands for."""
    if name.endswith(".index.json"):
        return _follow_index(folder, name)
    stem, suffix = os.path.splitext(name)  # noqa: PTH122 - may be no path
    if suffix not in FORMATS:
        raise UnsupportedFormat(
            f"{folder.place.label}/{name} is not a weight file that is read here",
            hint=f"files that are read: {', '.join(sorted(FORMATS))}",
        )
    if name in _ONLY.get(suffix, ()):
        whole = _choose(folder)
        if whole.weights == (name,):
            return whole
    shard = _SHARD.fullmatch(name)
    if shard and suffix == ".gguf":
        weights = _complete_set(folder.place, [name])
        return replace(folder, name=shard[1], uri=_inside(folder.uri, name), weights=weights, alone=True)
    return replace(folder, name=stem, uri=_inside(folder.uri, name), weights=(name,), alone=True)


def _inside(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}"


def _locate_on_hub(
    uri: str,
    revision: str | None,
    token: str | None,
    offline: bool | None,  # noqa: FBT001 - passed on
) -> Location:
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
    return _in_folder(found, inside.rpartition("/")[2]) if is_file else _choose(found)


def _locate_url(url: str, offline: bool | None) -> Location:  # noqa: FBT001 - passed on
    from hilm.weights.http_pool import Origin, shown  # noqa: PLC0415 - local files need no network code
    from hilm.weights.hub_files import is_true  # noqa: PLC0415

    Origin.of(url)
    place = UrlPlace(url, shown(url), is_true("HF_HUB_OFFLINE") if offline is None else offline)
    (name,) = place.names()
    return _in_folder(Location(name, place.label.rpartition("/")[0], place), name)


def _choose(folder: Location) -> Location:
    """The weights of a folder: indexed, under a usual name, the only set; safetensors before all else."""
    names = folder.place.names()
    weights = [n for n in names if _kind(n) in _ONLY]
    for kind, usual in _ONLY.items():
        for index in (i for i in _INDEXES if _INDEXES[i] == kind and i in names):
            return _follow_index(folder, index)
        found = [n for n in weights if _kind(n) == kind]
        for name in (n for n in usual if n in found):
            return replace(folder, weights=(name,), unused=_others(weights, [name]))
        if kind == ".bin":  # what else has this suffix is anything: training arguments, optimizers
            found = [n for n in found if _TORCH_SHARD.fullmatch(n)]
        if found:
            chosen = _complete_set(folder.place, found)
            return replace(folder, weights=chosen, unused=_others(weights, chosen))
    _refuse(folder.place, names)
    return folder


def _kind(name: str) -> str:
    suffix = os.path.splitext(name)[1]  # noqa: PTH122 - may be no path
    return _KINDS.get(suffix, suffix)


def _others(weights: list[str], chosen: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in weights if name not in chosen)


def _refuse(place: Place, names: list[str]) -> None:
    """Say why there are no weights."""
    if place.offline:
        raise OfflineError(f"the weights of {place.label} are not in the local cache")
    others = [name for name in names if name.endswith((*_UNREAD, ".bin"))]
    if others:
        raise UnsupportedFormat(
            f"{place.label} holds {', '.join(others[:4])}; this version reads {', '.join(sorted(FORMATS))}",
            hint="name the file itself if it holds weights, or save the model as safetensors",
        )
    raise NotACheckpoint(f"{place.label} holds no weights")


def _complete_set(place: Place, found: list[str]) -> tuple[str, ...]:
    """The only file, or shards that name their own number, without an index."""
    matches = [m for name in found if (m := _SHARD.fullmatch(name))]
    if len(found) == 1 and not matches:
        return tuple(found)
    if len(matches) != len(found) or len({(m[1], m[3], m[4]) for m in matches}) != 1:
        raise AmbiguousCheckpoint(f"{place.label} holds several weight files: {', '.join(found[:6])}")
    stem, count, suffix = matches[0][1], int(matches[0][3]), matches[0][4]
    expected = tuple(f"{stem}-{i:05d}-of-{count:05d}{suffix}" for i in range(1, count + 1))
    _require_files(place, expected)
    return expected


def _follow_index(folder: Location, index: str) -> Location:
    place = folder.place
    shard_of = read_json(place, index, MAX_INDEX).get("weight_map")
    if not isinstance(shard_of, dict) or not all(isinstance(v, str) for v in shard_of.values()):
        raise CorruptCheckpoint(f"{place.label}/{index} has no weight_map of names to files")
    shards = sorted(set(shard_of.values()))
    for name in shards:
        if not name or name in {".", ".."} or "/" in name or "\\" in name or "\0" in name:
            raise UnsafePath(f"the index names {name[:80]!r}, which is not a plain file name")
        if not place.contains(name):
            raise UnsafePath(f"{name} is a link that leaves {place.label}")
        if _kind(name) not in _ONLY:
            raise UnsupportedFormat(f"the index names {name[:80]!r}, which is not a weight file")
    _require_files(place, shards)
    if not shards:
        raise NotACheckpoint(f"{place.label}/{index} names no weight file")
    unused = _others([n for n in place.names() if _kind(n) in _ONLY], shards)
    return replace(folder, weights=tuple(shards), shard_of=shard_of, unused=unused)


def _require_files(place: Place, names: Sequence[str]) -> None:
    present = set(place.names())
    missing = [name for name in names if name not in present]
    if not missing:
        return
    shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if missing[5:] else "")
    if place.offline:
        raise OfflineError(f"{shown} of {place.label} is not in the local cache")
    raise MissingShard(f"{len(missing)} of {len(names)} weight files are missing in {place.label}: {shown}")
