from __future__ import annotations

import shutil

import pytest

from hilm.errors import CatalogError
from hilm.lineage.catalog import Catalog
from hilm.store import verify
from hilm.store.batch import commit
from hilm.store.planning import Plan
from hilm.store.work import run_job
from tests.store.conftest import contents, tiny
from tests.tiny import write_model

OPTIONS = {"sample": {"limit": 500}, "archive": {}, "index": {}}


def finished(store, target, mode):
    """A plan and the result of its one job, not yet committed."""
    plan = Plan(store, mode, OPTIONS[mode], force=False)
    return plan, run_job(plan.add(str(target)))


@pytest.mark.parametrize("mode", OPTIONS)
def test_a_name_that_another_program_took_meanwhile_is_not_given_twice(house, store, tmp_path, mode):
    for parent in ("x", "y"):
        shutil.copytree(house / "base", tmp_path / parent / "base-1.5")
    (first, one), (second, two) = (finished(store, tmp_path / p / "base-1.5", mode) for p in ("x", "y"))
    assert one.job.name == two.job.name == "base-1.5"
    assert list(commit(first, bytes(16), [one])) == ["base-1.5"]
    assert list(commit(second, bytes(16), [two])) == ["y/base-1.5"]
    assert [m["model"] for m in store.list()["models"]] == ["base-1.5", "y/base-1.5"]
    if mode != "index":
        assert verify(store.reel("base-1.5"))["ok"]
        assert verify(store.reel("y/base-1.5"))["ok"]


@pytest.mark.parametrize("mode", ["archive", "sample"])
def test_a_commit_that_fails_leaves_the_reels_as_they_were(house, store, tmp_path, mode, monkeypatch):
    model = tmp_path / "model"
    shutil.copytree(house / "base", model)
    options = {"max_params": 500} if mode == "sample" else {}
    store.encode([model], mode=mode, **options)
    before = contents(store.path)
    write_model(model, tiny(3))

    def refuse(self, rows, *, replace):
        raise CatalogError("no room")

    monkeypatch.setattr(Catalog, "commit", refuse)
    with pytest.raises(CatalogError):
        store.encode([model], mode=mode, **options)
    assert contents(store.path) == before
