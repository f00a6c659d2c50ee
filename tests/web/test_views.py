from __future__ import annotations

import json
import shutil

import pytest

from hilm.errors import UnknownModel, UsageError
from hilm.store import Store
from hilm.web import views
from hilm.web.views import (
    known,
    list_reports,
    read_report,
    view_family,
    view_library,
    view_model,
    view_report,
)


@pytest.fixture
def store(house):
    return Store(house / "store")


def test_the_library_filters_and_sorts(store, monkeypatch):
    found = view_library(store, "", "bits per weight")
    assert [row["model"] for row in found.rows][-1] == "stranger"  # has no reel
    assert found.fitting == found.models == 3
    assert [row["model"] for row in view_library(store, "TUN").rows] == ["tuned"]
    assert {row["model"] for row in view_library(store, "archive").rows} == {"base", "tuned"}
    assert view_library(store, "", "no such order") == view_library(store)
    monkeypatch.setattr(views, "SHOWN", 1)
    assert (len(view_library(store).rows), view_library(store).fitting) == (1, 3)


def test_a_model_has_its_layers(store):
    found = view_model(store, "base")
    assert len(found.layers) == 16
    assert found.chosen is not None
    assert found.film
    chosen = next(layer for layer in found.layers if layer.name == found.chosen)
    assert chosen.role in {"attention", "mlp"}
    assert view_model(store, "base", found.layers[0].name).chosen == found.layers[0].name
    assert view_model(store, "base", "no such tensor").chosen == found.chosen
    assert not view_model(store, "stranger").film
    with pytest.raises(UnknownModel):
        view_model(store, "nobody")


def test_a_model_whose_weights_are_gone_still_has_a_page(house, tmp_path):
    shutil.copytree(house / "stranger", tmp_path / "gone")
    store = Store(tmp_path / "store")
    store.index([tmp_path / "gone"], jobs=1)
    shutil.rmtree(tmp_path / "gone")
    found = view_model(store, "gone")
    assert (found.layers, found.chosen) == ((), None)
    assert "not where they were" in found.problem


def test_a_name_is_never_a_path(store, house, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert known(store, "base") == "base"
    (tmp_path / "base").mkdir()
    assert known(store, "base") == str(house / "base")
    with pytest.raises(UnknownModel):
        known(store, str(house / "late"))


def test_families_leave_strangers_out(store):
    found = view_family(store)
    assert {line.node["model"] for line in found.lines} == {"base", "tuned"}
    assert [line.parent for line in found.lines] == [None, 0]
    assert {line.node["model"] for line in view_family(store, "tuned").lines} == {"base", "tuned"}


def test_reports_of_the_store(store, tmp_path):
    copy = Store(tmp_path / "s")
    copy.make()
    (copy.path / "parity").mkdir()
    (copy.path / "parity" / "a.json").write_text(json.dumps({"stages": [], "verdict": "pass"}))
    (copy.path / "secret.json").write_text(json.dumps({"stages": []}))
    assert list_reports(copy) == ("a.json",)
    assert view_report(copy, "a.json")["verdict"] == "pass"
    with pytest.raises(UsageError, match="no report"):
        view_report(copy, "../secret.json")
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(views.REPORT + 1)
    with pytest.raises(UsageError, match="MiB"):
        read_report(tmp_path / "huge.json")
