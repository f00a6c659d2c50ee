"""Stored element types and their decoding to float32.

Decoding writes into memory the caller owns and works in cache-sized pieces, because a fresh buffer or a
pass that leaves the cache costs more than the conversion itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

import numpy as np

from hilm.errors import PackedFormatUnsupported
from hilm.weights.gguf_blocks import BLOCK_TYPES, UNDECODABLE, decode_blocks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

PIECE = 65_536
"""Values converted at a time: 256 KiB of float32, resident in cache."""

_BYTE = np.dtype("u1")
_HALF_LIMIT = np.float32(65_536)  # what infinities and NaNs of F16 turn into

Kind = Literal["float", "int", "uint", "bool", "complex", "block", "packed"]


@dataclass(frozen=True, slots=True)
class DType:
    """One stored element type, in the spelling of safetensors or GGUF.

    Attributes:
        name: Such as ``BF16`` or ``Q4_K``.
        block: Values that share bytes: 1, or more in quantised and sub-byte types.
        block_bytes: Bytes of so many values; a complex number is two values.
        kind: ``block`` marks quantised blocks that can be decoded, ``packed`` what cannot.
        word: Little-endian unsigned type holding one value (``u1`` where values share bytes).
        values: Values per stored element: 2 for complex numbers, else 1.
    """

    name: str
    block: int
    block_bytes: int
    kind: Kind
    word: np.dtype[np.unsignedinteger]
    values: int = 1

    @property
    def bits(self) -> int:
        """Bits of one value, rounded down for quantised blocks with their scales."""
        return 8 * self.block_bytes // self.block

    @property
    def is_weight(self) -> bool:
        """Whether values of this type are weights that can be decoded to float32."""
        return self.kind in {"float", "complex", "block"}

    def nbytes(self, count: int) -> int:
        """Bytes of ``count`` values, which are whole blocks."""
        return count // self.block * self.block_bytes

    def count(self, nbytes: int) -> int:
        """Values in ``nbytes`` bytes, which are whole blocks."""
        return nbytes // self.block_bytes * self.block


def _elements() -> Mapping[str, DType]:
    kinds: dict[str, tuple[int, Kind]] = {
        "BOOL": (8, "bool"),
        "U8": (8, "uint"),
        "I8": (8, "int"),
        "U16": (16, "uint"),
        "I16": (16, "int"),
        "U32": (32, "uint"),
        "I32": (32, "int"),
        "U64": (64, "uint"),
        "I64": (64, "int"),
        "F16": (16, "float"),
        "BF16": (16, "float"),
        "F32": (32, "float"),
        "F64": (64, "float"),
        "F8_E4M3": (8, "float"),
        "F8_E5M2": (8, "float"),
        "F8_E4M3FNUZ": (8, "float"),
        "F8_E5M2FNUZ": (8, "float"),
        "F8_E8M0": (8, "float"),
    }
    table = {n: DType(n, 1, bits // 8, k, np.dtype(f"<u{bits // 8}")) for n, (bits, k) in kinds.items()}
    table["C64"] = DType("C64", 1, 4, "complex", np.dtype("<u4"), values=2)
    for name, block, block_bytes in (("F4", 2, 1), ("F6_E2M3", 4, 3), ("F6_E3M2", 4, 3)):
        table[name] = DType(name, block, block_bytes, "packed", _BYTE)
    return MappingProxyType(table)


def _blocks() -> dict[str, DType]:
    types = {t.name: t for t in BLOCK_TYPES.values() if t.values > 1}
    kinds: dict[bool, Kind] = {True: "packed", False: "block"}
    return {
        name: DType(name, t.values, t.nbytes, kinds[name in UNDECODABLE], _BYTE) for name, t in types.items()
    }


ELEMENTS: Mapping[str, DType] = _elements()
"""The element types of safetensors, by name."""

DTYPES: Mapping[str, DType] = MappingProxyType({**ELEMENTS, **_blocks()})
"""Every element type hilm knows, by its name in safetensors or GGUF."""


def decode(dtype: DType, raw: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Convert stored little-endian bytes to float32.

    Exact for every type of at most 32 bits: subnormals, infinities and BF16 NaN payloads are kept. F64
    and 64-bit integers are rounded to nearest even; F64 beyond the float32 range becomes ±inf.

    Args:
        dtype: Type of the stored values.
        raw: ``dtype.nbytes(len(out))`` contiguous bytes.
        out: float32, one-dimensional, contiguous; written in full.

    Raises:
        PackedFormatUnsupported: Values that need a quantisation scheme to be read, or of a type that nothing
            here can decode.
    """
    if dtype.kind == "block":
        decode_blocks(dtype.name, raw, out)
        return
    if dtype.kind == "packed":
        raise PackedFormatUnsupported(
            f"values of type {dtype.name} cannot be decoded to float32",
            hint="archive the checkpoint bit-exactly instead: hilm encode --mode archive",
        )
    words = raw.view(dtype.word)
    if dtype.name in {"F32", "C64"}:
        np.copyto(out, words.view("<f4"))
        return
    for begin in range(0, len(out), PIECE):
        piece = slice(begin, begin + PIECE)
        _decode_piece(dtype, words[piece], out[piece])


def _decode_piece(dtype: DType, words: NDArray[np.unsignedinteger], out: NDArray[np.float32]) -> None:
    if dtype.name == "BF16":
        bits = out.view(np.uint32)
        np.copyto(bits, words)
        np.left_shift(bits, 16, out=bits)
    elif dtype.name == "F16":
        _decode_half(words, out)
    elif dtype.kind == "float" and dtype.bits == 8:
        _decode_bytes(dtype.name, words, out)
    else:
        letter = {"float": "f", "int": "i", "uint": "u", "bool": "u"}[dtype.kind]
        with np.errstate(over="ignore", invalid="ignore"):
            np.copyto(out, words.view(f"<{letter}{dtype.bits // 8}"), casting="unsafe")


def _decode_half(words: NDArray[np.unsignedinteger], out: NDArray[np.float32]) -> None:
    """Move the bits into place and rescale by 2^112, which is exact unless infinities or NaNs occur."""
    bits = out.view(np.int32)
    np.copyto(bits, words.view("<i2"))
    np.left_shift(bits, 13, out=bits)
    np.bitwise_and(bits, np.int32(-0x70000001), out=bits)
    np.multiply(out, np.float32(2.0**112), out=out)
    if len(out) and not (_keeps_subnormals() and out.min() > -_HALF_LIMIT and out.max() < _HALF_LIMIT):
        np.copyto(out, words.view("<f2"))


def _keeps_subnormals() -> bool:
    """Whether this thread multiplies subnormals: a library may have switched on flush-to-zero."""
    return bool(np.float32(2.0**-136) * np.float32(2.0**112) == np.float32(2.0**-24))


def _decode_bytes(name: str, codes: NDArray[np.unsignedinteger], out: NDArray[np.float32]) -> None:
    """Look up two codes at a time: a 65,536-entry table of pairs."""
    even = len(codes) & ~1
    pairs = codes[:even].view("<u2")
    if pairs.ctypes.data % 2 == 0 and out.ctypes.data % 8 == 0:
        np.take(_pair_table(name), pairs, out=out[:even].view(np.uint64), mode="clip")
    else:
        np.take(_byte_table(name), codes[:even], out=out[:even], mode="clip")
    out[even:] = _byte_table(name)[codes[even:]]


@cache
def _byte_table(name: str) -> NDArray[np.float32]:
    import ml_dtypes  # noqa: PLC0415 - only 8-bit floats need it

    stored = {
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
        "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
        "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    }[name]
    table: NDArray[np.float32] = np.arange(256, dtype=np.uint8).view(stored).astype(np.float32)
    return table


@cache
def _pair_table(name: str) -> NDArray[np.uint64]:
    table = _byte_table(name)
    low, high = np.meshgrid(table, table)  # low byte varies fastest: it is stored first
    return np.stack([low.ravel(), high.ravel()], axis=1).view(np.uint64).ravel()
