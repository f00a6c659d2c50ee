"""What a reel says about itself: the JSON manifest."""

from __future__ import annotations

import json
import math
import re
from hashlib import sha256
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, cast

from hilm.errors import HeaderError, UnsafePath, UnsupportedFormat, UnsupportedVersion
from hilm.reel.carrier import CARRIERS, LAYOUTS, SIDE
from hilm.reel.layout import CHUNK_ELEMENTS, SLAB_ELEMENTS, coded_view
from hilm.reel.schema import Coding, Manifest, find_fault, require

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from hilm.reel.schema import Sample, Tensor

MANIFEST_LIMIT: Final = 256 << 20

ROUNDING_CODERS: Final = ("tcq", "ecsq", "tcq-delta")
MAX_DEPTH: Final = 8
"""Deltas that may stand on each other."""

DELTA_CODERS: Final = ("tcq-delta", "worddiff", "same")
EXACT_CODERS: Final = ("symbols", "const", "raw")
"""Coders of slabs; a tensor is filed under the first that any of its slabs uses."""

_MODES = ("archive", "small", "delta", "sample")
_CODERS = {
    "archive": EXACT_CODERS,
    "small": ("tcq", "ecsq", *EXACT_CODERS),
    "delta": (*DELTA_CODERS, *EXACT_CODERS),
}
_MAX_NESTING = 16
_MAX_DIMENSIONS = 32
_MAX_NAME = 4096
_MAX_SAMPLE = 1 << 22

CODING: Final[Coding] = {
    "slab_elements": SLAB_ELEMENTS,
    "chunk_elements": CHUNK_ELEMENTS,
    "prob_bits": 12,
    "lanes": 8,
    "next": [[0, 1], [3, 2], [5, 4], [6, 7], [1, 0], [2, 3], [4, 5], [7, 6]],
}
"""What this version writes."""


def canonical_json(document: object) -> bytes:
    """Encode as UTF-8 with sorted keys and no spaces.

    Raises:
        HeaderError: ``document`` holds NaN, an infinity or text that is not Unicode.
    """
    try:
        text = json.dumps(
            document, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")
        )
        return text.encode()
    except ValueError as error:
        raise HeaderError("json", f"this cannot be written as JSON: {error}") from error


def tensor_digest(lines: Iterable[tuple[str, str, Sequence[int], str]]) -> str:
    """Hash a set of tensors independently of sharding, order and file format.

    Args:
        lines: name, dtype (safetensors spelling), shape and SHA-256 (hex) of the stored bytes of each.

    Returns:
        SHA-256, hex, over one canonical JSON line per tensor, sorted by UTF-8 name.
    """
    digest = sha256()
    for line in sorted(lines, key=lambda line: line[0]):  # by code point, which is the order of UTF-8
        digest.update(canonical_json(line) + b"\n")
    return digest.hexdigest()


def parse_manifest(raw: bytes) -> Manifest:
    """Read a manifest and check it by :func:`check_manifest`.

    Raises:
        HeaderError: It is too large or not JSON, or as :func:`check_manifest` says.
    """
    require(len(raw) <= MANIFEST_LIMIT, "limit", f"the manifest has {len(raw):,} bytes")
    try:
        document = json.loads(raw, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise HeaderError("limit", "the manifest nests too deeply") from error
    except ValueError as error:
        if isinstance(error, HeaderError):
            raise
        raise HeaderError("json", f"the manifest is not JSON: {error}") from error
    return check_manifest(document)


def check_manifest(document: object) -> Manifest:
    """Check a manifest by itself: types, limits, mode, names, aliases.

    Raises:
        HeaderError: It breaks a limit or contradicts itself.
        UnsupportedVersion: Its major version is not 1.
        UnsupportedFormat: A mode, carrier or element type this version does not read.
        UnsafePath: A source file name that points out of its folder.
    """
    _check_nesting(document)
    version = document.get("version") if isinstance(document, dict) else None
    if isinstance(version, list) and version[:1] != [1]:
        raise UnsupportedVersion(f"the manifest has version {version!r:.40}; this program reads 1")
    fault = find_fault(document, Manifest)
    require(fault is None, "type", f"manifest{fault}")
    manifest = cast("Manifest", document)
    mode, carrier = manifest["mode"], manifest["carrier"]
    if mode not in _MODES or carrier not in {"packed", *CARRIERS}:
        raise UnsupportedFormat(
            f"mode {mode!r:.40} with carrier {carrier!r:.40} is not known", hint="upgrade hilm"
        )
    _check_mode(manifest)
    _check_samples(manifest.get("samples", []))
    _check_tensors(manifest["tensors"], _CODERS.get(mode, ()))
    _check_base(manifest)
    _check_front(manifest)
    _check_carrier(manifest)
    if manifest["source"]:
        _check_names([file["name"] for file in manifest["source"]["files"]])
    return manifest


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    require(len(found) == len(pairs), "duplicate", "the manifest repeats a key")
    return found


def _refuse_constant(name: str) -> None:
    raise HeaderError("json", f"the manifest holds {name}, which is not JSON")


def _check_nesting(document: object) -> None:
    level: list[Any] = [document]
    for _ in range(_MAX_NESTING):
        members = [node.values() if isinstance(node, dict) else node for node in level if _nests(node)]
        level = [child for node in members for child in node if _nests(child)]
    require(not level, "limit", f"the manifest nests deeper than {_MAX_NESTING} levels")


def _nests(value: object) -> bool:
    return isinstance(value, list | dict)


def _check_mode(manifest: Manifest) -> None:
    coding = manifest["coding"]
    fixed = all(coding[key] == CODING[key] for key in ("chunk_elements", "prob_bits", "lanes", "next"))
    require(
        fixed and 0 < coding["slab_elements"] <= SLAB_ELEMENTS, "coding", f"cannot decode {coding!r:.200}"
    )
    require(manifest["generation"] > 0, "generation", "generations count from 1")
    if manifest["mode"] == "sample":
        require(not manifest["tensors"], "mode", "a sampled reel holds whole tensors")
    else:
        require(not manifest.get("samples"), "mode", "only a sampled reel holds samples")
        require(manifest["source"] is not None, "mode", "the source is not named")


def _check_base(manifest: Manifest) -> None:
    base, names = manifest["base"], {tensor["name"] for tensor in manifest["tensors"]}
    require((base is not None) == (manifest["mode"] == "delta"), "base", "a delta, and it alone, has a base")
    require(base is None or 1 <= base["depth"] <= MAX_DEPTH, "base", "too many deltas stand on each other")
    pinned = base["tensors"] if base else {}
    require(pinned.keys() <= names, "base", "a tensor of the base is compared with none")
    for tensor in manifest["tensors"]:
        sound = tensor["coder"] not in DELTA_CODERS or tensor.get("alias_of") or tensor["name"] in pinned
        require(bool(sound), "base", f"{tensor['name']}: a difference from a tensor that is not named")


def _check_samples(samples: list[Sample]) -> None:
    for before, sample in pairwise(samples):
        require(before["frame_index"] < sample["frame_index"], "order", "frames are out of order")
        require(before["grid_side"] == sample["grid_side"], "grid", "the samples have several grid sides")
    for sample in samples:
        side = sample["grid_side"]
        fits = side.bit_count() == 1 and 1 <= sample["fill"] <= min(side * side, _MAX_SAMPLE)
        require(fits, "grid", f"{sample['fill']} values do not fit a grid of side {side}")


def _check_front(manifest: Manifest) -> None:
    front = manifest["front"]
    if front is None:
        return
    even = front["width"] % 2 == front["height"] % 2 == 0 < front["width"] * front["height"]
    require(even and min(front["fps"]) > 0, "front", "the front video has an impossible geometry")
    if manifest["mode"] != "sample":
        names = {tensor["name"] for tensor in manifest["tensors"]}
        known = all(frame["tensor"] in names for frame in front["frames"])
        require(known, "front", "a frame shows a tensor that does not exist")


def _check_carrier(manifest: Manifest) -> None:
    carrier, companion, front = CARRIERS.get(manifest["carrier"]), manifest["companion"], manifest["front"]
    require(
        carrier is None or manifest["mode"] in {"archive", "small"}, "carrier", "no video carries this mode"
    )
    beside = carrier is not None and carrier.suffix != ""
    require((companion is not None) == beside, "carrier", "a companion is missing, or one too many")
    layouts = {tensor.get("layout", "flat") for tensor in manifest["tensors"]}
    require(layouts <= set(LAYOUTS), "layout", f"no layouts {layouts - set(LAYOUTS)}")
    if carrier is None:
        return
    video = companion or front
    kind = (carrier.codec, carrier.pixel_format)
    known = video is not None and (video["codec"], video["pixel_format"]) == kind
    require(known, "carrier", f"the video is not of {kind}")
    if companion is not None:
        if not re.fullmatch(r"[^/\\\0]+", companion["file"]) or companion["file"] in {".", ".."}:
            raise UnsafePath(f"companion name {companion['file']!r:.80} points out of its folder")
    elif front is not None:
        require(front["width"] == front["height"] == SIDE, "carrier", "the video has other frames")


def _check_tensors(tensors: list[Tensor], coders: tuple[str, ...]) -> None:
    for tensor in tensors:
        _check_tensor(tensor, coders)
    named = {tensor["name"]: tensor for tensor in tensors}
    require(len(named) == len(tensors), "duplicate", "a tensor occurs twice")
    settled: set[str] = set()
    for start in named:
        path: dict[str, None] = {}
        name: str | None = start
        while name is not None and name not in settled:
            require(name not in path, "alias", f"the alias {name!r:.80} leads back to itself")
            path[name] = None
            name = _alias_target(named[name], named)
        settled.update(path)


def _check_tensor(tensor: Tensor, coders: tuple[str, ...]) -> None:
    name, shape = tensor["name"], tensor["shape"]
    require(0 < len(name.encode()) <= _MAX_NAME, "name", f"a tensor name has {len(name.encode())} bytes")
    require(len(shape) <= _MAX_DIMENSIONS, "limit", f"{name} has {len(shape)} dimensions")
    require(math.prod(shape) < 1 << 63, "limit", f"{name} has too many elements")
    stored = math.prod(coded_view(tensor["dtype"], shape))
    require(tensor["nbytes"] == stored, "size", f"{name}: its shape has {stored:,} bytes, not nbytes")
    require(tensor["coder"] in coders, "coder", f"{name}: no coder {tensor['coder']!r:.40} in this mode")
    exact = tensor.get("sha256_source", tensor["sha256"]) == tensor["sha256"]
    require(
        exact or tensor["coder"] in ROUNDING_CODERS, "digest", f"{name}: an archived tensor has two digests"
    )
    require(exact != ("error" in tensor), "error", f"{name}: rounded weights and no error, or the other way")


def _alias_target(tensor: Tensor, named: dict[str, Tensor]) -> str | None:
    name = tensor.get("alias_of")
    if name is None:
        return None
    target = named.get(name)
    same = target is not None and all(tensor[key] == target[key] for key in ("dtype", "shape", "sha256"))
    require(same, "alias", f"{tensor['name']} is not equal to the tensor it is an alias of")
    require(not tensor["slabs"], "alias", f"the alias {tensor['name']} has slabs of its own")
    return name


def _check_names(files: list[str]) -> None:
    require(len(set(files)) == len(files), "duplicate", "a source file occurs twice")
    for name in files:
        outside = {"", ".", ".."} & set(re.split(r"[/\\]", name)) or re.match("[A-Za-z]:", name)
        if outside or "\0" in name:
            raise UnsafePath(f"source file name {name!r:.80} points out of its folder")
