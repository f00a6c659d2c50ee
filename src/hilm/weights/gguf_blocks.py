"""Blocks of weights as GGUF files store them, and what they decode to."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from hilm.errors import PackedFormatUnsupported

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray


GROUP = 65_536
"""Values converted at a time."""


@dataclass(frozen=True, slots=True)
class BlockType:
    """How weights of one type are stored: ``nbytes`` bytes stand for ``values`` consecutive values."""

    name: str
    values: int
    nbytes: int


BLOCK_TYPES: Mapping[int, BlockType] = MappingProxyType({
    number: BlockType(name, values, nbytes)
    for number, name, values, nbytes in (
        (0, "F32", 1, 4), (1, "F16", 1, 2), (2, "Q4_0", 32, 18), (3, "Q4_1", 32, 20),
        (6, "Q5_0", 32, 22), (7, "Q5_1", 32, 24), (8, "Q8_0", 32, 34), (9, "Q8_1", 32, 40),
        (10, "Q2_K", 256, 84), (11, "Q3_K", 256, 110), (12, "Q4_K", 256, 144), (13, "Q5_K", 256, 176),
        (14, "Q6_K", 256, 210), (15, "Q8_K", 256, 292), (16, "IQ2_XXS", 256, 66),
        (17, "IQ2_XS", 256, 74), (18, "IQ3_XXS", 256, 98), (19, "IQ1_S", 256, 50),
        (20, "IQ4_NL", 32, 18), (21, "IQ3_S", 256, 110), (22, "IQ2_S", 256, 82),
        (23, "IQ4_XS", 256, 136), (24, "I8", 1, 1), (25, "I16", 1, 2), (26, "I32", 1, 4),
        (27, "I64", 1, 8), (28, "F64", 1, 8), (29, "IQ1_M", 256, 56), (30, "BF16", 1, 2),
        (34, "TQ1_0", 256, 54), (35, "TQ2_0", 256, 66), (39, "MXFP4", 32, 17), (40, "NVFP4", 64, 36),
        (41, "Q1_0", 128, 18),
    )
})  # fmt: skip
"""Every type whose size is known, by its number in the file."""

TYPES_BY_NAME: Mapping[str, BlockType] = MappingProxyType({t.name: t for t in BLOCK_TYPES.values()})

UNDECODABLE = frozenset({"Q8_1", "Q8_K", "Q1_0"})
"""What the library only knows the size of: intermediate results, and a type that is newer than it."""

_Q8_0 = np.dtype([("scale", "<f2"), ("codes", "i1", (32,))])
_Q4_0 = np.dtype([("scale", "<f2"), ("codes", "u1", (16,))])


def decode_blocks(type_name: str, raw: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Convert quantised blocks to float32, equal bit for bit to what the gguf library makes of them.

    Args:
        type_name: Such as ``Q4_K``; not a plain number.
        raw: Whole blocks: contiguous bytes for ``len(out)`` values.
        out: float32, one-dimensional, contiguous; written in full.

    Raises:
        PackedFormatUnsupported: A type that nothing here can decode.
    """
    if type_name in UNDECODABLE:
        raise PackedFormatUnsupported(f"weights of type {type_name} cannot be decoded")
    kind = TYPES_BY_NAME[type_name]
    convert = _CONVERT.get(type_name) or _library(type_name)
    step = GROUP // kind.values
    blocks, values = raw.reshape(-1, kind.nbytes), out.reshape(-1, kind.values)
    with np.errstate(over="ignore", invalid="ignore"):
        for begin in range(0, len(blocks), step):
            convert(blocks[begin : begin + step], values[begin : begin + step])


def _convert_q8_0(raw: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    blocks = raw.view(_Q8_0)[:, 0]
    np.multiply(blocks["codes"], blocks["scale"].astype(np.float32)[:, None], out=out)


def _convert_q4_0(raw: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """The low halves of the bytes are the first 16 values, the high halves the others."""
    blocks = raw.view(_Q4_0)[:, 0]
    scale = blocks["scale"].astype(np.float32)[:, None]
    for half, codes in enumerate((blocks["codes"] & 15, blocks["codes"] >> 4)):
        np.multiply(codes.view(np.int8) - np.int8(8), scale, out=out[:, 16 * half :][:, :16])


def _library(type_name: str) -> Callable[[NDArray[np.uint8], NDArray[np.float32]], None]:
    """The gguf library's decoder of a type."""
    from gguf import GGMLQuantizationType, quants  # noqa: PLC0415 - a quarter second that few files need

    def convert(raw: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
        values = quants.dequantize(raw.reshape(1, -1), GGMLQuantizationType[type_name])
        out[...] = values.reshape(out.shape)

    return convert


_CONVERT: Mapping[str, Callable[[NDArray[np.uint8], NDArray[np.float32]], None]] = {
    "Q8_0": _convert_q8_0,
    "Q4_0": _convert_q4_0,
}
