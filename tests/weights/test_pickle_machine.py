from __future__ import annotations

import collections
import os
import pickle
import pickletools
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilm.errors import HilmError, TruncatedFile, UnsafePickle
from hilm.weights.pickle_machine import _ALLOWED, MAX_STREAM, read_pickle
from hilm.weights.pickle_records import Call, Global, Table
from tests.hostile.torch_files import MILLION, pickled, text


def read(data, builders=None, persistent=lambda key: ("stored", key)):
    return read_pickle(data, 0, builders or {}, persistent)


def plain(value):
    """What this machine reads, as Python's own would have built it; names as text."""
    match value:
        case Table():
            return {plain(key): plain(item) for key, item in value.pairs}
        case list() | tuple():
            return type(value)(map(plain, value))
        case Global():
            return value.name
    return value


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 2_000), 1 << 2_000)
    | st.floats(allow_nan=False)
    | st.text(st.characters(), max_size=300)
    | st.binary(max_size=300)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=20,
)


OLD_BYTES = {  # how protocol 2, which knows no bytes, writes them
    "_codecs.encode": lambda arguments: arguments[0].encode(arguments[1]),
    "__builtin__.bytes": lambda _: b"",
}


@given(VALUES, st.sampled_from([2, 3, 4, 5]))
def test_data_reads_as_the_standard_reader_builds_it(value, protocol):
    data = pickle.dumps(value, protocol)
    result = read(data, OLD_BYTES)
    assert plain(result.value) == value
    assert result.stop == len(data)


def test_sets_become_lists():
    assert sorted(read(pickle.dumps({1, 2, 3}, 4)).value) == [1, 2, 3]
    assert sorted(read(pickle.dumps(frozenset("ab"), 4)).value) == ["a", "b"]


def test_shared_values_stay_shared():
    inner = [1]
    first, second = read(pickle.dumps([inner, inner], 4)).value
    assert first is second


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_names_are_records(protocol):
    result = read(pickle.dumps([os.system, collections.OrderedDict, os.system], protocol))
    assert [type(item) for item in result.value] == [Global] * 3
    assert result.names[1] == "collections.OrderedDict"
    assert result.names[0].endswith(".system")
    assert result.value[0] is result.value[2]


class Exploit:
    def __reduce__(self):
        return os.mkdir, ("made-by-a-pickle",), {"state": 1}


def test_calls_are_records(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps(Exploit(), 2)
    record = read(data).value
    assert isinstance(record, Call)
    assert record.function.name.endswith(".mkdir")
    assert record.arguments == ("made-by-a-pickle",)
    assert plain(record.contents) == [{"state": 1}]
    assert not list(tmp_path.iterdir())
    with pytest.raises(AttributeError):  # the standard reader makes the directory, then fails on the state
        pickle.loads(data)
    assert (tmp_path / "made-by-a-pickle").is_dir()


def test_builders_stand_in_for_the_functions_they_know():
    data = pickle.dumps(collections.OrderedDict(a=1), 2)
    result = read(data, {"collections.OrderedDict": lambda arguments: Table([("built", arguments)])})
    assert plain(result.value) == {"built": (), "a": 1}
    assert isinstance(read(data).value, Call)


def test_stored_objects_are_asked_for():
    assert read(pickled(text("key") + b"Q")).value == ("stored", "key")


def test_reading_starts_and_stops_where_told():
    one, two = pickle.dumps("one", 2), pickle.dumps("two", 4)
    result = read_pickle(one + two + b"rest", len(one), {}, str)
    assert (result.value, result.stop) == ("two", len(one + two))


def test_only_the_instructions_of_data_are_obeyed():
    """Every other instruction of the pickle language is refused by name."""
    for op in pickletools.opcodes:
        if op.name in {*_ALLOWED, "STOP"}:
            continue
        with pytest.raises(UnsafePickle, match=rf"instruction {op.name}$"):
            read(b"\x80\x02(NN" + op.code.encode("latin-1") + bytes(20))


@pytest.mark.parametrize("cut", range(60))
def test_every_cut_is_noticed(cut):
    data = pickle.dumps({"a": [1, 2.5, "text"], "b": (os.getcwd, None)}, 2)
    with pytest.raises(TruncatedFile):
        read(data[: min(cut, len(data) - 1)])


def test_too_much_is_refused():
    with pytest.raises(UnsafePickle, match="64 MiB"):
        read(bytes(MAX_STREAM + 1))
    with pytest.raises(UnsafePickle, match="10,000,000"):
        read(b"N0" * 5_000_000 + b".")


def test_lying_lengths_cost_nothing():
    tracemalloc.start()
    for body in (b"X\xff\xff\xff\xff", b"\x8e" + b"\xff" * 8, b"B\xff\xff\xff\x7f", b"j\xff\xff\xff\xff"):
        with pytest.raises(HilmError):
            read(pickled(body))
    assert read(pickled(b"Nr\xff\xff\xff\xff")).value is None
    assert tracemalloc.get_traced_memory()[1] < 1 << 16
    tracemalloc.stop()


def test_depth_is_no_danger():
    """Far more levels than a C stack has room for are built and dropped; neither recurses."""
    for body in (
        b"]" * MILLION + b"a" * (MILLION - 1),
        b")" + b"\x85" * 300_000,
        b"cos\nsystem\n" + b")R" * 300_000,
    ):
        assert read(pickled(body)).value is not None


def test_crafted_keys_do_not_collide():
    """Numbers with equal hashes would make a dictionary's insertion quadratic; a table never hashes."""
    keys = b"".join(b"\x8a\x10" + (i * ((1 << 61) - 1)).to_bytes(16, "little") + b"N" for i in range(100_000))
    start = time.process_time()
    assert len(read(pickled(b"}(" + keys + b"u")).value.pairs) == 100_000
    assert time.process_time() - start < 30


SEED = pickle.dumps({"a": [1, 2.5, "text", b"bytes"], "b": (os.getcwd, {1, 2}), "c": Exploit()}, 4)


@given(
    st.lists(st.tuples(st.integers(0, len(SEED) - 1), st.integers(0, 255)), max_size=5),
    st.integers(0, len(SEED)),
)
def test_mutants_are_read_or_refused(edits, cut):
    data = bytearray(SEED)
    for place, value in edits:
        data[place] = value
    for mutant in (bytes(data), bytes(data[:cut])):
        try:
            read(mutant)
        except HilmError as error:
            assert len(str(error)) < 5_000  # noqa: PT017 - most mutants raise, some do not
