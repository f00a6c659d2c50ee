from __future__ import annotations

import shutil

import numpy as np
import pytest

from hilm.errors import BaseMismatch, NotACheckpoint, UsageError
from hilm.store import Store, decode, read_tensor, verify
from hilm.store.bases import find_base, find_chain, settle_base
from hilm.weights import open_checkpoint
from tests.store.conftest import contents, rows, tiny, tuned
from tests.tiny import write_model

NAME = "encoder.layer.0.attention.self.query.weight"


def encode(store, model, base, **options):
    document = store.encode([model], mode="delta", base=base, preview=False, **options)
    assert document["failed"] == []
    return document["models"][0]


def test_a_delta_is_catalogued_and_its_base_is_found_by_itself(house, store, tmp_path):
    entry = encode(store, house / "tuned", house / "base")
    assert (entry["mode"], entry["nmse"], entry["unpaired"]) == ("delta", 0.0, [])
    (row,) = rows(store, "reels")
    known = {m["name"]: m["content_key"] for m in store.catalog.models()}
    assert (row["base_content_key"], row["content_key"]) == (known["base"], known["tuned"])
    assert row["lossless"]
    reel = store.reel("tuned")
    decode(reel, tmp_path / "out", store=store)
    assert contents(tmp_path / "out") == contents(house / "tuned")
    report = verify(reel, against=house / "tuned", store=store)
    assert (report["ok"], report["max_abs"]) == (True, 0.0)
    with open_checkpoint(house / "tuned") as checkpoint:
        assert np.array_equal(read_tensor(reel, NAME, store=store), checkpoint.array(NAME))
    matches = {m["model"]: m["relation"] for m in store.search("tuned")["matches"]}
    assert matches["base"] == "fine-tune"


def test_the_same_delta_is_made_once_and_another_base_is_another_delta(house, store):
    first = encode(store, house / "tuned", house / "base")
    assert encode(store, house / "tuned", "base")["seconds"] == 0.0
    other = encode(store, house / "tuned", house / "stranger-0")
    assert other["reel"] != first["reel"]
    assert len(rows(store, "reels")) == 2


def test_without_the_base_there_is_advice(house, store, tmp_path):
    encode(store, house / "tuned", house / "base")
    for action in (
        lambda **where: decode(store.reel("tuned"), tmp_path / "out", **where),
        lambda **where: verify(store.reel("tuned"), **where),
        lambda **where: read_tensor(store.reel("tuned"), NAME, **where),
    ):
        with pytest.raises(UsageError, match="delta against 'base'") as caught:
            action(store=Store(tmp_path / "elsewhere"))
        assert "--base" in caught.value.hint
        action(store=Store(tmp_path / "elsewhere"), base=house / "base")


def test_the_wrong_base_is_refused(house, store, tmp_path):
    encode(store, house / "tuned", house / "base")
    with pytest.raises(BaseMismatch):
        decode(store.reel("tuned"), tmp_path / "out", store=store, base=house / "stranger-0")
    assert not (tmp_path / "out").exists()
    report = verify(store.reel("tuned"), store=store, base=house / "stranger-0")
    assert not report["ok"]
    assert "not the one" in report["bad"][0]


def test_a_base_that_changed_is_not_taken_for_the_old_one(store, tmp_path):
    base = write_model(tmp_path / "base", tiny(1))
    encode(store, write_model(tmp_path / "new", tuned(tiny(1))), base)
    write_model(tmp_path / "base", tiny(2))
    with pytest.raises(UsageError, match="not in the store"):
        decode(store.reel("new"), tmp_path / "out", store=store)


def test_an_archive_stands_in_for_a_base_that_is_gone(store, tmp_path):
    base = write_model(tmp_path / "base", tiny(1))
    new = write_model(tmp_path / "new", tuned(tiny(1)))
    store.encode([base], preview=False)
    encode(store, new, "base")
    shutil.rmtree(base)
    decode(store.reel("new"), tmp_path / "out", store=store)
    assert contents(tmp_path / "out") == contents(new)
    assert find_base(store, "base") == (str(store.reel("base")),)


def family(folder, count):
    """Fine-tunes of fine-tunes."""
    weights, models = tiny(1), []
    for step in range(count + 1):
        models.append(write_model(folder / f"m{step}", weights))
        weights = tuned(weights, step)
    return models


def test_a_chain_of_eight_works_and_nine_are_refused(store, tmp_path):
    models = family(tmp_path, 9)
    store.encode([models[0]], preview=False)
    previous = store.reel("m0")
    for model in models[1:9]:
        previous = encode(store, model, previous)["reel"]
    failed = store.encode([models[9]], mode="delta", base=previous, preview=False)["failed"]
    assert "8 deltas" in failed[0]["message"]
    shown = store.show("m8", chain=True)["chain"]
    assert [link["mode"] for link in shown] == ["delta", "checkpoint"]
    for model in models[:8]:
        shutil.rmtree(model)
    assert len(find_chain(store, previous)) == 9
    assert [link["mode"] for link in store.show("m8", chain=True)["chain"]] == ["delta"] * 8 + ["archive"]
    decode(previous, tmp_path / "out", store=store)
    assert contents(tmp_path / "out") == contents(models[8])


def test_reels_that_stand_on_each_other_are_no_chain(store, tmp_path):
    one, two = (
        write_model(tmp_path / name, tensors) for name, tensors in (("one", tiny(1)), ("two", tuned(tiny(1))))
    )
    encode(store, one, two)
    encode(store, two, one)
    shutil.rmtree(one)
    shutil.rmtree(two)
    with pytest.raises(UsageError, match="8 deltas"):
        decode(store.reel("one"), tmp_path / "out", store=store)


def test_what_cannot_be_a_base(house, store, tmp_path):
    with pytest.raises(UsageError, match="has a base"):
        store.encode([house / "tuned"], mode="delta")
    with pytest.raises(UsageError, match="has a base"):
        store.encode([house / "tuned"], base=house / "base")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotACheckpoint):
        settle_base(store, tmp_path / "empty")
    store.encode([house / "base"], mode="sample", max_params=100)
    with pytest.raises(UsageError, match="every bit"):
        settle_base(store, store.reel("base"))
    store.encode([house / "tuned"], preview=False)
    with pytest.raises(UsageError, match="no delta"):
        decode(store.reel("tuned"), tmp_path / "out", base=house / "base", store=store)


def test_unpaired_tensors_are_listed(house, store, tmp_path):
    model = write_model(tmp_path / "new", tuned(tiny(1)) | {"head": np.arange(40, dtype=np.float32)})
    assert encode(store, model, house / "base")["unpaired"] == ["head"]


def test_rounded_differences_are_no_base_and_know_what_they_lost(house, store, tmp_path):
    entry = encode(store, house / "tuned", house / "base", lossy=True)
    assert 0 < entry["energy_lost"] < 0.1
    assert entry["nmse"] > 0
    assert encode(store, house / "tuned", house / "base", bits=4.0)["energy_lost"] < entry["energy_lost"]
    assert [row["lossless"] for row in rows(store, "reels")] == [False, False]
    reel = store.reel("tuned")
    assert verify(reel, against=house / "tuned", store=store)["ok"]
    with pytest.raises(UsageError, match="every bit"):
        settle_base(store, reel)
    decode(reel, tmp_path / "out", store=store)
    with open_checkpoint(tmp_path / "out") as back, open_checkpoint(house / "tuned") as model:
        assert np.allclose(back.array(NAME), model.array(NAME), atol=1e-3)
    refused = store.encode([house / "tuned"], mode="delta", base=house / "base", bits=0.5, preview=False)
    assert "energy" in refused["failed"][0]["message"]
    for options in (
        {"mode": "archive", "lossy": True},
        {"mode": "delta", "base": house / "base", "like": "nf4"},
    ):
        with pytest.raises(UsageError, match="takes no"):
            store.encode([house / "tuned"], **options)
