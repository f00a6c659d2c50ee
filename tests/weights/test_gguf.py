from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, quants
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hilm.errors import HeaderError, HilmError, InputError, PackedFormatUnsupported, TruncatedFile
from hilm.weights.dtypes import DTYPES, decode
from hilm.weights.gguf import parse_gguf
from hilm.weights.gguf_blocks import TYPES_BY_NAME
from tests.hostile.edits import edits, mutate
from tests.hostile.gguf_files import ARRAY, STRING, array, cases, file, key, tensor, text, valid_cases

CASES = list(cases())
VALID = dict(valid_cases())


def parse(data):
    return parse_gguf(lambda start, stop: data[start:stop], len(data))


def library_table(path):
    return {
        t.name: (
            t.tensor_type.name,
            tuple(map(int, t.shape[::-1])),
            t.data_offset,
            t.data_offset + int(t.n_bytes),
        )
        for t in GGUFReader(path).tensors
    }


def table(header):
    return {e.name: (e.dtype, e.shape, e.start, e.stop) for e in header.entries}


@pytest.mark.parametrize("name", VALID)
def test_valid_edges_agree_with_the_library(name, tmp_path):
    data = VALID[name]
    header = parse(data)
    (tmp_path / "a.gguf").write_bytes(data)
    if name not in {"nothing", "scalar", "lists"}:  # what the library cannot map, or reads as no text
        assert table(header) == library_table(tmp_path / "a.gguf")
    assert [e.start for e in header.entries] == sorted(e.start for e in header.entries)


def test_only_what_names_the_model_is_kept():
    assert parse(VALID["lists"]).metadata == {
        "general.tags": '["a", "b"]',
        "llama.block_count": "7",
        "general.flag": "true",
    }


def write(path, arrays, extra=lambda writer: None):
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(2)
    extra(writer)
    for name, (values, kind) in arrays.items():
        raw = quants.quantize(values, kind)
        writer.add_tensor(name, raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


KINDS = st.sampled_from(
    [GGMLQuantizationType[n] for n in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_1", "TQ2_0")]
)
SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 2)).map(
    lambda s: (*s[:2], 256 * s[2])
)
NAMES = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20)


@settings(max_examples=25)
@given(st.dictionaries(NAMES, st.tuples(SHAPES, KINDS), min_size=1, max_size=4))
def test_files_of_the_library_read_alike(tmp_path_factory, drawn):
    path = tmp_path_factory.mktemp("gguf") / "a.gguf"
    arrays = {
        name: (np.random.default_rng(3).normal(size=shape).astype(np.float32), kind)
        for name, (shape, kind) in drawn.items()
    }
    data = write(path, arrays)
    header = parse(data)
    assert table(header) == library_table(path)
    assert header.metadata == {"general.architecture": "llama", "llama.block_count": "2"}
    for entry in header.entries:
        values, kind = arrays[entry.name]
        assert entry.shape == values.shape
        expected = quants.dequantize(quants.quantize(values, kind), kind)
        decoded = np.full(expected.size, np.nan, np.float32)
        decode(DTYPES[entry.dtype], np.frombuffer(data, np.uint8)[entry.start : entry.stop], decoded)
        assert np.array_equal(decoded, expected.reshape(-1))


def test_tokenizers_are_walked_over_in_few_reads(tmp_path):
    def add_tokenizer(writer):
        writer.add_array("tokenizer.ggml.tokens", [f"token {i}" for i in range(100_000)])
        writer.add_array("tokenizer.ggml.scores", [float(i) for i in range(100_000)])

    data = write(
        tmp_path / "a.gguf", {"w": (np.ones((2, 32), np.float32), GGMLQuantizationType.F32)}, add_tokenizer
    )
    reads = []

    def read(start, stop):
        reads.append((start, stop))
        return data[start:stop]

    (entry,) = parse_gguf(read, len(data)).entries
    assert np.frombuffer(data[entry.start : entry.stop], "<f4").sum() == 64
    assert len(reads) <= 3
    assert all(stop - start <= 16 << 20 for start, stop in reads)
    assert reads == sorted(reads)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.code}-{case.name}")
def test_hostile_files_are_refused_by_rule(case):
    with pytest.raises(InputError) as caught:
        parse(case.data)
    kind = {"truncated": TruncatedFile, "type": PackedFormatUnsupported}.get(case.code, HeaderError)
    assert type(caught.value) is kind
    assert getattr(caught.value, "code", case.code) == case.code
    assert len(str(caught.value)) < 5_000
    assert caught.value.hint


def test_every_rule_has_a_hostile_file():
    assert {case.code for case in CASES} == {"truncated", "type", "name"} | {
        f"gguf-{rule}"
        for rule in (
            "magic", "version", "count", "key", "string", "value", "alignment", "shape", "span", "duplicate"
        )
    }  # fmt: skip
    assert len({(case.code, case.name) for case in CASES}) == len(CASES) >= 60


def test_a_header_over_the_limit_is_refused():
    """A list that would move the header's end beyond 512 MiB of a file that is large enough."""
    data = file((key("x", ARRAY, array(0, 600 << 20)),))
    with pytest.raises(HeaderError, match="gguf-length"):
        parse_gguf(lambda start, stop: data[start:stop], 1 << 40)


def test_lying_files_cost_no_memory():
    lies = [case for case in CASES if len(case.data) < 100_000]
    tracemalloc.start()
    for case in lies:
        with pytest.raises(HilmError):
            parse(case.data)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


SEED = file(
    (
        key("general.name", STRING, text("tiny")),
        key("tokenizer.x", ARRAY, array(STRING, 2, text("a") + text("b"))),
        key("llama.block_count", 4, bytes([2, 0, 0, 0])),
    ),
    (tensor("a.weight", (32, 2), 8), tensor("b", (2,), 0, 96)),
    bytes(104),
)


@given(
    st.sampled_from(
        [SEED, VALID["lists"], VALID["gap-between"], *(c.data for c in CASES if len(c.data) < 300)]
    ),
    edits(),
)
@example(SEED, [])
def test_mutants_are_refused_or_listed_within_bounds(seed, changes):
    data = mutate(seed, changes)
    try:
        header = parse(bytes(data))
    except HilmError:
        return
    for entry in header.entries:
        kind = TYPES_BY_NAME[entry.dtype]
        assert entry.start <= entry.stop <= len(data)
        assert (entry.stop - entry.start) * kind.values == np.prod(entry.shape, dtype=int) * kind.nbytes
