from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hilm.errors import CatalogBusy, CatalogError, CatalogSchemaError, NotAStore, UnknownModel
from hilm.lineage import catalog as catalog_module
from hilm.lineage.catalog import Catalog, locked
from hilm.lineage.scan import ScanIndex
from hilm.lineage.schema import TABLES, to_arrow
from tests.lineage.rows import digest, encoded, fingerprint, model, reel

ROOT = Path(__file__).parents[2]

WRITER = """
import sys
from itertools import count
from pathlib import Path
from hilm.lineage import catalog as module
from hilm.lineage.scan import ScanIndex
from tests.lineage.rows import encoded
import lancedb
module.COMPACT_FRAGMENTS = 3
print("ready", flush=True)
root, first = Path(sys.argv[1]), int(sys.stdin.readline())
catalog = module.Catalog.open(root, create=True)
for batch in count(first):
    catalog.commit(encoded(3 * batch, 3 * batch + 1, 3 * batch + 2))
    print(batch, flush=True)
    if batch % 3 == 0:
        ScanIndex.open(catalog, root.parent / "cache")
"""

INSERTER = """
import sys
from pathlib import Path
from hilm.lineage.catalog import Catalog
from tests.lineage.rows import encoded
import lancedb
print("ready", flush=True)
sys.stdin.readline()
catalog = Catalog.open(Path(sys.argv[1]), create=True)
written = [catalog.commit(encoded(*range(first, first + 10)))["models"] for first in range(0, 40, 10)]
print(sum(written))
"""


def start(script, root):
    return subprocess.Popen(
        [sys.executable, "-c", script, str(root)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "PATH": ""},
    )


def names(catalog):
    return {row["name"] for row in catalog.models()}


def stored(catalog, table):
    """Rows on disk, before any reader removes duplicates."""
    return catalog._open(table).count_rows()


@pytest.fixture
def catalog(tmp_path):
    return Catalog.open(tmp_path / "catalog", create=True)


# Opening


def test_an_absent_or_empty_folder_becomes_a_catalog(tmp_path):
    (tmp_path / "empty").mkdir()
    for root in (tmp_path / "empty", tmp_path / "deep" / "new"):
        created = Catalog.open(root, create=True)
        assert created.models() == []
        assert Catalog.open(root, create=False).id == created.id
        assert [path.name for path in root.parent.glob(".*")] == []


def test_columns_on_disk_carry_the_layout_number(catalog):
    for table, spec in TABLES.items():
        schema = catalog._open(table).schema
        assert schema.equals(spec.schema)
        assert schema.metadata[b"hilm.schema"] == b"1"


def test_reading_creates_nothing(tmp_path):
    with pytest.raises(NotAStore, match="no catalog"):
        Catalog.open(tmp_path / "catalog", create=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("create", [True, False])
def test_a_foreign_folder_is_left_untouched(tmp_path, create):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(NotAStore, match="not empty"):
        Catalog.open(tmp_path, create=create)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_no_catalog(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotAStore):
        Catalog.open(tmp_path / "file", create=True)


@pytest.mark.parametrize("text", ["", "[]", "7", "{}", '{"catalog_id": 3, "schema": 1}', "[" * 10_000])
def test_a_foreign_catalog_json_is_refused(tmp_path, text):
    (tmp_path / "catalog.json").write_text(text)
    with pytest.raises(NotAStore, match="does not describe"):
        Catalog.open(tmp_path, create=True)


def test_a_newer_schema_is_refused_naming_both_numbers(catalog):
    path = catalog.root / "catalog.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 9}))
    with pytest.raises(CatalogSchemaError, match=r"schema 9.*up to 1"):
        Catalog.open(catalog.root, create=True)


def test_a_broken_table_is_a_catalog_error(catalog):
    for manifest in (catalog.root / "models_v1.lance" / "_versions").iterdir():
        manifest.write_bytes(b"noise")
    with pytest.raises(CatalogError, match="models"):
        Catalog.open(catalog.root, create=False).models()


# Reading and writing


def test_rows_come_back(catalog):
    assert catalog.commit(encoded(*range(30))) == {"fingerprints": 30, "reels": 30, "models": 30}
    assert names(catalog) == {f"model-{n}" for n in range(30)}
    (found,) = catalog.rows("fingerprints", {"content_key": digest("content", 4)})
    assert found["code"] == fingerprint(4)["code"]
    assert found["tensor_hashes"] == fingerprint(4)["tensor_hashes"]
    both = {"model-1": 0, "model-2": 0}
    for chosen in (list(both), set(both), both.keys()):
        found = catalog.rows("reels", {"name": chosen}, columns=["uri"])
        assert {row["uri"] for row in found} == {"reels/1.mkv", "reels/2.mkv"}
    assert catalog.rows("reels", {"name": "model-1", "content_key": digest("content", 2)}) == []
    assert catalog.rows("reels", {"name": []}) == []


@pytest.mark.parametrize("name", ["it's", "''", '"', "\\'", "a\nb", "名前", "; DROP TABLE models", "%", ""])
def test_names_are_stored_verbatim(catalog, name):
    catalog.commit({**encoded(1), "models": [model(1, name=name)], "reels": [reel(1, name=name)]})
    assert [row["name"] for row in catalog.models({"name": name})] == [name]
    assert catalog.models({"name": name + "x"}) == []
    assert catalog.delete([name]) == ["reels/1.mkv"]


def test_existing_rows_stay_unless_replaced(catalog):
    catalog.commit(encoded(1))
    other = [model(1, architecture="New")]
    assert catalog.commit({"models": other}) == {"models": 0}
    assert catalog.models()[0]["architecture"] is None
    assert catalog.commit({"models": other}, replace=True) == {"models": 1}
    assert [row["architecture"] for row in catalog.models()] == ["New"]
    assert stored(catalog, "models") == 1


def test_a_changed_reference_drops_the_fingerprint_it_had(catalog):
    catalog.commit(encoded(1, 2))
    changed = model(1, content_key=digest("content", 7))
    catalog.commit({"fingerprints": [fingerprint(7)], "models": [changed]}, replace=True)
    assert {row["content_key"] for row in catalog.rows("fingerprints")} == {
        digest("content", 7),
        digest("content", 2),
    }
    assert names(catalog) == {"model-1", "model-2"}


def test_a_bad_row_anywhere_writes_nothing(catalog):
    before = catalog.versions()
    with pytest.raises(CatalogError):
        catalog.commit({"fingerprints": [fingerprint(1)], "models": [model(1, bytes="x")]})
    assert catalog.versions() == before


def test_a_model_without_fingerprint_is_not_shown(catalog):
    catalog.commit({"models": [model(1)], "fingerprints": [fingerprint(2)]})
    assert catalog.models() == []
    assert catalog.models({"name": "model-1"}) == []
    catalog.commit(encoded(1))
    assert names(catalog) == {"model-1"}


def test_queries_change_no_version(catalog, tmp_path):
    catalog.commit(encoded(*range(5)))
    before = catalog.versions()
    catalog.models()
    catalog.rows("fingerprints", {"content_key": digest("content", 1)})
    catalog.rows("reels", {"name": "model-1"})
    ScanIndex.open(catalog, tmp_path / "cache")
    assert catalog.versions() == before


def test_a_pinned_version_does_not_move(catalog):
    catalog.commit(encoded(1))
    version = catalog.versions()["fingerprints"]
    batches = catalog.batches("fingerprints", ["fingerprint_key"], version)
    catalog.commit(encoded(2, 3))
    assert sum(batch.num_rows for batch in batches) == 1


def test_duplicates_of_another_writer_are_hidden(catalog):
    late = model(1, name="late", created_at=datetime(2026, 2, 1, tzinfo=UTC))
    early = model(1, name="early", created_at=datetime(2026, 1, 1, tzinfo=UTC))
    catalog.commit({"fingerprints": [fingerprint(1)]})
    for row in (late, early):
        catalog._open("models").add(to_arrow("models", [row]))
    assert stored(catalog, "models") == 2
    assert names(catalog) == {"early"}


def test_a_run_can_be_updated(catalog):
    run = {
        "run_id": bytes(range(16)),
        "command": "index",
        "arguments": "{}",
        "versions": "{}",
        "executor": "serial",
        "workers": 1,
        "state": "running",
        "total": 2,
        "done": 0,
        "skipped": 0,
        "failed": 0,
        "failures": "[]",
    }
    catalog.commit({"runs": [run]})
    catalog.commit({"runs": [{**run, "state": "done", "done": 2}]}, replace=True)
    assert [(row["state"], row["done"]) for row in catalog.rows("runs")] == [("done", 2)]


# Deleting


def test_delete_forgets_a_model_and_names_its_reel(catalog):
    catalog.commit(encoded(1, 2))
    assert catalog.delete(["model-1"]) == ["reels/1.mkv"]
    assert names(catalog) == {"model-2"}
    assert stored(catalog, "fingerprints") == stored(catalog, "reels") == 1


def test_delete_keeps_what_others_share(catalog):
    catalog.commit(encoded(1))
    copy = {"name": "copy", "content_key": digest("content", 1)}
    catalog.commit({"reels": [reel(2, uri="reels/1.mkv", **copy)], "models": [model(2, **copy)]})
    assert catalog.delete(["model-1"]) == []
    assert names(catalog) == {"copy"}
    assert catalog.delete(["copy"]) == ["reels/1.mkv"]
    assert stored(catalog, "fingerprints") == 0


def test_deleting_an_unknown_name_deletes_nothing(catalog):
    catalog.commit(encoded(1))
    with pytest.raises(UnknownModel, match="model-9"):
        catalog.delete(["model-1", "model-9"])
    assert names(catalog) == {"model-1"}


# Many writers, sudden death


def test_a_held_lock_is_busy_and_waiting_for_it_works(catalog):
    impatient = Catalog.open(catalog.root, create=False, lock_timeout=0.1)
    with locked(catalog.root / "writer.lock", 1.0), pytest.raises(CatalogBusy):
        impatient.commit(encoded(1))
    release = threading.Event()
    holder = threading.Thread(target=lambda: hold(catalog.root / "writer.lock", release))
    holder.start()
    threading.Timer(0.2, release.set).start()
    catalog.commit(encoded(1))
    holder.join()
    assert release.is_set()
    assert names(catalog) == {"model-1"}


def hold(path, release):
    with locked(path, 1.0):
        release.wait()


def test_compaction_keeps_rows_and_bounds_fragments(catalog, monkeypatch):
    monkeypatch.setattr(catalog_module, "COMPACT_FRAGMENTS", 4)
    for number in range(9):
        catalog.commit(encoded(number))
    assert len(names(catalog)) == 9
    for table in ("fingerprints", "reels", "models"):
        assert catalog._open(table).stats()["fragment_stats"]["num_fragments"] < 4
    assert catalog.commit(encoded(*range(9)))["models"] == 0
    assert len(catalog.rows("fingerprints", {"content_key": digest("content", 3)})) == 1


def test_processes_inserting_the_same_keys_insert_each_once(tmp_path):
    root = tmp_path / "catalog"
    processes = [start(INSERTER, root) for _ in range(3)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    inserted = [int(process.communicate("go\n")[0]) for process in together(processes)]
    assert sum(inserted) == 40
    catalog = Catalog.open(root, create=False)
    assert all(stored(catalog, table) == 40 for table in ("fingerprints", "reels", "models"))
    assert len(names(catalog)) == 40


def together(processes):
    """Let all start at once; ``communicate`` alone would start one after the other."""
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    return processes


def test_a_killed_writer_loses_nothing_it_acknowledged(tmp_path):
    root, rng, first = tmp_path / "catalog", random.Random(5), 0
    acknowledged: set[str] = set()
    writer = start(WRITER, root)
    for _ in range(10):
        assert writer.stdout.readline() == "ready\n"
        following = start(WRITER, root)
        writer.stdin.write(f"{first}\n")
        writer.stdin.flush()
        time.sleep(rng.uniform(0.02, 0.6))
        writer.kill()
        batches = [int(line) for line in writer.communicate()[0].split()]
        acknowledged |= {f"model-{3 * batch + k}" for batch in batches for k in range(3)}
        first = check_after_kill(root, acknowledged, first)
        writer = following
    writer.kill()
    writer.communicate()
    assert len(acknowledged) > 10  # on a busy machine too, some batches came through


def check_after_kill(root, acknowledged, first):
    """Whole batches only, nothing lost, writable and searchable at once; returns the next free batch."""
    catalog = Catalog.open(root, create=True, lock_timeout=1.0)
    for table in ("fingerprints", "reels", "models"):
        assert stored(catalog, table) % 3 == 0
    found = names(catalog)
    assert acknowledged <= found
    following = max((int(name.removeprefix("model-")) // 3 + 1 for name in found), default=first)
    index = ScanIndex.open(catalog, root.parent / "cache")
    assert len(index.keys) == stored(catalog, "fingerprints")
    catalog.commit(encoded(3 * following, 3 * following + 1, 3 * following + 2))
    assert len(names(catalog)) == len(found) + 3
    return following + 1


def test_a_reader_beside_a_writer_sees_whole_batches_only(tmp_path):
    root, before = tmp_path / "catalog", 0
    writer = start(WRITER, root)
    assert writer.stdout.readline() == "ready\n"
    writer.stdin.write("0\n")
    writer.stdin.flush()
    for _ in range(20):  # while the writer goes on, compacts, and rebuilds the scan's cache
        acknowledged = int(writer.stdout.readline()) + 1
        catalog = Catalog.open(root, create=False)
        found = names(catalog)
        assert found == {f"model-{number}" for number in range(len(found))}
        assert len(found) % 3 == 0
        assert len(found) >= max(before, 3 * acknowledged)
        index = ScanIndex.open(catalog, tmp_path / "cache")
        assert len(index.keys) % 3 == 0
        assert len(index.keys) >= len(found)
        before = len(found)
    assert writer.poll() is None
    writer.kill()
    writer.communicate()
