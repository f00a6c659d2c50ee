"""The header of a safetensors file, parsed as if a stranger had written it.

Two readers must never see two models in one file, so everything the format leaves open is refused here:
repeated names, gaps, overlaps, trailing bytes, numbers that are no integers.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, NoReturn

from hilm.errors import HeaderError, MemoryLimitError, TruncatedFile
from hilm.weights.dtypes import ELEMENTS
from hilm.weights.tensor import Entry, Listing

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_HEADER = 100_000_000
MAX_TENSORS = 1_000_000
MAX_NAME = 4_096
MAX_RANK = 32
MAX_DEPTH = 4
MAX_METADATA = 16 << 20
HEADER_MEMORY = 1 << 30
"""Bytes the parsed header may take; parsing needs about twelve times the header's length."""

_PARSE_COST = 12
_PREFIX = 8
_HEAD_MIN = 2
_CONTROL = frozenset(map(chr, (*range(32), 127)))


def parse_header(read: Callable[[int, int], bytes], size: int) -> Listing:
    """Read and check a header before any tensor byte is touched.

    Args:
        read: ``read(start, stop)`` returns that byte range of the file.
        size: Length of the file in bytes.

    Raises:
        HeaderError: With a ``code`` naming the violated rule.
        TruncatedFile: The header is sound but the data it describes is cut off.
        MemoryLimitError: The header is too large to parse in bounded memory.
    """
    if size < _PREFIX:
        raise HeaderError("short", f"a safetensors file has at least {_PREFIX} bytes, this one {size}")
    length = int.from_bytes(read(0, _PREFIX), "little")
    if not _HEAD_MIN <= length <= MAX_HEADER:
        raise HeaderError("length", f"the header claims {length:,} bytes; 2 to {MAX_HEADER:,} are possible")
    if _PREFIX + length > size:
        raise HeaderError("length", f"the header claims {length:,} bytes, the file has {size:,} in all")
    if _PARSE_COST * length > HEADER_MEMORY:
        raise MemoryLimitError(f"parsing a {length:,}-byte header needs over {HEADER_MEMORY >> 20} MiB")
    table = _parse_json(read(_PREFIX, _PREFIX + length))
    metadata = _check_metadata(table.pop("__metadata__", {}))
    if len(table) > MAX_TENSORS:
        raise HeaderError("name", f"{len(table):,} tensors; at most {MAX_TENSORS:,} are read")
    start = _PREFIX + length
    entries = sorted((_check_entry(n, e, start) for n, e in table.items()), key=lambda e: (e.start, e.stop))
    _check_tiling(entries, start, size)
    return Listing(tuple(entries), metadata)


def _parse_json(raw: bytes) -> dict[str, Any]:
    if raw[:1] != b"{":
        raise HeaderError("start", f"the header starts with {raw[:1]!r} instead of '{{'")
    body = raw.rstrip(b" ")
    if body[-1:] != b"}":
        raise HeaderError("padding", "the header is padded with something other than spaces")
    try:
        table: dict[str, Any] = json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_float=_refuse_number,
            parse_constant=_refuse_number,
        )
    except UnicodeDecodeError as error:
        raise HeaderError("utf8", f"the header is not UTF-8 at byte {error.start}") from None
    except HeaderError:
        raise
    except ValueError as error:
        raise HeaderError("json", f"the header is not JSON: {error}") from None
    except RecursionError:
        raise HeaderError("json", "the header is nested too deeply") from None
    if _depth(table) > MAX_DEPTH:
        raise HeaderError("json", f"the header is nested more than {MAX_DEPTH} levels deep")
    return table


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise HeaderError("duplicate", f"{twice[:80]!r} stands twice, so two readers could see two models")
    return table


def _refuse_number(text: str) -> NoReturn:
    raise HeaderError("json", f"{text[:40]} is not an integer")


def _depth(value: Any) -> int:  # noqa: ANN401 - any JSON
    depth, level = 0, [value]
    while level and depth <= MAX_DEPTH:
        depth += 1
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
    return depth


def _check_metadata(metadata: object) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise HeaderError("metadata", "__metadata__ must map text to text")
    text = "".join(f"{key}{value}" for key, value in metadata.items())
    if len(text) > MAX_METADATA or not _is_unicode(text):
        raise HeaderError("metadata", f"__metadata__ is over {MAX_METADATA >> 20} MiB or not Unicode text")
    return metadata


def _check_entry(name: str, entry: object, data_start: int) -> Entry:
    check_name(name)
    if not isinstance(entry, dict) or not entry.keys() >= {"dtype", "shape", "data_offsets"}:
        raise HeaderError("entry", f"{name!r} lacks dtype, shape or data_offsets")
    dtype = ELEMENTS.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise HeaderError("dtype", f"{name!r} has the unknown dtype {str(entry['dtype'])[:40]!r}")
    shape = _integers(entry["shape"])
    if shape is None or len(shape) > MAX_RANK:
        raise HeaderError("shape", f"{name!r}: a shape is a list of at most {MAX_RANK} sizes")
    count = math.prod(shape) * dtype.values
    extent = math.prod(max(size, 1) for size in shape) * dtype.values // dtype.block * dtype.block_bytes
    if extent >= 1 << 63 or count % dtype.block:
        raise HeaderError("shape", f"{name!r} of shape {list(shape)} does not fill whole bytes below 2^63")
    offsets = _integers(entry["data_offsets"])
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise HeaderError("bounds", f"{name!r}: data_offsets must be a begin and an end")
    begin, end = offsets
    nbytes = dtype.nbytes(count)
    if end - begin != nbytes:
        raise HeaderError("size", f"{name!r} needs {nbytes:,} bytes, its offsets span {end - begin:,}")
    return Entry(name, dtype.name, shape, data_start + begin, data_start + end)


def check_name(name: str) -> None:
    """Refuse a tensor's name that is empty, over 4 KiB, no Unicode text, or holds control characters.

    Raises:
        HeaderError: With the code ``name``.
    """
    if not 1 <= len(name.encode("utf-8", "surrogatepass")) <= MAX_NAME:
        raise HeaderError("name", f"a name of {len(name):,} characters; 1 to {MAX_NAME} bytes are read")
    if not _CONTROL.isdisjoint(name) or not _is_unicode(name):
        raise HeaderError("name", f"the tensor name {name[:80]!r} holds control characters")


def _is_unicode(text: str) -> bool:
    """Whether no half of a surrogate pair stands alone."""
    return not any("\ud800" <= c <= "\udfff" for c in text)


def _integers(value: object) -> tuple[int, ...] | None:
    """The value as sizes, if it is a list of integers in [0, 2^63)."""
    if isinstance(value, list) and all(type(v) is int and 0 <= v < 1 << 63 for v in value):
        return tuple(value)
    return None


def _check_tiling(entries: list[Entry], data_start: int, size: int) -> None:
    """Tensors lie one behind the other from the first data byte to the last of the file."""
    position = data_start
    for entry in entries:
        if entry.start != position:
            beyond = "bounds" if entry.stop == entry.start > size else "hole"
            code = "overlap" if entry.start < position else beyond
            raise HeaderError(code, f"{entry.name!r} starts {abs(entry.start - position):,} bytes off")
        position = entry.stop
    if position > size:
        raise TruncatedFile(f"the header describes {position:,} bytes, the file has {size:,}")
    if position < size:
        raise HeaderError("trailing", f"{size - position:,} bytes after the last tensor belong to nothing")
