from __future__ import annotations

import pytest

import hilm
from hilm import errors
from hilm.ship import index_organisation
from tests.cli.conftest import main
from tests.tiny import bert_like, write_model


@pytest.fixture
def museum(online, tmp_path):
    """120 repositories of one organisation: three with weights, the others without."""
    for number in range(117):
        online.add(f"museum/empty-{number:03d}", {"README.md": b"hello"})
    for seed in range(3):
        folder = write_model(tmp_path / f"m{seed}", bert_like(seed, layers=1))
        online.add(f"museum/model-{seed}", folder)
    online.add("other/model", {"README.md": b"hello"})
    return online


def test_every_model_is_listed_and_indexed_once(museum, tmp_path):
    for number in range(110):
        del museum.repositories["models", f"museum/empty-{number:03d}"]
    for number in range(60):
        museum.add(f"museum/later-{number:03d}", {"README.md": b"hello"})
    for number in range(60):
        del museum.repositories["models", f"museum/later-{number:03d}"]
    store = hilm.Store(tmp_path / "store")
    found = index_organisation("museum", store=store, jobs=1)
    assert found["indexed"] == [f"museum/model-{seed}" for seed in range(3)]
    assert (found["listed"], len(found["failed"]), found["left"]) == (10, 7, [])
    assert index_organisation("museum", store=store, jobs=1)["skipped"] == found["indexed"]
    assert not (tmp_path / "hub_home" / "hub").exists()


def test_pages_are_followed(museum):
    from hilm.ship.organisation import list_models

    museum.fail("/api/models$", status=503)
    assert len(list_models("museum")) == 120
    assert sum(r.path.startswith("/api/models?") for r in museum.log) == 4


def test_a_budget_leaves_the_rest_for_later(museum, tmp_path):
    for number in range(117):
        del museum.repositories["models", f"museum/empty-{number:03d}"]
    store, size = hilm.Store(tmp_path / "store"), (tmp_path / "m0" / "model.safetensors").stat().st_size
    first = index_organisation("museum", store=store, budget=2 * size + 10, jobs=1)
    assert (first["indexed"], first["left"]) == (["museum/model-0", "museum/model-1"], ["museum/model-2"])
    assert first["bytes"] == 2 * size
    second = index_organisation("museum", store=store, budget=2 * size + 10, jobs=1)
    assert (second["indexed"], second["left"]) == (["museum/model-2"], [])


def test_who_has_nothing(online):
    with pytest.raises(errors.NotFound, match="nobody"):
        index_organisation("nobody")


def test_offline_says_so(capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["index", "--organisation", "museum"]) == 5
    assert "HF_HUB_OFFLINE" in capsys.readouterr().err
    assert main(["index"]) == 2
