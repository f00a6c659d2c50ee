from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from hilm.errors import StorageError, UnknownModel, UsageError
from hilm.reel.video import decode_preview
from tests.store.conftest import tiny


def test_everything_known_of_a_model(house, store):
    store.index([house / "base"])
    bare = store.show("base")
    assert (bare["reel"], bare["reels"], bare["architecture"]) == (None, [], "BertModel")
    assert sum(bare["roles"].values()) == bare["parameters"]
    store.encode([house / "base"])
    store.encode([house / "base"], mode="sample", max_params=500)
    shown = store.show("base")
    assert [reel["mode"] for reel in shown["reels"]] == ["archive", "sample"]
    assert shown["reel"] == shown["reels"][-1]["reel"]
    assert shown["content_key"] == bare["content_key"]
    with pytest.raises(UnknownModel):
        store.show("nobody")


def test_a_sheet_and_a_film_can_be_looked_at(house, store, tmp_path):
    store.encode([house / "base"])
    document = store.show("base", sheet=tmp_path / "base.png", film=tmp_path / "base.mp4")
    with Image.open(document["sheets"][0]) as sheet:
        assert sheet.format == "PNG"
        assert len(sheet.getcolors(1 << 24)) > 100
    assert len(list(decode_preview((tmp_path / "base.mp4").read_bytes()))) == len(tiny(1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.mp4", "base.png", "store"]


def test_what_is_gone_or_was_never_there_cannot_be_drawn(house, store, tmp_path):
    shutil.copytree(house / "base", tmp_path / "model")
    store.encode([tmp_path / "model"], preview=False)
    with pytest.raises(UsageError, match="no reel of model has a film"):
        store.show("model", film=tmp_path / "film.mp4")
    with pytest.raises(StorageError):
        store.show("model", sheet=tmp_path / "model" / "model.safetensors" / "sheet.png")
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(UsageError, match=r"not at .* any more"):
        store.show("model", sheet=tmp_path / "sheet.png")


def test_a_reel_shows_what_is_in_it(house, store, tmp_path):
    store.encode([house / "base"])
    path = store.reel("base")
    document = store.show(str(path), sheet=tmp_path / "reel.png", film=tmp_path / "reel.mp4")
    assert [t["name"] for t in document["tensors"]] == list(tiny(1))
    assert document["weights"] == sum(v.size for v in tiny(1).values())
    bits = sum(t["bits_per_weight"] * np.prod(t["shape"]) for t in document["tensors"])
    assert bits / document["weights"] < document["bits_per_weight"]
    store.show("base", sheet=tmp_path / "model.png")
    with Image.open(tmp_path / "reel.png") as ours, Image.open(tmp_path / "model.png") as theirs:
        assert ours.crop((0, 96, *ours.size)).tobytes() == theirs.crop((0, 96, *theirs.size)).tobytes()
    assert len(list(decode_preview((tmp_path / "reel.mp4").read_bytes()))) == len(tiny(1))
    store.encode([house / "base"], mode="sample", max_params=500)
    sample = str(store.reel("base"))
    assert (store.show(sample)["samples"], store.show(sample)["tensors"]) == (["base"], [])
    with pytest.raises(UsageError, match="samples"):
        store.show(sample, sheet=tmp_path / "x.png")


def test_a_heat_map_is_drawn_of_weights_anywhere(house, store, tmp_path):
    shutil.copytree(house / "base", tmp_path / "model")
    store.encode([tmp_path / "model"])
    seen = []
    document = store.show("model", picture=tmp_path / "stored.png", progress=lambda *p: seen.append(p))
    assert (document["picture"], document["figure"]) == (str(tmp_path / "stored.png"), "std")
    assert seen[-1][:2] == (document["parameters"], document["parameters"])
    elsewhere = store.show(str(tmp_path / "model"), picture=tmp_path / "path.png", sheet=tmp_path / "s.png")
    assert elsewhere["parameters"] == document["parameters"]
    assert elsewhere["sheets"] == [str(tmp_path / "s.png")]
    shutil.rmtree(tmp_path / "model")
    store.show("model", picture=tmp_path / "reel.png")
    drawn = {(tmp_path / f"{name}.png").read_bytes() for name in ("stored", "path", "reel")}
    assert len(drawn) == 1
    assert b"\x89PNG" in drawn.pop()


def test_a_heat_map_needs_weights_or_an_archive(house, store, tmp_path):
    shutil.copytree(house / "base", tmp_path / "model")
    store.encode([tmp_path / "model"], mode="sample", max_params=500)
    with pytest.raises(UsageError, match="no figure"):
        store.show("model", picture=tmp_path / "a.png", figure="median")
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(UsageError, match=r"not at .* any more"):
        store.show("model", picture=tmp_path / "a.png")
    with pytest.raises(UnknownModel):
        store.show("no body", picture=tmp_path / "a.png")
    with pytest.raises(UnknownModel):
        store.show(str(house / "base"), film=tmp_path / "a.mp4")
    assert not (tmp_path / "a.png").exists()
