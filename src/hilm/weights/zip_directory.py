"""The members of a zip archive, found without unpacking anything."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hilm.errors import CorruptCheckpoint, TruncatedFile
from hilm.weights.safetensors import MAX_HEADER, MAX_TENSORS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Read = Callable[[int, int], bytes]

MAX_MEMBER_NAME = 256
"""Characters of a member's name."""

_LOCAL = struct.Struct("<4s5H3L2H")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4sLQL")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_FULL = 0xFFFFFFFF
_STREAMED = 8
"""Flag of members whose sizes were not known when their local header was written."""

_ENCRYPTED = 1


@dataclass(frozen=True, slots=True)
class _Member:
    """One entry of a zip directory; ``offset`` is where the header before its data starts."""

    name: str
    flags: int
    crc: int
    size: int
    offset: int


def list_members(read: Read, size: int) -> dict[str, tuple[int, int]]:
    """Name → absolute byte range of every member.

    The directory at the end and the header before each member must tell the same, members must not
    overlap, and none may be compressed: else two readers could see two files in one.

    Args:
        read: ``read(start, stop)`` returns that byte range of the file.
        size: Length of the file in bytes.

    Raises:
        CorruptCheckpoint: One of these rules is broken.
        TruncatedFile: The file does not end with a directory.
    """
    count, begin, end = _find_directory(read, size)
    found: dict[str, tuple[int, int]] = {}
    position = 0
    for member in sorted(_read_directory(read(begin, end), count), key=lambda m: m.offset):
        if member.offset < position:
            raise CorruptCheckpoint(f"{member.name!r} overlaps the member before it")
        if member.name in found:
            raise CorruptCheckpoint(f"{member.name!r} stands twice in the zip directory")
        start = _check_local(read, member, begin)
        position = start + member.size
        found[member.name] = start, position
        if position > begin:
            raise CorruptCheckpoint(f"{member.name!r} overlaps the zip directory")
    return found


def _find_directory(read: Read, size: int) -> tuple[int, int, int]:
    """Number of entries, begin and end of the directory at the end of a zip archive."""
    at = size - _END.size
    if at < 0 or (record := read(at, size))[:4] != b"PK\5\6":
        raise TruncatedFile("the zip archive does not end with its directory")
    _, *disks, here, count, length, begin, comment = _END.unpack(record)
    narrow = [here, count, length, begin]
    if at >= _LOCATOR.size + _END_64.size and read(at - _LOCATOR.size, at)[:4] == b"PK\6\7":
        at -= _LOCATOR.size
        _, disk, offset, total = _LOCATOR.unpack(read(at, at + _LOCATOR.size))
        if disk or total != 1 or offset + _END_64.size != at:
            raise CorruptCheckpoint("the 64-bit end of the zip directory is not where it should be")
        at = offset
        sign, extent, _, _, *disks, here, count, length, begin = _END_64.unpack(read(at, at + _END_64.size))
        wide = [here, count, length, begin]
        agree = all(
            n in {w, full} for n, w, full in zip(narrow, wide, (0xFFFF, 0xFFFF, _FULL, _FULL), strict=True)
        )
        if sign != b"PK\6\6" or extent != _END_64.size - 12 or not agree:
            raise CorruptCheckpoint("the two ends of the zip directory contradict each other")
    if any(disks) or comment or here != count or begin + length != at:
        raise CorruptCheckpoint("the zip directory is not one piece at the end of the file")
    if count > MAX_TENSORS or length > MAX_HEADER:
        raise CorruptCheckpoint(f"a zip directory of {count:,} entries in {length:,} bytes is too large")
    return count, begin, at


def _read_directory(raw: bytes, count: int) -> Iterator[_Member]:
    at = 0
    for _ in range(count):
        if at + _ENTRY.size > len(raw):
            raise CorruptCheckpoint(f"the zip directory ends before its {count:,} entries do")
        sign, _, _, flags, method, _, _, crc, packed, size, *lengths, disk, _, _, offset = _ENTRY.unpack_from(
            raw, at
        )
        stops = [at := at + length for length in (_ENTRY.size, *lengths)]
        if sign != b"PK\1\2" or at > len(raw) or disk:
            raise CorruptCheckpoint("an entry of the zip directory is malformed")
        name = _member_name(raw[stops[0] : stops[1]])
        size, packed, offset = _widen(raw[stops[1] : stops[2]], [size, packed, offset])
        if method or packed != size or flags & _ENCRYPTED:
            raise CorruptCheckpoint(f"{name!r} is compressed or encrypted; torch.save stores members plainly")
        yield _Member(name, flags, crc, size, offset)
    if at != len(raw):
        raise CorruptCheckpoint(f"the zip directory holds more than its {count:,} entries")


def _member_name(raw: bytes) -> str:
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise CorruptCheckpoint("a member of the zip archive has a name that is not UTF-8") from None
    if (
        len(name) > MAX_MEMBER_NAME
        or "\\" in name
        or not {"", ".", ".."}.isdisjoint(name.removesuffix("/").split("/"))
    ):
        raise CorruptCheckpoint(f"a member of the zip archive is named {name[:80]!r}")
    return name


def _widen(extra: bytes, numbers: list[int]) -> list[int]:
    """Replace numbers that do not fit 32 bits by those of the 64-bit extra field, in order."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        field = extra[at + 4 : at + 4 + length]
        at += 4 + length
        if kind == 1:
            wide = iter(struct.unpack(f"<{len(field) // 8}Q", field[: len(field) // 8 * 8]))
            numbers = [next(wide, n) if n == _FULL else n for n in numbers]
    return numbers


def _check_local(read: Read, member: _Member, end: int) -> int:
    """Compare the header before a member with its directory entry; return where its data starts."""
    name = member.name.encode()
    start = member.offset + _LOCAL.size + len(name)
    if start > end:
        raise CorruptCheckpoint(f"{member.name!r} starts behind the zip directory")
    raw = read(member.offset, start)
    sign, _, flags, method, _, _, crc, packed, size, length, extra = _LOCAL.unpack_from(raw)
    later = {0} if flags & _STREAMED else set()
    agree = crc in later | {member.crc} and {packed, size} <= later | {member.size, _FULL}
    if (sign, flags, method, length, raw[_LOCAL.size :]) != (b"PK\3\4", member.flags, 0, len(name), name):
        agree = False
    if not agree:
        raise CorruptCheckpoint(f"{member.name!r}: the header before it and the zip directory differ")
    return start + int(extra)
