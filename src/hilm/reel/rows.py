"""A few rows of a tensor: only the chunks that cover them are read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hilm.errors import UsageError
from hilm.reel.layout import CHUNK_ELEMENTS, coded_view
from hilm.reel.manifest import ROUNDING_CODERS
from hilm.reel.slab import decode_chunk, read_head
from hilm.reel.words import word_view
from hilm.weights.dtypes import DTYPES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from hilm.reel.decoder import Reel


def read_rows(reel: Reel, name: str, begin: int, end: int) -> NDArray[np.uint8]:
    """Stored little-endian bytes of the rows ``begin`` … ``end`` - 1 along a tensor's first axis.

    Of every slab they touch, the head is read and the chunks that cover them, in two ranges at most, and
    checked by CRC32C; the SHA-256 covers whole tensors only. A difference from a base
    is read whole, and so is what a video carries.

    Raises:
        UsageError: There is no such tensor, it has no such rows, or they share bytes.
        ChecksumMismatch: What was read is damaged.
    """
    shape, size = reel.entry(name)["shape"], reel.entry(name)["nbytes"]
    if not shape or not 0 <= begin < end <= shape[0]:
        raise UsageError(f"{name} of shape {shape} has no rows {begin}:{end}", hint="rows count from 0")
    unit, rest = divmod(size, shape[0])
    if rest:
        raise UsageError(f"rows of {name} share bytes", hint="read the whole tensor")
    if reel.base_sha256(name) is not None or reel.file.carrier is not None:
        return reel.words(name)[begin * unit : end * unit]
    return np.concatenate([np.empty(0, np.uint8), *_pieces(reel, name, begin * unit, end * unit)])


def _pieces(reel: Reel, name: str, start: int, stop: int) -> Iterator[NDArray[np.uint8]]:
    """The stored bytes ``start`` … ``stop`` - 1 of a tensor, chunk by chunk."""
    entry = reel.entry(name)
    _, columns, word = coded_view(entry["dtype"], entry["shape"])
    for begin, end, first, count in entry["slabs"]:
        rows, width = (1, end - begin) if "unit" in entry else (end - begin, columns)
        base = begin * word * (1 if "unit" in entry else columns)
        low, high = max(start - base, 0), min(stop - base, rows * width * word)
        if low >= high:
            continue
        step = CHUNK_ELEMENTS * word
        wanted = range(low // step, -(-high // step))
        head, chunks = _read_slab(reel, first, count, wanted)
        view = word_view(DTYPES[entry["dtype"]], rows, width)
        parsed = read_head(head, view, has_base=False, rounded=entry["coder"] in ROUNDING_CODERS)
        for index, chunk in zip(wanted, chunks, strict=True):
            words = decode_chunk(parsed, index, chunk)
            yield words[max(low - index * step, 0) : high - index * step]


def _read_slab(reel: Reel, first: int, count: int, wanted: range) -> tuple[bytes, list[bytes]]:
    """Head and chunks of a slab; one range where they adjoin, none for the chunks of a constant."""
    if count == 1:
        return reel.file.record(first), [b""] * len(wanted)
    if wanted.start == 0:
        head, *chunks = reel.file.records(first, 1 + len(wanted))
        return head, chunks
    return reel.file.record(first), reel.file.records(first + 1 + wanted.start, len(wanted))
