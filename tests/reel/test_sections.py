from __future__ import annotations

import random
import struct
import tracemalloc

import pytest

from hilm.errors import (
    ChecksumMismatch,
    HeaderError,
    HilmError,
    NotAReel,
    Truncated,
    UnsupportedVersion,
)
from hilm.reel.container import ReelFile
from hilm.reel.sections import EMPTY_FRONT
from tests.reel.documents import manifest_of, sample_of
from tests.reel.files import MP4, Memory, faults, grow, seal, write


def test_every_truncation_is_noticed(small):
    for size in {*random.Random(2).sample(range(len(small)), 300), *range(60), len(small) - 1}:
        with pytest.raises((NotAReel, Truncated)):
            ReelFile(Memory(small[:size]))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        MP4,
        EMPTY_FRONT,
        bytes(5000),
        struct.pack(">I4sQ", 1, b"mdat", 1 << 63) + bytes(100),
        struct.pack(">I4s", 0, b"mdat") + bytes(100),
        struct.pack(">I4s", 7, b"mdat") + bytes(100),
        struct.pack(">I4s", 8, b"free") * 70_000,
        b"PK\3\4" * 100,
    ],
)
def test_other_files_are_not_reels(data):
    source = Memory(data)
    with pytest.raises(NotAReel):
        ReelFile(source)
    assert source.requests <= 70_000


def test_a_foreign_footer_is_refused(small, tmp_path):
    write(tmp_path / "other")
    other = (tmp_path / "other").read_bytes()
    for data in (small[:-128] + other[-128:], other[:-128] + small[-128:], small + other, other + small):
        assert faults(data)


def test_newer_formats_are_named(small):
    origin = ReelFile(Memory(small))._origin
    for patch in ({8: 2}, {12: 1}):
        header = bytearray(small[origin : origin + 60])
        for place, value in patch.items():
            header[place] = value
        with pytest.raises(UnsupportedVersion):
            ReelFile(Memory(small[:origin] + seal(bytes(header)) + small[origin + 64 :]))


@pytest.mark.parametrize("field", [1, 2, 4, 5, 8, 9])
@pytest.mark.parametrize("value", [0, 1, 65, 1 << 40, (1 << 64) - 1])
def test_lying_footers_are_refused_without_reading_what_they_promise(small, field, value):
    fields = list(struct.unpack("<8sQQ32sQQIIQQ28x", small[-128:-4]))
    if fields[field] == value:
        return
    fields[field] = value
    lie = small[:-128] + seal(struct.pack("<8sQQ32sQQIIQQ28x", *fields))
    tracemalloc.start()
    with pytest.raises(HilmError):
        ReelFile(Memory(lie))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("size", [0, 1, 31, 32, 96, 223, 1 << 40, (1 << 64) - 1])
def test_lying_atom_sizes_are_refused(small, size):
    origin = ReelFile(Memory(small))._origin
    lie = small[: origin - 24] + struct.pack(">Q", size) + small[origin - 16 :]
    with pytest.raises((ChecksumMismatch, Truncated, HeaderError)):
        ReelFile(Memory(lie))


def test_appended_generations_are_read(grown):
    both = grown[1]
    reel = ReelFile(Memory(both))
    assert reel.manifest["generation"] == 2
    assert [reel.record(i) for i in range(4)] == [b"head", b"first", b"HEAD", b"second"]
    assert list(reel.check_coverage()) == []
    third = manifest_of(mode="sample", source=None, samples=reel.manifest["samples"], generation=3)
    assert faults(grow(both, [], third)) == []


def test_an_unfinished_append_leaves_the_generation_before(grown):
    first, both = grown
    for size in range(len(first) + 1, len(both)):
        reel = ReelFile(Memory(both[:size]))
        assert len(reel.manifest["samples"]) == 1
        assert list(reel.check_coverage()) == [f"{size - len(first):,} trailing bytes"]


def test_generations_must_follow_each_other(grown):
    third = manifest_of(mode="sample", source=None, samples=[sample_of()], generation=3)
    with pytest.raises(HeaderError, match="generation"):
        ReelFile(Memory(grow(grown[0], [], third)))
