"""Safetensors files that break one rule each, and valid ones at the edge of the rules.

``python -m tests.hostile.safetensors_files DIRECTORY`` writes them all, for use with other readers.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
"""Every element type of the format → bits of one element."""


@dataclass(frozen=True, slots=True)
class HostileFile:
    """A file and the code of the rule it breaks; ``truncated`` stands for TruncatedFile."""

    code: str
    name: str
    data: bytes


def pack(header: str | bytes, payload: bytes = b"") -> bytes:
    """A file with this header text, true length prefix and payload."""
    raw = header.encode() if isinstance(header, str) else header
    return len(raw).to_bytes(8, "little") + raw + payload


def entry(
    begin: int = 0, end: int = 4, dtype: str = "F32", shape: tuple[int, ...] = (1,)
) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def file(table: dict[str, object], payload: bytes = b"") -> bytes:
    return pack(json.dumps(table), payload)


def cases() -> Iterator[HostileFile]:
    """At least one file for every rule of the header."""
    for group in (_frame, _text, _numbers, _repeated, _names, _entries, _sizes, _spans, _metadata):
        for code, name, data in group():
            yield HostileFile(code, name, data)


def _frame() -> Iterator[tuple[str, str, bytes]]:
    good = file({"a": entry()}, b"1234")
    yield "short", "empty", b""
    yield "short", "seven-bytes", good[:7]
    yield "length", "prefix-only", good[:8]
    yield "length", "header-cut", good[:20]
    yield "length", "past-the-end-by-one", (3).to_bytes(8, "little") + b"{}"
    yield "length", "zero", bytes(8)
    yield "length", "one", (1).to_bytes(8, "little") + b"{}"
    yield "length", "two-to-63", (1 << 63).to_bytes(8, "little") + b"{}"
    yield "length", "all-ones", b"\xff" * 8 + b"{}"
    yield "length", "over-the-limit", (100_000_001).to_bytes(8, "little") + b"{}"
    yield "length", "html-page", b"<!DOCTYPE html><html><body>Sign in</body></html>"
    yield "length", "lfs-pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n"
    yield "start", "list", pack("[]")
    yield "start", "leading-space", pack(" {}")
    yield "start", "byte-order-mark", pack(b"\xef\xbb\xbf{}")
    yield "padding", "newline", pack("{}\n")
    yield "padding", "zero-bytes", pack(b"{}\0\0")
    yield "padding", "text", pack("{} x")
    yield "padding", "unterminated", pack('{"a": ')


def _text() -> Iterator[tuple[str, str, bytes]]:
    yield "utf8", "stray-continuation", pack(b'{"\x80":1}')
    yield "utf8", "overlong-slash", pack(b'{"\xc0\xaf":1}')
    yield "utf8", "encoded-surrogate", pack(b'{"\xed\xa0\x80":1}')
    yield "utf8", "latin-1", pack('{"é":1}'.encode("latin-1"))
    yield "json", "utf-16", pack("{}".encode("utf-16-le") + b"}")
    yield "json", "two-documents", pack("{}{}")
    yield "json", "trailing-comma", pack('{"a": 1,}')
    yield "json", "single-quotes", pack("{'a': 1}")
    yield "json", "raw-newline-in-name", pack('{"a\nb": {}}')
    yield "json", "five-levels", file({"a": entry() | {"extra": [[[1]]]}}, b"1234")
    yield "json", "hundred-thousand-levels", pack('{"a":' + "[" * 100_000 + "]" * 100_000 + "}")
    yield "json", "hundred-thousand-tables", pack('{"a":' * 100_000 + "{}" + "}" * 100_000)


def _numbers() -> Iterator[tuple[str, str, bytes]]:
    def dimension(text: str) -> bytes:
        return pack('{"a": {"dtype": "U8", "shape": [' + text + '], "data_offsets": [0, 1]}}', b"1")

    def offsets(text: str) -> bytes:
        return pack('{"a": {"dtype": "U8", "shape": [1], "data_offsets": ' + text + "}}", b"1")

    for text in ("1.0", "1e0", "NaN", "Infinity", "-Infinity"):
        yield "json", f"dimension-{text}", dimension(text)
    yield "json", "dimension-of-5000-digits", dimension("1" * 5_000)
    yield "json", "offset-1.0", offsets("[0, 1.0]")
    yield "json", "offset-1e400", offsets("[0, 1e400]")
    yield "shape", "dimension-true", dimension("true")
    yield "shape", "dimension-text", dimension('"1"')
    yield "shape", "dimension-null", dimension("null")
    yield "shape", "dimension-negative", dimension("-1")
    yield "bounds", "offset-true", offsets("[0, true]")
    yield "bounds", "offset-text", offsets('[0, "1"]')
    yield "bounds", "offset-missing", offsets("[0]")
    yield "bounds", "three-offsets", offsets("[0, 1, 1]")
    yield "bounds", "offsets-null", offsets("null")
    yield "bounds", "offsets-table", offsets('{"begin": 0, "end": 1}')


def _repeated() -> Iterator[tuple[str, str, bytes]]:
    one, two = json.dumps(entry(0, 4)), json.dumps(entry(4, 8))
    yield "duplicate", "tensor", pack('{"a": ' + one + ', "a": ' + two + "}", bytes(8))
    yield "duplicate", "tensor-escaped", pack('{"a": ' + one + ', "\\u0061": ' + two + "}", bytes(8))
    yield "duplicate", "shape", pack('{"a": {"shape": [9], ' + one[1:] + "}", bytes(4))
    yield "duplicate", "unknown-field", pack('{"a": {"x": 1, "x": 1, ' + one[1:] + "}", bytes(4))
    yield "duplicate", "metadata", pack('{"__metadata__": {}, "__metadata__": {"a": "b"}}')
    yield "duplicate", "metadata-key", pack('{"__metadata__": {"a": "b", "a": "c"}}')


def _names() -> Iterator[tuple[str, str, bytes]]:
    yield "name", "empty", file({"": entry()}, b"1234")
    yield "name", "4097-bytes", file({"x" * 4_097: entry()}, b"1234")
    yield "name", "4098-bytes-of-two-byte-letters", file({"é" * 2_049: entry()}, b"1234")
    yield "name", "zero-character", file({"a\0b": entry()}, b"1234")
    yield "name", "line-feed", file({"a\nb": entry()}, b"1234")
    yield "name", "escape-sequence", file({"\x1b[31mred": entry()}, b"1234")
    yield "name", "delete", file({"\x7f": entry()}, b"1234")
    yield "name", "lone-surrogate", file({"\ud800": entry()}, b"1234")


def _entries() -> Iterator[tuple[str, str, bytes]]:
    for key in ("dtype", "shape", "data_offsets"):
        yield "entry", f"no-{key}", file({"a": {k: v for k, v in entry().items() if k != key}}, b"1234")
    for name, value in {"null": None, "list": [1], "number": 1, "text": "F32", "empty": {}}.items():
        yield "entry", name, file({"a": value}, b"1234")
    for dtype in ("F128", "f32", "", "float32", "F32 "):
        yield "dtype", f"named-{dtype!r}", file({"a": entry(dtype=dtype)}, b"1234")
    for name, value in {"null": None, "number": 32, "list": ["F32"], "table": {}}.items():
        yield "dtype", name, file({"a": entry() | {"dtype": value}}, b"1234")


def _sizes() -> Iterator[tuple[str, str, bytes]]:
    for name, value in {"null": None, "number": 1, "text": "1", "table": {"0": 1}}.items():
        yield "shape", name, file({"a": entry() | {"shape": value}}, b"1234")
    yield "shape", "rank-33", file({"a": entry(shape=(1,) * 33)}, b"1234")
    yield "shape", "dimension-two-to-63", file({"a": entry(0, 0, "U8", (1 << 63,))})
    yield "shape", "product-wraps-to-zero", file({"a": entry(0, 0, "U8", (1 << 32, 1 << 32))})
    yield "shape", "bytes-wrap-to-four", file({"a": entry(0, 4, "F32", ((1 << 62) + 1,))}, b"1234")
    yield "shape", "half-a-byte", file({"a": entry(0, 1, "F4", (1,))}, b"1")
    yield "shape", "six-bits", file({"a": entry(0, 1, "F6_E2M3", (1,))}, b"1")
    yield "size", "too-small", file({"a": entry(0, 3)}, b"123")
    yield "size", "too-large", file({"a": entry(0, 5)}, b"12345")
    yield "size", "nothing-for-a-scalar", file({"a": entry(0, 0, shape=())})
    yield "size", "something-for-an-empty-tensor", file({"a": entry(0, 4, shape=(0,))}, b"1234")
    yield "size", "complex-as-one-float", file({"a": entry(0, 4, "C64")}, b"1234")


def _spans() -> Iterator[tuple[str, str, bytes]]:
    yield "overlap", "same-span", file({"a": entry(0, 4), "b": entry(0, 4)}, b"1234")
    yield "overlap", "one-byte", file({"a": entry(0, 4), "b": entry(3, 7)}, b"1234567")
    yield "overlap", "nested", file({"a": entry(0, 8, shape=(2,)), "b": entry(2, 6)}, bytes(8))
    yield "hole", "at-the-start", file({"a": entry(4, 8)}, bytes(8))
    yield "hole", "between", file({"a": entry(0, 4), "b": entry(5, 9)}, bytes(9))
    yield "hole", "far-away", file({"a": entry(1 << 60, (1 << 60) + 4)}, b"1234")
    yield "bounds", "negative", file({"a": entry(-4, 0)}, b"1234")
    yield "bounds", "backwards", file({"a": entry(4, 0)}, b"1234")
    yield "bounds", "two-to-64", file({"a": entry(1 << 64, (1 << 64) + 4)}, b"1234")
    yield (
        "bounds",
        "empty-tensor-past-the-end",
        file({"a": entry(0, 4), "b": entry(9, 9, shape=(0,))}, b"1234"),
    )
    yield "trailing", "one-byte", file({"a": entry()}, b"12345")
    yield "trailing", "data-without-tensors", file({}, b"1")
    yield "trailing", "after-an-empty-tensor", file({"a": entry(0, 0, shape=(0,))}, b"1")
    yield "truncated", "by-one-byte", file({"a": entry()}, b"123")
    yield "truncated", "no-data", file({"a": entry()})
    yield "truncated", "second-tensor", file({"a": entry(), "b": entry(4, 8)}, b"1234")
    yield "truncated", "one-exabyte", file({"a": entry(0, 1 << 60, "U8", (1 << 60,))}, b"1234")


def _metadata() -> Iterator[tuple[str, str, bytes]]:
    values = {
        "null": None,
        "list": [],
        "text": "x",
        "number": {"a": 1},
        "null-value": {"a": None},
        "table": {"a": {}},
    }
    for name, value in values.items():
        yield "metadata", name, file({"__metadata__": value, "a": entry()}, b"1234")
    yield "metadata", "over-16-mib", file({"__metadata__": {"a": "x" * (16 << 20)}})
    yield "metadata", "lone-surrogate", file({"__metadata__": {"a": "\udfff"}})


def valid_cases() -> Iterator[tuple[str, bytes]]:
    """Files at the edge of the rules that every conforming reader must take: (name, data)."""
    yield "no-tensors", pack("{}")
    yield "metadata-only", file({"__metadata__": {"format": "pt", "é": ""}})
    yield "scalar", file({"a": entry(shape=())}, b"1234")
    yield "empty-tensor", file({"a": entry(0, 0, shape=(0,))})
    yield (
        "empty-tensors-between",
        file(
            {
                "b": entry(4, 4, shape=(2, 0)),
                "a": entry(0, 4),
                "c": entry(4, 4, shape=(0,)),
                "d": entry(4, 8),
            },
            bytes(8),
        ),
    )
    yield "padded", pack(json.dumps({"a": entry()}) + " " * 97, b"1234")
    yield "against-file-order", file({"z": entry(4, 8), "a": entry(0, 4)}, b"12345678")
    yield "unaligned", file({"a": entry(0, 1, "U8"), "b": entry(1, 5)}, b"12345")
    yield "longest-name", file({"x" * 4_096: entry()}, b"1234")
    yield "name-of-spaces-and-slashes", file({" ../é\u2028": entry()}, b"1234")
    yield "escaped-name", pack('{"\\u0061": ' + json.dumps(entry()) + "}", b"1234")
    yield "unknown-field", file({"a": entry() | {"note": {"x": []}}}, b"1234")
    yield "rank-32", file({"a": entry(shape=(1,) * 32)}, b"1234")
    for dtype, bits in BITS.items():
        yield f"dtype-{dtype}", file({"a": entry(0, bits, dtype, (2, 4))}, bytes(bits))


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    for case in cases():
        (target / f"{case.code}-{case.name}.safetensors".replace("/", "_")).write_bytes(case.data)
    for name, data in valid_cases():
        (target / f"valid-{name}.safetensors").write_bytes(data)
