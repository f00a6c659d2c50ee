from __future__ import annotations

import tracemalloc

import pytest

from hilm.reel.layout import CHUNK_ELEMENTS
from hilm.reel.manifest import check_manifest
from hilm.reel.records import RECORD, Kind, check_records
from tests.reel.documents import file_of, index_of, manifest_of, refused, sample_of, tensor_of


def test_record_layout():
    assert RECORD.itemsize == 24
    assert [RECORD.fields[name][1] for name in RECORD.names] == [0, 8, 12, 16, 17, 18, 20]


def test_records_of_a_tensor_of_several_slabs_and_chunks():
    rows, columns = 70, CHUNK_ELEMENTS // 4 + 1
    slabs = [[0, 63, 0, 17], [63, 70, 17, 3]]
    tensor = tensor_of(shape=(rows, columns), dtype="I8", slabs=slabs)
    first, second = 63 * columns - 15 * CHUNK_ELEMENTS, 7 * columns - CHUNK_ELEMENTS
    lengths = [CHUNK_ELEMENTS] * 15 + [first], [CHUNK_ELEMENTS, second]
    records = [entry for part in lengths for entry in [(Kind.HEAD, 0), *((Kind.DATA, n) for n in part)]]
    assert check_records(check_manifest(manifest_of(tensor)), index_of(*records)) == [(0, 20, "tensor w")]
    records[3] = (Kind.DATA, CHUNK_ELEMENTS - 1)
    assert refused(manifest_of(tensor), index_of(*records)) == "tiling"


def test_pieces_of_a_long_row():
    shape, step = (2, (1 << 24) + 3), 1 << 24
    columns = shape[1]
    bounds = [(0, step), (step, columns), (columns, columns + step), (columns + step, 2 * columns)]
    slabs = [[a, b, i, 1] for i, (a, b) in enumerate(bounds)]
    index = index_of(*[(Kind.HEAD, 0)] * 4)
    tensor = tensor_of(shape=shape, dtype="I8", slabs=slabs, unit="element")
    assert check_records(check_manifest(manifest_of(tensor)), index) == [(0, 4, "tensor w")]
    tensor["slabs"] = [[0, step, 0, 1], [step, 2 * step, 1, 1], [2 * step, 2 * columns, 2, 1]]
    assert refused(manifest_of(tensor), index) == "tiling"


def test_slabs_are_bounded_in_bytes():
    tensor = tensor_of(shape=(3, 1 << 22), dtype="F64", slabs=[[0, 3, 0, 1]])
    assert refused(manifest_of(tensor), index_of((Kind.HEAD, 0))) == "tiling"


def test_an_empty_tensor_has_no_slabs():
    for shape in ((0,), (0, 5), (5, 0)):
        tensor = tensor_of(shape=shape, slabs=[], coder="raw")
        assert check_records(check_manifest(manifest_of(tensor)), index_of()) == []
    assert refused(manifest_of(tensor_of(shape=(5, 0), slabs=[[0, 5, 0, 1]]))) == "tiling"


def test_records_serve_one_tensor_only():
    assert refused(manifest_of(tensor_of("a"), tensor_of("b"))) == "overlap"
    assert refused(manifest_of(tensor_of("a"), tensor_of("a"))) == "duplicate"


@pytest.mark.parametrize(
    "index",
    [
        index_of(),
        index_of((Kind.HEAD, 0)),
        index_of((Kind.HEAD, 0), (Kind.BLOB, 32)),
        index_of((Kind.DATA, 0), (Kind.DATA, 32)),
        index_of((Kind.HEAD, 0), (Kind.DATA, 31)),
        index_of((Kind.HEAD, 1), (Kind.DATA, 32)),
        index_of((Kind.HEAD, 0), (Kind.SAMPLES, 32)),
    ],
)
def test_records_that_do_not_tile_a_slab(index):
    assert refused(manifest_of(tensor_of()), index) == "tiling"


def test_source_files_are_rebuilt_from_blobs_and_tensors():
    index = index_of((Kind.BLOB, 0, 10), (Kind.HEAD, 0), (Kind.DATA, 32))
    tensor = tensor_of(slabs=[[0, 4, 1, 2]])
    manifest = manifest_of(tensor, files=[file_of(["blob", 0, 1], ["tensor", "w"])])
    claims = check_records(check_manifest(manifest), index)
    assert claims == [(0, 1, "file model.safetensors"), (1, 3, "tensor w")]
    for segments in (
        [["blob", 0, 1]],
        [["blob", 1, 1], ["tensor", "w"]],
        [["blob", 0, 9], ["tensor", "w"]],
        [["blob", 0, 0], ["tensor", "w"]],
        [["blob", -1, 1], ["tensor", "w"]],
        [["blob", 0, 1], ["tensor", "v"]],
        [["blob", 0, 1], ["tensor", "w"], ["tensor", "w"]],
        [["blob", 0, 1], ["tensor", "w", 3]],
        [[]],
    ):
        code = refused(manifest_of(tensor, files=[file_of(*segments)]), index)
        assert code in {"segment", "size"}


def test_samples():
    samples = [sample_of(3, 100, 0), sample_of(5, 7, 2, deleted=True)]
    index = index_of((Kind.HEAD, 0), (Kind.SAMPLES, 100), (Kind.HEAD, 0))
    manifest = manifest_of(mode="sample", source=None, samples=samples)
    assert check_records(check_manifest(manifest), index) == [(0, 2, "sample 3"), (2, 3, "sample 5")]


def test_huge_counts_allocate_nothing():
    huge = (1 << 62) + 1
    documents = [
        manifest_of(tensor_of() | {"shape": [huge], "nbytes": 4 * huge}),
        manifest_of(tensor_of(shape=(1 << 40, 1 << 22), dtype="I8", slabs=[[0, 1 << 40, 0, 1 << 44]])),
        manifest_of(tensor_of(shape=(1 << 40,), dtype="I8", slabs=[[0, 1 << 40, 0, 1]], unit="element")),
        manifest_of(files=[file_of(["blob", 0, 1 << 60], size=1 << 60)]),
        manifest_of(
            mode="sample", source=None, samples=[sample_of(fill=1 << 22, grid_side=2048, record=huge)]
        ),
    ]
    tracemalloc.start()
    for document in documents:
        refused(document)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
