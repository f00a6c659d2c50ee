from __future__ import annotations

import json
import tracemalloc
from typing import TYPE_CHECKING

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import example, given
from hypothesis import strategies as st

from hilm.errors import HeaderError, HilmError, InputError, MemoryLimitError, TruncatedFile
from hilm.weights.safetensors import parse_header
from tests.hostile.edits import edits, mutate
from tests.hostile.safetensors_files import BITS, cases, entry, file, pack, valid_cases

if TYPE_CHECKING:
    from hilm.weights.tensor import Listing

CASES = list(cases())
VALID = dict(valid_cases())
CODES = {
    "short",
    "length",
    "start",
    "padding",
    "utf8",
    "json",
    "duplicate",
    "name",
    "entry",
    "dtype",
    "shape",
    "size",
} | {
    "overlap",
    "hole",
    "bounds",
    "trailing",
    "metadata",
    "truncated",
}


def parse(data: bytes) -> Listing:
    return parse_header(lambda start, stop: data[start:stop], len(data))


def table(data: bytes, header: Listing) -> dict[str, tuple[str, list[int], bytes]]:
    return {e.name: (e.dtype, list(e.shape), data[e.start : e.stop]) for e in header.entries}


def library_table(data: bytes) -> dict[str, tuple[str, list[int], bytes]]:
    return {name: (t["dtype"], t["shape"], bytes(t["data"])) for name, t in safetensors.deserialize(data)}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.code}-{case.name}")
def test_hostile_files_are_refused_by_rule(case):
    with pytest.raises(InputError) as caught:
        parse(case.data)
    if case.code == "truncated":
        assert isinstance(caught.value, TruncatedFile)
    else:
        assert isinstance(caught.value, HeaderError)
        assert caught.value.code == case.code
    assert len(str(caught.value)) < 5_000
    assert caught.value.hint
    assert caught.value.exit_code == 2


def test_every_rule_has_a_hostile_file():
    assert {case.code for case in CASES} == CODES
    assert len({(case.code, case.name) for case in CASES}) == len(CASES) >= 40


@pytest.mark.parametrize("name", VALID)
def test_valid_edges_agree_with_the_library(name):
    data = VALID[name]
    assert table(data, parse(data)) == library_table(data)


def test_every_dtype_of_the_format_has_a_valid_file():
    assert {parse(VALID[f"dtype-{dtype}"]).entries[0].dtype for dtype in BITS} == set(BITS)


def test_metadata_and_positions():
    data = file({"__metadata__": {"format": "pt"}, "a": entry()}, b"1234")
    header = parse(data)
    assert header.metadata == {"format": "pt"}
    assert (header.entries[0].start, header.entries[0].stop) == (len(data) - 4, len(data))


def test_entries_are_in_file_order():
    assert [e.name for e in parse(VALID["against-file-order"]).entries] == ["a", "z"]


def test_only_the_header_is_read():
    data = file({"a": entry()}, b"1234")
    reads = []

    def read(start, stop):
        reads.append((start, stop))
        return data[start:stop]

    parse_header(read, len(data))
    assert max(stop for _, stop in reads) == len(data) - 4


def test_a_header_too_large_to_parse_is_refused_unread():
    length = 99_000_000

    def read(start, stop):
        assert (start, stop) == (0, 8)
        return length.to_bytes(8, "little")

    with pytest.raises(MemoryLimitError):
        parse_header(read, length + 8)


def test_a_lying_length_costs_no_memory():
    lies = [case for case in CASES if case.code in {"short", "length"}]
    tracemalloc.start()
    for case in lies:
        with pytest.raises(HeaderError):
            parse(case.data)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


NAMES = st.text(
    st.characters(min_codepoint=32, exclude_characters="\x7f", exclude_categories=["Cs"]),
    min_size=1,
    max_size=20,
)
ARRAYS = st.tuples(
    st.sampled_from(["<f4", "<f8", "<f2", "<i8", "<u4", "u1", "?"]),
    st.lists(st.integers(0, 5), max_size=3).map(tuple),
).map(lambda t: np.asarray(np.arange(np.prod(t[1], dtype=int)).reshape(t[1]) % 2, t[0]))


@given(
    st.dictionaries(NAMES.filter(lambda n: n != "__metadata__"), ARRAYS, max_size=6),
    st.none() | st.dictionaries(NAMES, NAMES, min_size=1),  # the library writes broken JSON for {}
)
def test_files_of_the_library_round_trip(arrays, metadata):
    data = safetensors.numpy.save(arrays, metadata)
    header = parse(data)
    assert header.metadata == (metadata or {})
    assert table(data, header) == library_table(data)
    for e in header.entries:
        array = arrays[e.name]
        assert data[e.start : e.stop] == array.tobytes()
        assert e.shape == array.shape


@st.composite
def layouts(draw):
    """Tensors of every dtype behind one another, listed in any order, header padded."""
    position, listed = 0, {}
    for name in draw(st.lists(NAMES.filter(lambda n: n != "__metadata__"), unique=True, max_size=6)):
        dtype = draw(st.sampled_from(sorted(BITS)))
        shape = (*draw(st.lists(st.integers(0, 3), max_size=3)), draw(st.sampled_from([0, 4, 8])))
        end = position + int(np.prod(shape, dtype=int)) * BITS[dtype] // 8
        listed[name] = entry(position, end, dtype, shape)
        position = end
    order = draw(st.permutations(sorted(listed)))
    padding = " " * draw(st.integers(0, 9))
    payload = bytes(i % 251 for i in range(position))
    return pack(
        json.dumps({n: listed[n] for n in order}, ensure_ascii=draw(st.booleans())) + padding, payload
    )


@given(layouts())
def test_any_layout_agrees_with_the_library(data):
    assert table(data, parse(data)) == library_table(data)


SEEDS = [
    file(
        {"__metadata__": {"a": "b"}, "x.weight": entry(0, 8, shape=(2,)), "x.bias": entry(8, 12)},
        bytes(range(12)),
    ),
    VALID["empty-tensors-between"],
    VALID["unknown-field"],
    *(case.data for case in CASES if len(case.data) < 300),
]


@given(st.sampled_from(SEEDS), edits(), st.booleans())
@example(SEEDS[0], [], True)
def test_mutated_files_are_refused_or_read_as_the_library_reads_them(seed, changes, mend):
    data = mutate(seed, changes)
    if mend:  # keep the length prefix true, so that edits of the header reach the later rules
        data[:8] = min(max(data.find(b"}}", 8) - 6, 2), len(data)).to_bytes(8, "little")
    mutant = bytes(data)
    try:
        header = parse(mutant)
    except HilmError:
        return
    assert table(mutant, header) == library_table(mutant)
