"""A slab — whole rows of one tensor — as a head and independently decodable chunks.

Every coder is one entry of a table: from the parsed head to a function that decodes a chunk in place.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from hilm.errors import ChecksumMismatch
from hilm.reel.archive import carried_symbols, symbol_decoder, symbol_encoder
from hilm.reel.carrier import MIDDLE, too_many_escapes
from hilm.reel.delta import delta_decoder
from hilm.reel.delta_rounding import rounded_delta_decoder
from hilm.reel.head import DIFFERENCES, ROUNDING, Coder, SlabHead, pack_head, parse_head
from hilm.reel.quantizer import carried_weights, scalar_decoder, trellis_decoder
from hilm.reel.scales import one_class
from hilm.reel.threads import in_threads
from hilm.reel.words import word_view

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from hilm.reel.carrier import Carried, Placement
    from hilm.reel.plan import CarriedDecoder, ChunkDecoder, Plan, Planner, Words
    from hilm.reel.words import WordView
    from hilm.weights.dtypes import DType

_CHUNKLESS = frozenset({Coder.CONST, Coder.SAME})
_SMALLEST_CODED = 256  # bytes; below, a slab is stored as it is


@dataclass(frozen=True, slots=True)
class EncodedSlab:
    """A coded slab.

    Attributes:
        head: What every chunk needs to be decoded.
        chunks: One per 262,144 words; none if all words are equal.
        decoded: The stored bytes that come back, where they are others than those that went in.
        frames: uint8 [512, 512] for each chunk, where a video carries the symbols.
    """

    head: bytes
    chunks: list[bytes]
    decoded: NDArray[np.uint8] | None = None
    frames: Sequence[NDArray[np.uint8]] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of the head and all chunks."""
        return len(self.head) + sum(map(len, self.chunks))


def encode_slab(
    words: NDArray[np.uint8],
    dtype: DType,
    rows: int,
    columns: int,
    *,
    planner: Planner | None = None,
    threads: int = 1,
) -> EncodedSlab:
    """Code a slab, bit for bit unless a planner says otherwise; the result does not depend on ``threads``.

    Args:
        words: Stored little-endian bytes of the slab, contiguous.
        dtype: Element type.
        rows: R.
        columns: C, in words: a complex number is two, and types below one byte are counted in bytes. The
            slab has at least one word.
        planner: Tried first. What it keeps bit for bit in more than half of the
            bytes is coded without it too, and the smaller result counts.
        threads: Chunks coded at a time.
    """
    view = word_view(dtype, rows, columns)
    stored = np.require(words.view(view.word), requirements="A")
    plan = planner(stored, view, threads) if planner else None
    if stored.min() == stored.max():
        return EncodedSlab(pack_head(SlabHead(Coder.CONST, view, word=stored[:1].tobytes())), [])
    if plan is None:
        return _encode_exactly(stored, view, threads)
    planned = _carry_out(plan, threads)
    if planned.decoded is not None or 2 * planned.nbytes < view.nbytes:
        return planned
    return min(planned, _encode_exactly(stored, view, threads), key=lambda coded: coded.nbytes)


def carry_slab(
    words: NDArray[np.uint8],
    dtype: DType,
    placement: Placement,
    *,
    planner: Planner | None = None,
    threads: int = 1,
) -> EncodedSlab | None:
    """Code a slab for a video: what no frame holds is in its chunks. There is no entropy coder.

    Args:
        words: As of `encode_slab`.
        dtype: As of `encode_slab`.
        placement: Where its elements lie in the frames.
        planner: As of `encode_slab`; what it does not take is kept bit for bit.
        threads: As of `encode_slab`.

    Returns:
        The slab, or None where a video does not serve it: equal words, too large integers, or more than
        0.1 % of the indices beyond the grey values.
    """
    view = placement.view(dtype)
    stored = placement.arrange(np.require(words.view(view.word), requirements="A"))
    plan = (planner(stored, view, threads) if planner else None) or symbol_encoder(stored, view)
    if plan is None or plan.carry is None or stored.min() == stored.max():
        return None
    carry = plan.carry
    chunks = in_threads(lambda span: carry(*span), view.ranges(), threads)
    if too_many_escapes(chunks):
        return None
    head, rounds = replace(plan.head, scales=one_class(), codes=plan.head.codes[:0]), plan.decoded is not None
    frames = [placement.draw(i, c.pixels, MIDDLE if rounds else 0) for i, c in enumerate(chunks)]
    decoded = None if plan.decoded is None else placement.restore(plan.decoded).view(np.uint8)
    return EncodedSlab(pack_head(head), [chunk.data for chunk in chunks], decoded, frames)


def _encode_exactly(stored: Words, view: WordView, threads: int) -> EncodedSlab:
    plan = symbol_encoder(stored, view) if view.nbytes >= _SMALLEST_CODED else None
    raw_head = pack_head(SlabHead(Coder.RAW, view))
    if plan is not None:
        coded = _carry_out(plan, threads)
        if coded.nbytes < len(raw_head) + view.nbytes:
            return coded
    return EncodedSlab(raw_head, [stored[start:stop].tobytes() for start, stop in view.ranges()])


def _carry_out(plan: Plan, threads: int) -> EncodedSlab:
    ranges = [] if plan.head.coder in _CHUNKLESS else plan.head.view.ranges()
    chunks = in_threads(lambda span: plan.encode(*span), ranges, threads)
    decoded = None if plan.decoded is None else plan.decoded.view(np.uint8)
    return EncodedSlab(pack_head(plan.head), chunks, decoded)


def decode_slab(
    head: bytes,
    chunks: Sequence[bytes],
    dtype: DType,
    rows: int,
    columns: int,
    *,
    base: NDArray[np.uint8] | None = None,
    rounded: bool = False,
    threads: int = 1,
) -> NDArray[np.uint8]:
    """Undo `encode_slab`: the stored bytes of the slab.

    Args:
        head: Of the coded slab.
        chunks: Of the coded slab.
        dtype: Element type.
        rows: R.
        columns: C.
        base: Stored bytes of the base's slab, contiguous; they are overwritten.
        rounded: Whether the slab may hold rounded weights.
        threads: Chunks decoded at a time.

    Raises:
        ChecksumMismatch: Head or chunks are malformed, or do not belong to a slab of this shape and type.
        UnsupportedVersion: The head names a coder this version does not know.
    """
    view = word_view(dtype, rows, columns)
    parsed, ranges = read_head(head, view, has_base=base is not None, rounded=rounded), view.ranges()
    if len(chunks) != (0 if parsed.coder in _CHUNKLESS else len(ranges)):
        raise ChecksumMismatch(f"slab of {view.size} words has {len(chunks)} chunks")
    decode = _DECODERS[parsed.coder](parsed)
    out = (
        np.empty(view.size, view.word) if base is None else np.require(base.view(view.word), requirements="A")
    )

    def work(task: tuple[bytes, tuple[int, int]]) -> None:
        chunk, (start, stop) = task
        decode(chunk, start, out[start:stop])

    in_threads(work, list(zip(chunks or [b""] * len(ranges), ranges, strict=True)), threads)
    return out.view(np.uint8)


def restore_slab(
    head: bytes,
    chunks: Sequence[Carried],
    dtype: DType,
    placement: Placement,
    *,
    rounded: bool = False,
    threads: int = 1,
) -> NDArray[np.uint8]:
    """Undo `carry_slab`: the stored bytes of the slab.

    Args:
        head: Of the coded slab.
        chunks: One for every frame.
        dtype: As of `decode_slab`.
        placement: As of `carry_slab`.
        rounded: As of `decode_slab`.
        threads: As of `decode_slab`.

    Raises:
        ChecksumMismatch: As `decode_slab` does.
        UnsupportedVersion: As `decode_slab` does.
    """
    view = placement.view(dtype)
    parsed = read_head(head, view, has_base=False, rounded=rounded, carried=True)
    if parsed.coder not in _CARRIED:
        raise ChecksumMismatch(f"a video carries no {parsed.coder.name.lower()}")
    decode, out = _CARRIED[parsed.coder](parsed), np.empty(view.size, view.word)

    def work(task: tuple[Carried, tuple[int, int]]) -> None:
        chunk, (start, stop) = task
        decode(chunk, out[start:stop])

    in_threads(work, list(zip(chunks, view.ranges(), strict=True)), threads)
    return placement.restore(out).view(np.uint8)


def read_head(
    head: bytes, view: WordView, *, has_base: bool, rounded: bool, carried: bool = False
) -> SlabHead:
    """Parse the head of a slab that may use only what its tensor says.

    Raises:
        ChecksumMismatch: The head is malformed, or of a coder that such a tensor does not have.
        UnsupportedVersion: The head names a coder this version does not know.
    """
    parsed = parse_head(head, view, carried=carried)
    if parsed.coder in DIFFERENCES and not has_base:
        raise ChecksumMismatch("slab of differences in a tensor that has no base")
    if parsed.coder in ROUNDING and not rounded:
        raise ChecksumMismatch("rounded weights where every bit was to be kept")
    return parsed


def recall_slab(
    records: Sequence[bytes],
    dtype: DType,
    rows: int,
    columns: int,
    *,
    base: NDArray[np.uint8] | None = None,
    threads: int = 1,
) -> EncodedSlab:
    """What `encode_slab` once made of a slab, from its head and chunks, and the base's slab, which stays."""
    head, *chunks = records
    if head[0] not in ROUNDING:
        return EncodedSlab(head, chunks)
    old = None if base is None else base.copy()
    decoded = decode_slab(head, chunks, dtype, rows, columns, base=old, rounded=True, threads=threads)
    return EncodedSlab(head, chunks, decoded)


def decode_chunk(head: SlabHead, index: int, chunk: bytes) -> NDArray[np.uint8]:
    """Decode the chunk number ``index`` of a slab alone: the stored bytes of its words.

    Args:
        head: Result of `read_head`, of a tensor without a base.
        index: Which 262,144 words of the slab.
        chunk: The chunk; empty for a slab whose words are all equal.

    Raises:
        ChecksumMismatch: The chunk is malformed.
    """
    start, stop = head.view.ranges()[index]
    out = np.empty(stop - start, head.view.word)
    _DECODERS[head.coder](head)(chunk, start, out)
    return out.view(np.uint8)


def _raw_decoder(head: SlabHead) -> ChunkDecoder:
    def decode(chunk: bytes, start: int, out: Words) -> None:  # noqa: ARG001 - the decoders' signature
        if len(chunk) != out.nbytes:
            raise ChecksumMismatch(f"{len(chunk)} stored bytes where {out.nbytes} belong")
        out[:] = np.frombuffer(chunk, head.view.word)

    return decode


def _const_decoder(head: SlabHead) -> ChunkDecoder:
    def decode(chunk: bytes, start: int, out: Words) -> None:  # noqa: ARG001 - the decoders' signature
        if chunk:
            raise ChecksumMismatch(f"{len(chunk)} bytes in a slab that needs none")
        out[:] = np.frombuffer(head.word, head.view.word)

    return decode


def _same_decoder(head: SlabHead) -> ChunkDecoder:  # noqa: ARG001 - the table's signature
    def decode(chunk: bytes, start: int, out: Words) -> None:
        """Leave the words of the base as they are."""

    return decode


_DECODERS: Mapping[Coder, Callable[[SlabHead], ChunkDecoder]] = {
    Coder.RAW: _raw_decoder,
    Coder.CONST: _const_decoder,
    Coder.SYMBOLS: symbol_decoder,
    Coder.TCQ: trellis_decoder,
    Coder.ECSQ: scalar_decoder,
    Coder.WORDDIFF: delta_decoder,
    Coder.SAME: _same_decoder,
    Coder.TCQ_DELTA: rounded_delta_decoder,
}
_CARRIED: Mapping[Coder, Callable[[SlabHead], CarriedDecoder]] = {
    Coder.SYMBOLS: carried_symbols,
    Coder.TCQ: carried_weights,
    Coder.ECSQ: carried_weights,
}
