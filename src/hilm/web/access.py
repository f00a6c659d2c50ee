"""Who may look: passwords, host names, and how much one may send.

The auth file has a line ``user:scrypt$SALT$HASH`` per person, salt and hash in base64, of scrypt with
N = 2^14, r = 8, p = 1 and 32 bytes. Every address asks for the password, by HTTP Basic authentication.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from typing import TYPE_CHECKING, Any

from hilm.errors import UsageError
from hilm.files import write_file

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, MutableMapping
    from pathlib import Path

    Message = MutableMapping[str, Any]
    App = Callable[..., Awaitable[Any]]
    Receive = Callable[[], Awaitable[Message]]

UPLOAD = 10 << 20
"""Bytes of an upload."""

ENVELOPE = 1 << 20
"""Bytes of a request beside the upload in it."""

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
PAUSE = 1.0
"""Seconds that a wrong password costs."""

# Whatever a page is made to contain, a browser asks no other server for anything.
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'"
)


def add_user(path: Path, user: str, password: str) -> None:
    """Write a user's line into an auth file, in place of the one there was; only the owner may read it.

    Raises:
        UsageError: The name has a colon or line break, or the password is empty.
        StorageError: The file cannot be written.
    """
    if not user or not password or not user.isprintable() or ":" in user:
        raise UsageError("a user needs a name without colon, and a password")
    users = read_users(path) if path.exists() else {}
    salt = os.urandom(16)
    users[user] = (salt, _hash(password, salt))
    lines = [
        f"{name}:scrypt${b64encode(s).decode()}${b64encode(h).decode()}\n" for name, (s, h) in users.items()
    ]
    write_file(path, "".join(lines).encode())
    path.chmod(0o600)


def read_users(path: Path) -> dict[str, tuple[bytes, bytes]]:
    """Salt and hash of every user of an auth file.

    Raises:
        UsageError: It cannot be read, has no users, or a line of another form.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", hint="--add-user NAME makes it") from error
    users = {}
    for number, line in enumerate(lines, 1):
        user, _, rest = line.partition(":")
        match rest.split("$"):
            case ["scrypt", salt, digest] if user:
                try:
                    users[user] = (b64decode(salt, validate=True), b64decode(digest, validate=True))
                except Base64Error:
                    raise UsageError(f"{path}, line {number}: salt or hash is not base64") from None
            case _:
                raise UsageError(
                    f"{path}, line {number} is not user:scrypt$SALT$HASH",
                    hint="hilm serve --auth-file FILE --add-user NAME writes one",
                )
    if not users:
        raise UsageError(f"{path} has no users", hint="hilm serve --auth-file FILE --add-user NAME adds one")
    return users


def _hash(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=1 << 14, r=8, p=1, dklen=32)


class TooLarge(Exception):
    """A request's body is longer than it may be."""


class Guard:
    """Ask for passwords, refuse foreign host names and long bodies, before anything else sees a request.

    A web site can make a browser ask a server on its own machine, under a name of the site's choice; the
    check of the host name refuses that.

    Args:
        app: The ASGI application behind it.
        users: Of :func:`read_users`; None asks for no password.
        hosts: Names by which the server may be addressed; None allows all.
    """

    def __init__(
        self, app: App, users: Mapping[str, tuple[bytes, bytes]] | None, hosts: frozenset[str] | None
    ) -> None:
        self._app, self._users, self._hosts = app, users, hosts
        self._known: set[bytes] = set()  # digests of headers that passed: scrypt is slow on purpose

    async def __call__(self, scope: Message, receive: Receive, send: App) -> None:
        """Answer 401, 403 or 413, or pass the request on."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if self._hosts is not None and _host_name(headers.get(b"host", b"")) not in self._hosts:
            await _answer(send, 403, "this server does not go by that name")
        elif not await self._may_enter(headers.get(b"authorization", b"")):
            await _answer(send, 401, "a password is needed", (b"www-authenticate", b'Basic realm="hilm"'))
        else:
            await self._pass_on(scope, receive, send)

    async def _may_enter(self, header: bytes) -> bool:
        if self._users is None:
            return True
        seen = hashlib.sha256(header).digest()
        if seen in self._known:
            return True
        if not header:
            return False
        if await asyncio.to_thread(_matches, header, self._users):
            self._known.add(seen)
            return True
        await asyncio.sleep(PAUSE)
        return False

    async def _pass_on(self, scope: Message, receive: Receive, send: App) -> None:
        left, begun = UPLOAD + ENVELOPE, False

        async def count() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise TooLarge
            return message

        async def protect(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                message["headers"] = [*message["headers"], *self._protection]
            await send(message)

        try:
            await self._app(scope, count, protect)
        except asyncio.CancelledError:
            pass  # the server ends
        except TooLarge:
            if not begun:
                await _answer(send, 413, f"at most {UPLOAD >> 20} MiB can be sent")

    @property
    def _protection(self) -> list[tuple[bytes, bytes]]:
        policy = POLICY + ("" if self._hosts is None else "; frame-ancestors 'self'")
        return [
            (b"content-security-policy", policy.encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"same-origin"),
        ]


def _host_name(header: bytes) -> str:
    """The name in ``name``, ``name:port`` or ``[address]:port``."""
    text = header.decode("latin-1").lower()
    return text[1:].partition("]")[0] if text.startswith("[") else text.partition(":")[0]


def _matches(header: bytes, users: Mapping[str, tuple[bytes, bytes]]) -> bool:
    """Whether a Basic header names a user with the right password; an unknown user takes as long."""
    kind, _, code = header.partition(b" ")
    try:
        user, _, password = b64decode(code, validate=True).decode().partition(":")
    except ValueError:
        return False
    salt, digest = users.get(user, (bytes(16), bytes(32)))
    return kind.lower() == b"basic" and hmac.compare_digest(_hash(password, salt), digest)


async def _answer(send: App, status: int, text: str, *headers: tuple[bytes, bytes]) -> None:
    kind = (b"content-type", b"text/plain; charset=utf-8")
    await send({"type": "http.response.start", "status": status, "headers": [kind, *headers]})
    await send({"type": "http.response.body", "body": text.encode()})
