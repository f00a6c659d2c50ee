"""The schema of a reel's manifest, and whether a document has its shape.

The typed dictionaries below are the schema, and the structural checks are derived from them. Keys they do
not know are kept, and ignored.
"""

from __future__ import annotations

import math
import re
from functools import cache
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    NotRequired,
    TypedDict,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from hilm.errors import HeaderError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# An annotation beside a type is one more check: a pattern for text, a length for lists.
_Sha256 = Annotated[str, "[0-9a-f]{64}"]
_Crc = Annotated[str, "0x[0-9a-f]{8}"]
_Pair = Annotated[list[int], 2]
_Slab = Annotated[list[int], 4]


class Coding(TypedDict):
    """Constants of the entropy coder a reader must agree with."""

    slab_elements: int
    chunk_elements: int
    prob_bits: int
    lanes: int
    next: Annotated[list[_Pair], 8]


class SourceFile(TypedDict):
    """A file; its segments concatenated rebuild it byte for byte.

    ``sha256`` is that of the rebuilt file; where weights were rounded, ``sha256_source`` is the source's.
    """

    name: str
    size: int
    sha256: _Sha256
    sha256_source: NotRequired[_Sha256]
    segments: list[list[Any]]  # ["blob", first record, records] or ["tensor", name]


class Source(TypedDict):
    """The checkpoint a reel was made from."""

    digest: _Sha256
    content_key: _Sha256
    files: list[SourceFile]
    metadata: dict[str, str]


class Frame(TypedDict):
    """One picture of the front video; ``scale`` is the weight of 24 grey levels."""

    tensor: str
    scale: float
    sampled: bool


class Pinned(TypedDict):
    """The base of a delta.

    ``depth`` counts the deltas that stand on each other, this one included; ``hint`` is a name for people;
    ``tensors`` are those used, with their SHA-256.
    """

    depth: int
    digest: _Sha256
    hint: str
    tensors: dict[str, _Sha256]
    content_key: NotRequired[_Sha256]


class Front(TypedDict):
    """The video in front: bytes 0 … size - 1 of the file."""

    size: int
    crc32c: _Crc
    codec: str
    pixel_format: str
    width: int
    height: int
    fps: _Pair
    frames: list[Frame]


class Companion(TypedDict):
    """The video beside the reel that carries its symbols; ``extradata`` is what its decoder needs, in hex."""

    file: str
    size: int
    sha256: _Sha256
    codec: str
    pixel_format: str
    extradata: Annotated[str, "([0-9a-f]{2})*"]


class Error(TypedDict):
    """How far the weights of a tensor lie from the source's; ``max_abs`` in weight units.

    ``energy_lost`` is the share of the energy of a rounded difference.
    """

    nmse: float
    max_abs: float
    cosine: float
    energy_lost: NotRequired[float]


class Tensor(TypedDict):
    """One tensor. Slabs are [begin, end, first record, records], in rows of the view or in elements.

    ``coder`` is the first of ``tcq``, ``ecsq``, ``tcq-delta``, ``worddiff``, ``same``, ``symbols``,
    ``const``, ``raw`` that any slab uses; ``raw`` without slabs. ``layout`` is that of the slabs a video
    carries, ``layout_gain`` the percentage of their bytes it saved. ``sha256`` is that of the decoded bytes;
    where they are not the source's, ``sha256_source`` is that of the source, and ``error`` says how they
    differ.
    """

    name: str
    dtype: str
    shape: list[int]
    nbytes: int
    coder: str
    slabs: list[_Slab]
    sha256: _Sha256
    bits: int
    alias_of: NotRequired[str | None]
    unit: NotRequired[Annotated[str, "element"]]
    layout: NotRequired[str]
    layout_gain: NotRequired[float]
    sha256_source: NotRequired[_Sha256]
    error: NotRequired[Error]
    column_gain: NotRequired[None]


class Sample(TypedDict):
    """One frame of sampled values: a slab [1, fill] of F32 at ``record``, its chunks of kind SAMPLES."""

    frame_index: int
    model_id: str
    original_parameter_count: int
    frame_timestamp: float
    model_metadata: dict[str, Any]
    grid_side: int
    fill: int
    scale: float
    rule: dict[str, Any]
    record: int
    source_digest: _Sha256
    deleted: bool
    chunk_id: NotRequired[int]
    layer_name: NotRequired[str]
    layer_type: NotRequired[str]
    parameter_count: NotRequired[int]
    chunk_size: NotRequired[int]
    start_index: NotRequired[int]
    end_index: NotRequired[int]


class Totals(TypedDict):
    """Counts and bytes; the last two are filled in when the reel is finished.

    ``nmse`` is the mean over the rounded tensors, by their number of weights.
    """

    weights: int
    bytes_source: int
    nmse: NotRequired[float]
    bytes_payload: NotRequired[int]
    bits_per_weight: NotRequired[float]


class Manifest(TypedDict):
    """The whole manifest. ``source`` is null in sampled reels: each sample names its own."""

    format: Annotated[str, "hilm-reel"]
    version: _Pair
    mode: str
    carrier: str
    generation: int
    writer: dict[str, str]
    settings: dict[str, Any]
    coding: Coding
    source: Source | None
    base: Pinned | None
    companion: Companion | None
    front: Front | None
    tensors: list[Tensor]
    totals: Totals
    samples: NotRequired[list[Sample]]


def require(condition: bool, code: str, message: str) -> None:  # noqa: FBT001 - reads like assert
    """Raise a HeaderError of this code unless the condition holds."""
    if not condition:
        raise HeaderError(code, message)


def find_fault(value: Any, kind: Any) -> str | None:  # noqa: ANN401 - JSON against a type expression
    """Say where and how a value departs from a type; None if it does not."""
    origin, arguments, members, required = _anatomy(kind)
    if origin is Annotated:
        return find_fault(value, arguments[0]) or _violation(value, arguments[1])
    if origin is UnionType and value is not None:  # T | None
        return find_fault(value, arguments[0])
    if origin is UnionType or kind in _SCALARS:
        name, matches = _SCALARS[NoneType if origin else kind]
        return None if matches(value) else f" is not {name}"
    if not isinstance(value, origin or dict):
        return " is not a list" if origin is list else " is not an object"
    if required and (missing := required - value.keys()):
        return f" lacks {min(missing)}"
    parts: Iterable[tuple[Any, Any]] = value.items() if isinstance(value, dict) else enumerate(value)
    faults = (
        (key, find_fault(part, members.get(key, Any) if members else arguments[-1])) for key, part in parts
    )
    return next((f"[{key!r:.80}]{fault}" for key, fault in faults if fault), None)


def _is_text(value: object) -> bool:
    """Whether it is a string of Unicode characters: JSON can also spell halves of them."""
    return type(value) is str and (value.isascii() or value.encode(errors="replace").decode() == value)


_SCALARS: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    Any: ("", lambda _: True),
    NoneType: ("null", lambda value: value is None),
    bool: ("true or false", lambda value: type(value) is bool),
    str: ("text", _is_text),
    int: ("a count", lambda value: type(value) is int and 0 <= value < 1 << 63),
    float: ("a finite number ≥ 0", lambda value: type(value) in {int, float} and 0 <= value < math.inf),
}


@cache
def _anatomy(kind: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any], set[str]]:  # noqa: ANN401
    """Take a type apart: origin, arguments and, of a typed dictionary, all members and those required."""
    if not is_typeddict(kind):
        return get_origin(kind), get_args(kind), {}, set()
    hints = get_type_hints(kind, include_extras=True)
    optional = {name for name, hint in hints.items() if get_origin(hint) is NotRequired}
    members = {name: get_args(hint)[0] if name in optional else hint for name, hint in hints.items()}
    return None, (), members, hints.keys() - optional


def _violation(value: Any, constraint: str | int) -> str | None:  # noqa: ANN401
    if isinstance(constraint, int):
        return None if len(value) == constraint else f" has not {constraint} items"
    return None if re.fullmatch(constraint, value) else f" does not match {constraint}"
