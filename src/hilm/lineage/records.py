"""Bytes of the evidence kept per model: digests, matrix codes, profiles.

Each record is a 12-byte header (magic, version, flags, count), fixed rows sorted by content, and last the
names in row order. Names are for display: everything before them is equal for equal weights, whatever the
tensors are called and however they are stored. All numbers are little-endian.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hilm.errors import CatalogError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_HEADER = struct.Struct("<4sHHI")
_LENGTH = struct.Struct("<I")
_HINT = "index the model again"
_SORTED = ("exact", "half", "rows", "columns")
VERSION = 2

HASHES = np.dtype([("exact", "<u8"), ("half", "<u8"), ("prefix", "<u8"), ("parameters", "<u8")])
"""One row per tensor: digests as integers (0 for no prefix) and its number of values."""

CODES = np.dtype(
    [
        ("exact", "<u8"), ("rows", "<u4"), ("columns", "<u4"), ("flags", "<u2"), ("norm", "<f4"),
        ("position", "<u8", 16),
    ]
)  # fmt: skip
"""One row per sketched matrix: its tensor's digest, shape, norm and 1024 bits of F1."""

CODES_HEAD = np.dtype([("mask", "<u8"), ("position", "<f4", 1024), ("anchored", "<f2", 2016)])
"""Missing anchors, and the unrounded sums of F1 and F2."""

PROFILES = np.dtype([("exact", "<u8"), ("figures", "<f4", 16)])
"""One row per profiled matrix: its tensor's digest and the sixteen figures of its profile."""

MOST_NAMES = 1 << 26
"""Bytes of the names of a record, at most."""

IS_EMBEDDING, HAS_GRAM = 1, 2
"""Flags of a row of ``CODES``."""


@dataclass(frozen=True, slots=True)
class Record:
    """A parsed record: fixed head bytes, rows, and names in row order."""

    head: bytes
    rows: NDArray[np.void]
    names: tuple[str, ...]


def pack(magic: bytes, head: bytes, rows: NDArray[np.void], names: Sequence[str]) -> bytes:
    """Put a record together; rows are sorted by their integer columns, then by bytes, last by name."""
    columns = [rows[field].tolist() for field in _SORTED if field in (rows.dtype.names or ())]
    raw, size = rows.tobytes(), rows.dtype.itemsize
    parts = [raw[start : start + size] for start in range(0, len(raw), size)]
    keys = list(zip(*columns, parts, names, strict=True))
    order = sorted(range(len(rows)), key=keys.__getitem__)
    text = zlib.compress("\n".join(names[i] for i in order).encode("utf-8", "surrogatepass"))
    header = _HEADER.pack(magic, VERSION, 0, len(rows))
    return b"".join((header, head, *(parts[i] for i in order), _LENGTH.pack(len(text)), text))


def unpack(magic: bytes, raw: bytes, dtype: np.dtype[np.void], head: int = 0) -> Record:
    """Take a record apart.

    Raises:
        CatalogError: It is of another kind or version, or its length does not fit.
    """
    if len(raw) < _HEADER.size or _HEADER.unpack_from(raw)[:2] != (magic, VERSION):
        raise CatalogError(f"a {magic.decode()} record cannot be read", hint=_HINT)
    count = _HEADER.unpack_from(raw)[3]
    start = _HEADER.size + head
    stop = start + count * dtype.itemsize
    names_at = stop + _LENGTH.size
    if names_at > len(raw) or names_at + _LENGTH.unpack_from(raw, stop)[0] != len(raw):
        raise CatalogError(f"a {magic.decode()} record is cut off", hint=_HINT)
    try:
        text = zlib.decompressobj().decompress(raw[names_at:], MOST_NAMES)
        names = text.decode("utf-8", "surrogatepass").split("\n") if count else []
    except (zlib.error, UnicodeDecodeError) as error:
        raise CatalogError(f"names of a {magic.decode()} record cannot be read", hint=_HINT) from error
    if len(names) != count:
        raise CatalogError(f"a {magic.decode()} record names {len(names)} of {count} rows", hint=_HINT)
    rows = np.frombuffer(raw[start:stop], dtype)
    return Record(raw[_HEADER.size : start], rows, tuple(names))


def identical_part(raw: bytes, dtype: np.dtype[np.void], head: int = 0) -> bytes:
    """The record without its names: equal for equal weights."""
    count = _HEADER.unpack_from(raw)[3]
    return raw[: _HEADER.size + head + count * dtype.itemsize]
