"""Where the tensors of a PyTorch file are, found without PyTorch and without running anything.

A file is a zip archive (a pickle that describes the tensors, and one stored member per storage) or the
older form: five pickles, then the storages one behind the other.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

from hilm.errors import (
    CorruptCheckpoint,
    DuplicateTensor,
    HeaderError,
    NotACheckpoint,
    TruncatedFile,
    UnsafePickle,
    UnsupportedFormat,
)
from hilm.weights.pickle_machine import MAX_STREAM, Pickle, read_pickle
from hilm.weights.pickle_records import Call, Global, Table
from hilm.weights.safetensors import MAX_NAME
from hilm.weights.tensor import Listing
from hilm.weights.torch_objects import (
    BUILDERS,
    Storage,
    Tensor,
    check_tensor,
    find_storage,
    is_type,
)
from hilm.weights.zip_directory import list_members

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hilm.weights.tensor import Entry
    from hilm.weights.torch_objects import Places
    from hilm.weights.zip_directory import Read

MAX_DEPTH = 200
MAX_COST = 24_000_000
"""What looking through one pickle may cost, in some 40 ns; what stands in two branches counts twice."""

_COST, _ITEM_COST, _NAME_COST = 32, 2, 16  # of a container, of a value in it, of a name beside its characters

_WRAPPERS = ("state_dict", "model", "module")
_WRAPPER_SHARE = 0.9
_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_WINDOW = 1 << 20


_Node = Tensor | Storage | Call | Table | list[object] | tuple[object, ...]
_CONTAINERS = (Call, Table, list, tuple)
_NODES = (Tensor, Storage, *_CONTAINERS)
_KEYS = str | int | float | None


def parse_archive(read: Read, size: int) -> Listing:
    """List the tensors of a file written by ``torch.save``.

    Args:
        read: ``read(start, stop)`` returns that byte range of the file.
        size: Length of the file in bytes.

    Raises:
        UnsafePickle: The pickle asks for more than describing tensors.
        CorruptCheckpoint: The parts of the file contradict each other.
        TruncatedFile: The file ends too early.
        HeaderError: A tensor is impossible: ``shape``, ``bounds`` or ``name``.
        DuplicateTensor: Two tensors end up under one name.
        UnsupportedFormat: A kind of file or tensor that cannot be listed without running its code.
        NotACheckpoint: Not a file of ``torch.save``.
    """
    head = read(0, min(size, 512))
    if head[:4] == b"PK\3\4":
        return _read_zip(read, size)
    if head[:1] == b"\x80":
        return _read_legacy(read, size)
    if head[257:262] == b"ustar":
        raise UnsupportedFormat("a tar archive as PyTorch wrote it before version 0.2")
    raise NotACheckpoint("the file is neither form of what torch.save writes")


# The zip form.


def _read_zip(read: Read, size: int) -> Listing:
    members = list_members(read, size)
    pickles = [name for name in members if name.count("/") <= 1 and name.split("/")[-1] == "data.pkl"]
    if len(pickles) != 1:
        raise NotACheckpoint(f"a zip archive with {len(pickles)} pickles of tensors instead of one")
    root = pickles[0].removesuffix("data.pkl")
    start, stop = members[pickles[0]]
    if stop - start > MAX_STREAM:
        raise UnsafePickle(f"a pickle of {stop - start:,} bytes; at most {MAX_STREAM >> 20} MiB are read")
    order = b"little"
    if root + "byteorder" in members:
        begin, end = members[root + "byteorder"]
        order = read(begin, min(end, begin + 16))
    if order not in {b"little", b"big"}:
        raise CorruptCheckpoint(f"the archive's byte order is {order!r}")
    pickle = read_pickle(read(start, stop), 0, BUILDERS, partial(find_storage, {}))
    prefix = root + "data/"
    places = {name.removeprefix(prefix): span for name, span in members.items() if name.startswith(prefix)}
    return _list_tensors(pickle, places, [], big_endian=order == b"big")


# The older form.


def _read_legacy(read: Read, size: int) -> Listing:
    """Five pickles (magic number, version, machine, tensors, storage keys), then the storages."""
    window = _WINDOW
    while True:
        data = read(0, min(window, size))
        try:
            pickle, storages, keys, at = _read_pickles(data)
            break
        except TruncatedFile:
            if len(data) == size:
                raise
        if window >= MAX_STREAM:
            raise UnsafePickle(f"pickles of over {MAX_STREAM >> 20} MiB stand before the first storage")
        window *= 2
    places: dict[str, tuple[int, int]] = {}
    for key in keys:
        storage, start = storages[key], at + 8
        at = start + storage.count * storage.item
        if at > size:
            raise TruncatedFile(f"storage {key!r} ends at byte {at:,}, the file at {size:,}")
        if int.from_bytes(read(start - 8, start), "little") != storage.count:
            raise CorruptCheckpoint(f"storage {key!r} has another length than the pickle says")
        places[key] = start, at
    notes = [f"{size - at:,} bytes behind the last storage belong to nothing"] if at < size else []
    return _list_tensors(pickle, places, notes)


def _read_pickles(data: bytes) -> tuple[Pickle, dict[str, Storage], list[str], int]:
    """The pickle of the tensors, the storages it names, their order in the file and where they start."""
    storages: dict[str, Storage] = {}
    pickles: list[Pickle] = []
    at = 0
    for constant in (_MAGIC, _LEGACY_PROTOCOL, None, None, None):
        pickles.append(read_pickle(data, at, BUILDERS, partial(find_storage, storages)))
        at = pickles[-1].stop
        if constant is not None and pickles[-1].value != constant:
            raise NotACheckpoint("a pickle that torch.save did not write")
    keys = pickles[4].value
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise CorruptCheckpoint("the list of storages is no list of keys")
    if len(set(keys)) != len(keys) or set(keys) != storages.keys():
        raise CorruptCheckpoint("the list of storages and the pickle of the tensors name different ones")
    return pickles[3], storages, keys, at


# From the value of the pickle to a list of tensors.


def _list_tensors(pickle: Pickle, places: Places, notes: list[str], *, big_endian: bool = False) -> Listing:
    """List what a pickle holds; ``places`` tells where in the file each storage is."""
    root, budget = pickle.value, _Budget()
    if isinstance(root, Call | Global):
        raise UnsupportedFormat(
            f"the file holds an object of {_name(root)}, whose tensors only its own code can list",
            hint="save the state_dict() of the object with the program that wrote it",
        )
    foreign = [name for name in pickle.names if name not in BUILDERS and not is_type(name)]
    if foreign:
        more = f" and {len(foreign) - 20:,} more" if len(foreign) > 20 else ""
        notes.append(f"named in the pickle, not imported: {', '.join(foreign[:20])}{more}")
    if isinstance(root, Table):
        root = _unwrap(_without_optimizers(root, notes, budget), notes, budget)
    tensors, opaque = _flatten(root, budget)
    entries: list[Entry] = []
    owners: dict[object, str] = {}
    for name, tensor in tensors:
        entry = check_tensor(name, tensor, places, big_endian=big_endian)
        identity = (entry.start, entry.stop, entry.dtype, entry.shape, entry.strides)
        owner = owners.setdefault(identity, name) if entry.stop > entry.start else name
        entries.append(entry if owner == name else replace(entry, alias_of=owner))
    twice = [name for name, count in Counter(e.name for e in entries).items() if count > 1]
    if twice:
        raise DuplicateTensor(f"two tensors are named {twice[0]!r}")
    notes += _describe_hidden(opaque, [tensor for _, tensor in tensors])
    return Listing(tuple(sorted(entries, key=lambda e: (e.start, e.stop))), notes=tuple(notes))


def _name(record: Call | Global) -> str:
    while isinstance(record, Call):
        record = record.function
    return record.name


class _Budget:
    """What is left of ``MAX_COST``: a few lists within one another can be billions of paths."""

    def __init__(self) -> None:
        self.left = MAX_COST

    def spend(self, cost: int) -> None:
        self.left -= cost
        if self.left < 0:
            raise UnsafePickle("the pickle nests the same containers too often")


def _flatten(root: object, budget: _Budget) -> tuple[list[tuple[str, Tensor]], list[tuple[str, _Node]]]:
    """Name and value of the tensors in nested containers, and of what may hide further ones."""
    tensors: list[tuple[str, Tensor]] = []
    opaque: list[tuple[str, _Node]] = []
    pending: list[tuple[str, int, _Node]] = [("", 0, root)] if isinstance(root, _NODES) else []
    while pending:
        name, depth, value = pending.pop()
        if isinstance(value, Tensor):
            tensors.append((name or "tensor", value))
            continue
        if isinstance(value, Call | Storage):
            opaque.append((name, value))
            continue
        pairs = value.pairs if isinstance(value, Table) else list(enumerate(value))
        children = [(key, child) for key, child in pairs if isinstance(child, _NODES)]
        opaque += [(name, child) for key, child in children if not isinstance(key, _KEYS)]
        named = [(_join(name, key), depth + 1, child) for key, child in children if isinstance(key, _KEYS)]
        budget.spend(_COST + _ITEM_COST * len(pairs) + sum(_NAME_COST + len(path) for path, _, _ in named))
        if depth == MAX_DEPTH:
            raise UnsafePickle(f"the pickle nests containers more than {MAX_DEPTH} deep")
        pending += named[::-1]
    return tensors, opaque


def _join(name: str, key: object) -> str:
    joined = f"{name}.{key}" if name else str(key)
    if len(joined) > MAX_NAME:
        raise HeaderError("name", f"{joined[:80]!r}… is longer than {MAX_NAME:,} characters")
    return joined


def _without_optimizers(root: Table, notes: list[str], budget: _Budget) -> Table:
    kept = []
    for key, value in root.pairs:
        if isinstance(key, str) and key.lower().startswith("optim") and isinstance(value, _CONTAINERS):
            count = len(_flatten(value, budget)[0])
            notes.append(f"{key[:80]!r} holds {count:,} tensors of an optimizer, left out")
        else:
            kept.append((key, value))
    return Table(kept)


def _unwrap(root: Table, notes: list[str], budget: _Budget) -> Table:
    """Open the branch of the model in a training checkpoint, if it holds nearly all values."""
    for _ in _WRAPPERS:
        sizes = [sum(math.prod(t.shape) for _, t in _flatten(child, budget)[0]) for _, child in root.pairs]
        large = [i for i, size in enumerate(sizes) if size and size >= _WRAPPER_SHARE * sum(sizes)]
        if len(large) != 1:
            break
        key, branch = root.pairs[large[0]]
        others = root.pairs[: large[0]] + root.pairs[large[0] + 1 :]
        if key not in _WRAPPERS or not isinstance(branch, Table):
            break
        if {k for k, _ in others if isinstance(k, str)} & {k for k, _ in branch.pairs if isinstance(k, str)}:
            break
        notes.append(f"names are those within {key!r}")
        root = Table(branch.pairs + others)
    return root


def _describe_hidden(opaque: list[tuple[str, _Node]], delivered: list[Tensor]) -> Iterator[str]:
    """Name the tensors that only code could get at."""
    seen = {id(tensor) for tensor in delivered}
    for name, node in opaque:
        count = 0
        pending: list[object] = [node]
        while pending:
            value = pending.pop()
            if not isinstance(value, _NODES) or id(value) in seen:
                continue
            seen.add(id(value))
            match value:
                case Tensor() | Storage():
                    count += 1
                case Call():
                    pending += [value.function, *value.arguments, *value.contents]
                case Table():
                    pending += chain.from_iterable(value.pairs)
                case _:
                    pending += value
        if count:
            where = f"what {_name(node)} makes" if isinstance(node, Call) else "what has no name of its own"
            yield f"{name!r}: {count:,} tensors in {where}, left out"
