"""Which files make up a checkpoint: from a path to a list of weight files."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hilm.errors import (
    AmbiguousCheckpoint,
    CorruptCheckpoint,
    MissingShard,
    NotACheckpoint,
    StorageError,
    UnsafePath,
    UnsupportedFormat,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike

MAX_INDEX = 32 << 20
MAX_CONFIG = 4 << 20

INDEX = "model.safetensors.index.json"
PREFERRED = ("model.safetensors", "adapter_model.safetensors")
_UNREAD = (".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".h5", ".msgpack")
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True, slots=True)
class Location:
    """The files of one checkpoint.

    Attributes:
        name: What people call it: the folder's name, or the file's without its suffix.
        path: What names the checkpoint: its folder, or the one file.
        root: The folder that holds the files.
        weights: Weight files, in name order.
        shard_of: Tensor name → file name where an index says so, else empty.
        unused: Weight files beside these that are not part of the checkpoint.
    """

    name: str
    path: Path
    root: Path
    weights: tuple[Path, ...]
    shard_of: Mapping[str, str]
    unused: tuple[str, ...] = ()


def locate(target: str | PathLike[str]) -> Location:
    """Find the weight files of a folder or file.

    Raises:
        NotACheckpoint: There is nothing at ``target``, or no weights in it.
        UnsupportedFormat: Only weights of formats this version does not read.
        AmbiguousCheckpoint: Several files could be meant.
        MissingShard: An index or shard name promises files that are not there.
        UnsafePath: The index names a file outside the folder.
        CorruptCheckpoint: The index cannot be read.
    """
    path = Path(target)
    try:
        if path.is_dir():
            return _locate_in(path.resolve())
        if path.is_file():
            return _locate_file(path)
    except PermissionError as error:
        raise StorageError(f"{path}: {error.strerror}") from error
    hint = NotACheckpoint.default_hint
    if _HUB_ID.fullmatch(str(target)) and not path.suffix:
        hint = f"if this is a Hub id, fetch it first: hf download {target} --local-dir {path.name}"
    raise NotACheckpoint(f"there is no file or folder {str(target)!r}", hint=hint)


def _locate_file(path: Path) -> Location:
    if path.name.endswith(".index.json"):
        return _locate_indexed(path.resolve())
    if path.suffix != ".safetensors":
        raise UnsupportedFormat(
            f"{path} is not a safetensors file", hint="convert it: safetensors.torch.save_file"
        )
    root = path.parent.resolve()
    file = root / path.name
    if path.name in PREFERRED:
        return Location(root.name, root, root, (file,), {})
    return Location(path.stem, file, root, (file,), {})


def _locate_in(folder: Path) -> Location:
    if (folder / INDEX).is_file():
        return _locate_indexed(folder / INDEX)
    found = sorted(p for p in folder.iterdir() if p.suffix == ".safetensors" and p.is_file())
    for preferred in PREFERRED:
        if folder / preferred in found:
            unused = tuple(p.name for p in found if p.name != preferred)
            return Location(folder.name, folder, folder, (folder / preferred,), {}, unused)
    if len(found) == 1 and not _SHARD.fullmatch(found[0].name):
        return Location(folder.name, folder, folder, (found[0],), {})
    if found:
        return Location(folder.name, folder, folder, _complete_set(folder, found), {})
    others = sorted(p.name for p in folder.iterdir() if p.suffix in _UNREAD)
    if others:
        raise UnsupportedFormat(
            f"{folder} holds {', '.join(others[:4])}; this version reads safetensors only",
            hint="save it once with model.save_pretrained(folder), which writes safetensors",
        )
    raise NotACheckpoint(f"{folder} holds no weights")


def _complete_set(folder: Path, found: list[Path]) -> tuple[Path, ...]:
    """Shards that name their own number, without an index."""
    matches = [_SHARD.fullmatch(p.name) for p in found]
    if not all(matches) or len({(m[1], m[3]) for m in matches if m}) != 1:
        names = ", ".join(p.name for p in found[:6])
        raise AmbiguousCheckpoint(f"{folder} holds several weight files: {names}")
    stem, count = next((m[1], m[3]) for m in matches if m)
    expected = [f"{stem}-{i:05d}-of-{count}.safetensors" for i in range(1, int(count) + 1)]
    _require_files(folder, expected)
    return tuple(folder / name for name in expected)


def _locate_indexed(index: Path) -> Location:
    folder = index.parent
    table = read_json(index, MAX_INDEX)
    shard_of = table.get("weight_map")
    if not isinstance(shard_of, dict) or not all(isinstance(v, str) for v in shard_of.values()):
        raise CorruptCheckpoint(f"{index} has no weight_map of names to files")
    names = sorted(set(shard_of.values()))
    for name in names:
        _check_inside(folder, name)
    _require_files(folder, names)
    if not names:
        raise NotACheckpoint(f"{index} names no weight file")
    others = sorted(p.name for p in folder.glob("*.safetensors") if p.name not in names)
    weights = tuple(folder / name for name in names)
    return Location(folder.name, folder, folder, weights, shard_of, tuple(others))


def _check_inside(folder: Path, name: str) -> None:
    """A shard is a bare file name; a link may lead into the Hub cache's own blob store, nowhere else."""
    if not name or name in {".", ".."} or "/" in name or "\\" in name or "\0" in name:
        raise UnsafePath(f"the index names {name[:80]!r}, which is not a plain file name")
    if not stays_inside(folder, folder / name):
        raise UnsafePath(f"{name} is a link that leaves {folder}")


def stays_inside(folder: Path, path: Path) -> bool:
    """Whether a path, links followed, lies in the folder or in the blobs of the Hub cache around it."""
    real = path.resolve()
    cache = folder.parent.parent / "blobs" if folder.parent.name == "snapshots" else folder
    return real.is_relative_to(folder) or real.is_relative_to(cache)


def _require_files(folder: Path, names: list[str]) -> None:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if missing[5:] else "")
        raise MissingShard(f"{len(missing)} of {len(names)} weight files are missing in {folder}: {shown}")


def read_json(path: Path, limit: int) -> dict[str, Any]:
    """Read a small JSON object.

    Raises:
        CorruptCheckpoint: It is larger than ``limit`` bytes or not a JSON object.
    """
    try:
        size = path.stat().st_size
        table = json.loads(path.read_bytes()) if size <= limit else None
    except (ValueError, RecursionError):
        table = None
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from error
    if not isinstance(table, dict):
        raise CorruptCheckpoint(f"{path} is not a JSON object of at most {limit >> 20} MiB")
    return table
