"""Loopback servers for tests: a file server with scripted faults, and a stand-in for the Hub."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import sys
import threading
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from hilm.weights.http_pool import POOL
from hilm.weights.retry import Patience

os.environ["no_proxy"] = "127.0.0.1,localhost"

BRISK = Patience(connect=2, silence=0.5, tries=4, first=0.01, longest=0.05, obey=1.0)
COMMIT = "c0ffee" + "0" * 34
LARGE = (".safetensors", ".bin", ".gguf")


def forget_connections() -> None:
    """Close what the process keeps open while nobody reads."""
    POOL.enter()
    POOL.leave()


@dataclass
class Fault:
    """What one request meets instead of, or on top of, a right answer."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    replace: dict[str, str] = field(default_factory=dict)  # headers of an otherwise right answer
    cut: int = -1  # bytes of the body after which the connection is cut
    stall: float = 0  # seconds of silence before the body
    whole: bool = False  # ignore the range
    extra: bytes = b""  # sent behind the body, without a Content-Length
    body: bytes = b"fault"


@dataclass
class Seen:
    method: str
    path: str
    headers: dict[str, str]
    client: tuple


class Quiet(ThreadingHTTPServer):
    """A server that says nothing of clients that went away."""

    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), (OSError, ValueError)):
            super().handle_error(request, client_address)


class Server:
    """Serves ``files`` (path → bytes or Path) and records every request; ``faults`` are used up in order."""

    def __init__(self, files: dict | None = None, *, latency: float = 0, sendfile: bool = False) -> None:
        self.files = files or {}
        self.faults: deque[Fault | None] = deque()
        self.always: dict[str, Fault] = {}
        self.etags: dict[str, str] = {}
        self.latency, self.sendfile = latency, sendfile
        self.seen: list[Seen] = []
        self.lock = threading.Lock()
        owner = self

        class Handler(_Handler):
            server_of = owner

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.port = self.http.server_address[1]
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02})

    def url(self, path: str = "/file", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def etag(self, path: str) -> str:
        body = self.files[path]
        return (
            self.etags.get(path) or hashlib.sha256(body if isinstance(body, bytes) else b"path").hexdigest()
        )

    def route(self, path: str, headers: dict[str, str]) -> Fault | None:
        """A special answer for a path; None serves the file."""
        return None

    def next_fault(self, path: str) -> Fault:
        with self.lock:
            if path in self.always:
                return self.always[path]
            return (self.faults.popleft() if self.faults else None) or Fault()

    def ranges(self) -> list[tuple[int, int]]:
        """The half-open byte ranges asked for, in order."""
        matches = [re.fullmatch(r"bytes=(\d+)-(\d+)", s.headers.get("range", "")) for s in self.seen]
        return [(int(m[1]), int(m[2]) + 1) for m in matches if m]

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of: Server
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        owner = self.server_of
        path = unquote(urlsplit(self.path).path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        with owner.lock:
            owner.seen.append(Seen(self.command, self.path, headers, self.client_address))
        time.sleep(owner.latency)
        fault = owner.next_fault(path)
        if not fault.status:
            fault = owner.route(path, headers) or fault
        if not fault.status and path not in owner.files:
            fault = Fault(404)
        if fault.status:
            self._say(fault.status, {"Content-Length": str(len(fault.body)), **fault.headers}, fault.body)
            return
        self._serve(path, fault)

    def _serve(self, path, fault):
        owner = self.server_of
        body = owner.files[path]
        size = len(body) if isinstance(body, bytes) else body.stat().st_size
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        ranged = match is not None and not fault.whole
        start, stop = 0, size
        if ranged and match[1]:
            start, stop = int(match[1]), min(int(match[2] or size) + 1, size)
        elif ranged:
            start = max(size - int(match[2]), 0)
        headers = {"Content-Length": str(stop - start), "ETag": f'"{owner.etag(path)}"'}
        if ranged and start >= size:
            self._say(416, {"Content-Length": "0", "Content-Range": f"bytes */{size}"}, b"")
            return
        if ranged:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        headers |= fault.headers | fault.replace
        if fault.extra:
            headers["Connection"] = "close"
            del headers["Content-Length"]
        if isinstance(body, Path) and owner.sendfile:
            self._say(206 if ranged else 200, headers, b"")
            with body.open("rb") as file:
                self._send_file(file, start, stop)
            return
        data = body[start:stop] if isinstance(body, bytes) else body.read_bytes()[start:stop]
        data += fault.extra
        self._say(206 if ranged else 200, headers, data, cut=fault.cut, stall=fault.stall)

    def _send_file(self, file, start, stop):
        while start < stop:
            start += os.sendfile(self.connection.fileno(), file.fileno(), start, stop - start)

    def _say(self, status, headers, body, *, cut=-1, stall=0.0):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if stall:
            self.wfile.write(body[:10])
            time.sleep(stall)
            body = body[10:]
        if cut >= 0:
            self.wfile.write(body[:cut])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self.wfile.write(body)
        if headers.get("Connection") == "close":
            self.close_connection = True


class Hub(Server):
    """Answers as the Hub does: a listing per revision, small files itself, large ones by a redirect to a CDN.

    ``repositories``: id → {file name: bytes}. Weight files are large (LFS).
    """

    def __init__(self, repositories: dict[str, dict[str, bytes]], **options) -> None:
        super().__init__(**options)
        self.cdn = Server()
        self.repositories = repositories
        self.cards: dict[str, dict] = {}
        self.token = ""  # when set, repositories want it
        self.signature = 0  # of the location given last
        for files in repositories.values():
            for body in files.values():
                self.cdn.files[f"/blob/{hashlib.sha256(body).hexdigest()}"] = body

    def __enter__(self):
        self.cdn.__enter__()
        return super().__enter__()

    def __exit__(self, *_):
        super().__exit__()
        self.cdn.__exit__()

    def route(self, path, headers):
        match = re.fullmatch(r"/api/models/(.+)/revision/(.+)", path)
        if match:
            return self._refuse(match[1], match[2], headers) or self._list(match[1])
        match = re.fullmatch(r"/(.+)/resolve/([^/]+)/(.+)", path)
        if match is None:
            return None
        return self._refuse(match[1], match[2], headers) or self._resolve(match[1], match[2], match[3])

    def _refuse(self, repository, revision, headers):
        authorized = headers.get("authorization") == f"Bearer {self.token}"
        if repository not in self.repositories:
            return Fault(404 if authorized else 401, {"X-Error-Code": "RepoNotFound"})
        if self.token and not authorized:
            return Fault(401, {"X-Error-Code": "GatedRepo"})
        if revision not in {"main", "v1/x", COMMIT}:
            return Fault(404, {"X-Error-Code": "RevisionNotFound"})
        return None

    def _list(self, repository):
        siblings = [_sibling(name, body) for name, body in self.repositories[repository].items()]
        listing = {"id": repository, "sha": COMMIT, "siblings": siblings}
        body = json.dumps(listing | {"cardData": self.cards.get(repository)}).encode()
        return Fault(200, {"Content-Type": "application/json"}, body=body)

    def _resolve(self, repository, revision, name):
        body = self.repositories[repository].get(name)
        if body is None:
            return Fault(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        if not name.endswith(LARGE):
            self.files[f"/{repository}/resolve/{revision}/{name}"] = body
            self.etags[f"/{repository}/resolve/{revision}/{name}"] = git_id(body)
            return Fault(headers={"X-Repo-Commit": COMMIT})
        sha256 = hashlib.sha256(body).hexdigest()
        self.signature += 1
        headers = {
            "Location": self.cdn.url(f"/blob/{sha256}?signature={self.signature}"),
            "X-Linked-ETag": f'"{sha256}"',
            "X-Linked-Size": str(len(body)),
            "X-Repo-Commit": COMMIT,
        }
        return Fault(302, headers, body=b"")


def reach(hub: Hub, monkeypatch, home: Path) -> None:
    """Let the process use this Hub, without token and cache."""
    for name in ("HF_TOKEN", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", hub.url(""))


def git_id(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


def _sibling(name: str, body: bytes) -> dict:
    sibling = {"rfilename": name, "size": len(body), "blobId": git_id(body)}
    if name.endswith(LARGE):
        sibling["lfs"] = {"sha256": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 130}
    return sibling


@contextmanager
def tunnel():
    """A proxy that answers CONNECT and passes bytes both ways; yields its port and the heads it saw."""
    seen: list[str] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source, sink):
        try:
            while data := source.recv(1 << 16):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def serve():
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            asked = b""
            while b"\r\n\r\n" not in asked:
                asked += client.recv(4096)
            seen.append(asked.decode())
            host, port = asked.split(b" ")[1].rsplit(b":", 1)
            upstream = socket.create_connection((host.decode(), int(port)))
            client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=pump, args=(upstream, client))
            back.start()
            pump(client, upstream)
            back.join()
            client.close()
            upstream.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1], seen
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


if __name__ == "__main__":  # a server in a process of its own: python -m tests.servers FILE LATENCY [PATH]
    served = {(sys.argv[3:] or ["/file"])[0]: Path(sys.argv[1])}
    with Server(served, latency=float(sys.argv[2]), sendfile=True) as server:
        print(server.port, flush=True)  # noqa: T201  the parent reads it
        sys.stdin.read()
