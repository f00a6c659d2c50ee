from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory, monkeypatch):
    """No test may touch the store of whoever runs it."""
    monkeypatch.setenv("HILM_HOME", str(tmp_path_factory.mktemp("home")))
