"""GGUF files that break one rule each, put together byte by byte, and valid ones at the edge of the rules.

``python -m tests.hostile.gguf_files DIRECTORY`` writes them all, for use with other readers.
"""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

UINT8, UINT32, BOOL, STRING, ARRAY, UINT64 = 0, 4, 7, 8, 9, 10
F32, Q8_0 = 0, 8
HUGE = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class HostileFile:
    """A file and the code of the rule it breaks; ``truncated`` and ``type`` are errors without."""

    code: str
    name: str
    data: bytes


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def number(value: int, width: int = 4) -> bytes:
    return value.to_bytes(width, "little")


def array(kind: int, count: int, items: bytes = b"") -> bytes:
    return number(kind) + number(count, 8) + items


def tensor(name: str | bytes = "w", dims: tuple[int, ...] = (2,), kind: int = F32, offset: int = 0) -> bytes:
    sizes = b"".join(number(size, 8) for size in dims)
    return text(name) + number(len(dims)) + sizes + number(kind) + number(offset, 8)


def file(
    keys: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
) -> bytes:
    claimed = counts or (len(tensors), len(keys))
    head = b"GGUF" + struct.pack("<IQQ", version, *claimed) + b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + data if data else head


DATA = struct.pack("<2f", 1, 2)


def cases() -> Iterator[HostileFile]:
    """At least one file for every rule."""
    for group in (_frame, _keys, _values, _tensors, _spans):
        for code, name, data in group():
            yield HostileFile(code, name, data)


def _frame() -> Iterator[tuple[str, str, bytes]]:
    good = file((), (tensor(),), DATA)
    yield "gguf-magic", "empty", b""
    yield "gguf-magic", "three-bytes", b"GGU"
    yield "gguf-magic", "lower-case", b"gguf" + good[4:]
    yield "gguf-magic", "older-format", b"ggjt" + good[4:]
    for version in (0, 1, 4, 1 << 31):
        yield "gguf-version", f"version-{version}", file(version=version)
    yield "gguf-version", "big-endian", b"GGUF" + struct.pack(">IQQ", 3, 0, 0)
    yield "gguf-count", "tensors", file(counts=(1_000_001, 0))
    yield "gguf-count", "keys", file(counts=(0, 65_537))
    yield "gguf-count", "both-huge", file(counts=(HUGE, HUGE))
    for length in (4, 7, 8, 23, 24, 40, len(good) - 9):
        yield "truncated", f"after-{length}-bytes", good[:length]
    yield "truncated", "more-keys-than-there-are", file(counts=(0, 65_536))
    yield "truncated", "more-tensors-than-there-are", file(counts=(1_000_000, 0))


def _keys() -> Iterator[tuple[str, str, bytes]]:
    one = key("a", UINT8, b"\1")
    yield "gguf-key", "twice", file((one, one))
    yield "gguf-key", "empty", file((key("", UINT8, b"\1"),))
    yield "gguf-string", "key-not-utf-8", file((key(b"\xff", UINT8, b"\1"),))
    yield "gguf-string", "key-of-64-kib", file((key("x" * 65_536, UINT8, b"\1"),))
    yield "gguf-string", "key-of-two-to-64", file((number(HUGE, 8) + b"a",))
    yield "truncated", "key-past-the-end", file((number(60_000, 8) + b"a",))
    for name, kind, value in (
        ("zero", UINT32, number(0)),
        ("four", UINT32, number(4)),
        ("odd", UINT32, number(33)),
        ("large", UINT32, number(1 << 17)),
        ("text", STRING, text("32")),
        ("wide", UINT64, number(32, 8)),
        ("list", ARRAY, array(UINT32, 1, number(32))),
    ):
        yield "gguf-alignment", name, file((key("general.alignment", kind, value),))


def _values() -> Iterator[tuple[str, str, bytes]]:
    for name in ("general.x", "x.block_count", "tokenizer.x"):
        yield "gguf-value", f"unknown-kind-{name}", file((key(name, 13, b""),))
        yield "gguf-value", f"list-of-unknown-kind-{name}", file((key(name, ARRAY, array(99, 1, bytes(8))),))
        yield "truncated", f"huge-list-{name}", file((key(name, ARRAY, array(UINT8, 65_000)),))
        yield "truncated", f"text-past-the-end-{name}", file((key(name, STRING, number(1 << 20, 8)),))
        yield "gguf-string", f"text-over-16-mib-{name}", file((key(name, STRING, number(16 << 20 | 1, 8)),))
    deep = array(ARRAY, 1, array(ARRAY, 1, array(UINT8, 1, b"\1")))
    yield "gguf-value", "three-levels", file((key("x", ARRAY, deep),))
    yield "gguf-value", "two-levels-among-general", file((key("general.x", ARRAY, deep),))
    yield "gguf-value", "many-items-among-general", file((key("general.x", ARRAY, array(UINT8, 65_537)),))
    yield "gguf-value", "truth-of-two", file((key("general.x", BOOL, b"\2"),))
    yield "gguf-string", "text-not-utf-8", file((key("general.x", STRING, text(b"\xff")),))
    half = text("x" * (9 << 20))
    yield (
        "gguf-value",
        "general-over-16-mib",
        file((key("general.a", STRING, half), key("general.b", STRING, half))),
    )
    yield "truncated", "list-of-two-to-64-bytes", file((key("x", ARRAY, array(UINT64, HUGE)),))
    yield "truncated", "list-of-two-to-64-texts", file((key("x", ARRAY, array(STRING, HUGE, text("a"))),))
    yield (
        "truncated",
        "list-of-two-to-64-lists",
        file((key("x", ARRAY, array(ARRAY, HUGE, array(UINT8, 0))),)),
    )


def _tensors() -> Iterator[tuple[str, str, bytes]]:
    for name, raw in {
        "empty": "",
        "zero-character": "a\0b",
        "escape": "\x1b[31m",
        "long": "x" * 4_097,
    }.items():
        yield "name", name, file((), (tensor(raw),), DATA)
    yield "gguf-string", "name-not-utf-8", file((), (tensor(b"\xff"),), DATA)
    yield "gguf-duplicate", "name-twice", file((), (tensor(), tensor(offset=32)), bytes(40))
    yield "gguf-duplicate", "name-twice-empty", file((), (tensor(dims=(0,)), tensor(dims=(0,))), bytes(40))
    yield "gguf-shape", "rank-5", file((), (tensor(dims=(1, 1, 1, 1, 2)),), DATA)
    yield "gguf-shape", "rank-huge", file((), (text("w") + number((1 << 32) - 1) + bytes(60),), DATA)
    yield "gguf-shape", "product-wraps", file((), (tensor(dims=(1 << 32, 1 << 32)),), DATA)
    yield "gguf-shape", "size-two-to-63", file((), (tensor(dims=(1 << 63,)),), DATA)
    yield "gguf-shape", "empty-with-huge-sizes", file((), (tensor(dims=(0, HUGE)),), DATA)
    yield "gguf-shape", "half-a-block", file((), (tensor(dims=(16, 2), kind=Q8_0),), bytes(34))
    yield "gguf-shape", "scalar-of-blocks", file((), (tensor(dims=(), kind=Q8_0),), bytes(34))
    for kind in (4, 5, 31, 42, (1 << 32) - 1):
        yield "type", f"number-{kind}", file((), (tensor(kind=kind),), DATA)


def _spans() -> Iterator[tuple[str, str, bytes]]:
    yield "gguf-span", "unaligned", file((), (tensor(offset=8),), bytes(16))
    yield "gguf-span", "same", file((), (tensor("a"), tensor("b")), DATA)
    yield "gguf-span", "nested", file((), (tensor("a", (32,)), tensor("b", offset=64)), bytes(128))
    aligned = key("general.alignment", UINT32, number(64))
    yield "gguf-span", "aligned-to-less", file((aligned,), (tensor(offset=32),), bytes(40), alignment=64)
    yield "truncated", "by-one-byte", file((), (tensor(),), DATA[:-1])
    yield "truncated", "far-away", file((), (tensor(offset=1 << 60),), DATA)
    yield "truncated", "one-exabyte", file((), (tensor(dims=(1 << 58,)),), DATA)
    yield "truncated", "no-data", file((), (tensor(),))


def valid_cases() -> Iterator[tuple[str, bytes]]:
    """Files that every conforming reader must take: (name, data)."""
    yield "nothing", file()
    yield "version-2", file((), (tensor(),), DATA, version=2)
    yield "scalar", file((), (tensor(dims=()),), DATA)
    yield "gap-between", file((), (tensor("a"), tensor("b", offset=64)), bytes(72))
    yield "against-file-order", file((), (tensor("a", offset=32), tensor("b")), bytes(40))
    yield "bytes-behind", file((), (tensor(),), DATA + b"more")
    yield "two-dimensional", file((), (tensor(dims=(3, 2)),), bytes(24))
    for alignment in (8, 64, 65_536):
        stated = key("general.alignment", UINT32, number(alignment))
        yield f"alignment-{alignment}", file((stated,), (tensor(),), DATA, alignment=alignment)
    lists = (
        key("general.tags", ARRAY, array(STRING, 2, text("a") + text("b"))),
        key("tokenizer.tokens", ARRAY, array(STRING, 2, text("a") + text(b"\xff"))),
        key("tokenizer.pairs", ARRAY, array(ARRAY, 2, array(UINT8, 1, b"\1") + array(STRING, 1, text("x")))),
        key("llama.block_count", UINT32, number(7)),
        key("general.flag", BOOL, b"\1"),
    )
    yield "lists", file(lists, (tensor(),), DATA)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    for case in cases():
        (target / f"{case.code}-{case.name}.gguf").write_bytes(case.data)
    for name, data in valid_cases():
        (target / f"valid-{name}.gguf").write_bytes(data)
