from __future__ import annotations

import asyncio
import base64
import stat
import time

import pytest

from hilm.errors import UsageError
from hilm.web import access
from hilm.web.access import LOOPBACK, Guard, add_user, read_users


def request(guard, *, body=b"", **headers):
    """Status and headers of a request through the guard; the application behind it answers with its body."""
    sent = []
    scope = {"type": "http", "headers": [(k.encode(), v.encode()) for k, v in headers.items()]}
    pieces = [body[n : n + 65536] for n in range(0, len(body), 65536)] or [b""]

    async def receive():
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    async def send(message):
        sent.append(message)

    asyncio.run(guard(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"])


async def app(scope, receive, send):
    while (await receive())["more_body"]:
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def basic(text):
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.fixture
def people(tmp_path, monkeypatch):
    monkeypatch.setattr(access, "PAUSE", 0.01)
    add_user(tmp_path / "people", "ada", "correct horse")
    return tmp_path / "people"


def test_a_user_comes_in_and_nobody_else(people):
    guard = Guard(app, read_users(people), LOOPBACK)
    host = {"host": "localhost:7860"}
    assert request(guard, **host, authorization=basic("ada:correct horse"))[0] == 200
    for wrong in ("ada:wrong", "ada:", "eve:correct horse", ":", "ada"):
        assert request(guard, **host, authorization=basic(wrong))[0] == 401
    for header in ("", "Basic", "Basic !", "Bearer x", basic("ada:correct horse").replace("Basic", "Digest")):
        status, headers = request(guard, **host, authorization=header)
        assert (status, headers[b"www-authenticate"][:5]) == (401, b"Basic")


def test_the_second_request_costs_no_scrypt(people):
    guard = Guard(app, read_users(people), None)
    header = basic("ada:correct horse")
    request(guard, authorization=header)
    started = time.process_time()
    for _ in range(20):
        assert request(guard, authorization=header)[0] == 200
    assert time.process_time() - started < 0.5


def test_a_wrong_password_takes_its_time(people, monkeypatch):
    monkeypatch.setattr(access, "PAUSE", 0.3)
    started = time.monotonic()
    assert request(Guard(app, read_users(people), None), authorization=basic("ada:x"))[0] == 401
    assert time.monotonic() - started >= 0.3


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:7860", "[::1]:7860", "LOCALHOST"])
def test_own_names_are_answered(host):
    assert request(Guard(app, None, LOOPBACK), host=host)[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "localhost@evil", "[::2]:80"])
def test_other_names_are_refused(host):
    assert request(Guard(app, None, LOOPBACK), host=host)[0] == 403


def test_long_bodies_are_refused_whether_announced_or_not():
    guard = Guard(app, None, None)
    assert request(guard, body=b"x" * access.UPLOAD)[0] == 200
    assert request(guard, body=b"x" * (access.UPLOAD + access.ENVELOPE + 1))[0] == 413


def test_answers_forbid_other_servers():
    policy = request(Guard(app, None, LOOPBACK), host="localhost")[1][b"content-security-policy"]
    assert b"default-src 'self'" in policy
    assert b"http" not in policy


def test_a_user_is_replaced_and_the_file_is_private(people):
    add_user(people, "bob", "two")
    add_user(people, "ada", "new")
    users = read_users(people)
    assert set(users) == {"ada", "bob"}
    assert request(Guard(app, users, None), authorization=basic("ada:new"))[0] == 200
    assert request(Guard(app, users, None), authorization=basic("ada:correct horse"))[0] == 401
    assert stat.S_IMODE(people.stat().st_mode) == 0o600
    assert "new" not in people.read_text()


@pytest.mark.parametrize(("user", "password"), [("", "x"), ("a", ""), ("a:b", "x"), ("a\nb", "x")])
def test_names_that_a_line_cannot_hold(tmp_path, user, password):
    with pytest.raises(UsageError):
        add_user(tmp_path / "people", user, password)
    assert not (tmp_path / "people").exists()


@pytest.mark.parametrize(
    "text", ["", "ada:secret\n", "ada:scrypt$x$y\n", ":scrypt$AA==$AA==\n", "ada:md5$AA==$AA=="]
)
def test_files_that_are_no_auth_files(tmp_path, text):
    (tmp_path / "people").write_text(text)
    with pytest.raises(UsageError, match="people"):
        read_users(tmp_path / "people")
    with pytest.raises(UsageError, match="cannot read"):
        read_users(tmp_path / "nowhere")
