"""The bit-exact coder: words become symbols and raw bits, symbols are entropy-coded by scale class."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from hilm.errors import ChecksumMismatch
from hilm.reel.carrier import Carried, pack_data
from hilm.reel.entropy import decode_stream, decoder_entries, encode_stream, encoder_steps, unpack_raw
from hilm.reel.head import Coder, SlabHead
from hilm.reel.plan import Plan
from hilm.reel.scales import measure_scales, one_class, worth_sending
from hilm.reel.tables import MAX_ALPHABET, frequencies, table_codes
from hilm.reel.tokens import LIMIT, detokenize, tokenize
from hilm.reel.words import count_leading, join_floats, split_floats

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from hilm.reel.plan import CarriedDecoder, ChunkDecoder, Words
    from hilm.reel.words import WordView

    Split: TypeAlias = Callable[[Words], tuple[NDArray[np.uint8], bytes]]


def symbol_encoder(words: Words, view: WordView) -> Plan | None:
    """Plan the coding of a slab as symbols.

    Args:
        words: [view.size] stored words.
        view: Their shape and type.

    Returns:
        The plan, or None if an integer is too large for a token.
    """
    if view.kind == "float":
        head, split = _plan_floats(words, view)
    elif view.kind == "byte":
        head, split = _plan(words, view, lambda part: (part.view(np.uint8), b""))
    elif _fit_tokens(words, view):
        head, split = _plan(words, view, lambda part: tokenize(_integers(part, view)))
    else:
        return None
    steps = encoder_steps(frequencies(head.codes))

    def encode(start: int, stop: int) -> bytes:
        symbols, raw = split(words[start:stop])
        return encode_stream(symbols, head.scales.ids(start, stop), steps, raw)

    def carry(start: int, stop: int) -> Carried:
        symbols, raw = split(words[start:stop])
        return Carried(symbols, pack_data(np.empty(0, np.int64), raw))

    return Plan(head, encode, carry=carry)


def symbol_decoder(head: SlabHead) -> ChunkDecoder:
    """Make the thread-safe function that decodes a chunk starting at word ``start`` into ``out``.

    It raises ChecksumMismatch for a malformed chunk.
    """
    entries, join = decoder_entries(frequencies(head.codes)), _joiner(head)

    def decode(chunk: bytes, start: int, out: Words) -> None:
        join(*decode_stream(chunk, head.scales.ids(start, start + out.size), entries), out)

    return decode


def carried_symbols(head: SlabHead) -> CarriedDecoder:
    """Make the thread-safe function that decodes a chunk whose symbols a video carried."""
    alphabet, join = head.codes.shape[1], _joiner(head)

    def decode(chunk: Carried, out: Words) -> None:
        escapes, raw = chunk.parts()
        if escapes.size or int(chunk.pixels.max()) >= alphabet:
            raise ChecksumMismatch(f"frame of other grey values than {alphabet} symbols have")
        join(chunk.pixels, raw, out)

    return decode


def _joiner(head: SlabHead) -> Callable[[NDArray[np.uint8], NDArray[np.uint8], Words], None]:
    """Make the function that puts words together from symbols and raw bits."""
    view, values = head.view, head.values.astype(np.uint64)

    def join(symbols: NDArray[np.uint8], raw: NDArray[np.uint8], out: Words) -> None:
        if view.kind == "float":
            width = 8 * view.word.itemsize - head.bits
            join_floats(symbols, values, head.bits, unpack_raw(raw, width * out.size), out)
        elif view.kind == "byte":
            unpack_raw(raw, 0)
            out[:] = symbols
        else:
            integers = detokenize(symbols, raw)
            out[:] = integers.astype(out.dtype)
            if (_integers(out, view) != integers).any():
                raise ChecksumMismatch("integer beyond its type")

    return join


def _plan_floats(words: Words, view: WordView) -> tuple[SlabHead, Split]:
    scales = measure_scales(words.reshape(view.rows, view.columns), view.mantissa)
    bits = view.symbol_bits
    counts = np.zeros((scales.n_class, 1 << bits), np.int64)
    for start, stop in view.ranges():
        count_leading(words[start:stop], scales.ids(start, stop), bits, counts)
    while np.count_nonzero(counts.any(axis=0)) > MAX_ALPHABET:
        counts = counts.reshape(scales.n_class, -1, 2).sum(axis=2)
        bits -= 1
    values = np.flatnonzero(counts.any(axis=0))
    scales = worth_sending(scales, counts[:, values], tables=1)
    counts = counts.reshape(scales.n_class, -1, 1 << bits).sum(axis=1)
    index = np.zeros(1 << bits, np.uint8)
    index[values] = np.arange(values.size)
    codes = table_codes(counts[:, values])
    head = SlabHead(
        Coder.SYMBOLS, view, scales=scales, bits=bits, values=values.astype(np.uint16), codes=codes
    )
    return head, lambda part: split_floats(part, bits, index)


def _plan(words: Words, view: WordView, split: Split) -> tuple[SlabHead, Split]:
    """One context, symbols straight from the words."""
    counts = np.zeros(256, np.int64)
    for start, stop in view.ranges():
        counts += np.bincount(split(words[start:stop])[0], minlength=256)
    used = np.trim_zeros(counts, "b")
    return SlabHead(Coder.SYMBOLS, view, scales=one_class(), codes=table_codes(used[None])), split


def _integers(words: Words, view: WordView) -> NDArray[np.int64]:
    """Values of stored integers; unsigned ones of 64 bits must be below 2^63."""
    return words.view(f"<i{words.itemsize}" if view.signed else words.dtype).astype(np.int64)


def _fit_tokens(words: Words, view: WordView) -> bool:
    integers = words.view(f"<i{words.itemsize}") if view.signed else words
    return int(integers.max()) < LIMIT and int(integers.min()) > -LIMIT
