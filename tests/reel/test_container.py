from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilm.errors import (
    ChecksumMismatch,
    HeaderError,
)
from hilm.reel.container import ReelFile
from hilm.reel.sections import EMPTY_FRONT
from hilm.reel.writer import ReelWriter
from tests.reel.documents import manifest_of
from tests.reel.files import MP4, Memory, entries, faults, rewrite, setting, write

content = st.binary(min_size=1, max_size=300)


@given(st.lists(st.tuples(content, content), max_size=8), st.sampled_from([EMPTY_FRONT, MP4, b"any"]))
@settings(max_examples=40)
def test_reads_what_was_written(tmp_path_factory, pairs, front):
    out = tmp_path_factory.mktemp("reel") / "x.reel.mp4"
    facts = write(out, [a for a, _ in pairs], [b for _, b in pairs], front)
    with ReelFile.open(out) as reel:
        assert reel.front == front
        assert reel.record(0) == b"safetensors header"
        for i, (tensor, pair) in enumerate(zip(reel.manifest["tensors"], pairs, strict=True)):
            assert reel.records(*tensor["slabs"][0][2:]) == list(pair)
            assert reel.record(2 * i + 2) == pair[1]
        assert list(reel.check_coverage()) == []
        assert reel.trailing == 0
        totals = reel.manifest["totals"]
        assert totals["bytes_payload"] == facts.size - len(front)
        assert 0 <= totals["bits_per_weight"] - 8 * totals["bytes_payload"] / 32 < 0.0021
    assert list(out.parent.iterdir()) == [out]


def test_a_reel_without_records(tmp_path):
    with ReelWriter(tmp_path / "empty") as writer:
        writer.finish(manifest_of(totals={"weights": 0, "bytes_source": 0}))
    with ReelFile.open(tmp_path / "empty") as reel:
        assert len(reel.index) == 0
        assert list(reel.check_coverage()) == []
        assert "bits_per_weight" not in reel.manifest["totals"]


def test_every_flipped_bit_is_noticed(small):
    assert faults(small) == []
    for bit in random.Random(1).sample(range(8 * len(small)), 300):
        damaged = bytearray(small)
        damaged[bit // 8] ^= 1 << bit % 8
        assert faults(bytes(damaged)), f"bit {bit}"


def test_overwrites_and_trailing_bytes_are_noticed(small):
    generator = random.Random(3)
    for _ in range(150):
        start, noise = generator.randrange(len(small)), generator.randbytes(64)
        damaged = small[:start] + noise[: len(small) - start] + small[start + 64 :]
        assert len(damaged) == len(small)
        assert faults(damaged), f"64 bytes at {start}"
    for size in (1, 127, 128, 5000):
        assert faults(small + generator.randbytes(size)) == [f"{size:,} trailing bytes"]


def test_regions_are_named(small):
    reel = ReelFile(Memory(small))
    origin = reel._origin
    places = {
        20: "front",
        origin - 30: "ChecksumMismatch: the atom header is damaged",
        origin + 40: "ChecksumMismatch: the section header is damaged",
        origin + 70: "record 0 (file model.safetensors)",
        origin + int(reel.index["offset"][4]): "record 4 (tensor t1)",
        origin + reel._sections[0].index: "ChecksumMismatch: the index is damaged",
        origin + reel._sections[0].manifest: "ChecksumMismatch: the manifest is damaged",
        len(small) - 1: "ChecksumMismatch: the footer is damaged",
    }
    for place, name in places.items():
        damaged = bytearray(small)
        damaged[place] ^= 16
        assert faults(bytes(damaged)) == [name]


def test_reading_a_damaged_part_raises_and_others_stay_readable(small):
    reel = ReelFile(Memory(small))
    damaged = bytearray(small)
    damaged[reel._origin + int(reel.index["offset"][3])] ^= 1
    damaged[0] ^= 1
    reel = ReelFile(Memory(bytes(damaged)))
    assert reel.records(1, 2)[0] == b"head 0"
    with pytest.raises(ChecksumMismatch, match=r"record 3 \(tensor t1\)"):
        reel.records(2, 3)
    with pytest.raises(ChecksumMismatch, match="front"):
        _ = reel.front
    assert len(list(reel.check_coverage())) == 2


def test_swapped_records_are_noticed(small):
    reel = ReelFile(Memory(small))
    begin = reel._origin + int(reel.index["offset"][1])
    swapped = small[:begin] + b"head 1" + small[begin + 6 :]
    assert faults(swapped) == ["record 1 (tensor t0)"]


def test_opening_costs_two_requests_and_a_tensor_one_more(tmp_path):
    write(tmp_path / "x", [b"h"] * 40, [bytes(100_000)] * 40)
    source = Memory((tmp_path / "x").read_bytes())
    reel = ReelFile(source)
    assert (source.requests, source.fetched) == (2, 65536 + 96)
    reel.records(*reel.manifest["tensors"][7]["slabs"][0][2:])
    assert (source.requests, source.fetched) == (3, 65536 + 96 + 100_001)


@pytest.mark.parametrize(
    "change",
    [
        setting("offset", 1, 0),
        setting("offset", 1, (1 << 64) - 1),
        setting("offset", 2, 64),
        setting("size", 6, 1),
        setting("size", 6, (1 << 32) - 1),
        setting("size", 0, 0),
        setting("kind", 1, 9),
        setting("kind", 1, 1),
        setting("file", 1, 1),
        setting("zero", 1, 1),
        setting("elements", 2, 31),
        entries(lambda table: table[:-1]),
        entries(lambda table: table[::-1]),
        entries(lambda table: np.concatenate([table, table])),
        lambda manifest, index: (manifest, index + bytes(7)),
        lambda manifest, index: (manifest.replace(b'"generation":1', b'"generation":2'), index),
        lambda manifest, index: (manifest.replace(b'"size":44', b'"size":45'), index),
        lambda manifest, index: (b"[" * 50_000, index),
        lambda manifest, index: (b"", b""),
    ],
)
def test_lying_files_are_refused(small, change):
    assert rewrite(small, lambda manifest, index: (manifest, index)) == small
    lie = rewrite(small, change)
    assert lie != small
    with pytest.raises(HeaderError):
        ReelFile(Memory(lie))


def test_damage_in_any_generation_is_noticed(grown):
    _, both = grown
    for bit in random.Random(4).sample(range(8 * len(both)), 300):
        damaged = bytearray(both)
        damaged[bit // 8] ^= 1 << bit % 8
        assert faults(bytes(damaged)), f"bit {bit}"


def test_threads_read_one_reel(tmp_path):
    write(tmp_path / "x", [b"h"] * 50, [bytes([i]) * 5000 for i in range(50)])
    with ReelFile.open(tmp_path / "x") as reel, ThreadPoolExecutor(8) as pool:
        numbers = [random.Random(5).randrange(50) for _ in range(400)]
        found = pool.map(lambda i: reel.record(2 * i + 2), numbers)
        assert [chunk[0] for chunk in found] == numbers
