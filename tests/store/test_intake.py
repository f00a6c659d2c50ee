from __future__ import annotations

import shutil

import pytest

from hilm.errors import UsageError
from hilm.store import Store, verify
from hilm.store import intake as module
from tests.cluster.fake import FakeCluster
from tests.hostile.safetensors_files import cases
from tests.store.conftest import contents, rows, tiny
from tests.tiny import write_model

MODES = {"archive": {}, "sample": {"max_params": 500}}


def every(house):
    return sorted(path for path in house.iterdir())


@pytest.mark.parametrize("mode", ["archive", "sample", "index"])
def test_processes_change_nothing_of_the_result(house, tmp_path, mode):
    stores = []
    for jobs in (1, 2):
        store = Store(tmp_path / str(jobs))
        if mode == "index":
            document = store.index(every(house), jobs=jobs)
            assert sorted(document["indexed"]) == sorted(path.name for path in every(house))
        else:
            document = store.encode(every(house), mode=mode, jobs=jobs, **MODES[mode])
            assert len(document["models"]) == len(every(house))
        assert document["failed"] == []
        stores.append(store)
    one, two = stores
    for table in ("models", "fingerprints", "reels"):
        assert rows(one, table) == rows(two, table)
    assert contents(one.reels) == contents(two.reels)


@pytest.mark.parametrize("mode", ["archive", "sample", "index"])
def test_an_unreliable_cluster_changes_nothing_of_the_result(house, tmp_path, monkeypatch, mode):
    def fill(store):
        if mode == "index":
            return store.index(every(house))
        return store.encode(every(house), mode=mode, **MODES[mode])

    serial = Store(tmp_path / "serial")
    fill(serial)
    for seed in range(3):
        store = Store(tmp_path / str(seed))
        monkeypatch.setattr(module, "open_executor", lambda *_, seed=seed, **__: FakeCluster(seed))
        assert fill(store)["failed"] == []
        for table in ("models", "fingerprints", "reels"):
            assert rows(store, table) == rows(serial, table)
            assert store.catalog._open(table).count_rows() == len(rows(serial, table))  # each key once
        assert contents(store.reels) == contents(serial.reels)


def test_an_archive_written_out_of_reach_is_a_failure(house, store, monkeypatch):
    class FarAway(FakeCluster):
        def collect(self, timeout_s):
            outcomes = super().collect(timeout_s)
            for outcome in outcomes:
                if outcome.value is not None and outcome.task.payload.name == "base":
                    outcome.value.archive.reel.path.unlink()
            return outcomes

    monkeypatch.setattr(module, "open_executor", lambda *_, **__: FarAway(1))
    document = store.encode([house / "base", house / "tuned"])
    assert [model["model"] for model in document["models"]] == ["tuned"]
    (failure,) = document["failed"]
    assert failure["model"] == str(house / "base")
    assert "is not here" in failure["message"]
    assert "storage that all machines share" in failure["hint"]


@pytest.mark.parametrize(
    ("options", "error"), [({"ray": "nonsense"}, UsageError), ({"ray": "local", "jobs": 0}, UsageError)]
)
def test_a_cluster_that_cannot_be_makes_no_store(house, store, options, error):
    with pytest.raises(error):
        store.index([house / "base"], **options)
    assert not store.path.exists()


@pytest.mark.parametrize("mode", MODES)
def test_an_unchanged_model_is_skipped_and_force_does_it_again(house, store, mode):
    first = store.encode([house / "base"], mode=mode, **MODES[mode])["models"]
    before, stamp = contents(store.path), store.row("base")["created_at"]
    again = store.encode([house / "base"], mode=mode, **MODES[mode])["models"]
    assert contents(store.path) == before
    assert [m | {"seconds": 0.0} for m in first] == [
        m | {"bits_per_weight": pytest.approx(m["bits_per_weight"])} for m in again
    ]
    reels = contents(store.reels)
    store.encode([house / "base"], mode=mode, force=True, **MODES[mode])
    assert contents(store.reels) == reels
    assert store.row("base")["created_at"] > stamp


@pytest.mark.parametrize("mode", MODES)
def test_a_changed_model_replaces_its_reel(house, store, tmp_path, mode):
    model = tmp_path / "model"
    shutil.copytree(house / "base", model)
    (old,) = store.encode([model], mode=mode, **MODES[mode])["models"]
    write_model(model, tiny(5))
    (new,) = store.encode([model], mode=mode, **MODES[mode])["models"]
    assert [path.name for path in store.reels.glob("*.mp4")] == [new["reel"].rpartition("/")[2]]
    assert old["reel"] != new["reel"]
    assert verify(new["reel"], against=model)["ok"]
    assert len(store.catalog.rows("models")) == len(store.catalog.rows("fingerprints")) == 1


def test_a_reel_of_samples_stays_while_one_model_is_in_it(house, store, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(house / "base", tmp_path / name)
    store.encode([tmp_path / "a", tmp_path / "b"], mode="sample")
    (shared,) = store.reels.glob("*.mp4")
    write_model(tmp_path / "a", tiny(6))
    store.encode([tmp_path / "a"], mode="sample")
    assert len(list(store.reels.glob("*.mp4"))) == 2
    write_model(tmp_path / "b", tiny(7))
    store.encode([tmp_path / "b"], mode="sample")
    assert not shared.exists()


def test_a_deleted_reel_is_made_again(house, store):
    (made,) = store.encode([house / "base"])["models"]
    before = contents(store.reels)
    shutil.rmtree(store.reels)
    store.encode([house / "base"])
    assert contents(store.reels) == before
    assert made["reel"]


def test_indexing_a_changed_model_does_not_pass_its_old_reel_off_as_new(house, store, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(house / "base", model)
    store.encode([model])
    write_model(model, tiny(8))
    assert store.index([model])["indexed"] == ["model"]
    (new,) = store.encode([model])["models"]
    assert verify(new["reel"], against=model)["ok"]


def test_a_model_named_twice_is_done_once(house, store):
    document = store.index([house / "base", house / "base" / "model.safetensors", f"{house}/base/"])
    assert document == {"indexed": ["base"], "skipped": [], "failed": []}


def test_a_bad_model_among_good_ones_stops_nothing(house, store, tmp_path):
    (tmp_path / "empty").mkdir()
    write_model(tmp_path / "integers", {"ids": tiny()["embeddings.LayerNorm.bias"].astype("i4")})
    (write_model(tmp_path / "gap", tiny(), shards=3) / "model-00002-of-00003.safetensors").unlink()
    bad = [tmp_path / name for name in ("nowhere", "empty", "integers", "gap")]
    document = store.encode([bad[0], house / "base", *bad[1:], house / "tuned"], mode="sample", jobs=2)
    assert sorted(m["model"] for m in document["models"]) == ["base", "tuned"]
    assert sorted(f["model"] for f in document["failed"]) == sorted(map(str, bad))
    assert all(f["exit_code"] == 2 and f["message"] and f["hint"] for f in document["failed"])


def test_a_batch_is_also_full_by_its_values(house, store, monkeypatch):
    monkeypatch.setattr(module, "BATCH_VALUES", 1000)
    store.encode(every(house), mode="sample", jobs=1, max_params=500)
    assert len(list(store.reels.glob("*.mp4"))) == 3


@pytest.mark.parametrize("jobs", [1, 2])
def test_hostile_files_leave_an_empty_store_unmade_and_a_full_one_as_it_was(house, tmp_path, jobs):
    targets = []
    for number, case in enumerate(cases()):
        targets.append(tmp_path / f"{number}.safetensors")
        targets[-1].write_bytes(case.data)
    store = Store(tmp_path / "new")
    failed = store.index(targets, jobs=jobs)["failed"]
    assert len(failed) == len(targets)
    assert {f["exit_code"] for f in failed} == {2}
    assert not store.path.exists()
    store.encode([house / "base"])
    before = contents(store.path)
    assert len(store.encode(targets, jobs=jobs)["failed"]) == len(targets)
    assert contents(store.path) == before


def test_batches_are_committed_while_others_are_done(house, store, monkeypatch):
    monkeypatch.setattr(module, "BATCH", 2)
    document = store.encode(every(house), mode="sample", jobs=1, max_params=500)
    assert len(document["models"]) == 6
    assert len(list(store.reels.glob("*.mp4"))) == 3
    assert all(verify(path)["ok"] for path in store.reels.glob("*.mp4"))


def test_progress_counts_models_and_for_one_model_its_values(house, store):
    seen = []
    store.index(every(house), jobs=1, progress=lambda *args: seen.append(args))
    assert [done for done, _, _ in seen] == [1, 2, 3, 4, 5, 6]
    assert {total for _, total, _ in seen} == {6}
    seen.clear()
    store.index([house / "base"], force=True, progress=lambda *args: seen.append(args))
    assert seen[-1][0] == seen[-1][1] == sum(v.size for v in tiny(1).values())


@pytest.mark.parametrize(
    ("count", "options"), [(0, {}), (2, {"name": "x"}), (1, {"jobs": 0})], ids=["none", "one name", "no jobs"]
)
def test_what_makes_no_sense_is_refused_before_anything_is_made(house, store, count, options):
    with pytest.raises(UsageError):
        store.index(every(house)[:count], **options)
    assert not store.path.exists()
