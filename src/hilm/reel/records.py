"""The records of a reel, and who lays claim to which of them."""

from __future__ import annotations

from enum import IntEnum
from itertools import pairwise
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hilm.errors import HeaderError
from hilm.reel.carrier import Placement
from hilm.reel.layout import CHUNK_ELEMENTS, SLAB_BYTES, chunk_lengths, coded_view
from hilm.reel.schema import require

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hilm.reel.schema import Manifest, Sample, Tensor


class Kind(IntEnum):
    """What a record holds."""

    HEAD = 0
    DATA = 1
    BLOB = 2
    PACKET = 3
    SAMPLES = 4


_NAMES = ["offset", "size", "crc32c", "kind", "file", "zero", "elements"]
RECORD: Final = np.dtype({"names": _NAMES, "formats": ["<u8", "<u4", "<u4", "u1", "u1", "<u2", "<u4"]})
"""One entry of the index, 24 bytes. Heads and blobs have 0 elements. Offsets of packets count from the start
of the video: ``file`` 0 is the one in front of the reel, 1 its companion."""
RECORD_LIMIT: Final = 1 << 31

Index: TypeAlias = NDArray[np.void]
Claim: TypeAlias = tuple[int, int, str]
"""First record, one past the last, and what they belong to."""


def check_records(manifest: Manifest, index: Index) -> list[Claim]:
    """Check that records tile every slab, sample and source file, and that each serves only one of them.

    Args:
        manifest: A checked manifest.
        index: Records [n] of dtype :data:`RECORD`.

    Returns:
        Who owns which records, in order.

    Raises:
        HeaderError: Records and manifest contradict each other.
    """
    claims = [claim for tensor in manifest["tensors"] for claim in _tensor_claims(tensor, manifest, index)]
    claims += [_sample_claim(sample, index) for sample in manifest.get("samples", [])]
    claims += _file_claims(manifest, index)
    claims.sort()
    for (_, stop, one), (first, _, other) in pairwise(claims):
        require(stop <= first, "overlap", f"{one} and {other} share records")
    return claims


def count_sample_records(sample: Sample, index: Index) -> int:
    """Count the head of a sample and its chunks; equal values are a head alone."""
    following = index["kind"][sample["record"] + 1 : sample["record"] + 2].tolist()
    return 1 + -(-sample["fill"] // CHUNK_ELEMENTS) if following == [Kind.SAMPLES] else 1


def _tensor_claims(tensor: Tensor, manifest: Manifest, index: Index) -> Iterator[Claim]:
    if tensor.get("alias_of") is not None:
        return
    owner, slabs, layout = f"tensor {tensor['name']}", tensor["slabs"], tensor.get("layout", "flat")
    rows, columns, word = coded_view(tensor["dtype"], tensor["shape"])
    pieces = "unit" in tensor  # of rows too long for one slab
    width = 1 if pieces else columns
    limit = min(manifest["coding"]["slab_elements"], SLAB_BYTES // word)
    position, record = 0, slabs[0][2] if slabs else 0
    for begin, end, first, count in slabs:
        elements = (end - begin) * width
        fits = begin == position and 0 < elements <= limit and first == record
        require(fits, "tiling", f"{owner}: its slabs do not follow each other")
        whole = not pieces or begin // columns == (end - 1) // columns
        require(whole, "tiling", f"{owner}: a slab crosses rows")
        place = Placement(1 if pieces else end - begin, end - begin if pieces else columns, layout)
        _check_slab(index[first : first + count], count, elements, Kind.DATA, owner, place)
        position, record = end, first + count
    require(position * width == rows * columns, "tiling", f"{owner}: its slabs do not cover it")
    if slabs:
        yield slabs[0][2], record, owner


def _sample_claim(sample: Sample, index: Index) -> Claim:
    first, owner = sample["record"], f"sample {sample['frame_index']}"
    count = count_sample_records(sample, index)
    _check_slab(index[first : first + count], count, sample["fill"], Kind.SAMPLES, owner)
    return first, first + count, owner


def is_carried(index: Index, first: int) -> bool:
    """Whether a video carries the slab that begins with the record ``first``."""
    kinds: list[int] = index["kind"][first + 1 : first + 2].tolist()
    return kinds == [Kind.PACKET]


def _check_slab(
    records: Index, count: int, elements: int, kind: Kind, owner: str, place: Placement | None = None
) -> None:
    """Expect a head and its chunks, behind its packet if a video carries it; a constant is a head alone."""
    kinds, lengths = [kind], chunk_lengths(elements)
    if place and is_carried(records, 0):
        kinds, lengths = [Kind.PACKET, kind], place.lengths
    expected = [Kind.HEAD, *kinds * len(lengths)]
    known = count in {1, len(expected)} and len(records) == count
    require(known, "tiling", f"{owner}: a slab of {elements} elements cannot have {count} records")
    tiled = records["elements"].tolist() == [0, *(n for n in lengths for _ in kinds)][:count]
    require(
        tiled and records["kind"].tolist() == expected[:count],
        "tiling",
        f"{owner}: the records do not tile a slab",
    )


def _file_claims(manifest: Manifest, index: Index) -> Iterator[Claim]:
    sizes = {tensor["name"]: tensor["nbytes"] for tensor in manifest["tensors"]}
    for file in manifest["source"]["files"] if manifest["source"] else []:
        total = 0
        for segment in file["segments"]:
            match segment:
                case ["tensor", str(name)] if name in sizes:
                    total += sizes[name]
                case ["blob", int(first), int(count)] if 0 <= first < first + count <= len(index):
                    blobs = index[first : first + count]
                    require(
                        bool((blobs["kind"] == Kind.BLOB).all()), "segment", f"{file['name']}: not a blob"
                    )
                    total += int(blobs["size"].sum(dtype=np.uint64))
                    yield first, first + count, f"file {file['name']}"
                case _:
                    raise HeaderError("segment", f"{file['name']}: {segment!r:.80} is not a segment")
        require(total == file["size"], "size", f"{file['name']}: its segments hold {total:,} bytes")
