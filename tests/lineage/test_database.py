from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hilm.errors import CatalogConflict, CatalogError, NetworkError, NotAStore
from hilm.lineage.catalog import Catalog
from hilm.lineage.database import insist, translated
from hilm.lineage.scan import ScanIndex
from tests.lineage.rows import digest, encoded

ROOT = Path(__file__).parents[2]
COMMITS = 12

WRITER = """
import sys
from itertools import count
from hilm.lineage import catalog as module
from tests.lineage.rows import encoded
module.COMPACT_FRAGMENTS = 3
address, first, commits = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
catalog = module.Catalog.open(address, create=True)
for batch in range(first, first + commits):
    catalog.commit(encoded(3 * batch, 3 * batch + 1, 3 * batch + 2, 10_000), replace=batch % 2 == 0)
    print(batch, flush=True)
"""


@pytest.fixture
def address(tmp_path):
    return f"file-object-store://{tmp_path}/bucket/catalog"


def start(address, first):
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, address, str(first), str(COMMITS)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "PATH": "", "RUST_LOG": "off"},
    )


def names(catalog):
    return {row["name"] for row in catalog.models()}


def test_a_catalog_is_made_once_and_only_when_asked_for(address, tmp_path):
    with pytest.raises(NotAStore, match="no catalog at file-object-store"):
        Catalog.open(address, create=False)
    assert not list(tmp_path.rglob("*.lance"))
    created = Catalog.open(address, create=True)
    assert Catalog.open(address, create=True).id == Catalog.open(address, create=False).id == created.id
    assert created.models() == []


def test_rows_are_written_replaced_and_deleted(address):
    catalog = Catalog.open(address, create=True)
    catalog.commit(encoded(1, 2))
    catalog.commit(encoded(2, 3), replace=True)
    assert names(catalog) == names(Catalog.open(address, create=False))
    assert len(names(catalog)) == 3
    gone = min(names(catalog))
    catalog.delete([gone])
    assert len(names(catalog)) == 2
    assert gone not in names(catalog)


def test_a_deletion_takes_no_fingerprint_from_another_writer(address):
    """It may have found the fingerprint there, and be about to commit the model that refers to it."""
    catalog, other = (Catalog.open(address, create=True) for _ in range(2))
    catalog.commit(encoded(1))
    rows = encoded(1)
    other.commit({"fingerprints": rows["fingerprints"]})
    catalog.delete(names(catalog))
    assert names(catalog) == set()
    other.commit({"models": rows["models"]})
    assert len(names(catalog)) == 1


def test_two_writers_and_a_reader(address, tmp_path):
    """No acknowledged row is lost; a reader sees whole commits, and its cache is of one version."""
    catalog = Catalog.open(address, create=True)
    writers = [start(address, first) for first in (0, COMMITS)]
    seen = 0
    while any(writer.poll() is None for writer in writers):
        models = catalog.models()
        numbers = {row["content_key"] for row in models}
        assert len(numbers) == len(models)  # each key once
        for batch in range(2 * COMMITS):
            whole = {digest("content", 3 * batch + k) in numbers for k in range(3)}
            assert len(whole) == 1, batch
        assert len(models) >= seen
        seen = len(models)
        ScanIndex.open(catalog, tmp_path / "cache")
    outputs = [writer.communicate(timeout=60) for writer in writers]
    acknowledged = [int(line) for out, _ in outputs for line in out.split()]
    assert acknowledged == list(range(2 * COMMITS)), [err for _, err in outputs]
    assert len(names(catalog)) == 6 * COMMITS + 1
    assert len(ScanIndex.open(catalog, tmp_path / "cache").keys) == 6 * COMMITS + 1


def test_a_killed_writer_loses_nothing_it_acknowledged(address):
    catalog = Catalog.open(address, create=True)
    for first, lines in ((0, 1), (COMMITS, 3)):
        writer = start(address, first)
        acknowledged = [int(writer.stdout.readline()) for _ in range(lines)]
        writer.kill()
        writer.communicate(timeout=60)
        there = names(catalog)
        assert {f"model-{3 * batch + k}" for batch in acknowledged for k in range(3)} <= there
    catalog.commit(encoded(500))
    assert names(catalog) == there | {"model-500"}


def test_writers_that_start_at_once_make_one_catalog(address):
    found, barrier = [], threading.Barrier(4)

    def make():
        barrier.wait()
        found.append(Catalog.open(address, create=True).id)

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1


def test_a_collision_is_tried_again_until_time_is_up():
    left = [3]

    def change():
        left[0] -= 1
        if left[0]:
            with translated("models", "write"):
                raise RuntimeError("lance error: Retryable commit conflict for version 3")
        return "done"

    assert insist(change, 60) == "done"
    left[0] = 10
    with pytest.raises(CatalogConflict, match="cannot write the catalog's models"):
        insist(change, 0)


def test_errors_hold_no_secrets(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA1234")
    with pytest.raises(CatalogError) as caught, translated("models", "read"):
        raise OSError("GET (https://host/bucket?comp=list&sig=abcdef): <Id>AKIA1234</Id> 403\nbacktrace")
    assert type(caught.value) is CatalogError
    assert str(caught.value).endswith("models: GET (https://host/bucket): <Id>***</Id> 403")


def test_an_object_store_that_does_not_answer_is_a_network_error(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("AWS_", "AZURE_")):
            monkeypatch.delenv(name)
    settings = {"ENDPOINT": "http://127.0.0.1:9", "ALLOW_HTTP": "true", "REGION": "us-east-1"}
    keys = {"ACCESS_KEY_ID": "name-of-key", "SECRET_ACCESS_KEY": "the-secret"}
    for name, value in (settings | keys).items():
        monkeypatch.setenv(f"AWS_{name}", value)
    with pytest.raises(NetworkError, match="cannot open s3://bucket/none") as caught:
        Catalog.open("s3://bucket/none", create=False)
    assert "secret" not in str(caught.value)
    assert "name-of-key" not in str(caught.value)
    assert "AWS_" in caught.value.hint
