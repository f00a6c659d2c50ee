from __future__ import annotations

import hashlib
import os
import random
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest

from hilm.errors import ChecksumMismatch, HilmError, NotAReel, StorageError, UsageError, VerificationError
from hilm.reel.container import ReelFile
from hilm.reel.decoder import Reel, decode_files
from hilm.reel.records import Kind
from hilm.reel.sections import EMPTY_FRONT
from hilm.reel.slab import encode_slab
from hilm.reel.writer import ReelWriter
from hilm.weights.checkpoint import open_checkpoint
from hilm.weights.dtypes import DTYPES
from tests.reel.archives import contents, decode, encode, random_tensor
from tests.reel.documents import file_of, manifest_of, tensor_of
from tests.reel.files import MP4, Memory, entries, rewrite
from tests.tiny import bert_like, write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    rng = np.random.default_rng(0)
    tensors = bert_like(width=32, layers=1) | {
        "noise": random_tensor(rng, "BF16", (100, 300)),
        "ids": rng.integers(-9, 9, (40, 40)),
        "complex": rng.standard_normal((3, 5)).astype(np.complex64),
        "packed": random_tensor(rng, "F4", (4, 6)),
        "none": np.zeros((0, 3), np.float32),
        "scalar": np.float32(7),
        "large": np.zeros(200_000, np.uint8),
    }
    folder = tmp_path_factory.mktemp("decoder") / "model"
    return write_model(folder, tensors, config={"a": 1}, shards=2)


@pytest.fixture(scope="module")
def data(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("reel") / "x.reel.mp4"
    encode(model, path, preview=True)
    return path.read_bytes()


@pytest.fixture(scope="module")
def truth(model):
    with open_checkpoint(model) as checkpoint:
        return {name: checkpoint.words(name).tobytes() for name in checkpoint.tensors}


def test_tensors_in_their_own_shape(model, data):
    reel = Reel(ReelFile(Memory(data)), threads=2)
    with open_checkpoint(model) as checkpoint:
        for name, info in checkpoint.tensors.items():
            if info.type.kind != "packed":
                found = reel.tensor(name)
                assert found.dtype == np.float32
                np.testing.assert_array_equal(found, checkpoint.array(name), strict=True)
    with pytest.raises(UsageError, match="no tensor 'nobody'"):
        reel.words("nobody")


def test_many_threads_read_one_reel(data, truth, tmp_path):
    (tmp_path / "x").write_bytes(data)
    names = random.Random(3).choices(sorted(truth), k=200)
    with Reel.open(tmp_path / "x") as reel, ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda name: reel.words(name).tobytes(), names)
        assert list(found) == [truth[name] for name in names]


def test_one_tensor_costs_its_own_bytes(data):
    source = Memory(data)
    reel = Reel(ReelFile(source))
    requests, fetched = source.requests, source.fetched
    reel.words("noise")
    assert source.requests - requests == 1
    assert source.fetched - fetched == reel.tensors["noise"]["bits"] // 8 - 24 * 2


def mutations(data):
    """Flips, overwrites and swaps, as many in each region of the file as in any other."""
    generator, reel = random.Random(7), ReelFile(Memory(data))
    section, origin = reel._sections[0], reel._origin
    bounds = [0, origin - 32, origin, origin + 64, origin + section.index, origin + section.manifest]
    bounds += [origin + section.footer, len(data)]
    for start, stop in pairwise(bounds):
        for _ in range(40):
            damaged = bytearray(data)
            damaged[generator.randrange(start, stop)] ^= 1 << generator.randrange(8)
            yield bytes(damaged)
        for _ in range(15):
            damaged = bytearray(data)
            place = generator.randrange(start, stop)
            damaged[place : place + 64] = generator.randbytes(len(damaged[place : place + 64]))
            yield bytes(damaged)
    yield from (data[: generator.randrange(len(data))] for _ in range(60))


def test_damage_never_gives_wrong_data(data, truth):
    refused = 0
    for damaged in mutations(data):
        try:
            reel = Reel(ReelFile(Memory(damaged)), threads=1)
        except HilmError:
            refused += 1
            continue
        for name, words in truth.items():
            try:
                assert reel.words(name).tobytes() == words
            except VerificationError:
                refused += 1
    assert refused > 200


def test_swapped_records_with_mended_checksums_are_noticed(tmp_path):
    """Chunks of two tensors and their checksums change places: only SHA-256 can tell."""
    rng = np.random.default_rng(0)
    tensors = {name: random_tensor(rng, "F32", (64, 64)) for name in "ab"}
    encode(write_model(tmp_path / "m", tensors), tmp_path / "x")
    data = bytearray((tmp_path / "x").read_bytes())
    file = ReelFile(Memory(bytes(data)))
    pair = [tensor["slabs"][0][2] + 1 for tensor in file.manifest["tensors"]]
    (a, size), (b, other) = ((file._origin + int(e["offset"]), int(e["size"])) for e in file.index[pair])
    assert size == other
    data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]

    def mend(table):
        table["crc32c"][pair] = table["crc32c"][pair[::-1]]
        return table

    file = ReelFile(Memory(rewrite(bytes(data), entries(mend))))
    assert list(file.check_coverage()) == []
    for name in "ab":
        with pytest.raises(ChecksumMismatch, match=f"tensor {name} does not decode"):
            Reel(file).words(name)


def test_a_damaged_reel_decodes_to_nothing(data, tmp_path):
    reel = ReelFile(Memory(data))
    damaged = bytearray(data)
    damaged[reel._origin + int(reel.index["offset"][5])] ^= 1
    with pytest.raises(ChecksumMismatch):
        decode_files(Reel(ReelFile(Memory(bytes(damaged)))), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_folder_is_new_or_empty(model, data, tmp_path):
    reel, done = Reel(ReelFile(Memory(data))), []
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "empty", tmp_path / "deep" / "new"):
        assert decode_files(reel, out, done.append) == sorted(contents(model), key=done.index)
        assert contents(out) == contents(model)
        mask = os.umask(0)
        os.umask(mask)
        assert out.stat().st_mode & 0o777 == 0o777 & ~mask
    (tmp_path / "file").write_bytes(b"x")
    for out in (tmp_path / "empty", tmp_path / "file"):
        with pytest.raises(UsageError, match="not an empty folder"):
            decode_files(reel, out)
    with pytest.raises(StorageError, match="cannot write"):
        decode_files(reel, tmp_path / "file" / "below")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "empty", "file"]


def test_a_full_disk_leaves_nothing(data, tmp_path, full_disk):
    with pytest.raises(StorageError, match="cannot write"):
        decode_files(Reel(ReelFile(Memory(data))), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_a_reel(tmp_path):
    (tmp_path / "film.mp4").write_bytes(MP4)
    (tmp_path / "note.txt").write_text("a reel? no")
    (tmp_path / "none").write_bytes(b"")
    (tmp_path / "front").write_bytes(EMPTY_FRONT)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for path in [*tmp_path.iterdir(), tmp_path / "missing"]:
        with pytest.raises(NotAReel):
            Reel.open(path)


def test_samples_cannot_be_decoded(grown, tmp_path):
    with pytest.raises(UsageError, match="samples"):
        decode_files(Reel(ReelFile(Memory(grown[0]))), tmp_path / "out")
    assert list(tmp_path.glob("out")) == []


@pytest.mark.parametrize(("bounds", "unit"), [((0, 4, 5, 10), {}), ((0, 64, 70, 640), {"unit": "element"})])
def test_reels_of_smaller_slabs_are_read(tmp_path, bounds, unit):
    """Another writer may cut smaller slabs: the reader follows the manifest, not its own habit."""
    dtype, shape, raw = random_tensor(np.random.default_rng(0), "F32", (1, 640) if unit else (10, 64))
    words, slabs, width = np.frombuffer(raw, np.uint8), [], 1 if unit else 64
    with ReelWriter(tmp_path / "x") as writer:
        for begin, end in pairwise(bounds):
            part = words[4 * width * begin : 4 * width * end]
            rows, columns = (1, end - begin) if unit else (end - begin, 64)
            coded = encode_slab(part, DTYPES["F32"], rows, columns)
            slabs.append([begin, end, writer.add_record(Kind.HEAD, coded.head, 0), 1 + len(coded.chunks)])
            for chunk in coded.chunks:
                writer.add_record(Kind.DATA, chunk, len(part) // 4)
        digest = hashlib.sha256(raw).hexdigest()
        tensor = tensor_of("w", shape, dtype, slabs, sha256=digest, **unit)
        writer.finish(manifest_of(tensor, files=[file_of(["tensor", "w"], size=len(raw))]))
    with Reel.open(tmp_path / "x") as reel:
        assert reel.words("w").tobytes() == raw


def test_decode_twice_gives_the_same_files(data, tmp_path):
    (tmp_path / "x").write_bytes(data)
    decode(tmp_path / "x", tmp_path / "a")
    decode(tmp_path / "x", tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
