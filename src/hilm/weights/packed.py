"""Packed tensors: which stored tensors together are one weight, and which look so but are refused.

A group is decoded only if its parts and its scheme are known. Whatever else is packed stays listed by its
parts, with a note, and gives no values.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections import Counter
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from hilm.errors import PackedFormatUnsupported
from hilm.weights import packed_groups as groups
from hilm.weights.packed_groups import Finder, check
from hilm.weights.roles import classify
from hilm.weights.tensor import TensorInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from hilm.weights.packed_schemes import Packed

    Find = Callable[[Finder, str], tuple[tuple[int, ...], Packed]]

MAX_COLUMNS = 1 << 24
"""Longest row that is decoded."""

_SCALED = re.compile(r"(.+)_scale(?:_inv)?")
_LEAVES: Mapping[str, Find] = {
    "qweight": groups.integers,
    "SCB": groups.int8,
    "weight_format": groups.int8,
    "weight_packed": groups.compressed,
}
_PARTS = frozenset({"qweight", "qzeros", "scales", "g_idx", "SCB", "weight_format"})


def combine(
    stored: Mapping[str, TensorInfo],
    quantization: Callable[[], Mapping[str, Any]],
    read: Callable[[TensorInfo], bytes],
) -> tuple[Mapping[str, TensorInfo], list[str]]:
    """Replace the parts of every packed tensor by the tensor they are.

    Args:
        stored: What the files hold, in storage order.
        quantization: Gives the ``quantization_config`` of the model; asked only if something looks packed.
        read: Reads a small tensor.

    Returns:
        The tensors, and notes; ``stored`` itself if nothing in it looks packed. Packed ones have the decoded
        shape, parts that cannot be decoded a ``refusal``.
    """
    suspects = dict(found for name in stored if (found := _suspect(stored, name)))
    if not suspects and not any(map(_is_packed_integer, stored.values())):
        return stored, []
    finder, names = Finder(stored, quantization(), read), sorted(stored)
    whole, refused = dict[str, TensorInfo](), dict[str, str]()
    for base, find in suspects.items():
        try:
            shape, packed = find(finder, base)
            whole[base] = _place(base, shape, packed, stored)
        except PackedFormatUnsupported as error:
            refused |= dict.fromkeys(_siblings(names, base), error.message)
    gone = {part.name: base for base, info in whole.items() for part in _parts(info)}
    if finder.method:
        left = [n for n, t in stored.items() if _is_packed_integer(t) and n not in gone and n not in refused]
        parts = {part for name in left for part in _siblings(names, name)} - gone.keys()
        refused |= dict.fromkeys(parts, finder.unknown)
    return _table(stored, whole, gone, refused), _notes(whole, refused)


def _place(base: str, shape: tuple[int, ...], packed: Packed, stored: Mapping[str, TensorInfo]) -> TensorInfo:
    """The tensor that a group is, if its rows can be decoded one group at a time."""
    parts = [part for _, part in packed.parts]
    check(0 < packed.columns <= MAX_COLUMNS and math.prod(shape) > 0, f"rows of {packed.columns:,} values")
    check(base not in stored or stored[base] in parts, "its parts and another tensor share a name")
    role = classify(base, shape)
    return TensorInfo(base, packed.scheme, shape, parts[0].span, role, in_order=False, packed=packed)


def _parts(info: TensorInfo) -> list[TensorInfo]:
    return [part for _, part in info.packed.parts] if info.packed else []


def _table(
    stored: Mapping[str, TensorInfo],
    whole: Mapping[str, TensorInfo],
    gone: Mapping[str, str],
    refused: Mapping[str, str],
) -> Mapping[str, TensorInfo]:
    """All tensors, a group where its codes are; one made of another group's bytes is its alias."""
    tensors = {}
    for name, info in stored.items():
        if name not in gone:
            tensors[name] = replace(info, refusal=refused.get(name, ""))
            continue
        group = whole[gone[name]]
        if name == _parts(group)[0].name:
            owners = {gone.get(part.alias_of or "") for part in _parts(group)}
            tensors[group.name] = replace(group, alias_of=owners.pop() if len(owners) == 1 else None)
    return MappingProxyType(tensors)


def _notes(whole: Mapping[str, TensorInfo], refused: Mapping[str, str]) -> list[str]:
    """One line for every scheme, one for every reason to refuse."""
    kinds = Counter((t.dtype, t.packed.bits, t.packed.group) for t in whole.values() if t.packed)
    notes = [
        f"tensors packed as {scheme}, {bits} bits, a scale for {rows} x {columns} values: {count}"
        for (scheme, bits, (rows, columns)), count in kinds.items()
    ]
    for reason, count in Counter(refused.values()).items():
        example = next(name for name, why in refused.items() if why == reason)
        notes.append(f"tensors that cannot be decoded: {count}, such as {example}: {reason}")
    return notes


# What looks packed


def _suspect(stored: Mapping[str, TensorInfo], name: str) -> tuple[str, Find] | None:
    """The weight that a part belongs to by its name, and what knows such weights."""
    head, dot, leaf = name.rpartition(".")
    stem = head + dot
    if leaf in groups.FOREIGN and stem + groups.FOREIGN[leaf][1] in stored and _is_integer(stored[name]):
        return name, groups.foreign
    if leaf in {"absmax", "quant_map"} or leaf.startswith("bitsandbytes__"):
        return head.removesuffix(".quant_state"), groups.codebook
    if leaf in _LEAVES:
        return stem + "weight", _LEAVES[leaf]
    if leaf.endswith("_blocks") and stored[name].dtype == "U8":
        return name.removesuffix("_blocks"), groups.microscaled
    scaled = _SCALED.fullmatch(name)
    base = stored.get(scaled[1]) if scaled else None
    return (base.name, groups.scaled) if base and base.dtype in {*groups.FP8, "I8", "U8"} else None


def _is_integer(info: TensorInfo) -> bool:
    return info.type.kind in {"int", "uint"}


def _is_packed_integer(info: TensorInfo) -> bool:
    """Whether a matrix of narrow integers may be packed weights: indices have 64 bits."""
    return _is_integer(info) and info.type.bits <= 32 and len(info.shape) > 1 and info.role.kind != "buffer"


def _siblings(names: Sequence[str], base: str) -> Iterator[str]:
    """Parts of the same module, biases left out."""
    stem, leaf = base[: base.rfind(".") + 1], base[base.rfind(".") + 1 :]
    foreign = leaf in groups.FOREIGN
    for name in names[bisect_left(names, stem) :]:
        if not name.startswith(stem):
            return
        rest = name[len(stem) :]
        if (foreign or rest in _PARTS or rest.startswith(leaf)) and not rest.endswith("bias"):
            yield name
