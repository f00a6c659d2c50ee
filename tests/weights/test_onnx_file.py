from __future__ import annotations

import tracemalloc

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from hilm import errors
from hilm.weights import open_checkpoint
from hilm.weights.dtypes import DTYPES, decode
from hilm.weights.onnx_file import MAX_FIELDS, parse_onnx
from tests.hostile.edits import edits, mutate
from tests.hostile.onnx_files import (
    FLOAT,
    INT64,
    STRING,
    cases,
    field,
    graph,
    model,
    outside,
    tensor,
    valid_cases,
)
from tests.servers import Server

CASES = list(cases())
VALID = dict(valid_cases())
WEIGHTS = np.arange(600_000, dtype=np.float32).reshape(1000, 600)


def parse(data):
    return parse_onnx(lambda start, stop: data[start:stop], len(data))


def written(tensors, nodes=(), **options):
    """An ONNX file as the library writes it."""
    made = helper.make_graph(list(nodes), "g", [], [], tensors)
    return helper.make_model(made, **options)


@pytest.mark.parametrize("name", VALID)
def test_valid_edges_agree_with_the_library(name):
    data = VALID[name]
    theirs = {t.name: numpy_helper.to_array(t) for t in onnx.load_from_string(data).graph.initializer}
    listing = parse(data)
    assert {e.name: e.shape for e in listing.entries} == {n: a.shape for n, a in theirs.items()}
    for entry in listing.entries:
        assert data[entry.start : entry.stop] == theirs[entry.name].tobytes()
    assert not listing.notes


ARRAYS = st.dictionaries(
    st.text(st.characters(min_codepoint=33, exclude_categories=["C"]), min_size=1, max_size=9),
    st.tuples(
        st.sampled_from(
            ["float32", "float16", "float64", "int8", "int64", "uint8", "bool", "bfloat16", "float8_e4m3fn"]
        ),
        st.lists(st.integers(0, 5), max_size=3),
    ),
    max_size=6,
)


@settings(max_examples=60)
@given(ARRAYS, st.booleans())
def test_files_of_the_library_read_alike(tmp_path_factory, drawn, aside):
    import ml_dtypes  # noqa: F401, PLC0415 - registers the short floats

    rng = np.random.default_rng(5)
    arrays = {n: rng.integers(0, 9, shape).astype(np.dtype(kind)) for n, (kind, shape) in drawn.items()}
    folder = tmp_path_factory.mktemp("onnx")
    options = {"save_as_external_data": True, "location": "w.data", "size_threshold": 0} if aside else {}
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    onnx.save(written(tensors), folder / "model.onnx", **options)
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.format == "onnx"
        assert {n: t.shape for n, t in checkpoint.tensors.items()} == {n: a.shape for n, a in arrays.items()}
        for name, array in arrays.items():
            assert checkpoint.words(name).tobytes() == array.tobytes()
            np.testing.assert_array_equal(checkpoint.array(name), array.astype(np.float32))


def test_what_is_not_listed_is_noted():
    branch = helper.make_graph([], "b", [], [helper.make_tensor_value_info("y", FLOAT, [])])
    listing = parse(
        written(
            [
                helper.make_tensor("axes", INT64, [3], [1, 2, 3]),
                helper.make_tensor("words", STRING, [1], [b"hello"]),
                helper.make_tensor("w", FLOAT, [2], [1.0, 2.0]),
            ],
            [
                helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(WEIGHTS[:1])),
                helper.make_node("Constant", [], ["d"], value=numpy_helper.from_array(np.ones(2))),
                helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch),
            ],
        ).SerializeToString()
    )
    assert [e.name for e in listing.entries] == ["w"]
    assert sorted(listing.notes) == [
        "constants inside nodes are not listed: 2,410 bytes",
        "graphs inside nodes are not looked into: 16 bytes, 16 bytes",
        "integers stored one by one are not listed: axes",
        "tensors of text are not listed: words",
    ]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.code}-{case.name}")
def test_hostile_files_are_refused_by_rule(case):
    with pytest.raises(errors.InputError) as caught:
        parse(case.data)
    kinds = {
        "truncated": errors.TruncatedFile,
        "type": errors.PackedFormatUnsupported,
        "unsupported": errors.UnsupportedFormat,
    }
    assert type(caught.value) is kinds.get(case.code, errors.HeaderError)
    assert getattr(caught.value, "code", case.code) == case.code
    assert len(str(caught.value)) < 5_000
    assert caught.value.hint


def test_every_rule_has_a_hostile_file():
    rules = [
        "graph",
        "wire",
        "length",
        "text",
        "duplicate",
        "dtype",
        "shape",
        "size",
        "data",
        "external",
        "overlap",
    ]
    assert {case.code for case in CASES} == {
        "truncated", "type", "unsupported", "name", *(f"onnx-{rule}" for rule in rules)
    }  # fmt: skip
    assert len({(case.code, case.name) for case in CASES}) == len(CASES) >= 60


def test_a_file_of_fields_alone_is_refused(monkeypatch):
    monkeypatch.setattr("hilm.weights.onnx_file.MAX_FIELDS", 1000)
    assert MAX_FIELDS > 1000
    with pytest.raises(errors.HeaderError, match="onnx-count"):
        parse(field(7, field(1, field(5, field(1, 1) * 1000))))


def test_lying_files_cost_no_memory():
    tracemalloc.start()
    for case in CASES:
        with pytest.raises(errors.HilmError):
            parse(case.data)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@given(st.sampled_from([*VALID.values(), *(c.data for c in CASES if len(c.data) < 300)]), edits())
def test_mutants_are_refused_or_listed_within_bounds(seed, changes):
    data = mutate(seed, changes)
    try:
        listing = parse(bytes(data))
    except errors.HilmError:
        return
    for entry in listing.entries:
        assert 0 <= entry.start <= entry.stop <= len(data)
        out = np.empty(np.prod(entry.shape, dtype=int) * DTYPES[entry.dtype].values, np.float32)
        if DTYPES[entry.dtype].kind != "packed":
            decode(DTYPES[entry.dtype], np.frombuffer(data, np.uint8)[entry.start : entry.stop].copy(), out)


def test_data_beside_the_file_must_be_there_plainly_and_whole(tmp_path):
    path = tmp_path / "m" / "model.onnx"
    path.parent.mkdir()
    (tmp_path / "secret").write_bytes(bytes(100))
    (path.parent / "link").symlink_to(tmp_path / "secret")
    (path.parent / "short").write_bytes(bytes(7))
    for location, error in (
        ("../secret", errors.UnsafePath),
        ("/etc/passwd", errors.UnsafePath),
        ("*/_ORT_MEM_ADDR_/*", errors.UnsafePath),
        ("link", errors.UnsafePath),
        ("absent", errors.MissingShard),
        ("short", errors.TruncatedFile),
        ("model.onnx", errors.CorruptCheckpoint),
    ):
        path.write_bytes(model(tensor(values=outside(location=location))))
        with pytest.raises(error):
            open_checkpoint(path)
    two = (tensor(name, values=outside(location="w", offset="4")) for name in "ab")
    path.write_bytes(model(*two))
    (path.parent / "w").write_bytes(np.arange(3, dtype="<f4").tobytes())
    for target in (path, path.parent):
        with open_checkpoint(target) as checkpoint:
            assert checkpoint.tensors["b"].alias_of == "a"
            assert checkpoint.array("b").tolist() == [1, 2]
            assert [f.name for f in checkpoint.files] == ["model.onnx", "w"]


def test_over_http_no_weights_are_read(monkeypatch):
    """Tensors in the file cost a window each at most, those beside it the head of that file."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    tensors = [numpy_helper.from_array(WEIGHTS, f"w{i}") for i in range(6)]
    inside = written(tensors).SerializeToString()
    layers = [
        tensor(f"w{i}", WEIGHTS.shape, values=outside(location="w.data", offset=str(i * WEIGHTS.nbytes)))
        for i in range(6)
    ]
    files = {
        "/a/model.onnx": inside,
        "/b/model.onnx": model(*layers),
        "/b/w.data": WEIGHTS.tobytes() * 6,
    }
    for name, bound, requests in (("a", 1 << 20, 8), ("b", 1 << 19 | 1, 2)):
        with Server(files) as server, open_checkpoint(server.url(f"/{name}/model.onnx")) as checkpoint:
            assert sum(stop - start for start, stop in server.ranges()) < bound
            assert len(server.seen) <= requests
            np.testing.assert_array_equal(checkpoint.array("w3"), WEIGHTS)


def test_the_number_of_types_is_that_of_the_library():
    from hilm.weights import onnx_file  # noqa: PLC0415 - looks inside

    known = {*onnx_file._DTYPES, *onnx_file._REFUSED, TensorProto.STRING, TensorProto.UNDEFINED}
    assert known >= set(TensorProto.DataType.values())


def test_graphs_are_read_in_few_reads():
    nodes = [helper.make_node("Relu", [f"a{i}"], [f"a{i + 1}"], name=f"n{i}") for i in range(20_000)]
    data, reads = written([numpy_helper.from_array(WEIGHTS, "w")], nodes).SerializeToString(), []

    def read(start, stop):
        reads.append((start, stop))
        return data[start:stop]

    assert len(parse_onnx(read, len(data)).entries) == 1
    assert len(reads) <= 8
    assert graph() == b""
