from __future__ import annotations

import shutil
import ssl
import subprocess

import pytest

from hilm import errors
from hilm.weights import http_pool
from hilm.weights.http_get import get_bytes
from hilm.weights.http_pool import POOL, Origin, shown
from tests.servers import BRISK, Fault, Server, forget_connections, tunnel

SECRET = "canary-4711"
PRIVATE = {"Authorization": f"Bearer {SECRET}"}


@pytest.fixture(autouse=True)
def _own_connections():
    forget_connections()
    yield
    forget_connections()


@pytest.fixture
def server():
    with Server({"/file": b"content"}) as running:
        yield running


def fetch(url, private=None):
    return get_bytes(url, private=private or {}, limit=1000, patience=BRISK)


def test_connections_are_kept(server):
    for _ in range(5):
        assert fetch(server.url()) == b"content"
    assert len({s.client for s in server.seen}) == 1
    assert server.seen[0].headers["accept-encoding"] == "identity"


def test_a_kept_connection_that_died_is_replaced_without_a_pause(server):
    fetch(server.url())
    ((connection,),) = POOL._idle.values()
    connection.sock.shutdown(2)
    assert fetch(server.url()) == b"content"
    assert len(server.seen) == 2


def test_proxies_of_the_environment_are_used_by_connect(server, monkeypatch):
    monkeypatch.delenv("no_proxy")
    with tunnel() as (port, seen):
        monkeypatch.setenv("http_proxy", f"http://me:p%40ss@127.0.0.1:{port}")
        assert fetch(server.url(), private=PRIVATE) == b"content"
        forget_connections()
        assert len(seen) == 1
        assert seen[0].startswith(f"CONNECT 127.0.0.1:{server.port} ")
        assert "Proxy-Authorization: Basic bWU6cEBzcw==" in seen[0]
        assert SECRET not in seen[0]
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert fetch(server.url()) == b"content"
        assert len(seen) == 1
        forget_connections()
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("http_proxy", f"socks5://me:{SECRET}@127.0.0.1:{port}")
    with pytest.raises(errors.NetworkError, match="proxies") as caught:
        fetch(server.url())
    assert SECRET not in str(caught.value)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("needs openssl to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    line = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    line += " -addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out cert.pem"
    subprocess.run([program, *line.split()], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture
def secure(server, certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    server.http.socket = context.wrap_socket(server.http.socket, server_side=True)
    http_pool._tls.cache_clear()
    yield server.url().replace("http:", "https:")
    http_pool._tls.cache_clear()


def test_certificates_are_verified(secure, server):
    with pytest.raises(errors.NetworkError, match="certificate is not valid"):
        fetch(secure)
    assert not server.seen


def test_a_trusted_certificate_will_do_and_https_is_not_left(secure, server, certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
    assert fetch(secure) == b"content"
    server.always["/file"] = Fault(302, {"Location": "http://models.invalid/file"})
    with pytest.raises(errors.NetworkError, match="from https to http"):
        fetch(secure)
    with Server({"/file": b"plain"}) as other:
        server.always["/file"] = Fault(302, {"Location": other.url()})
        assert fetch(secure, private=PRIVATE) == b"plain"
        assert SECRET not in str(other.seen)


@pytest.mark.parametrize(
    ("url", "clean"),
    [
        ("https://me:pw@host:1/a/b?key=1#x", "https://host:1/a/b"),
        ("https://host?key=1", "https://host"),
        ("https://a@b@host/p@q", "https://host/p@q"),
        ("nonsense?key=1", "nonsense"),
    ],
)
def test_what_is_shown_of_a_url(url, clean):
    assert shown(url) == clean


def test_origins():
    assert Origin.of("HTTPS://Host/x") == Origin("https", "host", 443)
    assert Origin.of("http://[::1]:80/x").is_loopback
    assert Origin.of("http://localhost").is_loopback
    assert not Origin.of("http://localhost.example").is_loopback
    assert Origin.of("http://a/") != Origin.of("http://a:81/") != Origin.of("https://a:81/")
