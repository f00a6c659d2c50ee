"""Which files of a folder hold the weights: indexed, under a usual name, the only set, or part by part."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from hilm.errors import (
    AmbiguousCheckpoint,
    CorruptCheckpoint,
    MissingShard,
    NotACheckpoint,
    OfflineError,
    UnsafePath,
    UnsupportedFormat,
)
from hilm.weights.places import read_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from hilm.weights.places import Place

MAX_INDEX = 32 << 20
MAX_CONFIG = 4 << 20

FORMATS: Mapping[str, str] = MappingProxyType({
    ".safetensors": "safetensors", ".gguf": "gguf", ".onnx": "onnx",
    ".bin": "torch", ".pt": "torch", ".pth": "torch", ".ckpt": "torch",
})  # fmt: skip
"""Suffix of a weight file → its format."""

UNREAD = (".ort", ".h5", ".msgpack", ".tflite", ".npz")
"""Suffixes of weight files that are not read."""

INDEX = "model.safetensors.index.json"
PIPELINE = "model_index.json"
_ADAPTER = "adapter_model."
_INDEXES = {
    INDEX: ".safetensors",
    "diffusion_pytorch_model.safetensors.index.json": ".safetensors",
    "pytorch_model.bin.index.json": ".bin",
    "diffusion_pytorch_model.bin.index.json": ".bin",
}
_ONLY = {
    ".safetensors": (
        "model.safetensors",
        "diffusion_pytorch_model.safetensors",
        "adapter_model.safetensors",
    ),
    ".bin": ("pytorch_model.bin", "diffusion_pytorch_model.bin", "adapter_model.bin"),
    ".gguf": (),
    ".pt": (),
    ".onnx": ("model.onnx",),
}
"""Kinds of weights in the order they are preferred, and the names that count before any other."""

_KINDS = {".pth": ".pt", ".ckpt": ".pt"}
INDEX_NAME = re.compile(r".+\.index(\.[\w-]+)?\.json")
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.[a-z]+)")
_TORCH_SHARD = re.compile(r"pytorch_model-\d{5}-of-\d{5}\.bin")


@dataclass(frozen=True, slots=True)
class Location:
    """The files of one checkpoint.

    Attributes:
        name: What people call it: the folder's name, the file's without its suffix, the Hub id.
        uri: What names the checkpoint: path of its folder or one file, ``hf://…`` with the commit, URL.
        place: Where the files are.
        weights: Names of the weight files, in order; with the part's folder in a pipeline.
        shard_of: Tensor name → file name where an index says so, else empty.
        unused: Weight files beside these that are not part of the checkpoint.
        alone: Whether it is one file in a folder of strangers.
        pinned: Whether ``uri`` can only ever mean these bytes.
        declared_base: Models it says it was made from.
        kind: ``model``, ``adapter`` or ``pipeline``.
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
    kind: str = "model"

    @property
    def format(self) -> str:
        """Format of the weight files, in a pipeline of the first."""
        return FORMATS[suffix_of(self.weights[0])]


def suffix_of(name: str) -> str:
    """Suffix of a file name that may be no path."""
    return os.path.splitext(name)[1]  # noqa: PTH122 - may be no path


def choose_file(folder: Location, name: str) -> Location:
    """One file of a folder; the folder itself if that is what the file stands for.

    Raises:
        UnsupportedFormat: It is not a weight file.
        MissingShard: It is one of several that are not all there.
    """
    if name == PIPELINE:
        return choose(folder)
    if INDEX_NAME.fullmatch(name):
        return _follow_index(folder if name == INDEX else _at(folder, name), name)
    suffix = suffix_of(name)
    if suffix not in FORMATS:
        raise UnsupportedFormat(
            f"{folder.place.label}/{name} is not a weight file that is read here",
            hint=f"files that are read: {', '.join(sorted(FORMATS))}",
        )
    if name in _ONLY.get(suffix, ()):
        whole = choose(folder)
        if whole.weights == (name,):
            return whole
    found = replace(_at(folder, name), alone=True)
    shard = _SHARD.fullmatch(name)
    if shard and suffix == ".gguf":
        return replace(found, name=shard[1], weights=_complete_set(folder.place, [name]))
    return _take(replace(found, name=name.removesuffix(suffix)), [name])


def choose(folder: Location, variant: str = "") -> Location:
    """The weights of a folder, or of every part of a pipeline; safetensors before all else.

    Args:
        folder: Where to look.
        variant: Take the files that carry it in their names, as ``model.fp16.safetensors`` does.

    Raises:
        NotACheckpoint: There are no weights.
        UnsupportedFormat: There are, but in formats this version does not read.
        AmbiguousCheckpoint: Several files could be meant.
        MissingShard: An index, a shard's name or a pipeline promises files that are not there.
        UnsafePath: An index names a file outside the folder.
        CorruptCheckpoint: An index cannot be read.
        OfflineError: What is missing may be on the Hub.
    """
    if PIPELINE in folder.place.names():
        return _choose_parts(folder, variant)
    return _choose_set(folder, variant)


def _choose_set(folder: Location, variant: str) -> Location:
    """One set of weights: indexed, under a usual name, or the only one."""
    named = _without(folder.place.names(), variant)
    for kind, usual in _ONLY.items():
        for index in (i for i in _INDEXES if _INDEXES[i] == kind and i in named):
            return _follow_index(_at(folder, named[index]) if variant else folder, named[index])
        found = {plain: name for plain, name in named.items() if _kind(plain) == kind}
        chosen = [found[name] for name in usual if name in found][:1]
        if kind == ".bin" and not chosen:  # what else has this suffix is anything: arguments, optimizers
            found = {plain: name for plain, name in found.items() if _TORCH_SHARD.fullmatch(plain)}
        if found:
            chosen = chosen or [*_complete_set(folder.place, [*found.values()])]
            return _take(_at(folder, chosen[0]) if variant else folder, chosen)
    _refuse(folder.place, variant)
    return folder


def _choose_parts(folder: Location, variant: str) -> Location:
    """The weights of every part that a pipeline lists; tokenizers and the like have none."""
    place, files = folder.place, folder.place.deep_names()
    parts: dict[str, Location] = {}
    for part, made in read_json(place, PIPELINE, MAX_CONFIG).items():
        if not (isinstance(made, list) and made and all(isinstance(m, str) for m in made)):
            continue  # a setting, or a part that this pipeline does without
        require_inside(place, [part])
        held = [file.removeprefix(f"{part}/") for file in files if file.startswith(f"{part}/")]
        if not held:
            _refuse_missing(place, [f"{part}/"], f"a part that {PIPELINE} lists is missing")
        if "config.json" in held or any(_kind(name) in _ONLY for name in held):
            parts[part] = _choose_set(replace(folder, place=place.inside(part)), variant)
    if not parts:
        raise NotACheckpoint(f"{place.label}/{PIPELINE} lists no part that has weights")
    return replace(
        folder,
        uri=f"{folder.uri}#{variant}" if variant else folder.uri,
        weights=tuple(f"{part}/{name}" for part, found in parts.items() for name in found.weights),
        shard_of={
            f"{p}/{t}": f"{p}/{file}" for p, found in parts.items() for t, file in found.shard_of.items()
        },
        unused=tuple(f"{part}/{name}" for part, found in parts.items() for name in found.unused),
        kind="pipeline",
    )


def _without(names: Iterable[str], variant: str) -> dict[str, str]:
    """Names as they would be without the variant → names; those that do not carry it are left out."""
    mark = re.compile(rf"\.{re.escape(variant)}(?=[.-])" if variant else "$")
    return {mark.sub("", name, count=1): name for name in names if mark.search(name)}


def _at(folder: Location, name: str) -> Location:
    return replace(folder, uri=f"{folder.uri.rstrip('/')}/{name}")


def _take(folder: Location, chosen: Sequence[str]) -> Location:
    """The location with these weights; the other weight files of a folder are unused."""
    beside = () if folder.alone else folder.place.names()
    unused = tuple(name for name in beside if _kind(name) in _ONLY and name not in chosen)
    kind = "adapter" if chosen[0].startswith(_ADAPTER) else "model"
    return replace(folder, weights=tuple(chosen), unused=unused, kind=kind)


def _kind(name: str) -> str:
    suffix = suffix_of(name)
    return _KINDS.get(suffix, suffix)


def _refuse(place: Place, variant: str) -> None:
    """Say why there are no weights."""
    if place.offline:
        raise OfflineError(f"the weights of {place.label} are not in the local cache")
    names = place.names()
    if variant:
        weights = [name for name in names if _kind(name) in _ONLY]
        raise NotACheckpoint(
            f"no weights of {place.label} are called {variant!r}: {', '.join(weights[:6])}",
            hint="leave the variant out, or name a file of these",
        )
    others = [name for name in names if name.endswith((*UNREAD, ".bin"))]
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
    require_files(place, expected)
    return expected


def _follow_index(folder: Location, index: str) -> Location:
    place = folder.place
    shard_of = read_json(place, index, MAX_INDEX).get("weight_map")
    if not isinstance(shard_of, dict) or not all(isinstance(v, str) for v in shard_of.values()):
        raise CorruptCheckpoint(f"{place.label}/{index} has no weight_map of names to files")
    shards = sorted(set(shard_of.values()))
    require_inside(place, shards)
    for name in shards:
        if _kind(name) not in _ONLY:
            raise UnsupportedFormat(f"the index names {name[:80]!r}, which is not a weight file")
    require_files(place, shards)
    if not shards:
        raise NotACheckpoint(f"{place.label}/{index} names no weight file")
    return replace(_take(folder, shards), shard_of=shard_of)


def require_inside(place: Place, names: Iterable[str]) -> None:
    """Check names that a file gives of others beside it.

    Raises:
        UnsafePath: One is no plain name, or a link that leaves the folder.
    """
    for name in names:
        if not name or name in {".", ".."} or "/" in name or "\\" in name or "\0" in name:
            raise UnsafePath(f"{name[:80]!r} is not a plain file name")
        if not place.contains(name):
            raise UnsafePath(f"{name} is a link that leaves {place.label}")


def require_files(place: Place, names: Sequence[str]) -> None:
    """Check that files are there, where that can be known before they are opened.

    Raises:
        MissingShard: Some are not.
        OfflineError: Some are not in the local cache.
    """
    present = set(place.names()) if place.is_listed else set(names)
    missing = [name for name in names if name not in present]
    if missing:
        _refuse_missing(place, missing, f"{len(missing)} of {len(names)} weight files are missing")


def _refuse_missing(place: Place, missing: Sequence[str], found: str) -> None:
    shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if missing[5:] else "")
    if place.offline:
        raise OfflineError(f"{shown} of {place.label} is not in the local cache")
    raise MissingShard(f"{found} in {place.label}: {shown}")
