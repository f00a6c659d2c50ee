from __future__ import annotations

import json
import math
import os
import random

import numpy as np
import pytest

from hilm.errors import HilmError, SourceChanged, UnsupportedFormat
from hilm.reel.container import ReelFile
from hilm.reel.crc32c import crc32c
from hilm.reel.decoder import Reel, decode_files
from hilm.reel.encoder import encode_small
from hilm.reel.manifest import canonical_json
from hilm.reel.rate import Rounding
from hilm.reel.sampling import encode_samples
from hilm.reel.verification import VerifyReport, verify_reel
from hilm.weights.checkpoint import open_checkpoint
from tests.reel.archives import encode, every_dtype, sample_model
from tests.reel.files import Memory, entries, rewrite
from tests.reel.test_decoder import mutations
from tests.tiny import bert_like, stored, write_model

QUERY = "encoder.layer.0.attention.self.query.weight"


def verify(reel, against=None):
    with Reel.open(reel) as opened:
        if against is None:
            return verify_reel(opened)
        with open_checkpoint(against) as checkpoint:
            return verify_reel(opened, checkpoint)


def weights():
    return bert_like(width=32, layers=1) | {"ids": np.arange(40)}


@pytest.fixture(scope="module")
def reel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archive")
    tensors = weights() | {"none": np.zeros((0, 3), np.float32)}
    encode(write_model(folder / "m", tensors, metadata={"head": QUERY}), folder / "x", preview=True)
    return folder / "x"


def changed(folder, reel, **changes):
    """The reel's model with tensors replaced, or removed where the new value is None."""
    tensors = weights() | {"none": np.zeros((0, 3), np.float32)} | changes
    tensors = {name: value for name, value in tensors.items() if value is not None}
    metadata = {"head": QUERY} if QUERY in tensors and "head" not in tensors else None
    return verify(reel, write_model(folder / "changed", tensors, metadata=metadata))


def test_a_clean_reel(reel, tmp_path):
    alone, report = verify(reel), changed(tmp_path, reel)
    assert (alone.ok, alone.max_abs, alone.nmse) == (True, None, None)
    assert (report.ok, report.bad, report.max_abs, report.nmse) == (True, [], 0.0, 0.0)
    assert report.power == pytest.approx(
        sum(float(np.square(v, dtype=np.float64).sum()) for n, v in weights().items() if n != "ids")
        + float(np.square(weights()[QUERY], dtype=np.float64).sum())  # read again under its other name
    )
    assert report.checked > alone.checked > 20


def test_every_type_is_compared(tmp_path):
    model = write_model(tmp_path / "m", every_dtype())
    encode(model, tmp_path / "x")
    assert verify(tmp_path / "x", model).bad == []


def test_one_changed_value_is_named_and_measured(reel, tmp_path):
    query = weights()[QUERY].copy()
    query[3, 4] += 0.5
    expected = abs(float(query[3, 4]) - float(weights()[QUERY][3, 4]))
    report = changed(tmp_path, reel, **{QUERY: query})
    assert report.bad == [f"tensor {QUERY} differs from changed", "tensor head differs from changed"]
    assert report.max_abs == expected
    assert report.nmse == pytest.approx(2 * expected**2 / report.power)


def test_a_changed_integer_and_a_changed_sign_of_zero_are_named(reel, tmp_path):
    ids, bias = np.arange(40), weights()["embeddings.LayerNorm.bias"].copy()
    ids[7], bias[0] = 0, -0.0
    report = changed(tmp_path, reel, ids=ids, **{"embeddings.LayerNorm.bias": bias})
    assert report.bad == [
        "tensor embeddings.LayerNorm.bias differs from changed", "tensor ids differs from changed",
    ]  # fmt: skip
    assert report.max_abs == 0.0


def test_other_names_types_and_shapes_are_named(reel, tmp_path):
    changes = {
        "ids": None,
        "numbers": np.arange(40),
        "embeddings.position_embeddings.weight": None,
        "embeddings.LayerNorm.weight": stored(np.ones(32, np.float32), "BF16"),
        "none": np.zeros((3, 0), np.float32),
    }
    report = changed(tmp_path, reel, **changes)
    assert report.bad == [
        "tensor embeddings.position_embeddings.weight is only in the reel",
        "tensor ids is only in the reel",
        "tensor numbers is only in changed",
        "tensor embeddings.LayerNorm.weight is F32 [32] in the reel, BF16 [32] in changed",
        "tensor none is F32 [0, 3] in the reel, F32 [3, 0] in changed",
    ]


def test_an_alias_that_went_its_own_way_is_named(reel, tmp_path):
    head = weights()[QUERY] + np.float32(1)
    report = changed(tmp_path, reel, head=head)
    assert report.bad == ["tensor head differs from changed"]
    assert report.max_abs == pytest.approx(1.0)


def test_other_sharding_is_the_same_model(reel, tmp_path):
    tensors = weights() | {"none": np.zeros((0, 3), np.float32)}
    model = write_model(tmp_path / "m", tensors, shards=3, metadata={"head": QUERY})
    assert verify(reel, model).bad == []


def test_a_checkpoint_that_changes_meanwhile(reel, tmp_path):
    model = write_model(tmp_path / "m", weights())
    with Reel.open(reel) as opened, open_checkpoint(model) as checkpoint, pytest.raises(SourceChanged):
        verify_reel(opened, checkpoint, lambda _: os.utime(model / "model.safetensors", ns=(1, 1)))


def noticed(data):
    try:
        return verify_reel(Reel(ReelFile(Memory(data)), threads=1)).bad
    except HilmError as error:
        return [error.message]


def test_all_damage_is_noticed(reel):
    data = reel.read_bytes()
    assert noticed(data) == []
    for damaged in mutations(data):
        assert damaged == data or noticed(damaged)
    assert noticed(data + b"x") == ["1 trailing bytes"]


def test_lies_with_mended_checksums_are_noticed(reel):
    """A blob of the header, changed with its CRC: the SHA-256 of the file tells."""
    data = bytearray(reel.read_bytes())
    file = ReelFile(Memory(bytes(data)))
    number = int(np.flatnonzero(file.index["kind"] == 2)[0])
    at = file._origin + int(file.index["offset"][number])
    data[at + 20] ^= 1
    raw = bytes(data[at : at + int(file.index["size"][number])])

    def mend(table):
        table["crc32c"][number] = crc32c(raw)
        return table

    assert noticed(rewrite(bytes(data), entries(mend))) == [
        "file model.safetensors: its SHA-256 is another one"
    ]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [write_model(folder / f"m{i}", bert_like(i, width=32, layers=1)) for i in range(3)]


@pytest.mark.parametrize("chunk_size", [None, 300])
@pytest.mark.parametrize("limit", [2000, None])
def test_samples_against_their_models(models, tmp_path, chunk_size, limit):
    samples = [sample_model(m, limit, chunk_size=chunk_size) for m in models]
    encode_samples(samples, tmp_path / "x")
    for model, sample in zip(models, samples, strict=True):
        report = verify(tmp_path / "x", model)
        assert (report.bad, report.max_abs, report.nmse) == ([], 0.0, 0.0)
        assert report.power == pytest.approx(float(np.square(sample.values, dtype=np.float64).sum()))
    stranger = write_model(tmp_path / "stranger", bert_like(9, width=32, layers=1))
    assert verify(tmp_path / "x", stranger).bad == ["no frame shows stranger"]


@pytest.mark.parametrize("chunk_size", [None, 300])
def test_samples_against_a_changed_model(models, tmp_path, chunk_size):
    encode_samples([sample_model(models[0], None, chunk_size=chunk_size)], tmp_path / "x")
    tensors = bert_like(0, width=32, layers=1)
    tensors[QUERY][0, 0] += 0.25
    report = verify(tmp_path / "x", write_model(tmp_path / "renamed", tensors))
    assert len(report.bad) == 1
    assert "(m0) differs" in report.bad[0]
    assert report.max_abs == pytest.approx(0.25, rel=1e-6)
    larger = write_model(tmp_path / "larger", tensors | {"x": np.ones(9, np.float32)})
    assert verify(tmp_path / "x", larger).bad[-1] == "9 values of m0 are in no frame"
    del tensors["embeddings.word_embeddings.weight"]
    assert not verify(tmp_path / "x", write_model(tmp_path / "smaller", tensors)).ok


def test_samples_of_layers_a_model_lacks(models, tmp_path):
    encode_samples([sample_model(models[0], 100, layers=["attention"])], tmp_path / "x")
    other = write_model(tmp_path / "other", {"lm_head.weight": np.ones((4, 4), np.float32)})
    assert "layer filters leave no weights" in verify(tmp_path / "x", other).bad[0]


@pytest.mark.parametrize("rule", [{"first": 7}, {"limit": "7"}, {"limit": 7, "layers": "attention"}])
def test_unknown_rules_are_refused(models, tmp_path, rule):
    sample = sample_model(models[0], 100)
    object.__setattr__(sample, "rule", rule)
    encode_samples([sample], tmp_path / "x")
    assert verify(tmp_path / "x").ok
    with pytest.raises(UnsupportedFormat, match="rule"):
        verify(tmp_path / "x", models[0])


def test_damaged_samples_are_noticed(models, tmp_path):
    encode_samples([sample_model(m, 2000, chunk_size=700) for m in models], tmp_path / "x")
    data, generator = (tmp_path / "x").read_bytes(), random.Random(1)
    for _ in range(200):
        damaged = bytearray(data)
        damaged[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        assert noticed(bytes(damaged))


@pytest.fixture(scope="module")
def rounded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rounded")
    model = write_model(folder / "m", weights(), metadata={"head": QUERY})
    with open_checkpoint(model) as checkpoint:
        encode_small(checkpoint, folder / "x", Rounding(error=0.01), preview=False)
    return model, folder / "x"


def test_rounded_weights_agree_with_what_they_were_made_from(rounded):
    model, path = rounded
    assert (verify(path).ok, verify(path).nmse) == (True, None)
    report = verify(path, model)
    with Reel.open(path) as reel:
        assert report.bad == []
        assert report.nmse == reel.file.manifest["totals"]["nmse"] == pytest.approx(0.01, rel=0.1)
        assert report.max_abs == max(t["error"]["max_abs"] for t in reel.tensors.values() if "error" in t)


def test_rounded_weights_of_another_model_are_named(rounded, tmp_path):
    _, path = rounded
    other = weights()
    other[QUERY] = other[QUERY].copy()
    other[QUERY][3, 4] = np.nextafter(other[QUERY][3, 4], 1)
    report = verify(path, write_model(tmp_path / "other", other, metadata={"head": QUERY}))
    assert report.bad == [
        f"tensor {name} was made from another one than that of other" for name in (QUERY, "head")
    ]
    decoded = tmp_path / "decoded"
    with Reel.open(path) as reel:
        decode_files(reel, decoded)
    assert not verify(path, decoded).ok


@pytest.mark.parametrize("key", ["nmse", "max_abs", "cosine"])
def test_an_error_that_is_not_so_is_named(rounded, tmp_path, key):
    model, path = rounded

    def lie(manifest, index):
        document = json.loads(manifest)
        entry = next(t for t in document["tensors"] if "error" in t)
        entry["error"][key] *= 1.001
        return canonical_json(document), index

    (tmp_path / "lie").write_bytes(rewrite(path.read_bytes(), lie))
    report = verify(tmp_path / "lie", model)
    assert len(report.bad) == 1
    assert key in report.bad[0]


def test_differences_of_odd_values():
    report = VerifyReport()
    nan, inf = math.nan, math.inf
    report.compare(np.float32([nan, inf, -0.0, 1]), np.float32([nan, inf, 0.0, 1]))
    assert (report.max_abs, report.nmse) == (0.0, 0.0)
    for found, truth in ((nan, 1), (1, nan), (inf, -inf), (inf, 1)):
        report = VerifyReport()
        report.compare(np.float32([found, 2]), np.float32([truth, 2]))
        assert (report.max_abs, report.nmse) == (inf, inf)
    report = VerifyReport()
    report.compare(np.float32([3]), np.float32([0]))
    assert (report.max_abs, report.nmse) == (3.0, inf)
