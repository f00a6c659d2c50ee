"""The initialisers of an ONNX file, found in its protobuf wire format as if a stranger had written it.

Nothing but tags, lengths and the small fields of tensors is read: weights lie in the file as they are, or in
files beside it, and are byte ranges. Field numbers are those of ``onnx.proto``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from hilm.errors import HeaderError, PackedFormatUnsupported, TruncatedFile, UnsupportedFormat
from hilm.weights.cursor import Cursor
from hilm.weights.dtypes import ELEMENTS
from hilm.weights.safetensors import MAX_RANK, MAX_TENSORS, check_name
from hilm.weights.tensor import Entry, Listing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from hilm.weights.dtypes import DType

MAX_FIELDS = 4_000_000
MAX_TEXT = 4_096
"""Bytes of a name, of a key or of a file's name."""

CONSTANT = 1_024
"""Bytes above which a constant inside a node is worth a note: it may be a weight."""

_WINDOW, _LONGEST_WINDOW = 64 << 10, 1 << 20
_VARINT, _LENGTH = 0, 2
_FIXED = MappingProxyType({1: 8, 5: 4})
_DTYPES: Mapping[int, str] = MappingProxyType({
    1: "F32", 2: "U8", 3: "I8", 4: "U16", 5: "I16", 6: "I32", 7: "I64", 9: "BOOL", 10: "F16", 11: "F64",
    12: "U32", 13: "U64", 14: "C64", 16: "BF16", 17: "F8_E4M3", 18: "F8_E4M3FNUZ", 19: "F8_E5M2",
    20: "F8_E5M2FNUZ", 23: "F4", 24: "F8_E8M0",
})  # fmt: skip
_REFUSED: Mapping[int, str] = MappingProxyType({
    15: "COMPLEX128", 21: "UINT4", 22: "INT4", 25: "UINT2", 26: "INT2", 27: "FLOAT6E2M3",
    28: "FLOAT6E3M2",
})  # fmt: skip
_TEXT = 8

_GRAPH = 7  # of a model
_NODE, _INITIALIZER, _SPARSE = 1, 5, 15  # of a graph
_ATTRIBUTE = 5  # of a node
_CONSTANT, _GRAPHS = 5, frozenset({6, 11})  # of an attribute
_DIMS, _KIND, _SEGMENT, _NAME, _RAW, _OUTSIDE, _PLACE = 1, 2, 3, 8, 9, 13, 14  # of a tensor
_TYPED: Mapping[str, int] = MappingProxyType({"F32": 4, "C64": 4, "F64": 10})
"""Typed fields that are little-endian values one behind the other; those of integers are not."""
_VALUES = frozenset({4, 5, 7, _RAW, 10, 11})


@dataclass(slots=True)
class _Tensor:
    """What a file says of a tensor; ``data`` are the ranges of its non-empty value fields."""

    name: str = ""
    dims: list[int] = field(default_factory=list)
    kind: int = 0
    data: dict[int, tuple[int, int]] = field(default_factory=dict)
    is_outside: bool = False
    outside: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Model:
    """What was found so far; ``entries`` by the file that holds them, this one being ``""``."""

    entries: dict[str, list[Entry]] = field(default_factory=lambda: {"": []})
    names: set[str] = field(default_factory=set)
    skipped: dict[str, list[str]] = field(default_factory=dict)
    has_graph: bool = False

    def skip(self, why: str, what: str) -> None:
        self.skipped.setdefault(why, []).append(what)


def parse_onnx(read: Callable[[int, int], bytes], size: int) -> Listing:
    """List the initialisers of the main graph; no weights are read.

    What is listed in notes instead: integers stored one by one as varints, text, sparse tensors, constants
    inside nodes, and the graphs inside nodes.

    Args:
        read: ``read(start, stop)`` returns that byte range of the file.
        size: Length of the file in bytes.

    Returns:
        The tensors in the file, and in ``outside`` those in files beside it.

    Raises:
        HeaderError: With a ``code`` naming the violated rule, ``onnx-…``.
        TruncatedFile: The file ends inside a field.
        PackedFormatUnsupported: A tensor is of a type that nothing here can list.
        UnsupportedFormat: Weights are stored one by one as varints.
    """
    fields, model = _Fields(read, size), _Model()
    for number, wire, _, stop in fields.walk(size):
        if number == _GRAPH and wire == _LENGTH:
            model.has_graph = True
            _read_graph(fields, stop, model)
    if not model.has_graph:
        raise HeaderError("onnx-graph", "the file holds no ONNX graph")
    found = {file: tuple(_in_order(entries)) for file, entries in model.entries.items()}
    notes = [f"{why}: {', '.join(w[:4])}{' …' * (len(w) > 4)}" for why, w in model.skipped.items()]
    return Listing(found.pop(""), notes=tuple(notes), outside=found)


class _Fields(Cursor):
    """Walks over the fields of messages; the cursor stands at the value of the field it gives."""

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        super().__init__(read, size, _WINDOW, _LONGEST_WINDOW)
        self._left = MAX_FIELDS

    def varint(self) -> int:
        """Read an integer of seven bits a byte, least significant first."""
        value = 0
        for shift in range(0, 70, 7):
            (byte,) = self.take(1)
            value |= (byte & 127) << shift
            if byte < 128:
                return value & (1 << 64) - 1
        raise HeaderError("onnx-wire", "an integer is longer than ten bytes")

    def walk(self, stop: int) -> Iterator[tuple[int, int, int, int]]:
        """Each field up to ``stop``: number, wire type, the value of a varint, and its end."""
        while self.at < stop:
            self._left -= 1
            if self._left < 0:
                raise HeaderError("onnx-count", f"more than {MAX_FIELDS:,} fields")
            number, wire = divmod(self.varint(), 8)
            value = self.varint() if wire in {_VARINT, _LENGTH} else 0
            if not number or wire not in {_VARINT, _LENGTH, *_FIXED}:
                raise HeaderError("onnx-wire", f"field {number} is of the wire type {wire}")
            end = self.at + (value if wire == _LENGTH else _FIXED.get(wire, 0))
            if end > stop == self.size:
                raise TruncatedFile(f"a field ends at {end:,}, the file has {self.size:,} bytes")
            if end > stop:
                raise HeaderError("onnx-length", f"field {number} is longer than what it is part of")
            yield number, wire, value, end
            self.skip(end - self.at)

    def text(self, stop: int) -> str:
        """The value as text."""
        if stop - self.at > MAX_TEXT:
            raise HeaderError(
                "onnx-text", f"a text of {stop - self.at:,} bytes; at most {MAX_TEXT:,} are read"
            )
        try:
            return self.take(stop - self.at).decode()
        except UnicodeDecodeError:
            raise HeaderError("onnx-text", "a text is not UTF-8") from None


def _read_graph(fields: _Fields, stop: int, model: _Model) -> None:
    for number, wire, _, end in fields.walk(stop):
        if wire != _LENGTH:
            continue
        if number == _INITIALIZER:
            _add(model, _read_tensor(fields, end))
        elif number == _NODE:
            _read_node(fields, end, model)
        elif number == _SPARSE:
            model.skip("sparse tensors are not listed", f"{end - fields.at:,} bytes")


def _read_node(fields: _Fields, stop: int, model: _Model) -> None:
    """Note what weights may hide in a node."""
    for number, wire, _, end in fields.walk(stop):
        if number != _ATTRIBUTE or wire != _LENGTH:
            continue
        for part, kind, _, last in fields.walk(end):
            length = last - fields.at
            if kind == _LENGTH and part in _GRAPHS:
                model.skip("graphs inside nodes are not looked into", f"{length:,} bytes")
            elif kind == _LENGTH and part == _CONSTANT and length > CONSTANT:
                model.skip("constants inside nodes are not listed", f"{length:,} bytes")


def _read_tensor(fields: _Fields, stop: int) -> _Tensor:
    tensor = _Tensor()
    for number, wire, value, end in fields.walk(stop):
        if number == _DIMS and wire in {_VARINT, _LENGTH}:
            tensor.dims += [value] if wire == _VARINT else _packed(fields, end)
            if len(tensor.dims) > MAX_RANK:
                raise HeaderError("onnx-shape", f"a tensor has more than {MAX_RANK} dimensions")
        elif number in {_KIND, _PLACE} and wire == _VARINT:
            tensor.kind = value if number == _KIND else tensor.kind
            tensor.is_outside = value == 1 if number == _PLACE else tensor.is_outside
        elif number == _NAME and wire == _LENGTH:
            tensor.name = fields.text(end)
        elif number == _OUTSIDE and wire == _LENGTH:
            texts = {part: fields.text(last) for part, kind, _, last in fields.walk(end) if kind == _LENGTH}
            tensor.outside[texts.get(1, "")] = texts.get(2, "")
        elif number in _VALUES and end > fields.at:
            if wire != _LENGTH or number in tensor.data:
                raise HeaderError("onnx-data", f"{tensor.name!r}: the values are not in one piece")
            tensor.data[number] = fields.at, end
        elif number in {_DIMS, _KIND, _SEGMENT, _NAME, _OUTSIDE, _PLACE}:
            raise HeaderError("onnx-wire", f"field {number} of a tensor, of wire type {wire}, is not read")
    return tensor


def _packed(fields: _Fields, stop: int) -> list[int]:
    sizes: list[int] = []
    while fields.at < stop and len(sizes) <= MAX_RANK:
        sizes.append(fields.varint())
    if len(sizes) <= MAX_RANK and fields.at != stop:
        raise HeaderError("onnx-length", "a list of sizes is longer than its field")
    return sizes


def _add(model: _Model, tensor: _Tensor) -> None:
    """Turn a tensor into an entry of the file that holds its bytes, or into a note."""
    name = tensor.name
    check_name(name)
    if name in model.names:
        raise HeaderError("onnx-duplicate", f"two initialisers are named {name!r}")
    model.names.add(name)
    if len(model.names) > MAX_TENSORS:
        raise HeaderError("onnx-count", f"more than {MAX_TENSORS:,} tensors")
    if tensor.kind == _TEXT:
        model.skip("tensors of text are not listed", name)
        return
    dtype, shape = _type_of(tensor), tuple(tensor.dims)
    if math.prod(max(size, 1) for size in shape) * 16 >= 1 << 63 or math.prod(shape) % dtype.block:
        raise HeaderError(
            "onnx-shape", f"{name!r} of shape {list(shape)} does not fill whole bytes below 2^63"
        )
    length = dtype.nbytes(math.prod(shape) * dtype.values)
    if len(tensor.data) + tensor.is_outside > 1:
        raise HeaderError("onnx-data", f"{name!r} has values in several places")
    found = _find(tensor, dtype, length)
    if found is None:
        model.skip("integers stored one by one are not listed", name)
        return
    file, (start, stop) = found
    if stop - start != length:
        raise HeaderError("onnx-size", f"{name!r} needs {length:,} bytes, {stop - start:,} are given")
    model.entries.setdefault(file, []).append(Entry(name, dtype.name, shape, start, stop))


def _type_of(tensor: _Tensor) -> DType:
    if tensor.kind in _REFUSED:
        raise PackedFormatUnsupported(
            f"{tensor.name!r} is stored as {_REFUSED[tensor.kind]}, which is not read"
        )
    if tensor.kind not in _DTYPES:
        raise HeaderError("onnx-dtype", f"{tensor.name!r} is of the unknown type {tensor.kind}")
    return ELEMENTS[_DTYPES[tensor.kind]]


def _find(tensor: _Tensor, dtype: DType, length: int) -> tuple[str, tuple[int, int]] | None:
    """File and byte range of the values; None where they are no range."""
    if tensor.is_outside:
        return _find_outside(tensor, length)
    if not tensor.data:
        return "", (0, 0)
    ((number, span),) = tensor.data.items()
    if number in {_RAW, _TYPED.get(dtype.name)}:
        return "", span
    if dtype.is_weight or number in {4, 10}:
        raise UnsupportedFormat(
            f"{tensor.name!r} ({dtype.name}) is stored in field {number}, value by value",
            hint="write the initialisers as raw data: numpy_helper.from_array of the onnx package does",
        )
    return None


def _find_outside(tensor: _Tensor, length: int) -> tuple[str, tuple[int, int]]:
    offset, stated = (tensor.outside.get(key, default) for key, default in (("offset", "0"), ("length", "")))
    if not all(text.isascii() and text.isdigit() and len(text) < 19 for text in (offset, stated or "0")):
        raise HeaderError(
            "onnx-external", f"{tensor.name!r} lies at {offset[:40]!r}, {stated[:40]!r} bytes long"
        )
    if not tensor.outside.get("location"):
        raise HeaderError("onnx-external", f"{tensor.name!r} lies in a file without a name")
    start = int(offset)
    return tensor.outside["location"], (start, start + int(stated or length))


def _in_order(entries: list[Entry]) -> Iterator[Entry]:
    """Entries by position; the same range twice is one tensor of two names, overlaps are refused."""
    last: Entry | None = None
    for entry in sorted(entries, key=lambda e: (e.start, e.stop)):
        if last and entry.start < last.stop and entry.stop > entry.start:
            same = replace(entry, name=last.name) == last
            if not same:
                raise HeaderError("onnx-overlap", f"{entry.name!r} overlaps {last.name!r}")
            yield replace(entry, alias_of=last.name)
            continue
        last = entry if entry.stop > entry.start else last
        yield entry
