"""Models on the Hub in every verb that takes one."""

from __future__ import annotations

import numpy as np
import pytest

import hilm
from hilm.errors import OfflineError
from hilm.lineage.fingerprint import fingerprint
from hilm.store.work import reference_key
from tests.reel.archives import contents
from tests.servers import COMMIT, Hub, reach

URI = f"hf://org/base@{COMMIT}"


@pytest.fixture
def hub(house, monkeypatch, tmp_path):
    repositories = {
        f"org/{name}": {path.name: path.read_bytes() for path in (house / name).iterdir()}
        for name in ("base", "tuned")
    }
    with Hub(repositories) as running:
        running.cards["org/tuned"] = {"base_model": "org/base"}
        reach(running, monkeypatch, tmp_path / "hub")
        yield running


def figures(document):
    names = ("processed_parameters", "total_parameters", "layers", "chunks")
    return {name: document[name] for name in names}


def test_inspect_and_stream_say_the_same_as_of_the_folder(hub, house):
    remote, local = hilm.inspect("org/base"), hilm.inspect(house / "base")
    assert remote == local | {"model": "org/base"}
    assert figures(hilm.stream("org/base")) == figures(hilm.stream(house / "base"))
    assert figures(hilm.stream("org/base", max_params=500)) == figures(
        hilm.stream(house / "base", max_params=500)
    )


def test_a_model_is_indexed_once_per_commit_and_found_by_any_of_its_names(hub, house, store):
    assert store.index(["org/base", "org/tuned"])["indexed"] == ["org/base", "org/tuned"]
    assert store.index([f"hf://org/base@{COMMIT}"])["skipped"] == ["org/base"]
    row, tuned = store.row("org/base"), store.row("org/tuned")
    assert (row["uri"], row["ref_key"]) == (URI, reference_key(URI))
    assert (row["declared_base"], tuned["declared_base"]) == (None, ["org/base"])
    store.index([house / "base"])
    assert store.row("base")["content_key"] == row["content_key"]

    document = store.search(house / "tuned")
    assert document["matches"][0]["relation"] == "identical"
    before = len(hub.cdn.seen)
    document = store.search("org/tuned", proof=False)  # the name of a model in the store
    assert {m["model"]: m["relation"] for m in document["matches"]} == {
        "org/base": "fine-tune", "base": "fine-tune",
    }  # fmt: skip
    assert len(hub.cdn.seen) == before


def test_bytes_the_hub_vouches_for_are_not_read_again(hub, house, store):
    store.index([house / "base", house / "tuned"])
    assert store.search("org/tuned", proof=False)["matches"][0]["relation"] == "identical"
    assert len(hub.cdn.seen) == 1  # its header


def test_an_archive_brings_the_whole_repository_back(hub, house, store, tmp_path):
    (made,) = store.encode(["org/base"])["models"]
    hilm.decode(made["reel"], tmp_path / "out")
    assert contents(tmp_path / "out") == contents(house / "base")
    assert hilm.verify(made["reel"], against="org/base")["ok"]
    assert store.encode(["org/base"])["models"][0]["seconds"] == 0.0


def test_processes_read_the_hub_too(hub, store):
    assert sorted(store.index(["org/base", "org/tuned"], jobs=2)["indexed"]) == ["org/base", "org/tuned"]


def test_a_name_taken_by_another_commit_gets_its_own(hub, house, store):
    store.index([house / "base"], name="org/base")
    assert store.index(["org/base"])["indexed"] == [f"org/base@{COMMIT[:8]}"]


def test_diff_across_places(hub, house):
    document = hilm.diff("org/base", house / "base")
    assert document["relation"] == "identical"
    assert np.all([t["identical"] for t in document["tensors"]])


def test_offline_is_exit_5(hub, store, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(OfflineError):
        hilm.inspect("org/base")
    assert store.index(["org/base"])["failed"][0]["exit_code"] == 5


def test_a_fingerprint_costs_few_requests(hub, store):
    """Of one file: its header, its rows of anchors and its values, each a range or two."""
    store.index(["org/base"])
    hub.seen.clear()
    hub.cdn.seen.clear()
    with hilm.open_checkpoint("org/tuned") as checkpoint:
        fingerprint(checkpoint)
    assert len(hub.seen) + len(hub.cdn.seen) <= 10
