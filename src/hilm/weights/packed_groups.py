"""What each quantisation format stores for one weight, checked: shapes and settings, no values.

Every finder takes the name of the weight and returns its decoded shape with how to decode it, or raises
``PackedFormatUnsupported`` with the reason alone.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from hilm.errors import PackedFormatUnsupported
from hilm.weights import packed_schemes as schemes
from hilm.weights.packed_schemes import Packed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from hilm.weights.tensor import TensorInfo

    Found = tuple[tuple[int, ...], Packed]
    Part = tuple[str, TensorInfo]

MAX_STATE = 64 << 10
"""Longest description of one tensor by bitsandbytes that is read, in bytes."""

FOREIGN: Mapping[str, tuple[str, str]] = {
    "q_weight": ("EXL2", "q_scale"), "trellis": ("EXL3", "suh"), "W_q": ("HQQ", "scale"),
    "Qidxs": ("QuIP#", "SU"), "codes": ("AQLM", "codebooks"), "indices": ("VPTQ", "centroids.weight"),
    "B": ("Marlin", "s"), "bitmask": ("2:4 sparse", "compressed"),
}  # fmt: skip
"""Integers that only formats which nothing here decodes store: whose, and another part of the same module."""

_FLOATS = ("F32", "F16", "BF16")
FP8: tuple[str, ...] = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
_FP8_SIDE = 128  # of the blocks of FP8 where the settings state no other


def check(condition: object, message: str) -> None:
    """Raise ``PackedFormatUnsupported`` unless a condition holds."""
    if not condition:
        raise PackedFormatUnsupported(message)


@dataclass(frozen=True, slots=True)
class Finder:
    """What finders look at.

    Attributes:
        stored: All stored tensors by name.
        settings: The model's ``quantization_config``; empty without one.
        read: Reads a small tensor.
    """

    stored: Mapping[str, TensorInfo]
    settings: Mapping[str, Any]
    read: Callable[[TensorInfo], bytes]

    @property
    def method(self) -> str:
        """Lower-case name of the quantisation method; empty if the model names none."""
        return str(self.settings.get("quant_method") or "").lower()

    def part(self, name: str, types: Iterable[str]) -> TensorInfo:
        """A stored tensor of one of some types."""
        leaf = name.rpartition(".")[2]
        check(name in self.stored, f"packed, but its {leaf} is missing")
        info = self.stored[name]
        check(info.dtype in types, f"{leaf} has the type {info.dtype}")
        return info

    def optional(self, role: str, name: str, types: Iterable[str]) -> tuple[Part, ...]:
        """The same as a part, if there is such a tensor."""
        return ((role, self.part(name, types)),) if name in self.stored else ()

    def compressed(self) -> tuple[set[str], list[Mapping[str, Any]]]:
        """Formats and settings of weights that compressed-tensors states for one or another module."""
        groups = self.settings.get("config_groups")
        all_groups = [g for g in (groups.values() if isinstance(groups, dict) else ()) if isinstance(g, dict)]
        formats = {str(g.get("format")) for g in (self.settings, *all_groups)}
        return formats, [g["weights"] for g in all_groups if isinstance(g.get("weights"), dict)]

    def require_format(self, *names: str) -> None:
        """Check that the model says that it has weights in one of some formats of compressed-tensors."""
        self.require_method("compressed-tensors")
        formats, sparsity = self.compressed()[0], self.settings.get("sparsity_config")
        stated = sparsity.get("format", "dense") if isinstance(sparsity, dict) and sparsity else "dense"
        check(stated == "dense", f"compressed-tensors with the sparsity {stated!s:.40} is not decoded")
        found = "+".join(sorted(formats - {"None"}))
        check(formats.intersection(names), f"compressed-tensors in the format {found:.80} is not decoded")

    def require_method(self, *methods: str) -> None:
        """Check that the model says that it was quantised in one of some ways."""
        check(self.method in methods, self.unknown)

    @property
    def unknown(self) -> str:
        """Why something packed cannot be decoded whose method is not known."""
        if self.method:
            return f"packed by {self.method[:40]} in a way that is not decoded"
        return "packed, but no quantization_config in config.json says how"


def foreign(finder: Finder, base: str) -> NoReturn:
    """A format that nothing here decodes."""
    del finder
    raise PackedFormatUnsupported(f"packed by {FOREIGN[base.rpartition('.')[2]][0]}, which is not decoded")


def integers(finder: Finder, base: str) -> Found:
    """GPTQ or AWQ: words of codes, words of zero points, scales, and maybe the group of every column."""
    finder.require_method("gptq", "awq")
    stem, gptq = base.removesuffix("weight"), finder.method == "gptq"
    layout = _layout(finder.settings, gptq=gptq)
    codes, zeros = finder.part(stem + "qweight", ["I32"]), finder.part(stem + "qzeros", ["I32"])
    scales = finder.part(stem + "scales", _FLOATS)
    check({len(part.shape) for part in (codes, zeros, scales)} == {2}, "its parts are no matrices")
    groups, rows = scales.shape
    check(rows > 0, "its scales are empty")
    bits = zeros.shape[1] * 32 // rows
    check(bits in ((2, 3, 4, 8) if gptq else (4,)), f"{bits} bits, if its parts fit")
    columns = codes.shape[0] * 32 // bits if gptq else codes.shape[0]
    packed = (columns * bits / 32, rows) if gptq else (columns, rows * bits / 32)
    check(
        codes.shape == packed and zeros.shape == (groups, rows * bits / 32),
        "the shapes of its parts do not fit",
    )
    order = _order(finder, stem + "g_idx", columns)
    size = _group_size(columns, groups, [finder.settings.get("group_size")])
    parts = (("qweight", codes), ("qzeros", zeros), ("scales", scales), *order)
    decode, zero = (schemes.gptq, int(layout == "gptq")) if gptq else (schemes.awq, 0)
    scheme = f"{finder.method.upper()}{bits}"
    return (rows, columns), Packed(scheme, bits, decode, parts, rows, columns, (1, size), zero)


def _layout(settings: Mapping[str, Any], *, gptq: bool) -> str:
    """How words are packed, if that can be decoded."""
    stated = settings.get("version", settings.get("format", "gemm"))
    if gptq:
        stated = settings.get("checkpoint_format", "gptq")
    layout = "marlin" if settings.get("is_marlin_format") else str(stated).lower()
    check(
        layout in ({"gptq", "gptq_v2"} if gptq else {"gemm"}),
        f"{'GPTQ' if gptq else 'AWQ'} in the layout {layout[:40]} is not decoded",
    )
    return layout


def _order(finder: Finder, name: str, columns: int) -> tuple[Part, ...]:
    """The group of every column, where that is stored."""
    order = finder.optional("g_idx", name, ["I32", "I64"])
    check(all(part.shape == (columns,) for _, part in order), "its g_idx has another length than a row")
    return order


def _group_size(columns: int, groups: int, stated: Iterable[object]) -> int:
    """Columns per scale: what the settings state if it fits, else what divides a row evenly."""
    sizes = [size for size in stated if isinstance(size, int)]
    check(0 not in sizes, "groups of 0 values")
    check(groups > 0, "its scales are empty")
    fits = [size for size in sizes if size > 0 and -(-columns // size) == groups]
    check(fits or columns % groups == 0, f"{groups} groups do not fit a row of {columns}")
    return fits[0] if fits else columns // groups


def codebook(finder: Finder, base: str) -> Found:
    """NF4 or FP4 of bitsandbytes, which describes every tensor beside it; scales may be packed again."""
    kind = "nf4" if f"{base}.quant_state.bitsandbytes__nf4" in finder.stored else "fp4"
    state = _state(finder, f"{base}.quant_state.bitsandbytes__{kind}")
    shape, group = tuple(state["shape"]), state["blocksize"]
    numel = math.prod(shape)
    nested = f"{base}.nested_absmax" in finder.stored
    sizes = {"absmax": -(-numel // group), "quant_map": 16}
    if nested:
        sizes |= {"nested_absmax": -(-sizes["absmax"] // state["nested_blocksize"]), "nested_quant_map": 256}
    codes = finder.part(base, ["U8"])
    types = {"absmax": "U8" if nested else "F32"}
    parts = [(role, finder.part(f"{base}.{role}", [types.get(role, "F32")])) for role in sizes]
    fit = codes.numel == -(-numel // 2) and all(part.numel == sizes[role] for role, part in parts)
    check(fit, "the sizes of its parts do not fit")
    offset = (state["nested_blocksize"], float(state["nested_offset"])) if nested else (0, 0.0)
    described = finder.stored[f"{base}.quant_state.bitsandbytes__{kind}"]
    everything = (("weight", codes), *parts, ("state", described))
    rows = numel // max(shape[-1], 1)
    return shape, Packed(
        kind.upper(), 4, schemes.codebook, everything, rows, shape[-1], (1, group), nested=offset
    )


def _state(finder: Finder, name: str) -> dict[str, Any]:
    """What bitsandbytes says of one tensor, with defaults for scales that are not packed."""
    info = finder.part(name, ["U8"])
    check(info.nbytes <= MAX_STATE, f"a quant_state of {info.nbytes:,} bytes")
    try:
        state = json.loads(finder.read(info))
    except (ValueError, RecursionError):
        state = None
    check(isinstance(state, dict), "its quant_state is not a JSON object")
    state = {"nested_blocksize": 1, "nested_offset": 0.0, **state}
    shape = state.get("shape")
    sizes = [*(shape if isinstance(shape, list) else ()), state.get("blocksize"), state["nested_blocksize"]]
    sound = 3 <= len(sizes) <= 10 and isinstance(state["nested_offset"], float)
    sound = sound and all(type(size) is int and 0 < size < 1 << 48 for size in sizes)
    check(sound, "its quant_state describes no tensor")
    return state


def int8(finder: Finder, base: str) -> Found:
    """int8 of bitsandbytes: a scale for every row."""
    stem = base.removesuffix("weight")
    codes, scales = finder.part(base, ["I8"]), finder.part(stem + "SCB", ["F32"])
    check(len(codes.shape) == 2 and scales.shape == codes.shape[:1], "its SCB does not fit")
    parts = (("weight", codes), ("scale", scales), *finder.optional("format", stem + "weight_format", ["U8"]))
    rows, columns = codes.shape
    return codes.shape, Packed("BNB8", 8, schemes.int8_rows, parts, rows, columns, (1, columns))


def scaled(finder: Finder, base: str) -> Found:
    """FP8 or int8 with scales for tensors, rows, groups or blocks, maybe with zero points."""
    codes = finder.part(base, (*FP8, "I8", "U8"))
    whole = codes.dtype == "I8"
    check(codes.dtype != "U8", finder.unknown)
    if whole:
        finder.require_format("int-quantized", "naive-quantized")
    name = base + ("_scale_inv" if base + "_scale_inv" in finder.stored else "_scale")
    scales = finder.part(name, (*_FLOATS, "F8_E8M0"))
    rank = len(codes.shape)
    check(rank in {2, 3}, f"{rank} dimensions")
    zeros = finder.optional("zero_point", base + "_zero_point", ["I8"]) if whole else ()
    check(all(part.shape == scales.shape for _, part in zeros), "zero points and scales differ in shape")
    group = _rectangle(codes.shape, scales.shape, finder)
    rows, columns = codes.shape[-2:]
    parts = (("weight", codes), ("scale", scales), *zeros)
    return codes.shape, Packed("CT-INT8" if whole else "FP8", 8, schemes.scaled, parts, rows, columns, group)


def _rectangle(shape: tuple[int, ...], scales: tuple[int, ...], finder: Finder) -> tuple[int, int]:
    """Sides of what shares a scale, told from the shape of the scales."""
    grid = (*scales, *[1] * (len(shape) - len(scales)))
    fit = math.prod(scales) == 1 or grid[:-2] == shape[:-2]
    check(len(grid) == len(shape) and fit, "its scales do not fit")
    stated = [finder.settings.get("weight_block_size")]
    for weights in finder.compressed()[1]:
        stated += [weights.get("block_structure"), [1, weights.get("group_size")]]
    pairs = [pair for pair in stated if isinstance(pair, list) and len(pair) == 2]
    sides = []
    for axis in (0, 1):
        size, count = shape[axis - 2], grid[axis - 2]
        if count in {1, size}:
            sides.append(size // max(count, 1))
        else:
            sides.append(_group_size(size, count, [*(pair[axis] for pair in pairs), _FP8_SIDE]))
    return sides[0], sides[1]


def compressed(finder: Finder, base: str) -> Found:
    """Packed words of compressed-tensors: integers, or 4-bit floats with a scale of scales."""
    codes = finder.part(base + "_packed", ["I32", "U8"])
    if codes.dtype == "U8":
        return _nvfp4(finder, base, codes)
    finder.require_format("pack-quantized")
    described = finder.part(base + "_shape", ["I64", "I32"])
    check(described.numel == 2 and len(codes.shape) == 2, "it is no matrix")
    raw, size = finder.read(described), described.nbytes // 2
    rows, columns = (int.from_bytes(raw[at : at + size], "little") for at in (0, size))
    stated = [weights.get("num_bits") for weights in finder.compressed()[1]]
    fits = [bits for bits in (2, 4, 8) if bits in stated and codes.shape == (rows, -(-columns * bits // 32))]
    check(len(fits) == 1, f"{rows} x {columns} values do not fit its words")
    bits = fits[0]
    scales = finder.part(base + "_scale", _FLOATS)
    check(scales.shape[:1] == (rows,) and len(scales.shape) <= 2, "its scales do not fit")
    groups = scales.shape[1] if len(scales.shape) == 2 else 1
    zeros = finder.optional("zero_point", base + "_zero_point", ["I32", "I8"])
    for _, part in zeros:
        count = -(-rows * bits // 32) if part.dtype == "I32" else rows
        check(part.shape == (count, groups), "its zero points do not fit")
    order = _order(finder, base + "_g_idx", columns)
    size = _group_size(columns, groups, [w.get("group_size") for w in finder.compressed()[1]])
    parts = (("codes", codes), ("scales", scales), *zeros, *order, ("shape", described))
    packed = Packed(f"CT-INT{bits}", bits, schemes.integers, parts, rows, columns, (1, size))
    return (rows, columns), packed


def _nvfp4(finder: Finder, base: str, codes: TensorInfo) -> Found:
    finder.require_format("nvfp4-pack-quantized")
    scales = finder.part(base + "_scale", ["F8_E4M3"])
    whole = finder.part(base + "_global_scale", ["F32"])
    check(len(codes.shape) == 2, "it is no matrix")
    rows, columns = codes.shape[0], 2 * codes.shape[1]
    check(scales.shape == (rows, columns / 16) and whole.numel == 1, "the shapes of its parts do not fit")
    parts = (("codes", codes), ("scales", scales), ("global", whole))
    return (rows, columns), Packed("NVFP4", 4, schemes.small_floats, parts, rows, columns, (1, 16))


def microscaled(finder: Finder, base: str) -> Found:
    """MXFP4: a power of two for 16 bytes of codes; a stack [E, out, in] stays in its stored order."""
    finder.require_method("mxfp4")
    codes, scales = finder.part(base + "_blocks", ["U8"]), finder.part(base + "_scales", ["U8"])
    fit = len(codes.shape) in {3, 4} and codes.shape[-1] == 16 and codes.shape[:-1] == scales.shape
    check(fit, "the shapes of its parts do not fit")
    shape = (*codes.shape[:-2], 32 * codes.shape[-2])
    parts = (("codes", codes), ("scales", scales))
    return shape, Packed("MXFP4", 4, schemes.small_floats, parts, shape[-2], shape[-1], (1, 32))
