from __future__ import annotations

import hashlib
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilm.errors import HeaderError, UnsafePath, UnsupportedFormat, UnsupportedVersion
from hilm.reel.layout import coded_view
from hilm.reel.manifest import CODING, canonical_json, check_manifest, parse_manifest, tensor_digest
from hilm.reel.records import Kind, check_records
from tests.reel.documents import (
    PLAIN,
    ZEROS,
    file_of,
    front_of,
    index_of,
    manifest_of,
    refused,
    sample_of,
    tensor_of,
)


def test_round_trip_is_canonical_and_keeps_unknown_keys():
    document = manifest_of(tensor_of(later={"x": [1.5]}), novelty=["ä"])
    raw = canonical_json(document)
    assert parse_manifest(raw) == document
    assert canonical_json(parse_manifest(raw)) == raw
    assert b" " not in raw.replace(b"model ", b"")
    assert "ä".encode() in raw


def test_unknown_minor_version_is_read():
    assert check_manifest(manifest_of(version=[1, 7]))["version"] == [1, 7]


@pytest.mark.parametrize("version", [[2, 0], [0, 9], []])
def test_other_major_versions_are_not_read(version):
    with pytest.raises(UnsupportedVersion):
        check_manifest(manifest_of(version=version))


@pytest.mark.parametrize("change", [{"mode": "clip"}, {"mode": "sampled"}, {"carrier": "av1"}])
def test_unknown_modes_and_carriers_are_not_read(change):
    with pytest.raises(UnsupportedFormat):
        check_manifest(manifest_of(**change))


def test_tensor_digest_is_independent_of_order():
    lines = [("ä", "F32", (2, 3), "ab"), ("b", "BF16", [4], "cd")]
    text = '["b","BF16",[4],"cd"]\n["ä","F32",[2,3],"ab"]\n'
    assert tensor_digest(lines) == tensor_digest(lines[::-1]) == hashlib.sha256(text.encode()).hexdigest()


@given(st.permutations(["a", "Z", "\x7f", "é", "\uffff", "\U00010000"]))
def test_tensor_digest_sorts_by_utf8(names):
    lines = [(name, "F32", [1], ZEROS) for name in names]
    ordered = sorted(lines, key=lambda line: line[0].encode())
    expected = "".join(
        json.dumps([n, d, s, h], ensure_ascii=False, separators=(",", ":")) + "\n" for n, d, s, h in ordered
    )
    assert tensor_digest(lines) == hashlib.sha256(expected.encode()).hexdigest()


def test_tensor_digest_refuses_what_is_not_unicode():
    with pytest.raises(HeaderError):
        tensor_digest([("\ud800", "F32", [1], ZEROS)])


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff",
        b"{",
        b"[]",
        b"7",
        b"null",
        b'{"a":NaN}',
        b'{"a":-Infinity}',
        b"1" * 5000,
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
)
def test_what_is_not_a_manifest(raw):
    with pytest.raises(HeaderError):
        parse_manifest(raw)


def test_repeated_keys_are_refused():
    raw = canonical_json(manifest_of())
    with pytest.raises(HeaderError, match="duplicate"):
        parse_manifest(b'{"base":null,' + raw[1:])


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"nbytes": 127}, "size"),
        ({"coder": "tcq"}, "coder"),
        ({"name": ""}, "name"),
        ({"name": "x" * 4097}, "name"),
        ({"shape": [1] * 33, "nbytes": 4}, "limit"),
        ({"shape": [1 << 62, 2]}, "limit"),
        ({"sha256_source": ZEROS}, "digest"),
        ({"slabs": []}, "tiling"),
        ({"slabs": [[0, 3, 0, 2]]}, "tiling"),
        ({"slabs": [[1, 4, 0, 2]]}, "tiling"),
        ({"slabs": [[0, 5, 0, 2]]}, "tiling"),
        ({"slabs": [[0, 4, 0, 3]]}, "tiling"),
        ({"slabs": [[0, 4, 1, 2]]}, "tiling"),
        ({"slabs": [[0, 4, 1 << 62, 2]]}, "tiling"),
        ({"slabs": [[0, 4, 0, 1 << 62]]}, "tiling"),
        ({"slabs": [[0, 4, 0, 0]]}, "tiling"),
        ({"slabs": [[0, 1 << 62, 0, 2]]}, "tiling"),
        ({"slabs": [[0, 4, 0, 2], [4, 4, 2, 1]]}, "tiling"),
        ({"slabs": [[0, 2, 0, 1], [2, 4, 0, 1]]}, "tiling"),
    ],
)
def test_lying_tensors_are_refused(change, code):
    assert refused(manifest_of(tensor_of() | change)) == code


def test_aliases():
    alias = tensor_of("b", slabs=[], alias_of="w")
    chain = tensor_of("c", slabs=[], alias_of="b")
    manifest = check_manifest(manifest_of(chain, alias, tensor_of()))
    assert check_records(manifest, PLAIN) == [(0, 2, "tensor w")]
    for bad in (
        alias | {"alias_of": "nobody"},
        alias | {"alias_of": "b"},
        alias | {"shape": [8, 4]},
        alias | {"sha256": ZEROS},
        alias | {"slabs": [[0, 4, 0, 2]]},
        alias | {"dtype": "I32"},
    ):
        assert refused(manifest_of(tensor_of(), bad)) == "alias"
    loop = [tensor_of(a, slabs=[], alias_of=b) for a, b in ("pq", "qr", "rp")]
    assert refused(manifest_of(*loop)) == "alias"


def test_a_long_chain_of_aliases_takes_linear_time():
    count = 20_000
    links = [tensor_of(f"t{i}", slabs=[], alias_of=f"t{i + 1}") for i in range(count)]
    check_manifest(manifest_of(*links, tensor_of(f"t{count}")))


@pytest.mark.parametrize(
    "name", ["", "/etc/x", "../x", "a/../x", "a//b", "./a", "..\\a", "C:x", "a\0b", "a/"]
)
def test_unsafe_file_names_are_refused(name):
    with pytest.raises(UnsafePath):
        check_manifest(manifest_of(files=[file_of(name=name)]))


def test_file_names_are_kept_but_not_repeated():
    names = ["model.safetensors", "a/b c", "xy:z", "..."]
    check_manifest(manifest_of(files=[file_of(name=name, size=0) for name in names]))
    assert refused(manifest_of(files=[file_of(size=0)] * 2)) == "duplicate"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"fill": 257}, "grid"),
        ({"fill": 0}, "grid"),
        ({"grid_side": 17}, "grid"),
        ({"grid_side": 0}, "grid"),
        ({"grid_side": 1 << 40, "fill": (1 << 22) + 1}, "grid"),
        ({"scale": math.nan}, "json"),
        ({"scale": -1.0}, "type"),
        ({"record": 1}, "tiling"),
        ({"record": 1 << 62}, "tiling"),
        ({"fill": 99}, "tiling"),
        ({"deleted": 0}, "type"),
    ],
)
def test_lying_samples_are_refused(change, code):
    index = index_of((Kind.HEAD, 0), (Kind.SAMPLES, 100))
    document = manifest_of(mode="sample", source=None, samples=[sample_of() | change])
    assert refused(document, index) == code


def test_samples_keep_their_order_and_one_grid():
    for second in (sample_of(0), sample_of(1, grid_side=32)):
        code = refused(manifest_of(mode="sample", source=None, samples=[sample_of(0), second]))
        assert code in {"order", "grid"}


@pytest.mark.parametrize(
    "change",
    [
        {"mode": "sample"},
        {"samples": [sample_of()]},
        {"source": None},
    ],
)
def test_modes_hold_what_they_should(change):
    assert refused(manifest_of(tensor_of()) | change) == "mode"


def test_front():
    check_manifest(manifest_of(tensor_of(), front=front_of()))
    assert refused(manifest_of(tensor_of(), front=front_of(crc32c="beef"))) == "type"
    frame = {"tensor": "v", "scale": 0.5, "sampled": False}
    for change in ({"width": 511}, {"height": 0}, {"fps": [0, 1]}, {"frames": [frame]}):
        assert refused(manifest_of(tensor_of(), front=front_of(**change))) == "front"


def test_another_trellis_is_refused():
    other = [*CODING["next"][:7], [6, 7]]
    assert refused(manifest_of(coding=CODING | {"next": other})) == "coding"


ERROR = {"nmse": 0.01, "max_abs": 0.5, "cosine": 0.99}


def test_rounded_tensors_have_two_digests_and_an_error():
    rounded = tensor_of(coder="tcq", sha256_source=ZEROS, error=ERROR)
    manifest = check_manifest(manifest_of(rounded, tensor_of("v", slabs=[], shape=(0,)), mode="small"))
    assert manifest["tensors"][0]["error"] == ERROR
    lossless = tensor_of(coder="ecsq")
    check_manifest(manifest_of(lossless, mode="small"))
    for bad, code in (
        (rounded | {"coder": "symbols"}, "digest"),
        (lossless | {"sha256_source": ZEROS}, "error"),
        (lossless | {"error": ERROR}, "error"),
        (rounded | {"error": {"nmse": 0.01}}, "type"),
        (rounded | {"error": ERROR | {"nmse": -1.0}}, "type"),
        (rounded | {"coder": "vq"}, "coder"),
    ):
        assert refused(manifest_of(bad, mode="small")) == code
    assert refused(manifest_of(rounded)) == "coder"


@pytest.mark.parametrize("key", ["chunk_elements", "prob_bits", "lanes", "slab_elements"])
def test_other_coding_constants_are_refused(key):
    assert refused(manifest_of(coding=CODING | {key: CODING[key] + 1})) == "coding"


def test_nesting_is_bounded():
    deep = []
    for _ in range(13):
        deep = [deep]
    check_manifest(manifest_of(settings={"deep": deep}))
    assert refused(manifest_of(settings={"deep": [deep]})) == "limit"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 1 << 65) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.data())
def test_any_value_anywhere_is_read_or_refused(data):
    """Replace one random member: nothing but the errors of this package comes out."""
    document = manifest_of(tensor_of(), front=front_of(), files=[file_of(["tensor", "w"], size=128)])
    node = document
    while True:
        key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        if not (isinstance(node[key], dict | list) and node[key] and data.draw(st.booleans())):
            break
        node = node[key]
    node[key] = data.draw(json_values)
    try:
        manifest = check_manifest(document)
        check_records(manifest, PLAIN)
    except (HeaderError, UnsupportedFormat, UnsupportedVersion, UnsafePath):
        return
    assert math.prod(coded_view(manifest["tensors"][0]["dtype"], manifest["tensors"][0]["shape"])) in {0, 128}
