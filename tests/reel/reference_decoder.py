"""A second, slow decoder of the reel's slabs, written from the format alone.

It shares no code with the package: integers of Python, loops, lists. Malformed input fails an assertion.
"""

from __future__ import annotations

import struct

WORD_BITS = {"F64": 64, "F32": 32, "C64": 32, "F16": 16, "BF16": 16} | dict.fromkeys(
    ["F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"], 8
)
INTEGER_BITS = {"I16": 16, "U16": 16, "I32": 32, "U32": 32, "I64": 64, "U64": 64}
OCTAVE = [256, 279, 304, 332, 362, 395, 431, 470]
CHUNK = 262_144


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
    table = []
    for symbol in sorted(frequencies):
        table += [(symbol, frequencies[symbol], offset) for offset in range(frequencies[symbol])]
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
    bits, values = Bits(raw), []
    for symbol in symbols:
        token = (symbol + 1) // 2
        magnitude = token
        if token >= 16:
            width = (token - 16) // 4 + 2
            magnitude = (4 + (token - 16) % 4 << width) + bits.take(width)
        values.append(magnitude if symbol % 2 else -magnitude)
    bits.finish()
    return values


def read_vector(data, at, size):
    alphabet, table_size, body_size = struct.unpack_from("<HHI", data, at)
    at += 8
    bits = Bits(data[at : at + table_size])
    table = slots(read_table(bits, alphabet))
    bits.finish()
    at += table_size
    symbols, raw = read_stream(data[at : at + body_size], [0] * size, [table])
    return read_tokens(symbols, raw), at + body_size


def read_head(data, dtype, rows, columns):
    """The fields of a head as a dictionary."""
    coder, n_class, alphabet, b, flags, n_values, e_max, table_size = struct.unpack_from("<BBHBBHII", data)
    assert e_max == 0
    assert data[16:30] == bytes(14)
    at = 30 + 2 * (n_class - 1)
    head = {
        "size": rows * columns,
        "coder": coder,
        "b": b,
        "thresholds": struct.unpack_from(f"<{n_class - 1}h", data, 30),
    }
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
    if coder == 2:
        tables = [read_table(bits, alphabet) for _ in range(n_class)]
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
    if dtype in WORD_BITS:
        bits = WORD_BITS[dtype]
        words = rotate_back(head, bits, symbols, raw)
    elif dtype in INTEGER_BITS:
        bits = INTEGER_BITS[dtype]
        words = [value % (1 << bits) for value in read_tokens(symbols, raw)]
    else:
        assert not raw
        return bytes(symbols)
    return b"".join(word.to_bytes(bits // 8, "little") for word in words)


def decode_slab(head, chunks, dtype, rows, columns):
    """Stored bytes of a slab; a complex number counts as two columns, sub-byte types are bytes."""
    parsed = read_head(head, dtype, rows, columns)
    if parsed["coder"] == 1:
        assert not chunks
        return parsed["word"] * (rows * columns)
    if parsed["coder"] == 0:
        return b"".join(chunks)
    parts = []
    for index, chunk in enumerate(chunks):
        parts.append(decode_symbols(parsed, chunk, dtype, columns, index * CHUNK))
    return b"".join(parts)
