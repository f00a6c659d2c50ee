"""CRC-32C (Castagnoli), the checksum of every record of a reel."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numba import njit

if TYPE_CHECKING:
    from numpy.typing import NDArray

Bytes: TypeAlias = bytes | bytearray | memoryview

_POLYNOMIAL = np.uint32(0x82F63B78)  # 0x1EDC6F41, lowest bit first
_SLICES = 16


def _tables() -> NDArray[np.uint32]:
    """Row k holds the remainder of every byte value followed by k zero bytes."""
    tables = np.empty((_SLICES, 256), np.uint32)
    tables[0] = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        tables[0] = (tables[0] >> 1) ^ np.where(tables[0] & 1, _POLYNOMIAL, np.uint32(0))
    for k in range(1, _SLICES):
        tables[k] = (tables[k - 1] >> 8) ^ tables[0][tables[k - 1] & 0xFF]
    return tables


_TABLES = _tables()


_SIGNATURE = "uint32(Array(uint8, 1, 'C', readonly=True), uint32, Array(uint32, 2, 'C'))"


@njit(_SIGNATURE, cache=True, nogil=True)
def _update(data: NDArray[np.uint8], crc: np.uint32, tables: NDArray[np.uint32]) -> np.uint32:
    """Take 16 bytes per step: independent look-ups instead of a chain of them (slicing by 16)."""
    whole = data.size // 16 * 16
    for i in range(0, whole, 16):
        low = crc ^ (
            np.uint32(data[i])
            | np.uint32(data[i + 1]) << np.uint32(8)
            | np.uint32(data[i + 2]) << np.uint32(16)
            | np.uint32(data[i + 3]) << np.uint32(24)
        )
        crc = (
            tables[15, low & np.uint32(0xFF)]
            ^ tables[14, (low >> np.uint32(8)) & np.uint32(0xFF)]
            ^ tables[13, (low >> np.uint32(16)) & np.uint32(0xFF)]
            ^ tables[12, low >> np.uint32(24)]
        )
        for k in range(4, 16):
            crc ^= tables[15 - k, data[i + k]]
    for i in range(whole, data.size):
        crc = tables[0, (crc ^ np.uint32(data[i])) & np.uint32(0xFF)] ^ (crc >> np.uint32(8))
    return crc


def crc32c(data: Bytes, crc: int = 0) -> int:
    """Checksum ``data``, continuing from ``crc``.

    Reflected polynomial 0x82F63B78, initial value and final xor 0xFFFFFFFF (RFC 3720, appendix B.4);
    ``crc32c(b, crc32c(a)) == crc32c(a + b)``.

    Args:
        data: Contiguous bytes.
        crc: Checksum of the bytes before ``data``; 0 when there are none.

    Returns:
        The checksum, 0 … 2^32 - 1.
    """
    view = np.frombuffer(data, np.uint8)
    view.flags.writeable = False
    return int(_update(view, np.uint32(crc ^ 0xFFFFFFFF), _TABLES)) ^ 0xFFFFFFFF
