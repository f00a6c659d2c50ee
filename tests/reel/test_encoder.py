from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilm.errors import EncoderError, SourceChanged, StorageError, UnsupportedFormat
from hilm.reel.container import ReelFile
from hilm.reel.decoder import Reel
from hilm.reel.encoder import encode_archive, encode_small
from hilm.reel.manifest import tensor_digest
from hilm.reel.rate import Rounding
from hilm.reel.verification import verify_reel
from hilm.weights.checkpoint import open_checkpoint
from hilm.weights.content import content_key
from tests.reel.archives import contents, decode, encode, every_dtype, random_tensor
from tests.reel.reference_decoder import read_files
from tests.tiny import BITS, bert_like, file_bytes, stored, write_model
from tests.weights.packing import gptq_config, gptq_model


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("every") / "model", every_dtype(), config={"model_type": "x"})


def test_every_type_comes_back_bit_for_bit(every, tmp_path):
    report = encode(every, tmp_path / "x.reel.mp4", preview=True)
    decode(tmp_path / "x.reel.mp4", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(every)
    with (
        open_checkpoint(every) as a,
        open_checkpoint(tmp_path / "out") as b,
        Reel.open(report.reel.path) as reel,
    ):
        assert list(a.tensors) == list(b.tensors) == list(reel.tensors)
        for name, info in a.tensors.items():
            assert reel.words(name).tobytes() == a.words(name).tobytes()
            if info.type.kind != "packed":
                np.testing.assert_array_equal(reel.tensor(name), b.array(name))
        assert report.frames == len(a.tensors)
        assert report.weights == sum(info.numel for info in a.tensors.values())
        assert verify_reel(reel, a).bad == []
    coders = {t["name"]: t["coder"] for t in reel.tensors.values()}
    assert coders["F32.normal"] == coders["BF16.normal"] == "symbols"
    assert coders["F32.constant"] == "const"
    assert coders["F32.odd"] == coders["F32.(0, 8)"] == "raw"


@pytest.mark.parametrize("preview", [False, True])
def test_bytes_do_not_depend_on_threads(every, tmp_path, preview):
    hashes = {encode(every, tmp_path / "x", preview=preview, threads=n).reel.sha256 for n in (1, 2, 3)}
    assert len(hashes) == 1


shapes = st.lists(st.integers(0, 6), max_size=3).map(tuple) | st.just((33, 40))


@given(
    st.lists(st.tuples(st.sampled_from(sorted(BITS)), shapes), max_size=6),
    st.integers(0, 1 << 30),
    st.integers(1, 3),
)
@settings(max_examples=25)
def test_any_checkpoint_comes_back_byte_for_byte(tmp_path_factory, kinds, seed, shards):
    folder, rng = tmp_path_factory.mktemp("any"), np.random.default_rng(seed)
    tensors = {
        f"layer.{i}": random_tensor(rng, dtype, shape)
        for i, (dtype, shape) in enumerate(kinds)
        if math.prod(shape) * BITS[dtype] % 8 == 0
    }
    model = write_model(folder / "m", tensors, shards=shards if len(tensors) >= shards else 1)
    encode(model, folder / "x")
    decode(folder / "x", folder / "out")
    assert contents(folder / "out") == contents(model)


def test_odd_headers_and_hidden_tensors(tmp_path):
    """Bytes no tensor of the checkpoint owns travel as they are."""
    model = tmp_path / "m"
    model.mkdir()
    header = {"é": {"dtype": "U8", "shape": [3], "data_offsets": [2, 5]}, "a": {}, "__metadata__": {"k": "v"}}
    header["a"] = {"data_offsets": [0, 2], "shape": [1, 1, 2], "dtype": "BOOL"}
    text = json.dumps(header, indent=3, ensure_ascii=False).encode() + b" " * 13
    (model / "one.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"\1\0abc")
    hidden = {"before": stored(np.arange(9.0)), "a": stored(np.ones(5)), "z": stored(np.arange(3))}
    (model / "two.safetensors").write_bytes(file_bytes(hidden))
    one, two = dict.fromkeys(["é", "a"], "one.safetensors"), dict.fromkeys(["before", "z"], "two.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": one | two}))
    encode(model, tmp_path / "x", preview=True)
    decode(tmp_path / "x", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(model)


def test_aliases_are_stored_once(tmp_path):
    table = np.random.default_rng(1).standard_normal((50, 30)).astype(np.float32)
    model = write_model(tmp_path / "m", {"embed": table}, metadata={"head": "embed", "format": "pt"})
    encode(model, tmp_path / "x", preview=True)
    with Reel.open(tmp_path / "x") as reel, open_checkpoint(model) as checkpoint:
        assert reel.tensors["head"]["alias_of"] == "embed"
        assert reel.words("head").tobytes() == table.tobytes()
        assert len(reel.file.manifest["front"]["frames"]) == 1
        assert verify_reel(reel, checkpoint).bad == []
    decode(tmp_path / "x", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(model)


@pytest.mark.parametrize(
    ("dtype", "shape"), [("U8", (2, (1 << 24) + 3)), ("F64", (1, (1 << 23) + 5)), ("F6_E2M3", (4, 1 << 23))]
)
def test_rows_longer_than_a_slab(tmp_path, dtype, shape):
    size = math.prod(shape) * BITS[dtype] // 8
    header = json.dumps({"w": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}).encode()
    model = tmp_path / "m.safetensors"
    with model.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
        file.seek(-20, os.SEEK_END)
        file.write(bytes(range(20)))
    encode(model, tmp_path / "x")
    with Reel.open(tmp_path / "x") as reel, open_checkpoint(model) as checkpoint:
        assert reel.tensors["w"]["unit"] == "element"
        assert np.array_equal(reel.words("w"), checkpoint.words("w"))
        assert verify_reel(reel, checkpoint).bad == []
    decode(tmp_path / "x", tmp_path / "out")
    assert (tmp_path / "out" / "m.safetensors").read_bytes() == model.read_bytes()


def test_a_checkpoint_without_tensors(tmp_path):
    model = write_model(tmp_path / "m", {}, metadata={"note": "none"})
    assert encode(model, tmp_path / "x", preview=True).frames == 0
    decode(tmp_path / "x", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(model)


def test_many_small_tensors_cost_little_each(tmp_path):
    model = write_model(tmp_path / "m", {f"layer.{i}.scale": np.float32([i]) for i in range(2000)})
    assert encode(model, tmp_path / "x").reel.size < 600 * 2000


def test_the_manifest_tells_the_truth(tmp_path):
    model = write_model(tmp_path / "m", bert_like(width=32, layers=1), config={"a": 1}, shards=2)
    report = encode(model, tmp_path / "x", preview=True)
    data = (tmp_path / "x").read_bytes()
    with ReelFile.open(tmp_path / "x") as file, open_checkpoint(model) as checkpoint:
        manifest, overhead = file.manifest, 0
        digests = [
            hashlib.sha256(checkpoint.read_file(i, 0, f.size)).digest()
            for i, f in enumerate(checkpoint.files)
        ]
        assert report.file_digests == tuple(digests)
        assert manifest["source"]["content_key"] == content_key(digests).hex()
        lines = [
            (n, t.dtype, t.shape, hashlib.sha256(checkpoint.words(n)).hexdigest())
            for n, t in checkpoint.tensors.items()
        ]
        assert manifest["source"]["digest"] == tensor_digest(lines)
        assert manifest["totals"]["bytes_source"] == sum(len(raw) for raw in contents(model).values())
        bits = sum(t["bits"] for t in manifest["tensors"])
        tensors = sum(t["slabs"][-1][3] + t["slabs"][-1][2] - t["slabs"][0][2] for t in manifest["tensors"])
        blobs = file.index["size"][file.index["kind"] == 2]
        sections = file._sections[0]
        overhead = 32 + 64 + int(blobs.sum()) + 24 * len(blobs) + (sections.footer - sections.manifest) + 128
        assert tensors + len(blobs) == len(file.index)
        assert bits // 8 + overhead == len(data) - len(file.front) == report.reel.payload_bytes
        assert report.reel.sha256 == hashlib.sha256(data).hexdigest()
        assert str(tmp_path) not in data.decode("latin-1")


def test_sinks_see_every_block_once(every, tmp_path):
    seen = []
    encode(
        every, tmp_path / "x", sinks=[lambda block: seen.append((block.info.name, block.start, block.stop))]
    )
    with open_checkpoint(every) as checkpoint:
        assert seen == [(b.info.name, b.start, b.stop) for b in checkpoint.blocks(include_integer=True)]


def test_the_reference_decoder_reads_what_is_written(tmp_path):
    """An independent decoder, written from the format alone, rebuilds every file."""
    rng = np.random.default_rng(3)
    tensors = {k: v for k, v in every_dtype().items() if math.prod(v[1]) <= 1240}
    tensors |= bert_like(width=32, layers=1, vocabulary=40, hidden=48, positions=33)
    tensors["scaled"] = stored(rng.standard_normal((300, 40)).astype(np.float32), "BF16")
    tensors["ids"] = rng.integers(-70_000, 70_000, (40, 40))
    model = write_model(tmp_path / "m", tensors, config={"a": 1}, metadata={"tied": "scaled"}, shards=2)
    encode(model, tmp_path / "x", preview=True)
    assert read_files((tmp_path / "x").read_bytes()) == contents(model)


@pytest.mark.parametrize("preview", [False, True])
def test_a_full_disk_leaves_nothing(tmp_path, full_disk, preview):
    rng = np.random.default_rng(0)
    tensors = {f"w{i}": random_tensor(rng, "F32", (22_000,)) for i in range(16)}
    model = write_model(tmp_path / "m", tensors, shards=16)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(EncoderError if preview else StorageError):
        encode(model, out / "x", preview=preview)
    assert list(out.iterdir()) == []


def test_a_changing_source_leaves_nothing(tmp_path):
    model = write_model(tmp_path / "m", bert_like(width=32, layers=1))
    out = tmp_path / "out"
    out.mkdir()

    def touch(block):
        if block.info.name.endswith("position_embeddings.weight"):
            os.utime(model / "model.safetensors", ns=(1, 1))

    with pytest.raises(SourceChanged):
        encode(model, out / "x", sinks=[touch])
    assert list(out.iterdir()) == []


def test_a_failing_sink_leaves_nothing(every, tmp_path):
    def fail(_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        encode(every, tmp_path / "x", sinks=[fail])
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_said(every, tmp_path):
    with pytest.raises(StorageError, match="cannot write"), open_checkpoint(every) as checkpoint:
        encode_archive(checkpoint, tmp_path / "missing" / "x", preview=False)


PROGRAM = """
    import re, sys
    from pathlib import Path
    from hilm.reel.decoder import Reel
    from hilm.reel.encoder import encode_archive
    from hilm.weights.checkpoint import open_checkpoint
    peak = lambda: int(re.search("VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
    floor = peak()
    with open_checkpoint(sys.argv[1]) as checkpoint:
        encode_archive(checkpoint, Path(sys.argv[2]))
    encoded = peak() - floor
    with Reel.open(sys.argv[2]) as reel:
        for name in reel.tensors:
            reel.words(name)
    print(encoded, peak() - floor)
"""


def test_memory_does_not_grow_with_the_model(tmp_path):
    """1 GiB of bf16, mostly holes; the first slabs hold weights, so that every buffer is used."""
    shape, size, count = (4096, 16384), 128 << 20, 8
    places = {f"w{i}": [i * size, (i + 1) * size] for i in range(count)}
    header = {n: {"dtype": "BF16", "shape": shape, "data_offsets": p} for n, p in places.items()}
    text = json.dumps(header).encode()
    with (tmp_path / "m.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        weights = np.random.default_rng(0).standard_normal(1 << 22).astype(np.float32)
        for _ in range(6):
            file.write(stored(weights, "BF16")[2])
        file.truncate(8 + len(text) + count * size)
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), tmp_path / "m.safetensors", tmp_path / "x"]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    encoded, both = (int(kib) >> 10 for kib in found.stdout.split())
    assert encoded < 512, f"{encoded} MiB to encode"
    assert both < 512, f"{both} MiB to decode"


@pytest.fixture(scope="module")
def rounded(tmp_path_factory):
    """A checkpoint of two shards with something of everything, and its reel of rounded weights."""
    folder = tmp_path_factory.mktemp("rounded")
    tensors = bert_like(width=64, layers=2) | every_dtype()
    tensors["spoilt.weight"] = stored(np.where(np.eye(70, dtype=bool), np.nan, 1.5).astype(np.float32))
    tensors["half.weight"] = stored(np.random.default_rng(0).standard_normal((64, 80)).astype(np.float16))
    model = write_model(folder / "model", tensors, shards=2, config={"model_type": "bert"})
    with open_checkpoint(model) as checkpoint:
        report = encode_small(checkpoint, folder / "x.reel.mp4", Rounding(bits=4), threads=1)
    return model, folder / "x.reel.mp4", report


def test_rounded_weights_come_back_as_the_manifest_says(rounded, tmp_path):
    model, path, report = rounded
    with Reel.open(path) as reel, open_checkpoint(model) as checkpoint:
        assert (reel.mode, report.mode) == ("small", "small")
        errors = {}
        for name, entry in reel.tensors.items():
            found, truth = reel.words(name), checkpoint.words(name)
            assert hashlib.sha256(found).hexdigest() == entry["sha256"]
            source = hashlib.sha256(truth).hexdigest()
            assert entry.get("sha256_source", entry["sha256"]) == source
            assert ("error" in entry) == (found.tobytes() != truth.tobytes()) == ("sha256_source" in entry)
            if "error" in entry:
                a, b = reel.tensor(name).astype(float), checkpoint.array(name).astype(float)
                errors[name] = np.square(a - b).sum() / np.square(b).sum()
                assert entry["error"]["nmse"] == pytest.approx(errors[name], rel=1e-9)
                assert entry["error"]["max_abs"] == np.abs(a - b).max()
                assert entry["coder"] == "tcq"
        assert {"half.weight", "embeddings.word_embeddings.weight"} <= errors.keys()
        assert not {"spoilt.weight", "F32.constant", "BF16.all"} & errors.keys()  # NaN, equal, NaN
        sizes = [math.prod(reel.tensors[name]["shape"]) for name in errors]
        mean = sum(n * e for n, e in zip(sizes, errors.values(), strict=True)) / sum(sizes)
        totals = reel.file.manifest["totals"]
        assert totals["nmse"] == report.nmse == pytest.approx(mean, rel=1e-9)
        assert verify_reel(reel, checkpoint).bad == []
    decode(path, tmp_path / "out")
    ours, theirs = contents(tmp_path / "out"), contents(model)
    assert ours.keys() == theirs.keys()
    assert ours["config.json"] == theirs["config.json"]
    assert {name: len(data) for name, data in ours.items()} == {
        name: len(data) for name, data in theirs.items()
    }
    with open_checkpoint(tmp_path / "out") as back, Reel.open(path) as reel:
        assert all(back.words(name).tobytes() == reel.words(name).tobytes() for name in reel.tensors)


def test_the_reference_reads_rounded_weights(rounded, tmp_path):
    _, path, _ = rounded
    decode(path, tmp_path / "out")
    assert read_files(path.read_bytes()) == contents(tmp_path / "out")


def test_the_source_of_rounded_weights_stays_known(rounded):
    model, path, report = rounded
    with ReelFile.open(path) as file:
        source = file.manifest["source"]
    assert content_key(report.file_digests).hex() == source["content_key"]
    stated = {f["name"]: f.get("sha256_source", f["sha256"]) for f in source["files"]}
    assert stated == {name: hashlib.sha256(data).hexdigest() for name, data in contents(model).items()}
    with open_checkpoint(model) as checkpoint:
        lines = [
            (name, info.dtype, list(info.shape), hashlib.sha256(checkpoint.words(name)).hexdigest())
            for name, info in checkpoint.tensors.items()
        ]
    assert source["digest"] == tensor_digest(lines)


def test_rounded_bytes_do_not_depend_on_threads_or_blocks(tmp_path, monkeypatch):
    rng = np.random.default_rng(2)
    model = write_model(tmp_path / "m", {"w": rng.standard_normal((700, 900)).astype(np.float32)})

    def digest(threads):
        with open_checkpoint(model) as checkpoint:
            return encode_small(
                checkpoint, tmp_path / "x", Rounding(bits=3), preview=False, threads=threads
            ).reel.sha256

    first = digest(1)
    assert digest(2) == digest(7) == first
    monkeypatch.setattr("hilm.weights.tensor.BLOCK_VALUES", 4096)
    assert digest(3) == first


def test_what_is_kept_is_kept_and_aliases_follow(tmp_path):
    rng = np.random.default_rng(1)
    table, matrix = (rng.standard_normal((50, 60)).astype(np.float32) for _ in range(2))
    model = write_model(tmp_path / "m", {"embed": table, "w": matrix}, metadata={"head": "embed"})
    with open_checkpoint(model) as checkpoint:
        encode_small(checkpoint, tmp_path / "x", Rounding(error=0.01), preview=False)
        with Reel.open(tmp_path / "x") as reel:
            assert reel.tensors["head"]["alias_of"] == "embed"
            assert reel.tensors["head"]["error"] == reel.tensors["embed"]["error"]
            assert verify_reel(reel, checkpoint).bad == []
        report = encode_small(checkpoint, tmp_path / "y", Rounding(error=0.01, keep=("emb*",)), preview=False)
        with Reel.open(tmp_path / "y") as reel:
            assert reel.words("head").tobytes() == table.tobytes()
            assert reel.tensors["w"]["error"]["nmse"] == report.nmse
            assert reel.file.manifest["settings"]["keep"] == ["emb*"]


def test_packed_weights_are_not_rounded_again(tmp_path):
    packed, _ = gptq_model(bert_like(width=64, layers=1, hidden=1024))
    model = write_model(tmp_path / "m", packed, config=gptq_config())
    with open_checkpoint(model) as checkpoint:
        assert any(min(t.shape) >= 32 for t in checkpoint.stored.values() if t.name.endswith("scales"))
        encode_small(checkpoint, tmp_path / "x", Rounding(), preview=False)
        with Reel.open(tmp_path / "x") as reel:
            names = {name for name, entry in reel.tensors.items() if "error" in entry}
            assert names == {"embeddings.word_embeddings.weight", "embeddings.position_embeddings.weight"}
            assert verify_reel(reel, checkpoint).bad == []


def test_pytorch_files_are_not_rounded(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.randn(64, 64)}, tmp_path / "pytorch_model.bin")
    with (
        open_checkpoint(tmp_path / "pytorch_model.bin") as checkpoint,
        pytest.raises(UnsupportedFormat, match="checksums"),
    ):
        encode_small(checkpoint, tmp_path / "x", Rounding())


def test_a_rounded_model_may_hold_what_is_no_weight(tmp_path):
    tensors = {"w": np.random.default_rng(0).standard_normal((64, 64)), "mask": np.ones(9, np.uint8)}
    model = write_model(tmp_path / "m", {"w": tensors["w"].astype(np.float32), "mask": tensors["mask"]})
    with open_checkpoint(model) as checkpoint:
        report = encode_small(checkpoint, tmp_path / "x", Rounding(error=0.01), preview=False)
    with Reel.open(report.reel.path) as reel:
        assert reel.tensor("mask").tolist() == [1] * 9
        assert (reel.tensors["w"]["coder"], "error" in reel.tensors["mask"]) == ("tcq", False)
