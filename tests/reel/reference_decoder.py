"""A second, slow decoder of reels, written from the format alone.

It shares no code with the package: integers of Python, loops, lists. Malformed input fails an assertion.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct

WORD_BITS = {"F64": 64, "F32": 32, "C64": 32, "F16": 16, "BF16": 16} | dict.fromkeys(
    ["F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"], 8
)
INTEGER_BITS = {"I16": 16, "U16": 16, "I32": 32, "U32": 32, "I64": 64, "U64": 64}
OCTAVE = [256, 279, 304, 332, 362, 395, 431, 470]
CHUNK = 262_144
NEXT = [[0, 1], [3, 2], [5, 4], [6, 7], [1, 0], [2, 3], [4, 5], [7, 6]]
SUB_BYTE_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
CRC_TABLE = list(range(256))
for _ in range(8):
    CRC_TABLE = [c >> 1 ^ (0x82F63B78 if c & 1 else 0) for c in CRC_TABLE]


class Bits:
    """A bit string, lowest bit of the first byte first."""

    def __init__(self, data):
        self.data = bytes(data)
        self.size = 8 * len(data)
        self.at = 0

    def take(self, width):
        window = int.from_bytes(self.data[self.at // 8 : (self.at + width + 7) // 8], "little")
        field = window >> self.at % 8 & ((1 << width) - 1)
        self.at += width
        assert self.at <= self.size
        return field

    def zeros(self):
        run = 0
        while not self.take(1):
            run += 1
            assert run <= 256
        return run

    def exp_golomb(self):
        run = self.zeros()
        return (1 << run) + self.take(run) - 1

    def finish(self):
        assert self.size - self.at < 8
        assert self.take(self.size - self.at) == 0


def read_table(bits, alphabet):
    """Frequencies by symbol, or None for an empty table."""
    if not bits.take(1):
        return None
    first = bits.exp_golomb()
    last = first + bits.exp_golomb()
    assert last < alphabet
    k = bits.take(3)
    codes, code = {}, 64
    for symbol in range(first, last + 1):
        zigzag = bits.zeros() << k | bits.take(k)
        code += -(zigzag + 1) // 2 if zigzag % 2 else zigzag // 2
        assert 0 <= code <= 97
        codes[symbol] = code
    assert codes[first]
    assert codes[last]
    return share(codes)


def share(codes):
    sizes = {s: OCTAVE[(v - 1) % 8] << (v - 1) // 8 for s, v in codes.items() if v}
    total = sum(sizes.values())
    result = {s: 1 + size * (4096 - len(sizes)) // total for s, size in sizes.items()}
    highest = max(codes.values())
    result[min(s for s, v in codes.items() if v == highest)] += 4096 - sum(result.values())
    return result


def slots(frequencies):
    """Symbol, frequency and offset of every slot."""
    table = [(s, f, offset) for s, f in sorted(frequencies.items()) for offset in range(f)]
    assert len(table) == 4096
    return table


def read_stream(data, ids, tables):
    """Symbols of a stream and the bytes behind it."""
    *lanes, count = struct.unpack_from("<9I", data)
    words = struct.unpack_from(f"<{count}H", data, 36)
    used, symbols = 0, []
    for i, table in enumerate(ids):
        x = lanes[i % 8]
        symbol, frequency, offset = tables[table][x % 4096]
        x = frequency * (x >> 12) + offset
        if x < 1 << 16:
            x = x << 16 | words[used]
            used += 1
        lanes[i % 8] = x
        symbols.append(symbol)
    assert used == count
    assert lanes == [1 << 16] * 8
    return symbols, data[36 + 2 * count :]


def read_tokens(symbols, raw):
    bits = Bits(raw)
    values = [read_token(symbol, bits) for symbol in symbols]
    bits.finish()
    return values


def read_token(symbol, bits):
    token = (symbol + 1) // 2
    magnitude = token
    if token >= 16:
        width = (token - 16) // 4 + 2
        magnitude = (4 + (token - 16) % 4 << width) + bits.take(width)
    return magnitude if symbol % 2 else -magnitude


def read_vector(data, at, size):
    alphabet, table_size, body_size = struct.unpack_from("<HHI", data, at)
    at += 8
    bits = Bits(data[at : at + table_size])
    table = slots(read_table(bits, alphabet))
    bits.finish()
    at += table_size
    symbols, raw = read_stream(data[at : at + body_size], [0] * size, [table])
    return read_tokens(symbols, raw), at + body_size


def read_head(data, rows, columns):
    """The fields of a head as a dictionary."""
    coder, n_class, alphabet, b, flags, n_values, e_max, table_size = struct.unpack_from("<BBHBBHII", data)
    assert e_max == 0
    assert coder in {3, 4} or data[16:30] == bytes(14)
    at = 30 + 2 * (n_class - 1)
    thresholds = struct.unpack_from(f"<{n_class - 1}h", data, 30)
    head = {"size": rows * columns, "coder": coder, "b": b, "thresholds": thresholds}
    head["step"], *bias = struct.unpack_from("<d6b", data, 16)
    head["bias"] = bias[:3], bias[3:]
    head["r"], head["c"] = [0] * rows, [0] * columns
    if flags & 1:
        head["r"], at = read_vector(data, at, rows)
    if flags & 2:
        head["c"], at = read_vector(data, at, columns)
    head["values"] = struct.unpack_from(f"<{n_values}H", data, at)
    at += 2 * n_values
    if coder == 1:
        head["word"] = data[at:]
        return head
    bits = Bits(data[at:])
    assert len(data) - at == table_size
    if coder in {2, 3, 4}:
        tables = [read_table(bits, alphabet) for _ in range(n_class * (2 if coder == 3 else 1))]
        head["tables"] = [slots(t) if t else None for t in tables]
    bits.finish()
    return head


def class_ids(head, columns, start, stop):
    scales = [head["r"][i // columns] + head["c"][i % columns] for i in range(start, stop)]
    return [sum(t <= g for t in head["thresholds"]) for g in scales]


def rotate_back(head, bits, symbols, raw):
    width, fields, words = bits - head["b"], Bits(raw), []
    for symbol in symbols:
        rotated = head["values"][symbol] << width | fields.take(width)
        words.append(rotated >> 1 | (rotated & 1) << (bits - 1))
    fields.finish()
    return words


def decode_symbols(head, chunk, dtype, columns, start):
    stop = min(start + CHUNK, head["size"])
    symbols, raw = read_stream(chunk, class_ids(head, columns, start, stop), head["tables"])
    words, bits = symbols, (WORD_BITS | INTEGER_BITS).get(dtype, 8)
    if dtype in WORD_BITS:
        words = rotate_back(head, bits, symbols, raw)
    elif dtype in INTEGER_BITS:
        words = [value % (1 << bits) for value in read_tokens(symbols, raw)]
    else:
        assert not raw
    return b"".join(word.to_bytes(bits // 8, "little") for word in words)


def decode_trellis(head, chunk, ids):
    """Indices and quantisers of a chunk; the entropy decoder has to know the state."""
    *lanes, count = struct.unpack_from("<9I", chunk)
    words = struct.unpack_from(f"<{count}H", chunk, 36)
    bits, used, state, found = Bits(chunk[36 + 2 * count :]), 0, 0, []
    for i, scale_class in enumerate(ids):
        q = state % 2
        x = lanes[i % 8]
        symbol, frequency, offset = head["tables"][2 * scale_class + q][x % 4096]
        x = frequency * (x >> 12) + offset
        if x < 1 << 16:
            x = x << 16 | words[used]
            used += 1
        lanes[i % 8] = x
        k = read_token(symbol, bits)
        found.append((k, q))
        state = NEXT[state][k % 2]
    assert used == count
    assert lanes == [1 << 16] * 8
    bits.finish()
    return found


def decode_rounded(head, chunk, dtype, columns, start):
    ids = class_ids(head, columns, start, min(start + CHUNK, head["size"]))
    if head["coder"] == 3:
        found = decode_trellis(head, chunk, ids)
    else:
        found = [(k, 0) for k in read_tokens(*read_stream(chunk, ids, head["tables"]))]
    words = []
    for k, q in found:
        steps = (2 if head["coder"] == 3 else 1) * abs(k) - q
        part = 256 * steps + head["bias"][q][min(abs(k), 3) - 1] if k else 0
        words.append(word_of((part if k > 0 else -part) * head["step"], dtype))
    return b"".join(words)


def word_of(value, dtype):
    """Round to float32, then to the type."""
    single = struct.pack("<f", value)
    if dtype == "BF16":
        bits = int.from_bytes(single, "little")
        high, low = divmod(bits, 1 << 16)
        return (high + (low > 1 << 15 or (low == 1 << 15 and high % 2))).to_bytes(2, "little")
    return struct.pack({"F64": "<d", "F32": "<f", "F16": "<e"}[dtype], *struct.unpack("<f", single))


def decode_slab(head, chunks, dtype, rows, columns):
    """Stored bytes of a slab; a complex number counts as two columns, sub-byte types are bytes."""
    parsed = read_head(head, rows, columns)
    if parsed["coder"] == 1:
        assert not chunks
        return parsed["word"] * (rows * columns)
    if parsed["coder"] == 0:
        return b"".join(chunks)
    decode = decode_symbols if parsed["coder"] == 2 else decode_rounded
    return b"".join(decode(parsed, c, dtype, columns, i * CHUNK) for i, c in enumerate(chunks))


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = CRC_TABLE[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def read_reel(data, video=b""):
    """Manifest and records of a reel of one generation; its packets are in the bytes of ``video``."""
    magic, manifest_at, manifest_size, digest, index_at, index_size, index_crc, generation, own = (
        struct.unpack_from("<8sQQ32sQQI4xQQ", data, len(data) - 128)
    )
    assert (magic, generation) == (b"HILMEND1", 1)
    body = data[len(data) - 128 - own : len(data) - 128]
    index, manifest = body[index_at : index_at + index_size], body[manifest_at : manifest_at + manifest_size]
    assert hashlib.sha256(manifest).digest() == digest
    assert crc32c(index) == index_crc
    entries = list(struct.iter_unpack("<QIIBBHI", index))
    records = [(video if e[3] == 3 else body)[e[0] : e[0] + e[1]] for e in entries]
    assert [crc32c(record) for record in records] == [entry[2] for entry in entries]
    return json.loads(manifest), records


def read_tensor(tensor, records):
    """Stored bytes of a tensor that is no alias."""
    dtype, shape = tensor["dtype"], tensor["shape"]
    rows = shape[0] if len(shape) > 1 else 1
    columns = math.prod(shape[1:] if len(shape) > 1 else shape) * (2 if dtype == "C64" else 1)
    if dtype in SUB_BYTE_BITS:
        rows, columns = 1, rows * columns * SUB_BYTE_BITS[dtype] // 8
    raw = b""
    for begin, end, first, count in tensor["slabs"]:
        head, *chunks = records[first : first + count]
        cut = (1, end - begin) if tensor.get("unit") else (end - begin, columns)
        raw += decode_slab(head, chunks, dtype, *cut)
    assert hashlib.sha256(raw).hexdigest() == tensor["sha256"]
    return raw


def read_files(data):
    """The files an archive was made from, by name."""
    manifest, records = read_reel(data)
    tensors = {tensor["name"]: tensor for tensor in manifest["tensors"]}
    files = {}
    for file in manifest["source"]["files"]:
        parts = [
            read_tensor(tensors[at], records) if kind == "tensor" else b"".join(records[at : at + count[0]])
            for kind, at, *count in file["segments"]
        ]
        files[file["name"]] = b"".join(parts)
        assert hashlib.sha256(files[file["name"]]).hexdigest() == file["sha256"]
    return files
