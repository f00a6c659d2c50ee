"""Interruptions of a process at work: kill -9, Ctrl-C, a full disk, another process in the same store."""

from __future__ import annotations

import json
import random
import resource
import shutil
import signal
import time

import pytest

from hilm.store import Store, verify
from tests.store.conftest import contents, rows, run, start, tiny
from tests.tiny import write_model

COUNT = 24
VERBS = {"encode": ["encode", "--jobs", "2"], "index": ["index", "--jobs", "2"]}


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    """A few dozen models."""
    root = tmp_path_factory.mktemp("crowd")
    return [write_model(root / f"model-{n:02d}", tiny(n)) for n in range(COUNT)]


@pytest.fixture(scope="module")
def undisturbed(crowd, tmp_path_factory):
    """Per verb a store filled without any disturbance, and the seconds that took."""
    stores = {}
    for verb, words in VERBS.items():
        path = tmp_path_factory.mktemp(verb) / "store"
        began = time.monotonic()
        code, _, err = run(*words, *crowd, "--storage-dir", path)
        assert (code, err) == (0, "")
        stores[verb] = Store(path), time.monotonic() - began
    return stores


def acknowledged(path):
    """Content of every model that a reader finds in the catalog."""
    store = Store(path)
    return {row["name"]: row["content_key"] for row in store.catalog.models()} if store.exists else {}


def kill_at(moment, words, path):
    """Run a command, kill it, and return what was acknowledged just before."""
    process = start(*words, "--storage-dir", path)
    time.sleep(moment)
    before = acknowledged(path)
    process.kill()
    process.communicate(timeout=60)  # its workers hold stderr: they are gone too
    return before


def check(path, before):
    """The store opens, has all that was acknowledged, and every reel that a row refers to is whole."""
    after = acknowledged(path)
    assert before.items() <= after.items()
    store = Store(path)
    if store.exists:
        reels = {row["uri"] for row in store.catalog.rows("reels")}
        assert all(verify(store.reels / uri)["ok"] for uri in reels)
    return after


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_a_kill_loses_nothing_acknowledged_and_a_rerun_completes(crowd, undisturbed, tmp_path, verb, kills):
    expected, seconds = undisturbed[verb]
    moments, partial = random.Random(f"{verb} {kills}"), 0
    for number in range(kills):
        path = tmp_path / f"store-{number // 2}"  # every other kill hits a store that was there before
        words = [*VERBS[verb], *crowd, *(["--force"] if number % 2 else [])]
        before = kill_at(moments.uniform(0.2, 1.0) * seconds, words, path)
        partial += len(check(path, before)) not in {0, COUNT}
        code, out, _ = run(*VERBS[verb], *crowd, "--storage-dir", path, "--json")
        assert (code, json.loads(out)["failed"]) == (0, [])
        store = Store(path)
        for table in ("models", "fingerprints", "reels"):
            assert rows(store, table) == rows(expected, table)
        assert contents(store.reels) == contents(expected.reels)
    assert partial or verb == "index" or kills < 20


def wait_for(path, count):
    """Wait until so many models are acknowledged."""
    deadline = time.monotonic() + 60
    while len(acknowledged(path)) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_an_interrupt_keeps_what_was_done_and_leaves_nothing_half_done(crowd, tmp_path, jobs):
    path = tmp_path / "store"
    process = start("encode", *crowd, "--jobs", jobs, "--storage-dir", path)
    wait_for(path, 3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert err.strip().startswith("error: interrupted\nhint: ")
    assert 3 <= len(check(path, {})) <= COUNT
    assert list((path / "reels").glob("*.part")) == []


@pytest.mark.parametrize("room", [2_000, 20_000, 200_000], ids=lambda room: f"{room} bytes")
@pytest.mark.parametrize("words", [["encode"], ["encode", "--max-params", "500"], ["index"]], ids=" ".join)
def test_a_disk_that_fills_up_is_one_error_and_the_store_as_before(house, tmp_path, words, room):
    big = write_model(tmp_path / "big", tiny(7, vocabulary=4000, width=64))
    store = Store(tmp_path / "store")
    store.encode([house / "base"])
    before = contents(store.path)
    code, out, err = run(
        *words, big, "--storage-dir", store.path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)),
    )  # fmt: skip
    if code == 0:  # there was room enough
        assert check(store.path, {}).keys() == {"base", "big"}
        return
    assert (code, out) == (1, "")
    assert [line.partition(": ")[0] for line in err.splitlines()] == ["error", "hint"]
    assert contents(store.path) == before


def test_two_processes_fill_one_store_together(crowd, tmp_path):
    path, copies = tmp_path / "store", tmp_path / "copies"
    for folder in crowd[:6]:
        shutil.copytree(folder, copies / folder.name)
    shares = [crowd[: COUNT // 2], [*crowd[COUNT // 2 :], *sorted(copies.iterdir())]]
    processes = [start("encode", *share, "--jobs", "1", "--storage-dir", path, "--json") for share in shares]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, "")
        assert json.loads(out)["failed"] == []
    after = check(path, {})
    assert len(after) == COUNT + 6
    assert {row["uri"] for row in Store(path).catalog.rows("models")} == {
        str(folder) for share in shares for folder in share
    }
