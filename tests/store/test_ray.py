"""An index made by a Ray cluster of two nodes that loses a worker and then a node."""

from __future__ import annotations

import time

import psutil
import pytest

from hilm.store import Store
from tests.cluster.ray_nodes import family, foreign_sockets, left_over, two_nodes
from tests.store.conftest import rows, tiny
from tests.tiny import write_model

COUNT = 200


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    root = tmp_path_factory.mktemp("crowd")
    return [write_model(root / f"model-{n:03d}", tiny(n)) for n in range(COUNT)]


@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_a_cluster_that_loses_a_worker_and_a_node_makes_the_same_catalog(crowd, tmp_path):
    serial = Store(tmp_path / "serial")
    assert serial.index(crowd, jobs=1)["failed"] == []
    store, events = Store(tmp_path / "ray"), []

    def disturb(done, _total, _name):
        if done >= 40 and not events:
            events.append(kill_a_worker())
        if done >= 100 and len(events) == 1:
            assert foreign_sockets(family()) == []
            second.kill()
            events.append(second.pid)

    with two_nodes(tmp_path) as (address, second):
        began = time.monotonic()
        document = store.index(crowd, ray=address, progress=disturb)
        seconds = time.monotonic() - began
        assert second.status() == psutil.STATUS_ZOMBIE
    assert left_over() == []
    assert len(events) == 2
    assert (len(document["indexed"]), document["failed"]) == (COUNT, [])
    for table in ("models", "fingerprints", "reels"):
        assert rows(store, table) == rows(serial, table)
        assert store.catalog._open(table).count_rows() == len(rows(serial, table))
    print(f"{COUNT} models in {seconds:.1f} s")  # noqa: T201 - shown with -s


def kill_a_worker():
    """Kill a process that runs a task; returns its id."""
    worker = next(p for p in family() if p.name().startswith("ray::run"))
    worker.kill()
    return worker.pid
