from __future__ import annotations

import json
import multiprocessing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilm.lineage import scan
from hilm.lineage.catalog import Catalog
from hilm.lineage.scan import ScanIndex, nearest
from tests.lineage.rows import encoded, fingerprint


@pytest.fixture
def catalog(tmp_path):
    return Catalog.open(tmp_path / "catalog", create=True)


@pytest.fixture
def filled(catalog):
    catalog.commit({"fingerprints": [fingerprint(n) for n in range(40)]})
    return catalog


def nearest_twin(words, query, count):
    """Slow and plain: sort by distance, keep everything no farther than the last one wanted."""
    distances = [
        sum((int(w) ^ int(q)).bit_count() for w, q in zip(column, query, strict=True)) for column in words.T
    ]
    if len(distances) <= count:
        return np.ones(len(distances), bool)
    return np.array(distances) <= sorted(distances)[count - 1]


def cosine_twin(a, b):
    a, b = [int(x) for x in a], [int(x) for x in b]
    norm = (sum(x * x for x in a) * sum(x * x for x in b)) ** 0.5
    return sum(x * y for x, y in zip(a, b, strict=True)) / norm if norm else 0.0


def files(cache):
    return sorted(path.name for path in cache.rglob("fingerprints-*"))


# The loops


@settings(deadline=None)  # the first call compiles
@given(st.integers(0, 2**32), st.integers(0, 200), st.integers(1, 250), st.sampled_from([1, 3, 2**64 - 1]))
def test_selection_equals_brute_force(seed, rows, count, mask):
    words = np.random.default_rng(seed).integers(0, 2**64, (4, rows), np.uint64) & np.uint64(
        mask
    )  # few bits: ties
    query = np.random.default_rng(seed + 1).integers(0, 2**64, 4, np.uint64)
    assert np.array_equal(nearest(words, query, count), nearest_twin(words, query, count))


@pytest.mark.parametrize("rows", [0, 1, 65_535, 65_536, 65_537])
def test_selection_at_any_size(rows):
    words = np.random.default_rng(rows).integers(0, 2**64, (4, rows), np.uint64)
    query = np.random.default_rng(1).integers(0, 2**64, 4, np.uint64)
    distances = np.bitwise_count(words ^ query[:, None]).sum(axis=0, dtype=int)
    cut = np.sort(distances)[min(1000, rows) - 1] if rows else 0
    assert np.array_equal(nearest(words, query, 1000), distances <= cut)


def test_every_bit_different_is_the_farthest():
    words = np.zeros((4, 3), np.uint64)
    words[:, 1] = 2**64 - 1
    query = np.full(4, 2**64 - 1, np.uint64)
    assert nearest(words, query, 1).tolist() == [False, True, False]
    assert nearest(words, ~query, 1).tolist() == [True, False, True]
    assert nearest(words[:, 0:1], query, 1).tolist() == [True]  # distance 256 does not wrap to 0
    assert nearest(words, query, 2).all()  # the tie at the cut comes along


# The index


def test_rows_are_those_of_the_catalog_in_key_order(filled, tmp_path):
    index = ScanIndex.open(filled, tmp_path / "cache")
    expected = sorted((fingerprint(n) for n in range(40)), key=lambda row: row["fingerprint_key"])
    assert [key.tobytes() for key in index.keys] == [row["fingerprint_key"] for row in expected]
    for row, want in enumerate(expected):
        assert index.codes[:, row].tobytes() == want["code"]
        assert np.array_equal(
            index.vectors[row], np.concatenate((want["position_vec"], want["anchored_vec"]))
        )


def test_keys_with_zero_bytes_stay_apart(catalog, tmp_path):
    keys = [bytes(32), b"a" + bytes(31), bytes(31) + b"a", b"a" * 31 + b"\0", b"a" * 32]
    catalog.commit({"fingerprints": [fingerprint(n, fingerprint_key=key) for n, key in enumerate(keys)]})
    index = ScanIndex.open(catalog, tmp_path / "cache")
    assert [key.tobytes() for key in index.keys] == sorted(keys)
    for key, code in zip(index.keys, index.codes.T, strict=True):
        assert code.tobytes() == fingerprint(keys.index(key.tobytes()))["code"]


def test_cosines_equal_plain_arithmetic(filled, tmp_path):
    index = ScanIndex.open(filled, tmp_path / "cache")
    extreme = np.full(1024, -128, np.int8)
    query = fingerprint(99)["position_vec"]
    rows = np.array([0, 7, 39, 7])
    for position, anchored in ((query, extreme), (np.zeros(1024, np.int8), query)):
        found = index.cosines(rows, position, anchored)
        for row, (first, second) in zip(rows, found, strict=True):
            assert first == pytest.approx(cosine_twin(index.vectors[row, :1024], position), abs=1e-15)
            assert second == pytest.approx(cosine_twin(index.vectors[row, 1024:], anchored), abs=1e-15)


def test_largest_values_do_not_overflow(catalog, tmp_path):
    extreme = np.full(1024, -128, np.int8)
    catalog.commit({"fingerprints": [fingerprint(1, position_vec=extreme, anchored_vec=extreme)]})
    index = ScanIndex.open(catalog, tmp_path / "cache")
    assert index.cosines(np.array([0]), extreme, -(extreme + 1)).tolist() == [[1.0, -1.0]]


def test_small_indexes_hide_nothing(filled, tmp_path):
    index = ScanIndex.open(filled, tmp_path / "cache")
    code = np.zeros(4, np.uint64)
    assert index.candidates(code, code, 1).tolist() == list(range(40))


def test_large_indexes_offer_the_nearest_of_either_code(filled, tmp_path, monkeypatch):
    index = ScanIndex.open(filled, tmp_path / "cache")
    monkeypatch.setattr(scan, "EXHAUSTIVE_ROWS", 0)
    position, anchored = index.codes[:4, 3].copy(), index.codes[4:, 5].copy()
    either = nearest_twin(index.codes[:4], position, 4) | nearest_twin(index.codes[4:], anchored, 4)
    assert index.candidates(position, anchored, 4).tolist() == np.flatnonzero(either).tolist()
    assert index.candidates(position, None, 1).tolist() == [3]
    assert index.candidates(None, anchored, 1).tolist() == [5]
    assert index.candidates(None, None, 1).size == 0


@pytest.mark.parametrize("numbers", [[], [5]])
def test_tiny_catalogs(catalog, tmp_path, numbers):
    if numbers:
        catalog.commit({"fingerprints": [fingerprint(n) for n in numbers]})
    for _ in range(2):  # built, then loaded
        index = ScanIndex.open(catalog, tmp_path / "cache")
        rows = index.candidates(None, None, 10)
        query = fingerprint(5)
        found = index.cosines(rows, query["position_vec"], query["anchored_vec"])
        assert found.tolist() == [[1.0, 1.0]] * len(numbers)


def test_fingerprints_of_another_specification_are_left_out(filled, tmp_path):
    filled.commit({"fingerprints": [fingerprint(50, spec_version=2)]})
    assert len(ScanIndex.open(filled, tmp_path / "cache").keys) == 40


# The cache


def test_a_fresh_cache_is_reused_and_a_stale_one_replaced(filled, tmp_path):
    cache = tmp_path / "cache"
    first = ScanIndex.open(filled, cache)
    built = next(cache.rglob("meta.json")).stat().st_mtime_ns
    ScanIndex.open(filled, cache)
    assert next(cache.rglob("meta.json")).stat().st_mtime_ns == built
    filled.commit(encoded(100))
    second = ScanIndex.open(filled, cache)
    assert (len(first.keys), len(second.keys)) == (40, 41)
    assert first.cosines(np.arange(40), *[first.vectors[3, half:][:1024] for half in (0, 1024)])[3, 0] == 1.0
    assert files(cache) == [f"fingerprints-v{second.version}-s1"]


@pytest.mark.parametrize("name", ["codes.u64", "keys.bin", "vectors.i8"])
@pytest.mark.parametrize("damage", ["flip", "cut", "grow", "empty", "remove"])
def test_a_damaged_cache_is_rebuilt(filled, tmp_path, name, damage):
    whole = ScanIndex.open(filled, tmp_path / "cache")
    contents = [array.copy() for array in (whole.keys, whole.codes, whole.vectors)]
    path = next((tmp_path / "cache").rglob(name))
    data = bytearray(path.read_bytes())
    path.unlink()
    if damage == "flip":
        data[len(data) // 2] ^= 16
    changed = {"flip": data, "cut": data[:-1], "grow": data + b"\0", "empty": b"", "remove": None}[damage]
    if changed is not None:
        path.write_bytes(changed)
    rebuilt = ScanIndex.open(filled, tmp_path / "cache")
    for array, content in zip((rebuilt.keys, rebuilt.codes, rebuilt.vectors), contents, strict=True):
        assert np.array_equal(array, content)
    assert (
        path.read_bytes()
        == {"keys.bin": contents[0], "codes.u64": contents[1], "vectors.i8": contents[2]}[name].tobytes()
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "[" * 100_000,
        "7",
        "{}",
        '{"crc32": 5}',
        '{"crc32": {}}',
        '{"crc32": {"keys.bin": 1, "../../x": 1}}',
        '{"crc32": {"keys.bin": 1}}',
    ],
)
def test_a_damaged_description_is_rebuilt(filled, tmp_path, text):
    ScanIndex.open(filled, tmp_path / "cache")
    path = next((tmp_path / "cache").rglob("meta.json"))
    path.write_text(text)
    assert len(ScanIndex.open(filled, tmp_path / "cache").keys) == 40
    assert json.loads(path.read_text())["crc32"].keys() == {"keys.bin", "codes.u64", "vectors.i8"}


def test_remains_of_a_killed_builder_are_swept(filled, tmp_path):
    remains = tmp_path / "cache" / filled.id / "build-0"
    remains.mkdir(parents=True)
    (remains / "codes.u64").write_bytes(b"half")
    ScanIndex.open(filled, tmp_path / "cache")
    assert not remains.exists()


def open_and_count(arguments):
    root, cache = arguments
    return len(ScanIndex.open(Catalog.open(root, create=False), cache).keys)


def test_racing_builders_agree(filled, tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        counts = pool.map(open_and_count, [(filled.root, tmp_path / "cache")] * 4, chunksize=1)
    assert counts == [40] * 4
    assert len(files(tmp_path / "cache")) == 1
