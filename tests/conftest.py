from __future__ import annotations

import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["HILM_POISON"] = "1"  # buffers are overwritten before they are reused, in child processes too

import pytest
from hypothesis import HealthCheck, settings

from tests.hub_server import HubServer

# A run started in the background ignores Ctrl-C, and so would everything that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine must not fail a property: time is measured in benchmarks/, not here.
settings.register_profile("hilm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("hilm")


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory, monkeypatch):
    """No test may touch the store of whoever runs it."""
    monkeypatch.setenv("HILM_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture
def local_hub(tmp_path, monkeypatch):
    """An empty Hub on this machine, the only one that this process can reach."""
    with HubServer() as hub:
        hub.reach(monkeypatch, tmp_path / "hub_home")
        yield hub
