from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilm.errors import CatalogError
from hilm.lineage import records

NAME = st.text(st.characters(blacklist_characters="\n", codec="utf-8"), min_size=1, max_size=9)
NUMBER = st.integers(0, 2**64 - 1)


@st.composite
def tables(draw):
    rows = draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), NUMBER, NUMBER), max_size=9))
    names = draw(st.lists(NAME, min_size=len(rows), max_size=len(rows)))
    return np.array(rows, records.HASHES), names


@given(tables(), st.binary(max_size=40))
def test_a_record_parses_back_byte_for_byte(table, head):
    rows, names = table
    raw = records.pack(b"HLF0", head, rows, names)
    found = records.unpack(b"HLF0", raw, records.HASHES, len(head))
    assert found.head == head
    pairs = sorted((row.item(), name) for row, name in zip(rows, names, strict=True))
    assert sorted((row.item(), name) for row, name in zip(found.rows, found.names, strict=True)) == pairs
    assert records.pack(b"HLF0", found.head, found.rows, found.names) == raw


@given(tables(), st.randoms(use_true_random=False))
def test_order_does_not_matter_and_names_stay_with_their_rows(table, random):
    rows, names = table
    order = list(range(len(rows)))
    random.shuffle(order)
    assert records.pack(b"HLF0", b"", rows, names) == records.pack(
        b"HLF0", b"", rows[order], [names[i] for i in order]
    )


def test_rows_are_sorted_by_digests_as_numbers():
    rows = np.array([(256, 1, 0, 1), (1, 256, 0, 2), (1, 2, 0, 3)], records.HASHES)
    raw = records.pack(b"HLF0", b"", rows, ["a", "b", "c"])
    assert records.unpack(b"HLF0", raw, records.HASHES).names == ("c", "b", "a")


def test_names_are_not_part_of_what_is_identical():
    rows = np.array([(1, 2, 0, 3), (4, 5, 0, 6)], records.HASHES)
    one, two = (records.pack(b"HLF0", b"head", rows, names) for names in (["a", "b"], ["long", "é"]))
    assert one != two
    assert records.identical_part(one, records.HASHES, 4) == records.identical_part(two, records.HASHES, 4)
    other = records.pack(b"HLF0", b"head", rows[:1], ["a"])
    assert records.identical_part(one, records.HASHES, 4) != records.identical_part(other, records.HASHES, 4)


def test_a_lone_surrogate_survives():
    rows = np.array([(1, 2, 0, 3)], records.HASHES)
    raw = records.pack(b"HLF0", b"", rows, ["\ud800 weight"])
    assert records.unpack(b"HLF0", raw, records.HASHES).names == ("\ud800 weight",)


def sample():
    rows = np.array([(1, 2, 0, 3), (4, 5, 0, 6)], records.HASHES)
    return records.pack(b"HLF0", bytes(32), rows, ["one", "two"])


def with_text(raw, text):
    """The sample with other bytes for its names."""
    rows_end = len(raw) - 4 - len(zlib.compress(b"one\ntwo"))
    return raw[:rows_end] + len(text).to_bytes(4, "little") + text


@pytest.mark.parametrize("length", range(len(sample())))
def test_every_truncation_is_noticed(length):
    with pytest.raises(CatalogError):
        records.unpack(b"HLF0", sample()[:length], records.HASHES, 32)


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: b"HLF3" + raw[4:],
        lambda raw: raw[:4] + b"\x01\x00" + raw[6:],
        lambda raw: raw[:8] + b"\xff\xff\xff\xff" + raw[12:],
        lambda raw: raw + b"x",
        lambda raw: with_text(raw, zlib.compress(b"one two")),
        lambda raw: with_text(raw, zlib.compress(b"one\n\xff\xff\xff")),
        lambda raw: with_text(raw, b"one\ntwo"),
        lambda raw: b"",
    ],
)
def test_foreign_records_are_refused(damage):
    with pytest.raises(CatalogError, match="HLF0"):
        records.unpack(b"HLF0", damage(sample()), records.HASHES, 32)


@pytest.mark.parametrize(
    ("dtype", "size"), [(records.HASHES, 32), (records.CODES, 150), (records.PROFILES, 72)]
)
def test_rows_are_as_long_as_the_format_says(dtype, size):
    assert dtype.itemsize == size
    assert records.CODES_HEAD.itemsize == 8 + 4 * 1024 + 2 * 2016
