from __future__ import annotations

import numpy as np
import pytest

from hilm.errors import NotAStore, StorageError, UnknownModel, UsageError
from hilm.store import Store, encode, index, search
from tests.store.conftest import contents, rows
from tests.tiny import write_model


def test_a_store_is_made_by_what_is_first_put_into_it(house, store):
    assert store.list() == {"models": []}
    assert store.stats()["models"] == 0
    assert not store.path.exists()
    store.index([house / "base"])
    assert sorted(path.name for path in store.path.iterdir()) == ["catalog", "reels"]


@pytest.mark.parametrize("content", ["notes.txt", "catalog/notes.txt", "reels/holiday.reel.mp4"])
def test_a_folder_with_anything_else_in_it_is_no_store_and_stays_untouched(tmp_path, content):
    (tmp_path / content).parent.mkdir(exist_ok=True)
    (tmp_path / content).write_text("mine")
    with pytest.raises(NotAStore):
        Store(tmp_path)
    assert contents(tmp_path).keys() == {content}


def test_a_file_is_no_store(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotAStore):
        Store(tmp_path / "file")


@pytest.mark.parametrize("form", ["file://{}", "file:{}"])
def test_a_file_address_is_its_folder(house, tmp_path, form):
    folder = tmp_path / "my store"
    store = Store(form.format(str(folder).replace(" ", "%20")))
    assert store.path == folder
    assert store.index([house / "base"])["indexed"] == ["base"]
    assert Store(folder).row("base")["name"] == "base"


@pytest.mark.parametrize("address", ["https://host/store", "memory://", "memory:/x", "s3://", "hdfs://a/b"])
def test_a_store_is_kept_nowhere_else(tmp_path, monkeypatch, address):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="cannot be kept at"):
        Store(address)
    monkeypatch.setenv("HILM_HOME", address)
    with pytest.raises(UsageError, match="cannot be kept at"):
        Store()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_first_run_leaves_is_no_obstacle(house, tmp_path):
    (tmp_path / ".catalog-0123").mkdir()
    assert Store(tmp_path).index([house / "base"])["indexed"] == ["base"]


def test_a_store_where_nothing_can_be_written_is_a_storage_error(house, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match="cannot make the store"):
        Store(tmp_path / "file" / "store").make()
    assert Store("/proc/store").index([house / "base"])["failed"][0]["exit_code"] == 1


def test_the_store_is_where_the_environment_says(house, tmp_path, monkeypatch):
    monkeypatch.setenv("HILM_HOME", str(tmp_path / "home"))
    index([house / "base"])
    assert Store().path == tmp_path / "home"
    assert [match["model"] for match in search(house / "tuned")["matches"]] == ["base"]
    encode([house / "tuned"], store=Store(tmp_path / "other"))
    assert [model["model"] for model in Store(tmp_path / "other").list()["models"]] == ["tuned"]


def test_list_stats_and_reel_tell_what_is_there(house, store):
    store.index([house / "base"])
    store.encode([house / "tuned"], mode="sample", max_params=500)
    store.encode([house / "tuned"])
    (bare, filmed) = store.list()["models"]
    assert (bare["model"], bare["mode"], bare["bytes"]) == ("base", None, None)
    assert (filmed["model"], filmed["mode"]) == ("tuned", "archive")
    stats = store.stats()
    assert (stats["models"], stats["reels"]) == (2, 2)
    assert stats["reel_bytes"] == sum(path.stat().st_size for path in store.reels.glob("*.mp4"))
    assert stats["parameters"] == bare["parameters"] + filmed["parameters"]
    assert store.reel("tuned").name.startswith("tuned-")
    assert store.reel("tuned", "sample").name.startswith("sample-")
    with pytest.raises(UsageError, match="base has no reel of mode archive"):
        store.reel("base", "archive")
    with pytest.raises(UnknownModel):
        store.reel("nobody")


def test_a_removed_model_takes_its_reels_along_unless_they_are_shared(house, store):
    store.encode([house / "base"])
    store.encode([house / "base", house / "tuned"], mode="sample", max_params=500)
    archive, shared = store.reel("base", "archive"), store.reel("base", "sample")
    assert store.remove("base") == {"removed": "base", "deleted_reels": [archive.name]}
    assert shared.exists()
    assert store.remove("tuned")["deleted_reels"] == [shared.name]
    assert [path.name for path in store.reels.iterdir()] == ["lock"]
    assert [rows(store, table) for table in ("models", "fingerprints", "reels")] == [[], [], []]
    with pytest.raises(UnknownModel):
        store.remove("base")


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "film"},
        {"max_params": 5},
        {"stream": True},
        {"layers": ["mlp"]},
        {"mode": "sample", "max_params": 1 << 23},
    ],
    ids=str,
)
def test_options_that_do_not_go_together_are_refused(house, store, options):
    with pytest.raises(UsageError):
        store.encode([house / "base"], **options)
    assert not store.path.exists()


def test_a_base_that_deltas_need_is_not_removed_unawares(house, store):
    store.encode([house / "tuned"], mode="delta", base=house / "base")
    with pytest.raises(UsageError, match="deltas were taken from base: tuned"):
        store.remove("base")
    store.index([house / "base"])
    assert {"base", "tuned"} == {row["name"] for row in store.catalog.models()}
    assert store.remove("base", force=True)["removed"] == "base"
    store.index([house / "base"])
    store.remove("tuned")
    assert store.remove("base")["removed"] == "base"


def test_a_video_lives_and_dies_with_its_reel(store, tmp_path):
    weights = np.random.default_rng(0).standard_normal((300, 300)).astype(np.float32)
    write_model(tmp_path / "m", {"w": weights})
    (made,) = store.encode([tmp_path / "m"], carrier="ffv1", preview=False)["models"]
    assert (made["carrier"], made["layouts"]) == ("ffv1", {"w": ("flat", 0.0)})
    files = {path.name: path.stat().st_size for path in store.reels.iterdir()}
    assert sorted(name.rpartition(".")[2] for name in files) == ["lock", "mkv", "mp4"]
    assert made["bytes"] == sum(files.values())
    assert store.encode([tmp_path / "m"], carrier="ffv1", preview=False)["models"][0]["seconds"] == 0.0
    packed = store.encode([tmp_path / "m"], preview=False)["models"][0]
    assert packed["reel"] != made["reel"]
    price = store.quote(tmp_path / "m", "ffv1")
    assert price["tensor"] == "w"
    assert price["carried"] > price["packed"] > 20
    store.remove("m")
    assert [path.name for path in store.reels.iterdir()] == ["lock"]


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "sample", "carrier": "ffv1"},
        {"layout": "raster"},
        {"carrier": "av1"},
        {"mode": "delta", "carrier": "vp9", "base": "b"},
    ],
)
def test_carriers_are_for_archives_and_small_reels(house, store, options):
    with pytest.raises(UsageError):
        store.encode([house / "base"], **options)
