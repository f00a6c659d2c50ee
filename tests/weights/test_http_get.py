from __future__ import annotations

import socket

import pytest

from hilm import errors
from hilm.weights.http_get import get_bytes
from tests.servers import BRISK, Fault, Server, forget_connections

SECRET = "canary-4711"
PRIVATE = {"Authorization": f"Bearer {SECRET}", "X-Key": SECRET}


@pytest.fixture
def server():
    with Server({"/file": b"content"}) as running:
        yield running
    forget_connections()


def fetch(url, limit=1000, private=None):
    return get_bytes(url, private=private or {}, limit=limit, patience=BRISK)


def test_redirects_are_followed_five_times(server):
    for n in range(6):
        server.always[f"/{n}"] = Fault(302, {"Location": f"/{n + 1}" if n < 5 else "/file"})
    assert fetch(server.url("/1")) == b"content"
    with pytest.raises(errors.NetworkError, match="more than 5 redirects"):
        fetch(server.url("/0"))
    server.always["/loop"] = Fault(307, {"Location": "/loop"})
    seen = len(server.seen)
    with pytest.raises(errors.NetworkError, match="more than 5 redirects"):
        fetch(server.url("/loop"))
    assert len(server.seen) == seen + 6


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_secrets_stay_at_home(server, host):
    """Another port, or another name of the same machine, is another server."""
    with Server({"/file": b"elsewhere"}) as other:
        target = server if host == "localhost" else other
        server.always["/go"] = Fault(302, {"Location": target.url(host=host)})
        server.always["/stay"] = Fault(302, {"Location": "/file"})
        fetch(server.url("/go"), private=PRIVATE)
        assert target.seen[-1].path == "/file"
        assert SECRET not in str(target.seen[-1])
        fetch(server.url("/stay"), private=PRIVATE)
        assert server.seen[-1].headers["authorization"] == PRIVATE["Authorization"]


def test_secrets_once_dropped_do_not_come_back(server):
    with Server() as other:
        server.always["/go"] = Fault(302, {"Location": other.url("/back")})
        other.always["/back"] = Fault(302, {"Location": server.url()})
        assert fetch(server.url("/go"), private=PRIVATE) == b"content"
        assert [SECRET in str(s) for s in server.seen] == [True, False]


@pytest.mark.parametrize("code", [socket.EAI_NONAME, socket.EAI_AGAIN])
def test_a_name_that_nobody_knows_is_asked_for_once(monkeypatch, code):
    """A machine without a network must not wait for one."""
    asked = []

    def unknown(*names, **_):
        asked.append(names[:2])
        raise socket.gaierror(code, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(errors.NetworkError, match=r"does not know http://absent\.invalid:80") as caught:
        fetch("http://absent.invalid/x")
    assert asked == [("absent.invalid", 80)]
    assert caught.value.exit_code == 5
    assert "./" in caught.value.hint


@pytest.mark.parametrize("location", ["", "ftp://x/y", "file:///etc/passwd", "http://a b/", "//:x/"])
def test_redirects_to_nowhere(server, location):
    server.always["/file"] = Fault(302, {"Location": location})
    with pytest.raises(errors.NetworkError, match=r"redirects (badly|to nowhere)"):
        fetch(server.url())


def test_documents_are_bounded_and_whole(server):
    server.files["/file"] = bytes(100_000)
    with pytest.raises(errors.NetworkError, match="more than 1,000 bytes"):
        fetch(server.url())
    server.faults.append(Fault(cut=10))
    assert len(fetch(server.url(), limit=100_000)) == 100_000
    server.always["/file"] = Fault(replace={"Content-Encoding": "gzip"})
    with pytest.raises(errors.NetworkError, match="gzip"):
        fetch(server.url(), limit=100_000)


@pytest.mark.parametrize(
    ("status", "code", "kind", "says"),
    [
        (401, "GatedRepo", errors.AuthRequired, "gated"),
        (401, "", errors.AuthRequired, "may not be read"),
        (403, "", errors.AuthRequired, "may not be read"),
        (404, "RepoNotFound", errors.NotFound, "no such repository"),
        (404, "RevisionNotFound", errors.NotFound, "no such revision"),
        (404, "EntryNotFound", errors.NotFound, "no such file"),
        (404, "", errors.NotFound, "no such file"),
        (400, "", errors.NetworkError, "status 400"),
        (206, "", errors.NetworkError, "status 206"),
    ],
)
def test_statuses_mean_errors(server, status, code, kind, says):
    server.always["/file"] = Fault(status, {"X-Error-Code": code} if code else {}, body=SECRET.encode())
    with pytest.raises(kind, match=says) as caught:
        fetch(server.url("/file?key=" + SECRET))
    assert SECRET not in str(caught.value)
    assert caught.value.exit_code == 5
