"""The reference decoder of slabs that a video carries; FFmpeg decodes the frames of the whole file."""

from __future__ import annotations

import hashlib
import io
import struct

import av

from tests.reel.reference_decoder import (
    INTEGER_BITS,
    NEXT,
    WORD_BITS,
    read_reel,
    read_tensor,
    read_tokens,
    rotate_back,
    word_of,
)

SIDE = 512


def read_carried(data, video):
    """Tensors by name, given the bytes of the reel and of its video, which may be the same."""
    manifest, records = read_reel(data, video)
    with av.open(io.BytesIO(video)) as file:
        planes = [frame.planes[0] for frame in file.decode(video=0)]
        frames = iter([(bytes(plane), plane.line_size) for plane in planes])
    tensors = {}
    for tensor in manifest["tensors"]:
        carried = "layout_gain" in tensor
        raw = read_slabs(tensor, records, frames) if carried else read_tensor(tensor, records)
        tensors[tensor["name"]] = raw
    return tensors


def read_slabs(tensor, records, frames):
    rows, columns = tensor["shape"]
    ((begin, end, first, count),) = tensor["slabs"]
    assert (begin, end) == (0, rows)
    head, *pairs = records[first : first + count]
    coder, n_class, alphabet, b, flags, n_values, e_max, tables = struct.unpack_from("<BBHBBHII", head)
    assert (n_class, flags, e_max, tables, len(head)) == (1, 0, 0, 0, 30 + 2 * n_values)
    step, *bias = struct.unpack_from("<d6b", head, 16)
    fields = {"b": b, "values": struct.unpack_from(f"<{n_values}H", head, 30), "coder": coder}
    fields |= {"step": step, "bias": (bias[:3], bias[3:]), "alphabet": alphabet}
    words, chunks = {}, list(pairs[1::2])
    for chunk, places in zip(chunks, cut(rows, columns, tensor["layout"]), strict=True):
        luma, line_size = next(frames)
        pixels = [luma[line * line_size + column] for _, line, column in places]
        for (element, _, _), word in zip(places, decode(fields, chunk, pixels, tensor["dtype"]), strict=True):
            words[element] = word
    raw = b"".join(words[element] for element in range(rows * columns))
    assert hashlib.sha256(raw).hexdigest() == tensor["sha256"]
    return raw


def cut(rows, columns, layout):
    """Per frame the element, line and column of every pixel, in coding order."""
    if layout == "raster":
        for top in range(0, rows, SIDE):
            for left in range(0, columns, SIDE):
                lines, places = range(top, min(top + SIDE, rows)), range(left, min(left + SIDE, columns))
                yield [(r * columns + c, r - top, c - left) for r in lines for c in places]
        return
    for start in range(0, rows * columns, SIDE * SIDE):
        steps = range(min(SIDE * SIDE, rows * columns - start))
        yield [(start + i, *(curve(i) if layout == "hilbert" else divmod(i, SIDE))) for i in steps]


def curve(step):
    """Line and column of a step of the Hilbert curve of order 9."""
    x = y = 0
    side = 1
    while side < SIDE:
        right, down = step // 2 % 2, (step ^ step // 2) % 2
        if not down:
            if right:
                x, y = side - 1 - x, side - 1 - y
            x, y = y, x
        x, y, step, side = x + side * right, y + side * down, step // 4, 2 * side
    return y, x


def decode(head, chunk, pixels, dtype):
    count = int.from_bytes(chunk[:4], "little")
    escapes, raw = iter(struct.unpack_from(f"<{count}q", chunk, 4)), chunk[4 + 8 * count :]
    if head["coder"] == 2:
        assert count == 0
        assert max(pixels) < head["alphabet"]
        bits = (WORD_BITS | INTEGER_BITS).get(dtype, 8)
        words = pixels
        if dtype in WORD_BITS:
            words = rotate_back(head, bits, pixels, raw)
        elif dtype in INTEGER_BITS:
            words = [value % (1 << bits) for value in read_tokens(pixels, raw)]
        return [word.to_bytes(bits // 8, "little") for word in words]
    assert not raw
    words, state = [], 0
    for pixel in pixels:
        k, q = pixel - 128 if pixel else next(escapes), state % 2 if head["coder"] == 3 else 0
        state = NEXT[state][k % 2]
        steps = (2 if head["coder"] == 3 else 1) * abs(k) - q
        part = 256 * steps + head["bias"][q][min(abs(k), 3) - 1] if k else 0
        words.append(word_of((part if k > 0 else -part) * head["step"], dtype))
    assert next(escapes, None) is None
    return words
