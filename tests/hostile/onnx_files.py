"""ONNX files that break one rule each, put together byte by byte, and valid ones at the edge of the rules.

``python -m tests.hostile.onnx_files DIRECTORY`` writes them all, for use with other readers.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.hostile.gguf_files import HostileFile

if TYPE_CHECKING:
    from collections.abc import Iterator

FLOAT, INT64, STRING, FLOAT16, DOUBLE, INT4 = 1, 7, 8, 10, 11, 22
DATA = struct.pack("<2f", 1, 2)


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | bytes | str) -> bytes:
    """A varint, or bytes with their length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    raw = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(raw)) + raw


def tensor(
    name: str | bytes = "w", dims: tuple[int, ...] = (2,), kind: int = FLOAT, values: bytes = field(9, DATA)
) -> bytes:
    return b"".join(field(1, size) for size in dims) + field(2, kind) + field(8, name) + values


def outside(**texts: str) -> bytes:
    pairs = (field(13, field(1, key) + field(2, text)) for key, text in texts.items())
    return field(14, 1) + b"".join(pairs)


def graph(*tensors: bytes) -> bytes:
    return b"".join(field(5, one) for one in tensors)


def model(*tensors: bytes) -> bytes:
    return field(1, 8) + field(2, "hand") + field(7, graph(*tensors))


def cases() -> Iterator[HostileFile]:
    """At least one file for every rule."""
    for group in (_frame, _tensors, _values, _outside):
        for code, name, data in group():
            yield HostileFile(code, name, data)


def _frame() -> Iterator[tuple[str, str, bytes]]:
    good = model(tensor())
    yield "onnx-graph", "empty", b""
    yield "onnx-graph", "no-graph", field(1, 8) + field(2, "x")
    yield "onnx-graph", "graph-that-is-a-number", field(7, 1)
    yield "onnx-wire", "group", field(1, 8) + bytes([7 << 3 | 3])
    yield "onnx-wire", "field-zero", b"\0\0"
    yield "onnx-wire", "varint-of-eleven-bytes", b"\xff" * 11
    yield "onnx-wire", "length-of-eleven-bytes", b"\x3a" + b"\xff" * 11
    yield "truncated", "length-of-two-to-64", b"\x3a" + varint((1 << 64) - 1)
    yield "truncated", "ends-in-a-tag", good + b"\x80"
    for length in range(len(good) - 12, len(good)):
        yield "truncated", f"after-{length}-bytes", good[:length]
    yield "onnx-length", "tensor-longer-than-its-graph", field(7, b"\x2a\x40") + good
    yield "onnx-length", "name-longer-than-its-tensor", model(field(1, 2) + b"\x42\x20") + good
    yield "onnx-wire", "deep", field(7, field(1, field(5, b"\x33")))


def _tensors() -> Iterator[tuple[str, str, bytes]]:
    yield "name", "none", model(tensor(""))
    yield "name", "control", model(tensor("a\0b"))
    yield "onnx-text", "not-utf-8", model(tensor(b"\xff"))
    yield "onnx-text", "long", model(tensor("x" * 4097))
    yield "onnx-duplicate", "name", model(tensor(), tensor())
    yield "onnx-duplicate", "name-in-two-graphs", model(tensor()) + field(7, graph(tensor()))
    yield "onnx-dtype", "zero", model(tensor(kind=0))
    yield "onnx-dtype", "unknown", model(tensor(kind=99))
    yield "type", "int4", model(tensor(kind=INT4))
    yield "type", "complex128", model(tensor(kind=15))
    yield "onnx-shape", "negative", model(tensor(dims=((1 << 64) - 1,)))
    yield "onnx-shape", "overflow", model(tensor(dims=(1 << 40, 1 << 40)))
    yield "onnx-shape", "overflow-behind-a-zero", model(tensor(dims=(0, 1 << 62, 1 << 62)))
    yield "onnx-shape", "half-a-byte", model(tensor(dims=(3,), kind=23))
    yield "onnx-shape", "many", model(tensor(dims=(1,) * 33))
    yield "onnx-shape", "many-packed", model(field(1, b"\1" * 10_000) + tensor())
    yield "onnx-length", "packed-sizes-past-their-field", model(field(1, b"\x80") + tensor())
    yield "onnx-wire", "name-that-is-a-number", model(field(8, 1) + tensor())
    yield "onnx-wire", "kind-that-is-text", model(field(2, "x") + tensor())
    yield "onnx-wire", "sizes-that-are-floats", model(bytes([1 << 3 | 5, 0, 0, 0, 0]) + tensor())
    yield "onnx-wire", "segment", model(tensor() + field(3, field(1, 0)))


def _values() -> Iterator[tuple[str, str, bytes]]:
    yield "onnx-size", "none", model(tensor(values=b""))
    yield "onnx-size", "short", model(tensor(values=field(9, DATA[:7])))
    yield "onnx-size", "long", model(tensor(values=field(9, DATA + b"x")))
    yield "onnx-size", "scalar-of-two", model(tensor(dims=()))
    yield "onnx-size", "values-of-an-empty-tensor", model(tensor(dims=(0,)))
    yield "onnx-data", "raw-twice", model(tensor(values=2 * field(9, DATA)))
    yield "onnx-data", "raw-and-typed", model(tensor(values=field(9, DATA) + field(4, DATA)))
    yield "onnx-data", "raw-and-outside", model(tensor(values=field(9, DATA) + outside(location="x")))
    yield "onnx-data", "floats-one-by-one", model(tensor(values=2 * (bytes([4 << 3 | 5]) + DATA[:4])))
    yield "unsupported", "halves-as-integers", model(tensor(kind=FLOAT16, values=field(5, b"\1\2")))
    yield "unsupported", "floats-as-doubles", model(tensor(values=field(10, DATA)))
    yield "unsupported", "doubles-as-floats", model(tensor(dims=(1,), kind=DOUBLE, values=field(4, DATA)))


def _outside() -> Iterator[tuple[str, str, bytes]]:
    def lies(**texts: str) -> bytes:
        return model(tensor(values=outside(**texts)))

    yield "onnx-external", "nowhere", lies()
    yield "onnx-external", "empty-name", lies(location="")
    for text in ("-1", "x", "1e3", "1.0", " 1", "9" * 19, "\N{ARABIC-INDIC DIGIT ONE}"):
        yield "onnx-external", f"offset-{text}", lies(location="x", offset=text)
        yield "onnx-external", f"length-{text}", lies(location="x", length=text)
    yield "onnx-size", "outside-short", lies(location="x", length="7")
    yield "onnx-size", "outside-long", lies(location="x", length="9")
    one = tensor("a", values=outside(location="x"))
    yield "onnx-overlap", "by-half", model(one, tensor("b", values=outside(location="x", offset="4")))
    yield "onnx-overlap", "other-shape", model(one, tensor("b", (2, 1), values=outside(location="x")))


def valid_cases() -> Iterator[tuple[str, bytes]]:
    """Files that look odd and are right."""
    yield "plain", model(tensor())
    yield "nothing", field(7, b"")
    yield "fields-in-any-order", field(7, graph(field(9, DATA) + field(8, "w") + field(2, 1) + field(1, 2)))
    yield "packed-sizes", model(field(1, b"\2\1") + field(2, 1) + field(8, "w") + field(9, DATA))
    yield "typed", model(tensor(values=field(4, DATA)), tensor("d", (1,), DOUBLE, field(10, DATA)))
    yield "scalar", model(tensor(dims=(), values=field(9, DATA[:4])))
    yield "empty", model(tensor(dims=(0, 3), values=b""))
    yield "two-graphs-are-one", model(tensor()) + field(7, graph(tensor("b")))
    yield "unknown-fields", field(99, "x") + bytes([6 << 3 | 1]) + bytes(8) + model(tensor() + field(50, 3))
    yield "long-varint", model(field(1, 2)[:1] + b"\x82\x80\x00" + tensor(dims=()))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for case in cases():
        (folder / f"{case.code}-{case.name}.onnx").write_bytes(case.data)
