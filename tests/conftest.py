from __future__ import annotations

import os
import signal
import time
from types import SimpleNamespace

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # tiny models: threads that wait for one another cost ten times as much
os.environ["HILM_POISON"] = "1"  # buffers are overwritten before they are reused, in child processes too

import pytest
from hypothesis import HealthCheck, settings

from tests.hub_server import GOOD, HubServer
from tests.servers import forget_connections

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
    from huggingface_hub import close_session  # noqa: PLC0415 - few tests need it

    with HubServer() as hub:
        hub.reach(monkeypatch, tmp_path / "hub_home")
        close_session()  # one that still holds connections to another
        yield hub
        close_session()
    forget_connections()


@pytest.fixture
def brisk(monkeypatch):
    """Failures are waited for by milliseconds."""
    import huggingface_hub.utils._http as client  # noqa: PLC0415 - the same

    from hilm.ship import hub  # noqa: PLC0415 - the same
    from hilm.weights.retry import PAUSES  # noqa: PLC0415 - the same

    patience = hub.Patience(tries=4, first=0.001, longest=0.002, obey=1)
    monkeypatch.setattr(hub, "PATIENCE", patience)
    asleep = SimpleNamespace(**{**vars(time), "sleep": lambda _: None})
    monkeypatch.setattr("huggingface_hub.file_download.time", asleep)
    for module in ("hub_files.PATIENCE", "http_source.PATIENCE"):
        monkeypatch.setattr(f"hilm.weights.{module}", patience)
    for function in (client.http_backoff, client.http_stream_backoff.__wrapped__):
        monkeypatch.setitem(function.__kwdefaults__, "base_wait_time", 0.001)
        monkeypatch.setitem(function.__kwdefaults__, "max_wait_time", 0.002)
        monkeypatch.setitem(function.__kwdefaults__, "max_retries", 2)
    yield
    PAUSES._until.clear()


@pytest.fixture
def online(local_hub, monkeypatch, brisk):
    monkeypatch.setenv("HF_TOKEN", GOOD)
    return local_hub
