from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from hilm.store import Store
from tests.tiny import bert_like, write_model

SIZES = {"width": 32, "layers": 1, "hidden": 64, "vocabulary": 200, "positions": 16}
CODE = "import sys; from hilm.cli.main import main; sys.exit(main())"


@contextmanager
def serving(store, *flags):
    """The address of ``hilm serve`` in a process of its own."""
    words = [
        sys.executable,
        "-c",
        CODE,
        "serve",
        "--port",
        "0",
        "--json",
        "--storage-dir",
        str(store),
        *flags,
    ]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as process:
        try:
            document = "".join(iter(process.stdout.readline, "}\n")) + "}"
            yield json.loads(document)["address"].rstrip("/")
        finally:
            process.terminate()


def ask(address, path="/", *, data=None, user=None, **headers):
    """Status, headers and body of one request."""
    if user:
        headers["Authorization"] = "Basic " + base64.b64encode(user.encode()).decode()
    request = urllib.request.Request(address + path, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return SimpleNamespace(status=answer.status, headers=answer.headers, body=answer.read())
    except urllib.error.HTTPError as error:
        return SimpleNamespace(status=error.code, headers=error.headers, body=error.read())
    except urllib.error.URLError as error:
        if not isinstance(error.reason, ConnectionResetError | BrokenPipeError):
            raise
        return SimpleNamespace(status="cut", headers={}, body=b"")  # what it did not want to read


def call(address, name, *values, user=None):
    """What an event of the app returns."""
    data = json.dumps({"data": values}).encode()
    kind = {"Content-Type": "application/json"}
    event = json.loads(ask(address, f"/gradio_api/call/{name}", data=data, user=user, **kind).body)[
        "event_id"
    ]
    answer = ask(address, f"/gradio_api/call/{name}/{event}", user=user).body.decode()
    assert "event: complete" in answer, answer
    return json.loads(answer.rpartition("data: ")[2])


def send(address, name, content):
    """Upload a file: status, and what an event takes for it."""
    edge = "edge-of-a-part"
    head = f'--{edge}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    answer = ask(
        address,
        "/gradio_api/upload",
        data=head + content + f"\r\n--{edge}--\r\n".encode(),
        **{"Content-Type": f"multipart/form-data; boundary={edge}"},
    )
    path = json.loads(answer.body)[0] if answer.status == 200 else None
    return answer.status, {"path": path, "meta": {"_type": "gradio.FileData"}}


@pytest.fixture(scope="session")
def house(tmp_path_factory):
    """Folders of tiny checkpoints, and a store that has all but ``late``."""
    root = tmp_path_factory.mktemp("web")
    base = bert_like(1, **SIZES)
    random = np.random.default_rng(3)
    tuned = {n: v + np.float32(0.0005) * random.standard_normal(v.shape, np.float32) for n, v in base.items()}
    for name, tensors in {"base": base, "tuned": tuned, "late": bert_like(7, **SIZES)}.items():
        write_model(root / name, tensors, config={"architectures": ["BertModel"]})
    write_model(root / "stranger", bert_like(2, **SIZES))
    store = Store(root / "store")
    assert not store.encode([root / "base", root / "tuned"], jobs=1)["failed"]
    assert not store.index([root / "stranger"], jobs=1)["failed"]
    return root


@pytest.fixture(scope="session")
def served(house):
    with serving(house / "store") as address:
        yield address
