"""What the names in a pickle of PyTorch stand for: storages, element types and tensors, as plain records."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hilm.errors import CorruptCheckpoint, HeaderError, UnsafePickle, UnsupportedFormat
from hilm.weights.dtypes import ELEMENTS
from hilm.weights.pickle_records import Global, Table
from hilm.weights.safetensors import MAX_RANK, check_name
from hilm.weights.tensor import Entry

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hilm.weights.pickle_machine import Builder

    Places = Mapping[str, tuple[int, int]]

MAX_KEY = 256
"""Characters of a storage's key."""

_STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
    "ComplexFloatStorage": "C64",
}
_ITEM_BYTES = {
    **{name: ELEMENTS[dtype].nbytes(ELEMENTS[dtype].values) for name, dtype in _STORAGES.items()},
    "ComplexDoubleStorage": 16,
    "QInt32Storage": 4,
    **dict.fromkeys(
        ("UntypedStorage", "QInt8Storage", "QUInt8Storage", "QUInt4x2Storage", "QUInt2x4Storage"), 1
    ),
}
_DTYPES = {
    "torch.float8_e4m3fn": "F8_E4M3",
    "torch.float8_e5m2": "F8_E5M2",
    "torch.float8_e4m3fnuz": "F8_E4M3FNUZ",
    "torch.float8_e5m2fnuz": "F8_E5M2FNUZ",
    "torch.float8_e8m0fnu": "F8_E8M0",
    "torch.uint16": "U16",
    "torch.uint32": "U32",
    "torch.uint64": "U64",
}
"""Element types that are named beside an untyped storage, because they have no storage class."""


@dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """``count`` elements from element ``first`` of the storage ``key``; ``kind`` is its class's name."""

    kind: str
    key: str
    count: int
    first: int = 0

    @property
    def item(self) -> int:
        """Bytes of one element."""
        return _ITEM_BYTES[self.kind]


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A tensor as its pickle describes it, unchecked. ``lazy``: values differ from the stored ones."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    lazy: bool


def find_storage(storages: dict[str, Storage], saved: object) -> object:
    """Return what a persistent id stands for; ``storages`` collects every storage whole.

    Raises:
        UnsafePickle: The id names no storage, or a view that leaves one.
        UnsupportedFormat: A storage of an unknown kind.
    """
    match saved:
        case ("module", Global() as kind, _, _):
            return kind
        case ("storage", Global() as kind, str() as key, _, int() as count, *view) if (
            count >= 0 and len(key) <= MAX_KEY
        ):
            name = kind.name.removeprefix("torch.").removeprefix("storage.").removeprefix("cuda.")
            if name not in _ITEM_BYTES:
                raise UnsupportedFormat(f"the pickle names storages of the unknown kind {kind.name}")
            storage = Storage(name, key, count)
            storages.setdefault(key, storage)
        case _:
            raise UnsafePickle("the pickle refers to something that is no storage")
    match view:
        case [] | [None]:
            return storage
        case [(_, int() as first, int() as length)] if 0 <= first <= first + length <= count:
            return replace(storage, first=first, count=length)
    raise UnsafePickle(f"the pickle takes a view of storage {key!r} that leaves it")


def _rebuild_tensor(arguments: tuple[object, ...]) -> Tensor:
    match arguments:
        case (Storage() as storage, int() as offset, shape, strides, *rest):
            shape, strides = _sizes(shape), _sizes(strides)
        case _:
            raise UnsafePickle("the pickle rebuilds a tensor from something else than a storage")
    metadata = rest[2:3]
    dtype = _STORAGES.get(storage.kind, storage.kind)
    if metadata and isinstance(metadata[0], Global):
        dtype = _DTYPES.get(metadata[0].name, metadata[0].name)
        metadata = rest[3:4]
    lazy = any(not isinstance(m, Table | None) or (m and any(v for _, v in m.pairs)) for m in metadata)
    return Tensor(storage, offset, shape, strides, dtype, lazy)


def _sizes(value: object) -> tuple[int, ...]:
    sizes = tuple(value) if isinstance(value, list | tuple) else (None,)
    if len(sizes) > MAX_RANK or not all(type(v) is int and 0 <= v < 1 << 63 for v in sizes):
        raise HeaderError(
            "shape", f"a tensor's sizes or strides are not at most {MAX_RANK} integers below 2^63"
        )
    return sizes


def _rebuild_table(arguments: tuple[object, ...]) -> Table:
    """``OrderedDict()``, or the list of pairs that Python 2 wrote."""
    match arguments:
        case ():
            return Table()
        case (list() as pairs,) if all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs):
            return Table([(key, value) for key, value in pairs])
    raise UnsafePickle("the pickle makes a dictionary of something that is no list of pairs")


def _first(arguments: tuple[object, ...]) -> object:
    """Return what is wrapped: the tensor of a parameter, the numbers of a size."""
    if not arguments:
        raise UnsafePickle("the pickle wraps nothing")
    return arguments[0]


BUILDERS: Mapping[str, Builder] = {
    "collections.OrderedDict": _rebuild_table,
    "torch.Size": _first,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor,
}
"""What stands in for the functions that a pickle of tensors calls, by their names."""


def is_type(name: str) -> bool:
    """Whether this is the name of a storage class or of an element type."""
    return name in _DTYPES or (name.startswith("torch.") and name.rpartition(".")[2] in _ITEM_BYTES)


def check_tensor(name: str, tensor: Tensor, places: Places, *, big_endian: bool) -> Entry:
    """Place a tensor in the file, or say why it cannot be there.

    Args:
        name: What it is called.
        tensor: What the pickle says of it.
        places: Absolute byte range of each storage, by its key.
        big_endian: Byte order of the file.

    Raises:
        HeaderError: An impossible ``name`` or ``shape``, or values out of the storage's ``bounds``.
        UnsupportedFormat: Values that cannot be decoded.
        CorruptCheckpoint: The storage is not in the file, or too short.
    """
    check_name(name)
    if tensor.dtype not in ELEMENTS or tensor.lazy:
        what = "as a lazy conjugate or negative" if tensor.lazy else f"as {tensor.dtype}"
        raise UnsupportedFormat(f"{name!r} is stored {what}, which cannot be decoded")
    shape, strides, item = tensor.shape, tensor.strides, item_bytes(tensor.dtype)
    if len(strides) != len(shape) or math.prod(max(size, 1) for size in shape) * item >= 1 << 63:
        raise HeaderError("shape", f"{name!r} of shape {list(shape)} lacks strides or exceeds 2^63 bytes")
    begin, end = _place(name, tensor.storage, places)
    if 0 in shape:
        return Entry(name, tensor.dtype, shape, begin, begin, big_endian=big_endian)
    reach = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    start = begin + tensor.offset * item
    if tensor.offset < 0 or start + reach * item > end:
        raise HeaderError("bounds", f"{name!r} reaches beyond its storage")
    plain = all(n == 1 or s == c for n, s, c in zip(shape, strides, packed_strides(shape), strict=True))
    stop, kept = start + reach * item, None if plain else strides
    return Entry(name, tensor.dtype, shape, start, stop, kept, big_endian=big_endian)


def _place(name: str, storage: Storage, places: Places) -> tuple[int, int]:
    """Absolute byte range of a storage or a view of one."""
    if storage.key not in places:
        raise CorruptCheckpoint(f"the storage {storage.key!r} of {name!r} is not in the file")
    begin, end = places[storage.key]
    start = begin + storage.first * storage.item
    stop = start + storage.count * storage.item
    if stop > end:
        raise CorruptCheckpoint(f"the storage of {name!r} is shorter than the pickle says")
    return start, stop


def packed_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of C order without gaps, in elements."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def item_bytes(dtype: str) -> int:
    """Bytes of one element of a type in safetensors spelling."""
    return ELEMENTS[dtype].nbytes(ELEMENTS[dtype].values)
