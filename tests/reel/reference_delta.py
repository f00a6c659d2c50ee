"""Deltas in the second, slow decoder: written from the format alone, with what `reference_decoder` reads."""

from __future__ import annotations

import hashlib
import math
import struct

from tests.reel.reference_decoder import (
    CHUNK,
    INTEGER_BITS,
    WORD_BITS,
    Bits,
    decode_slab,
    read_reel,
    read_stream,
    read_table,
    read_tokens,
    read_vector,
    slots,
    word_of,
)

MANTISSA = {"F64": 52, "F32": 23, "C64": 23, "F16": 10, "BF16": 7, "F8_E4M3": 3, "F8_E5M2": 2}
MANTISSA |= {"F8_E4M3FNUZ": 3, "F8_E5M2FNUZ": 2}


def read_delta_head(data, rows, dtype):
    coder, n_class, alphabet, b, flags, n_values, e_max, table_size = struct.unpack_from("<BBHBBHII", data)
    assert (coder, n_class, b, n_values) == (5, 1, 0, 0)
    assert data[16:30] == bytes(14)
    assert flags & ~12 == 0
    at, activity, drift = 30, [0] * rows, [0] * 256
    if flags & 4:
        activity, at = read_vector(data, at, rows)
        assert set(activity) <= set(range(10))
    if flags & 8:
        steps, at = read_vector(data, at, 256)
        drift = [sum(steps[: i + 1]) for i in range(256)]
    assert len(data) - at == table_size
    bits = Bits(data[at:])
    tables = [read_table(bits, alphabet) for _ in range(200 if dtype in MANTISSA else 1)]
    bits.finish()
    return e_max, activity, drift, [slots(t) if t else None for t in tables]


def expectation(head, word, row, bits, dtype):
    """Context and expected difference of one word of the base."""
    e_max, activity, drift, _ = head
    if dtype not in MANTISSA:
        return 0, 0
    mantissa = MANTISSA[dtype]
    magnitude = word % (1 << bits - 1)
    e = min(max((magnitude >> mantissa) - (e_max - 19), 0), 19)
    expected = drift[magnitude >> mantissa - 8 & 255] if mantissa >= 8 and activity[row] == 0 else 0
    return e * 10 + activity[row], expected


def add(word, difference, bits, dtype):
    """The word of the fine-tune."""
    top, full = 1 << bits - 1, (1 << bits) - 1
    if dtype not in MANTISSA:
        return word + difference & full
    number = full - word if word & top else word + top
    number = number + (-difference if word & top else difference) & full
    return number - top if number & top else full - number


def floats(raw, dtype):
    if dtype == "BF16":
        raw, dtype = b"".join(b"\0\0" + raw[i : i + 2] for i in range(0, len(raw), 2)), "F32"
    letter = {"F32": "f", "F16": "e"}[dtype]
    return struct.unpack(f"<{len(raw) // struct.calcsize(letter)}{letter}", raw)


def decode_delta_slab(head, chunks, dtype, rows, columns, base):
    """Stored bytes of a slab, given those of the base."""
    if head[0] == 6:
        assert head == b"\x06\x01" + bytes(28)
        assert not chunks
        return base
    if head[0] == 7:
        differences = floats(decode_slab(b"\x03" + head[1:], chunks, "F32", rows, columns), "F32")
        sums = zip(floats(base, dtype), differences, strict=True)
        return b"".join(word_of(old + difference, dtype) for old, difference in sums)
    if head[0] != 5:
        return decode_slab(head, chunks, dtype, rows, columns)
    bits = (WORD_BITS | INTEGER_BITS).get(dtype, 8)
    size = bits // 8
    old = [int.from_bytes(base[i : i + size], "little") for i in range(0, len(base), size)]
    parsed = read_delta_head(head, rows, dtype)
    words = []
    for start, chunk in zip(range(0, len(old), CHUNK), chunks, strict=True):
        part = old[start : start + CHUNK]
        contexts = [expectation(parsed, w, i // columns, bits, dtype) for i, w in enumerate(part, start)]
        differences = read_tokens(*read_stream(chunk, [c for c, _ in contexts], parsed[3]))
        words += [
            add(w, d + expected, bits, dtype)
            for w, d, (_, expected) in zip(part, differences, contexts, strict=True)
        ]
    return b"".join(word.to_bytes(size, "little") for word in words)


def read_delta_tensor(tensor, records, base):
    """Stored bytes of a tensor that is no alias; of a difference from ``base``, else of an archive."""
    dtype, shape = tensor["dtype"], tensor["shape"]
    rows = shape[0] if len(shape) > 1 else 1
    columns = math.prod(shape[1:] if len(shape) > 1 else shape) * (2 if dtype == "C64" else 1)
    if tensor["nbytes"] * 8 != rows * columns * (WORD_BITS | INTEGER_BITS).get(dtype, 8):
        rows, columns = 1, tensor["nbytes"]
    raw, at, size = b"", 0, tensor["nbytes"] // (rows * columns) if rows * columns else 0
    for begin, end, first, count in tensor["slabs"]:
        head, *chunks = records[first : first + count]
        cut = (1, end - begin) if tensor.get("unit") else (end - begin, columns)
        old = base and base[at : at + cut[0] * cut[1] * size]
        raw += decode_delta_slab(head, chunks, dtype, *cut, old)
        at += cut[0] * cut[1] * size
    assert hashlib.sha256(raw).hexdigest() == tensor["sha256"]
    return raw


def read_delta(data, base):
    """Tensors of a delta reel by name, given those of its base (name → stored bytes)."""
    manifest, records = read_reel(data)
    pinned = manifest["base"]["tensors"]
    for name, digest in pinned.items():
        assert hashlib.sha256(base[name]).hexdigest() == digest
    return {
        t["name"]: read_delta_tensor(t, records, base[t["name"]] if t["name"] in pinned else None)
        for t in manifest["tensors"]
        if t.get("alias_of") is None
    }
