from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

import numpy as np

from hilm.errors import (
    HilmError,
)
from hilm.reel.container import ReelFile
from hilm.reel.crc32c import crc32c
from hilm.reel.manifest import canonical_json
from hilm.reel.records import RECORD, Kind
from hilm.reel.sections import EMPTY_FRONT
from hilm.reel.writer import ReelWriter
from tests.reel.documents import file_of, manifest_of, tensor_of

MP4 = EMPTY_FRONT + struct.pack(">I4s", 12, b"free") + b"film" + struct.pack(">I4s", 8, b"mdat")


@dataclass
class Memory:
    """A reel in memory, counting what is asked of it."""

    data: bytes
    requests: int = 0
    fetched: int = 0

    @property
    def size(self):
        return len(self.data)

    def read(self, start, stop):
        assert 0 <= start <= stop <= self.size
        self.requests, self.fetched = self.requests + 1, self.fetched + stop - start
        return self.data[start:stop]

    def expect(self, runs):
        pass

    def close(self):
        pass


def front_entry(front):
    geometry = {"codec": "vp9", "pixel_format": "yuv420p", "width": 2, "height": 2, "fps": [5, 1]}
    return {"size": len(front), "crc32c": f"0x{crc32c(front):08x}", "frames": [], **geometry}


def write(out, heads=(b"head",), chunks=(b"chunk",), front=EMPTY_FRONT, **others):
    """A reel of one blob and tensors t0, t1 … of 32 F32, each with a head and a chunk."""
    tensors = []
    with ReelWriter(out, front) as writer:
        assert writer.add_record(Kind.BLOB, b"safetensors header", 0) == 0
        for i, (head, chunk) in enumerate(zip(heads, chunks, strict=True)):
            first = writer.add_record(Kind.HEAD, head, 0)
            writer.add_record(Kind.DATA, chunk, 32)
            tensors.append(tensor_of(f"t{i}", slabs=[[0, 4, first, 2]]))
        segments = ["blob", 0, 1], *(["tensor", t["name"]] for t in tensors)
        files = [file_of(*segments, size=18 + 128 * len(tensors))]
        described = None if front == EMPTY_FRONT else front_entry(front)
        return writer.finish(manifest_of(*tensors, files=files, front=described, **others))


def faults(data):
    """Whatever notices that the file is not as written; nothing for an intact one."""
    try:
        return list(ReelFile(Memory(data)).check_coverage())
    except HilmError as error:
        return [f"{type(error).__name__}: {error}"]


def seal(raw):
    return raw + struct.pack("<I", crc32c(raw))


def grow(data, records, manifest):
    """Append a generation, as a later version will."""
    old = ReelFile(Memory(data))
    origin, footer = old._origin, len(data) - old._origin - 128
    start = footer + 128 + 32
    index, position = [old.index], start + 64
    for kind, content, elements in records:
        entry = np.array([(position, len(content), crc32c(content), kind, 0, 0, elements)], RECORD)
        index.append(entry)
        position += len(content)
    table, raw = np.concatenate(index).tobytes(), canonical_json(manifest)
    generation, end = manifest["generation"], position + len(table)
    header = seal(struct.pack("<8sHHIQQ28x", b"HILMREEL", 1, 0, 0, generation, footer))
    tail = struct.pack(
        "<8sQQ32sQQIIQQ28x", b"HILMEND1", end, len(raw), hashlib.sha256(raw).digest(),
        position, len(table), crc32c(table), 0, generation, end + len(raw),
    )  # fmt: skip
    body = header + b"".join(content for _, content, _ in records) + table + raw + seal(tail)
    uuid = bytes.fromhex("e947662ce6164cb182a751dfb8293ce7")
    assert origin + start == len(data) + 32
    return data + struct.pack(">I4sQ", 1, b"uuid", 32 + len(body)) + uuid + body


def rewrite(data, change):
    """Change the manifest of a reel and repair every length and checksum: a file that lies on purpose."""
    at = len(data) - 128
    fields = list(struct.unpack("<8sQQ32sQQIIQQ28x", data[at:-4]))
    origin = at - fields[9]
    manifest = data[origin + fields[1] : at]
    index = data[origin + fields[4] : origin + fields[1]]
    manifest, index = change(manifest, index)
    fields[1], fields[2] = fields[4] + len(index), len(manifest)
    fields[3], fields[5], fields[6] = hashlib.sha256(manifest).digest(), len(index), crc32c(index)
    fields[9] = fields[1] + len(manifest)
    body = data[origin : origin + fields[4]] + index + manifest
    tail = seal(struct.pack("<8sQQ32sQQIIQQ28x", *fields))
    atom = struct.pack(">I4sQ", 1, b"uuid", 32 + len(body) + 128) + data[origin - 16 : origin]
    return data[: origin - 32] + atom + body + tail


def entries(change):
    """A change of the index alone."""

    def apply(manifest, index):
        table = np.frombuffer(index, RECORD).copy()
        return manifest, change(table).tobytes()

    return apply


def setting(field, number, value):
    def change(table):
        table[field][number] = value
        return table

    return entries(change)
