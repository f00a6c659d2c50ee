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

from hilm.errors import UnsupportedFormat

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

PIECE = 65_536
"""Values converted at a time: 256 KiB of float32, resident in cache."""

_HALF_LIMIT = np.float32(65_536)  # what infinities and NaNs of F16 turn into

Kind = Literal["float", "int", "uint", "bool", "complex", "packed"]


@dataclass(frozen=True, slots=True)
class DType:
    """One stored element type, in the spelling of safetensors.

    Attributes:
        name: Such as ``BF16``.
        bits: Bits of one value; a complex number is two values.
        kind: ``packed`` marks sub-byte types, whose values share bytes.
        word: Little-endian unsigned type holding one value (``u1`` for packed types).
        values: Values per stored element: 2 for complex numbers, else 1.
    """

    name: str
    bits: int
    kind: Kind
    word: np.dtype[np.unsignedinteger]
    values: int = 1

    @property
    def is_weight(self) -> bool:
        """Whether values of this type are weights that can be decoded to float32."""
        return self.kind in {"float", "complex"}


def _table() -> Mapping[str, DType]:
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
        "F4": (4, "packed"),
        "F6_E2M3": (6, "packed"),
        "F6_E3M2": (6, "packed"),
    }
    table = {n: DType(n, b, k, np.dtype(f"<u{max(b // 8, 1)}")) for n, (b, k) in kinds.items()}
    table["C64"] = DType("C64", 32, "complex", np.dtype("<u4"), values=2)
    return MappingProxyType(table)


DTYPES: Mapping[str, DType] = _table()
"""Every element type hilm knows, by its safetensors name."""


def decode(dtype: DType, raw: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Convert stored little-endian bytes to float32.

    Exact for every type of at most 32 bits: subnormals, infinities and BF16 NaN payloads are kept. F64
    and 64-bit integers are rounded to nearest even; F64 beyond the float32 range becomes ±inf.

    Args:
        dtype: Type of the stored values.
        raw: ``len(out) * dtype.bits / 8`` contiguous bytes.
        out: float32, one-dimensional, contiguous; written in full.

    Raises:
        UnsupportedFormat: Values of a sub-byte type, which need a quantisation scheme to be read.
    """
    if dtype.kind == "packed":
        raise UnsupportedFormat(
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
