from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilm.errors import ChecksumMismatch, UsageError
from hilm.reel.container import ReelFile
from hilm.reel.decoder import Reel
from hilm.reel.delta_base import CheckpointBase
from hilm.reel.delta_encoder import encode_delta
from hilm.reel.rows import read_rows
from hilm.weights import open_checkpoint
from tests.reel.archives import encode, every_dtype, random_tensor
from tests.reel.files import Memory
from tests.tiny import stored, write_model

LONG = (1 << 24) + 300  # a row that is cut into two slabs


@pytest.fixture(scope="module")
def tensors():
    rng = np.random.default_rng(5)
    values = rng.standard_normal((1000, 700)).astype(np.float32)
    return every_dtype() | {
        "chunks": stored(values),
        "cube": stored(values.reshape(70, 100, 100)),
        "slabs": random_tensor(rng, "U8", (3, 9_000_000)),
        "long": random_tensor(rng, "U8", (LONG,)),
    }


@pytest.fixture(scope="module")
def data(tensors, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    encode(write_model(folder / "m", tensors), folder / "x")
    return (folder / "x").read_bytes()


@pytest.fixture(scope="module")
def reel(data):
    return Reel(ReelFile(Memory(data)))


@given(st.data())
def test_rows_are_slices_of_the_tensor(reel, tensors, draw):
    name = draw.draw(st.sampled_from(sorted(tensors)))
    _, shape, raw = tensors[name]
    if not shape or not shape[0] or len(raw) % shape[0]:
        with pytest.raises(UsageError, match=r"no rows|share bytes"):
            read_rows(reel, name, 0, 1)
        return
    begin = draw.draw(st.integers(0, shape[0] - 1))
    end = min(begin + draw.draw(st.integers(1, 400)), shape[0])
    unit = len(raw) // shape[0]
    assert read_rows(reel, name, begin, end).tobytes() == raw[begin * unit : end * unit]


@pytest.mark.parametrize("rows", [(0, 1), (374, 375), (373, 376), (999, 1000), (0, 1000)])
def test_chunk_edges(reel, tensors, rows):
    raw = np.frombuffer(tensors["chunks"][2], "<f4").reshape(1000, 700)
    assert np.array_equal(reel.tensor("chunks", rows), raw[slice(*rows)])


@pytest.mark.parametrize("rows", [((1 << 24) - 5, (1 << 24) + 5), (LONG - 1, LONG)])
def test_slab_edges(reel, tensors, rows):
    assert reel.words("long", rows).tobytes() == tensors["long"][2][slice(*rows)]


def test_only_the_head_and_the_covering_chunks_are_read(data):
    source = Memory(data)
    reel = Reel(ReelFile(source))
    first = reel.tensors["chunks"]["slabs"][0][2]
    sizes = reel.file.index["size"][first:].tolist()
    for rows, requests, fetched in [((5, 6), 1, sizes[0] + sizes[1]), ((900, 903), 2, sizes[0] + sizes[3])]:
        source.requests = source.fetched = 0
        reel.words("chunks", rows)
        assert (source.requests, source.fetched) == (requests, fetched)


@pytest.mark.parametrize("rows", [(3, 3), (4, 2), (-1, 4), (999, 1001), (10**17, 10**17 + 1)])
def test_rows_that_do_not_exist_are_refused(reel, rows):
    with pytest.raises(UsageError, match="no rows"):
        reel.words("chunks", rows)


def test_a_damaged_chunk_is_noticed_and_its_neighbour_is_not_missed(data, tensors):
    file = ReelFile(Memory(data))
    first = Reel(file).tensors["chunks"]["slabs"][0][2]
    damaged = bytearray(data)
    damaged[file._origin + int(file.index["offset"][first + 2])] ^= 1
    reel = Reel(ReelFile(Memory(bytes(damaged))))
    assert math.prod(reel.tensor("chunks", (0, 9)).shape) == 6300
    with pytest.raises(ChecksumMismatch):
        reel.words("chunks", (400, 401))


def test_rows_of_a_difference_stand_on_its_base(tmp_path):
    base = {"w": np.random.default_rng(0).standard_normal((600, 600)).astype(np.float32)}
    tuned = {"w": base["w"] * np.float32(1.001)}
    for name, weights in (("base", base), ("tuned", tuned)):
        write_model(tmp_path / name, weights)
    with open_checkpoint(tmp_path / "base") as old, open_checkpoint(tmp_path / "tuned") as new:
        report = encode_delta(new, tmp_path / "x", CheckpointBase(old), preview=False)
        with Reel.open(report.reel.path) as reel:
            with pytest.raises(UsageError, match="its base is not there"):
                reel.tensor("w", (3, 5))
            reel.stand_on(CheckpointBase(old))
            assert np.array_equal(reel.tensor("w", (3, 5)), tuned["w"][3:5])
