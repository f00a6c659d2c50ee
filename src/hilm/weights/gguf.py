"""The header of a GGUF file, parsed by ranges as if a stranger had written it."""

from __future__ import annotations

import json
import math
import struct
from typing import TYPE_CHECKING, NoReturn

from hilm.errors import HeaderError, PackedFormatUnsupported, TruncatedFile
from hilm.weights.cursor import Cursor
from hilm.weights.gguf_blocks import BLOCK_TYPES, BlockType
from hilm.weights.safetensors import MAX_METADATA, MAX_TENSORS, check_name
from hilm.weights.tensor import Entry, Listing

if TYPE_CHECKING:
    from collections.abc import Callable

    Read = Callable[[int, int], bytes]

MAX_HEADER = 512 << 20
MAX_KEYS = 65_536
MAX_KEY = 65_535
MAX_STRING = 16 << 20
MAX_RANK = 4
ALIGNMENTS = frozenset(1 << power for power in range(3, 17))

_DEFAULT_ALIGNMENT = 32
_FIRST_WINDOW = 1 << 20
_LAST_WINDOW = 16 << 20
_VERSIONS = (2, 3)

_NUMBERS = {
    number: struct.Struct(f"<{letter}")
    for number, letter in {
        0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
    }.items()
}  # fmt: skip
_KEPT = ("general.", "split.")
_UINT32, _BOOL, _STRING, _ARRAY = 4, 7, 8, 9


def parse_gguf(read: Read, size: int) -> Listing:
    """Read and check the header of a GGUF file of version 2 or 3, before any tensor byte is touched.

    Of the metadata ``general.*``, ``split.*`` and ``*.block_count`` are kept, as text, what is no text as
    JSON; tokenizers and the like are skipped.

    Args:
        read: ``read(start, stop)`` returns that byte range of the file.
        size: Length of the file in bytes.

    Raises:
        HeaderError: With a ``code`` naming the violated rule, ``gguf-…``.
        TruncatedFile: The header, or the data it describes, is cut off.
        PackedFormatUnsupported: A tensor is of a type whose size is unknown.
    """
    cursor = _Cursor(read, size, _FIRST_WINDOW, _LAST_WINDOW)
    tensors, keys = _read_counts(cursor)
    metadata = _read_metadata(cursor, keys)
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment not in ALIGNMENTS:
        raise HeaderError("gguf-alignment", f"tensors are aligned to {str(alignment)[:40]}")
    described = [_read_tensor(cursor) for _ in range(tensors)]
    start = -(-cursor.at // alignment) * alignment
    entries = sorted((_place(d, start, alignment) for d in described), key=lambda e: (e.start, e.stop))
    _check_spans(entries, size)
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    return Listing(tuple(entries), texts)


class _Cursor(Cursor):
    def skip(self, count: int) -> int:
        """Move on and return where it was."""
        start = super().skip(count)
        if self.at > MAX_HEADER:
            raise HeaderError("gguf-length", f"the header is longer than {MAX_HEADER >> 20} MiB")
        return start

    def length(self, limit: int) -> int:
        """Read the length of a text."""
        length = self.integer(8)
        if length > limit:
            raise HeaderError("gguf-string", f"a text of {length:,} bytes; at most {limit:,} are read")
        return length

    def text(self, limit: int) -> str:
        """Read a text of at most ``limit`` bytes."""
        try:
            return self.take(self.length(limit)).decode()
        except UnicodeDecodeError:
            raise HeaderError("gguf-string", "a text of the header is not UTF-8") from None


def _read_counts(cursor: _Cursor) -> tuple[int, int]:
    """Check magic and version; return the numbers of tensors and of keys."""
    if cursor.size < 4 or cursor.take(4) != b"GGUF":
        raise HeaderError("gguf-magic", "the file does not start with GGUF")
    version = cursor.integer(4)
    if version not in _VERSIONS:
        big = version and not version & 0xFFFF
        kind = "big-endian GGUF" if big else f"GGUF of version {version}"
        raise HeaderError("gguf-version", f"{kind} is not read, only versions 2 and 3, little-endian")
    tensors, keys = cursor.integer(8), cursor.integer(8)
    if tensors > MAX_TENSORS or keys > MAX_KEYS:
        raise HeaderError("gguf-count", f"{tensors:,} tensors and {keys:,} keys are claimed")
    return tensors, keys


def _read_metadata(cursor: _Cursor, count: int) -> dict[str, object]:
    metadata: dict[str, object] = {}
    seen: set[str] = set()
    kept = 0
    for _ in range(count):
        key = cursor.text(MAX_KEY)
        if key in seen or not key:
            raise HeaderError("gguf-key", f"the key {key[:80]!r} is empty or stands twice")
        seen.add(key)
        kind, start = cursor.integer(4), cursor.at
        if not key.startswith(_KEPT) and not key.endswith(".block_count"):
            _skip_value(cursor, kind)
            continue
        if key == "general.alignment" and kind != _UINT32:
            raise HeaderError("gguf-alignment", "the alignment is no 32-bit unsigned integer")
        metadata[key] = _read_value(cursor, kind)
        kept += cursor.at - start
        if kept > MAX_METADATA:
            raise HeaderError("gguf-value", f"general.* is over {MAX_METADATA >> 20} MiB")
    return metadata


def _read_value(cursor: _Cursor, kind: int) -> object:
    if kind == _STRING:
        return cursor.text(MAX_STRING)
    if kind != _ARRAY:
        return _read_number(cursor, kind)
    item, count = cursor.integer(4), cursor.integer(8)
    if item == _ARRAY or count > MAX_KEYS:
        raise HeaderError("gguf-value", f"an array of {count:,} items of kind {item} among general.*")
    return [_read_value(cursor, item) for _ in range(count)]


def _read_number(cursor: _Cursor, kind: int) -> object:
    if kind not in _NUMBERS:
        _refuse_kind(kind)
    raw = cursor.take(_NUMBERS[kind].size)
    if kind == _BOOL and raw > b"\1":
        raise HeaderError("gguf-value", f"a truth value is stored as {raw[0]}")
    value: object = _NUMBERS[kind].unpack(raw)[0]
    return value


def _skip_value(cursor: _Cursor, kind: int, depth: int = 0) -> None:
    """Walk over a value; arrays may stand in arrays once."""
    if kind == _STRING:
        cursor.skip(cursor.length(MAX_STRING))
    elif kind in _NUMBERS:
        cursor.skip(_NUMBERS[kind].size)
    elif kind == _ARRAY and depth < 2:
        item, count = cursor.integer(4), cursor.integer(8)
        if item in _NUMBERS:
            cursor.skip(count * _NUMBERS[item].size)
        else:
            for _ in range(count):
                _skip_value(cursor, item, depth + 1)
    else:
        _refuse_kind(kind)


def _refuse_kind(kind: int) -> NoReturn:
    what = "arrays are nested too deeply" if kind == _ARRAY else f"a value is of the unknown kind {kind}"
    raise HeaderError("gguf-value", what)


def _read_tensor(cursor: _Cursor) -> tuple[str, tuple[int, ...], BlockType, int]:
    name = cursor.text(MAX_STRING)
    check_name(name)
    rank = cursor.integer(4)
    if rank > MAX_RANK:
        raise HeaderError("gguf-shape", f"{name!r} has {rank:,} dimensions; at most {MAX_RANK} are possible")
    shape = tuple(cursor.integer(8) for _ in range(rank))[::-1]
    number = cursor.integer(4)
    if number not in BLOCK_TYPES:
        raise PackedFormatUnsupported(f"{name!r} is stored in the unknown type number {number}")
    return name, shape, BLOCK_TYPES[number], cursor.integer(8)


def _place(described: tuple[str, tuple[int, ...], BlockType, int], data_start: int, alignment: int) -> Entry:
    name, shape, kind, offset = described
    extent = math.prod(max(size, 1) for size in shape) * kind.nbytes
    if max(*shape, extent, 0) >= 1 << 63:
        raise HeaderError("gguf-shape", f"{name!r} of shape {list(shape)} does not fit 2^63 bytes")
    if (shape[-1] if shape else 1) % kind.values:
        raise HeaderError("gguf-shape", f"{name!r}: rows are not whole {kind.name} blocks of {kind.values}")
    if offset % alignment:
        raise HeaderError("gguf-span", f"{name!r} is not aligned to {alignment} bytes")
    start = data_start + offset
    return Entry(name, kind.name, shape, start, start + math.prod(shape) // kind.values * kind.nbytes)


def _check_spans(entries: list[Entry], size: int) -> None:
    """Names are unique; spans are disjoint and inside the file."""
    names: set[str] = set()
    position = 0
    for entry in entries:
        if entry.name in names:
            raise HeaderError("gguf-duplicate", f"two tensors are named {entry.name!r}")
        names.add(entry.name)
        if entry.start < position and entry.stop > entry.start:
            raise HeaderError("gguf-span", f"{entry.name!r} overlaps the tensor before it")
        position = max(position, entry.stop)
    if position > size:
        raise TruncatedFile(f"the header describes {position:,} bytes, the file has {size:,}")
