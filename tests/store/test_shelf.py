from __future__ import annotations

import os
import time

import pytest

from hilm.errors import StorageError
from hilm.reel.journal import journal_of
from hilm.reel.writer import ReelWriter
from hilm.store.shelf import RESUMABLE_SECONDS, discard, hold, sweep

SAMPLES = "sample-0123456789abcdef.reel.mp4"


def test_only_what_no_entry_refers_to_is_discarded(house, store):
    (made,) = store.encode([house / "base"])["models"]
    kept = made["reel"].rpartition("/")[2]
    (store.reels / "gone.reel.mp4").write_bytes(b"x")
    assert discard(store.catalog, store.reels, [kept, "gone.reel.mp4", "never.reel.mp4"]) == ["gone.reel.mp4"]
    assert sorted(path.name for path in store.reels.iterdir()) == [kept, "lock"]
    assert discard(store.catalog, store.reels, []) == []


def test_a_sweep_takes_what_the_dead_left_and_nothing_else(house, store):
    store.encode([house / "base"], mode="sample")
    mine = {path.name for path in store.reels.iterdir()}
    for name in (
        SAMPLES,
        "dead-0123abcd.reel.mp4.part",
        "archive-0123abcd.reel.mp4",
        "holiday.mp4",
        "x.part",
    ):
        (store.reels / name).write_bytes(b"x")
    with ReelWriter(store.reels / "alive-0123abcd.reel.mp4"), hold(store.reels):
        sweep(store.catalog, store.reels)
        left = {path.name for path in store.reels.iterdir()}
    others = {"archive-0123abcd.reel.mp4", "holiday.mp4", "x.part", "alive-0123abcd.reel.mp4.part"}
    assert left == mine | others


def test_a_sweep_spares_what_can_be_resumed_for_a_week(house, store):
    store.encode([house / "base"], mode="sample")
    parts = [store.reels / f"{age}-0123abcd.reel.mp4.part" for age in ("new", "old")]
    for part in parts:
        part.write_bytes(b"x")
        journal_of(part).write_bytes(b"x")
    os.utime(journal_of(parts[1]), (0, time.time() - RESUMABLE_SECONDS - 60))
    with hold(store.reels):
        sweep(store.catalog, store.reels)
    assert [part.exists() and journal_of(part).exists() for part in parts] == [True, False]
    assert not journal_of(parts[1]).exists()


def test_a_shelf_that_cannot_be_held_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="cannot write"), hold(tmp_path / "nowhere"):
        pass


def test_every_run_sweeps(house, store):
    store.index([house / "base"])
    (store.reels / SAMPLES).write_bytes(b"x")
    store.index([house / "base"])
    assert not (store.reels / SAMPLES).exists()
