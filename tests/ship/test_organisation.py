from __future__ import annotations

import pytest

import hilm
from hilm import errors
from hilm.cli.main import main
from hilm.ship import index_organisation
from hilm.ship.organisation import list_models
from tests.tiny import bert_like, write_model


@pytest.fixture
def museum(online, tmp_path):
    """Three models of one organisation, something without weights, and a stranger."""
    for seed in range(3):
        folder = write_model(tmp_path / f"m{seed}", bert_like(seed, layers=1))
        online.add(f"museum/model-{seed}", folder)
    online.add("museum/empty", {"README.md": b"hello"})
    online.add("other/model", {"README.md": b"hello"})
    return online


def test_every_model_is_indexed_once_and_none_kept(museum, tmp_path):
    store = hilm.Store(tmp_path / "store")
    found = index_organisation("museum", store=store, jobs=1)
    assert found["indexed"] == [f"museum/model-{seed}" for seed in range(3)]
    assert (found["listed"], [f["model"] for f in found["failed"]], found["left"]) == (
        4,
        ["museum/empty"],
        [],
    )
    assert index_organisation("museum", store=store, jobs=1)["skipped"] == found["indexed"]
    assert not (tmp_path / "hub_home" / "hub").exists()


def test_pages_are_followed(online):
    for number in range(120):
        online.add(f"museum/model-{number:03d}", {})
    online.fail("/api/models$", status=503)
    assert list_models("museum") == [f"museum/model-{number:03d}" for number in range(120)]
    assert sum(r.path.startswith("/api/models?") for r in online.log) == 4


def test_a_budget_leaves_the_rest_for_later(museum, tmp_path):
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
