"""Deltas of whole models: hilm.reel.delta_encoder on the bases of delta_base, rounded by delta_rounding."""

from __future__ import annotations

import numpy as np
import pytest

from hilm.errors import BaseMismatch, UsageError, VerificationError
from hilm.reel.decoder import Reel, decode_files
from hilm.reel.delta_base import CheckpointBase
from hilm.reel.delta_encoder import encode_delta
from hilm.reel.manifest import MAX_DEPTH
from hilm.weights import open_checkpoint
from tests.reel.archives import contents, encode, every_dtype
from tests.reel.reference_delta import read_delta
from tests.tiny import bert_like, stored, write_model


def delta(model, base, out, **options):
    with open_checkpoint(model) as checkpoint, open_checkpoint(base) as old:
        return encode_delta(
            checkpoint, out, CheckpointBase(old), **{"preview": False, "threads": 1} | options
        )


def decode(reel, base, out):
    with Reel.open(reel) as opened, open_checkpoint(base) as old:
        opened.stand_on(CheckpointBase(old))
        return decode_files(opened, out)


def tuned(tensors, seed=1, share=0.3):
    """The same with small changes to some words of every tensor."""
    rng, new = np.random.default_rng(seed), {}
    for name, tensor in tensors.items():
        dtype, shape, data = tensor if isinstance(tensor, tuple) else stored(tensor)
        raw = np.frombuffer(data, "u1").copy()
        raw[rng.random(raw.size) < share / 8] ^= 1
        new[name] = dtype, shape, raw.tobytes()
    return new


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A small base, a fine-tune of it and the reel of the difference."""
    folder = tmp_path_factory.mktemp("pair")
    base = bert_like(layers=1, vocabulary=100)
    write_model(folder / "base", base)
    write_model(folder / "tuned", tuned(base), config={"a": 1})
    delta(folder / "tuned", folder / "base", folder / "d.reel.mp4")
    return folder


def test_every_dtype_comes_back_bit_for_bit_by_two_decoders(tmp_path):
    tensors = every_dtype()
    base, new = write_model(tmp_path / "base", tensors), write_model(tmp_path / "new", tuned(tensors))
    report = delta(new, base, tmp_path / "d.mp4", threads=2)
    assert (report.mode, report.unpaired) == ("delta", ())
    decode(tmp_path / "d.mp4", base, tmp_path / "back")
    assert contents(tmp_path / "back") == contents(new)
    found = read_delta(
        (tmp_path / "d.mp4").read_bytes(), {name: data for name, (_, _, data) in tensors.items()}
    )
    assert found == {name: data for name, (_, _, data) in tuned(tensors).items()}
    delta(new, base, tmp_path / "again.mp4", threads=1)
    assert (tmp_path / "again.mp4").read_bytes() == (tmp_path / "d.mp4").read_bytes()


def test_a_delta_is_smaller_than_an_archive(pair, tmp_path):
    encode(pair / "tuned", tmp_path / "archive.mp4")
    assert (pair / "d.reel.mp4").stat().st_size < 0.7 * (tmp_path / "archive.mp4").stat().st_size


def test_another_sharding_and_format_of_the_base_does(pair, tmp_path):
    sharded = write_model(tmp_path / "sharded", bert_like(layers=1, vocabulary=100), shards=3)
    decode(pair / "d.reel.mp4", sharded, tmp_path / "back")
    assert contents(tmp_path / "back") == contents(pair / "tuned")
    encode(pair / "base", tmp_path / "base.reel.mp4")
    with Reel.open(pair / "d.reel.mp4") as reel, Reel.open(tmp_path / "base.reel.mp4") as base:
        reel.stand_on(base)
        assert (reel.depth, base.digest()) == (1, reel.pinned["digest"])
        decode_files(reel, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(pair / "tuned")


def other_base(change):
    tensors = bert_like(layers=1, vocabulary=100)
    change(tensors)
    return tensors


def flip(tensors):
    tensors["embeddings.word_embeddings.weight"].view("u4")[7, 9] ^= 1


@pytest.mark.parametrize(
    "change",
    [
        flip,
        lambda t: t.update(bert_like(5, layers=1, vocabulary=100)),
        lambda t: t.pop("embeddings.word_embeddings.weight"),
        lambda t: t.update(renamed=t.pop("embeddings.word_embeddings.weight")),
        lambda t: t.update({n: stored(v, "BF16") for n, v in t.items()}),
        lambda t: t.update({n: v.reshape(-1) for n, v in t.items()}),
    ],
    ids=["one bit", "another model", "missing", "renamed", "another dtype", "another shape"],
)
def test_the_wrong_base_is_refused(pair, tmp_path, change):
    wrong = write_model(tmp_path / "wrong", other_base(change))
    with pytest.raises(BaseMismatch):
        decode(pair / "d.reel.mp4", wrong, tmp_path / "back")
    assert not (tmp_path / "back").exists()
    with Reel.open(pair / "d.reel.mp4") as reel, open_checkpoint(wrong) as old:
        reel.stand_on(CheckpointBase(old))
        with pytest.raises(BaseMismatch):
            reel.words("embeddings.word_embeddings.weight")


def test_no_base_is_an_error_that_says_so(pair, tmp_path):
    with Reel.open(pair / "d.reel.mp4") as reel:
        with pytest.raises(UsageError, match="d is a delta") as caught:
            reel.tensor("embeddings.word_embeddings.weight")
        assert "--base" in caught.value.hint
        with pytest.raises(UsageError):
            decode_files(reel, tmp_path / "back")


def test_unpaired_tensors_are_archived_and_listed(pair, tmp_path):
    tensors = tuned(bert_like(layers=1, vocabulary=100))
    tensors["head.weight"] = stored(np.arange(60, dtype=np.float32).reshape(6, 10))
    word = "embeddings.word_embeddings.weight"
    tensors[word] = stored(np.ones((90, 64), np.float32) * np.arange(64, dtype=np.float32))
    new = write_model(tmp_path / "new", tensors)
    report = delta(new, pair / "base", tmp_path / "d.mp4")
    assert set(report.unpaired) == {"head.weight", word}
    with Reel.open(tmp_path / "d.mp4") as reel:
        assert reel.words(word).tobytes() == tensors[word][2]  # needs no base
        assert word not in reel.pinned["tensors"]
    decode(tmp_path / "d.mp4", pair / "base", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(new)


def test_unrelated_weights_cost_what_an_archive_costs(tmp_path):
    models = [
        write_model(tmp_path / str(seed), {"w": bert_like(seed)["embeddings.word_embeddings.weight"]})
        for seed in (1, 2)
    ]
    delta(models[1], models[0], tmp_path / "d.mp4")
    encode(models[1], tmp_path / "a.mp4")
    sizes = [(tmp_path / name).stat().st_size for name in ("d.mp4", "a.mp4")]
    assert sizes[0] <= sizes[1] + 300
    with Reel.open(tmp_path / "d.mp4") as reel:
        assert reel.pinned["tensors"] == {}
        assert reel.words("w").size


def test_an_unchanged_fine_tune_costs_less_than_a_thousandth_of_a_bit(tmp_path):
    rng = np.random.default_rng(0)
    base = write_model(tmp_path / "base", {"w": rng.integers(0, 1 << 16, (4096, 4096), "<u2")})
    report = delta(base, base, tmp_path / "d.mp4")
    assert report.reel.bits_per_weight < 0.001
    with Reel.open(tmp_path / "d.mp4") as reel:
        assert reel.tensors["w"]["coder"] == "same"


def chain(folder, count):
    """Fine-tunes of fine-tunes, each the difference from the one before; the first is archived."""
    tensors = {"w": bert_like()["embeddings.word_embeddings.weight"][:40]}
    models = [write_model(folder / "0", tensors)]
    encode(models[0], folder / "0.reel.mp4")
    for step in range(1, count + 1):
        tensors = tuned(tensors, step)
        models.append(write_model(folder / str(step), tensors))
        with open_chain(folder, step - 1) as base, open_checkpoint(models[-1]) as checkpoint:
            encode_delta(checkpoint, folder / f"{step}.reel.mp4", base, preview=False, threads=1)
    return models


class open_chain:  # noqa: N801 - reads like a function
    def __init__(self, folder, last):
        self.reels = [Reel.open(folder / f"{step}.reel.mp4") for step in range(last + 1)]
        for base, reel in zip(self.reels, self.reels[1:], strict=False):
            reel.stand_on(base)

    def __enter__(self):
        return self.reels[-1]

    def __exit__(self, *_):
        for reel in self.reels:
            reel.file.close()


def test_a_chain_of_eight_works_and_nine_are_refused(tmp_path):
    models = chain(tmp_path, MAX_DEPTH)
    with open_chain(tmp_path, MAX_DEPTH) as last:
        assert last.depth == MAX_DEPTH
        decode_files(last, tmp_path / "back")
        assert contents(tmp_path / "back") == contents(models[-1])
        with open_checkpoint(models[0]) as checkpoint, pytest.raises(UsageError, match="8 deltas"):
            encode_delta(checkpoint, tmp_path / "9.reel.mp4", last)
    assert not (tmp_path / "9.reel.mp4").exists()


def test_a_damaged_delta_is_damaged_and_not_a_wrong_base(pair, tmp_path):
    data = bytearray((pair / "d.reel.mp4").read_bytes())
    with Reel.open(pair / "d.reel.mp4") as reel:
        entry = reel.tensors["embeddings.word_embeddings.weight"]
        place = int(reel.file.index[entry["slabs"][0][2] + 1]["offset"]) + 24 + 32
    data[place + 100] ^= 1
    (tmp_path / "bad.mp4").write_bytes(data)
    with pytest.raises(VerificationError) as caught:
        decode(tmp_path / "bad.mp4", pair / "base", tmp_path / "back")
    assert not isinstance(caught.value, BaseMismatch)


def test_aliases_and_tensors_of_one_row_longer_than_a_chunk(tmp_path):
    rng = np.random.default_rng(2)
    tensors = {"long": rng.standard_normal(300_000).astype(np.float32), "empty": np.zeros((0, 5), np.float32)}
    base, new = write_model(tmp_path / "base", tensors), write_model(tmp_path / "new", tuned(tensors))
    delta(new, base, tmp_path / "d.mp4")
    decode(tmp_path / "d.mp4", base, tmp_path / "back")
    assert contents(tmp_path / "back") == contents(new)


def learned(tensors, rng=None):
    """The same after small steps of every weight, some rows aside."""
    rng, new = rng or np.random.default_rng(8), {}
    for name, values in tensors.items():
        new[name] = values + np.float32(1e-3) * rng.standard_normal(values.shape, np.float32)
        new[name][::3] = values[::3]
    return new


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_rounded_differences_lose_what_they_say(tmp_path, dtype):
    def store(values):
        return stored(values.astype(np.float16)) if dtype == "F16" else stored(values, dtype)

    weights = {"w": bert_like()["embeddings.word_embeddings.weight"], "b": np.ones(64, np.float32)}
    base = write_model(tmp_path / "base", {n: store(v) for n, v in weights.items()})
    new = write_model(tmp_path / "new", {n: store(v) for n, v in learned(weights).items()})
    lost = []
    for bits in (4.0, 2.5, 1.5):
        report = delta(new, base, tmp_path / f"{bits}.mp4", bits=bits)
        with (
            Reel.open(tmp_path / f"{bits}.mp4") as reel,
            open_checkpoint(base) as old,
            open_checkpoint(new) as model,
        ):
            reel.stand_on(CheckpointBase(old))
            entry, found = reel.tensors["w"], reel.tensor("w")
            before, truth = (c.array("w").astype(np.float64) for c in (old, model))
            share = np.square(found - truth).sum() / np.square((truth - before).astype(np.float32)).sum(
                dtype=float
            )
            assert reel.words("b").tobytes() == model.words("b").tobytes()
            second = read_delta(
                (tmp_path / f"{bits}.mp4").read_bytes(), {n: old.words(n).tobytes() for n in weights}
            )
            assert {n: reel.words(n).tobytes() for n in weights} == second
        assert entry["coder"] == "tcq-delta"
        assert entry["error"]["energy_lost"] == pytest.approx(share, rel=1e-6)
        assert report.energy_lost == pytest.approx(share, rel=1e-6)
        lost.append(report.energy_lost)
    assert lost == sorted(lost)
    assert lost[0] < 0.02 if dtype == "F32" else lost[0] < 0.6


def test_losing_most_of_the_difference_needs_force(tmp_path):
    weights = {"w": bert_like()["embeddings.word_embeddings.weight"]}
    base, new = write_model(tmp_path / "base", weights), write_model(tmp_path / "new", learned(weights))
    with pytest.raises(UsageError, match="energy"):
        delta(new, base, tmp_path / "d.mp4", bits=0.5)
    assert not (tmp_path / "d.mp4").exists()
    assert delta(new, base, tmp_path / "d.mp4", bits=0.5, force=True).energy_lost > 0.5
    with pytest.raises(UsageError, match="9 bits"):
        delta(new, base, tmp_path / "e.mp4", bits=9)


def test_values_that_are_not_finite_are_kept_exactly(tmp_path):
    weights = {"w": bert_like()["embeddings.word_embeddings.weight"]}
    changed = learned(weights)
    changed["w"][3, 4] = np.nan
    base, new = write_model(tmp_path / "base", weights), write_model(tmp_path / "new", changed)
    delta(new, base, tmp_path / "d.mp4", bits=2.5)
    decode(tmp_path / "d.mp4", base, tmp_path / "back")
    assert contents(tmp_path / "back") == contents(new)


def test_the_film_shows_the_difference_on_its_own_scale(tmp_path):
    weights = {"w": bert_like()["embeddings.word_embeddings.weight"], "only": np.ones(10, np.float32)}
    base = write_model(tmp_path / "base", {"w": weights["w"]})
    new = write_model(tmp_path / "new", learned({"w": weights["w"]}) | {"only": weights["only"]})
    delta(new, base, tmp_path / "d.mp4", preview=True)
    with Reel.open(tmp_path / "d.mp4") as reel:
        scales = {frame["tensor"]: frame["scale"] for frame in reel.file.manifest["front"]["frames"]}
    assert scales == {"w": 2.0**-10, "only": 1.0}  # the weights themselves have 2^-5 or so


def test_bytes_beside_rounded_differences_are_kept(tmp_path):
    old = {"w": np.ones((40, 50), np.float32), "u8": np.arange(400, dtype=np.uint8).reshape(20, 20)}
    new = {
        "w": old["w"] + np.random.default_rng(0).standard_normal((40, 50), np.float32),
        "u8": old["u8"] + 1,
    }
    write_model(tmp_path / "base", old)
    write_model(
        tmp_path / "tuned", {name: np.asarray(values, old[name].dtype) for name, values in new.items()}
    )
    delta(tmp_path / "tuned", tmp_path / "base", tmp_path / "d", bits=4.0)
    with Reel.open(tmp_path / "d") as reel, open_checkpoint(tmp_path / "base") as base:
        reel.stand_on(CheckpointBase(base))
        assert reel.words("u8").tobytes() == new["u8"].astype(np.uint8).tobytes()
        assert "error" in reel.tensors["w"]
