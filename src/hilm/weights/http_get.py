"""HTTP GET: one answer to one question, redirects followed without secrets, statuses turned into errors."""

from __future__ import annotations

import ssl
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse
from socket import gaierror
from typing import TYPE_CHECKING, Self
from urllib.parse import quote, urljoin, urlsplit

from hilm.errors import AuthRequired, NetworkError, NotFound, UsageError
from hilm.weights.http_pool import POOL, Origin, new_connection, shown
from hilm.weights.retry import PASSING, PAUSES, Patience, Retry, Stop, Transient, asked_pause

if TYPE_CHECKING:
    from collections.abc import Mapping
    from socket import socket

MAX_REDIRECTS = 5
_OWN = {"Accept-Encoding": "identity", "User-Agent": "hilm"}
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_URL_SAFE = "%/:=&?~#+!$,;'@()*[]"
_DRAIN = 64 << 10
_UNKNOWN_HOST = "check the connection; if a local path was meant, write it with ./ in front"


class Answer:
    """A response whose body is still to be read; a context manager that keeps the connection if it can."""

    def __init__(
        self, url: str, connection: HTTPConnection, response: HTTPResponse, used: socket, stop: Stop
    ) -> None:
        self.url, self.status, self.linked_etag = url, response.status, ""
        self._connection, self._response, self._socket, self._stop = connection, response, used, stop

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def etag(self) -> str:
        """The ETag this server gives."""
        return self.headers.get("ETag", "")

    @property
    def headers(self) -> Mapping[str, str]:
        """Response headers, names in any case."""
        return self._response.headers  # type: ignore[return-value]  # a Message is a mapping but by name

    def read_into(self, out: memoryview) -> int:
        """Receive up to ``len(out)`` bytes, at least one; 0 at the end of the body.

        Raises:
            Transient: The connection broke or fell silent.
        """
        try:
            return self._response.readinto(out)
        except (OSError, HTTPException, ValueError) as error:  # ValueError: cut by another thread
            raise Transient(f"the connection broke ({type(error).__name__})") from error

    def read(self, limit: int) -> bytes:
        """The whole body.

        Raises:
            Transient: The connection broke or fell silent.
            NetworkError: It is longer than ``limit`` bytes.
        """
        body, piece = bytearray(), memoryview(bytearray(_DRAIN))
        while count := self.read_into(piece):
            body += piece[:count]
            if len(body) > limit:
                raise NetworkError(f"{shown(self.url)} answers with more than {limit:,} bytes")
        length = self.headers.get("Content-Length")
        if length is not None and length.isdigit() and len(body) < int(length):
            raise Transient(f"the body ended after {len(body):,} of {length} bytes")
        return bytes(body)

    def drain(self) -> None:
        """Read a small body to its end, so that the connection can be kept."""
        with suppress(Transient, NetworkError):
            self.read(_DRAIN)

    def close(self) -> None:
        """Return the connection if the body was read to its end, else cut it."""
        self._stop.forget(self._socket)
        finished = self._response.isclosed() and not self._response.length  # a cut body is closed, too
        self._response.close()
        if finished and self._connection.sock is not None:
            POOL.give(Origin.of(self.url), self._connection)
        else:
            self._connection.close()


def get(
    url: str,
    *,
    own: Mapping[str, str],
    private: Mapping[str, str],
    patience: Patience,
    stop: Stop,
    home: Origin,
) -> Answer:
    """Send one GET and follow redirects.

    Args:
        url: What to ask for.
        own: Headers for whoever answers.
        private: Headers for ``home`` alone; dropped for good once a redirect leaves it.
        patience: How long to wait.
        stop: Ends the waiting.
        home: The server that may see ``private``.

    Returns:
        The last answer, whatever its status; its ``linked_etag`` is what ``home`` said of the file.

    Raises:
        Transient: No answer; another try may help.
        NetworkError: More than five redirects, one from https to http, or a certificate that is not valid.
    """
    linked = ""
    for _ in range(MAX_REDIRECTS + 1):
        origin = Origin.of(url)
        private = private if origin == home else {}
        answer = _exchange(url, origin, {**_OWN, **own, **private}, patience, stop)
        if origin == home:
            linked = linked or answer.headers.get("X-Linked-ETag", "")
        if answer.status not in _REDIRECTS:
            answer.linked_etag = linked
            return answer
        with answer:
            answer.drain()
            url = _redirected(answer, origin)
    raise NetworkError(f"more than {MAX_REDIRECTS} redirects, the last to {shown(url)}")


def get_bytes(url: str, *, private: Mapping[str, str], limit: int, patience: Patience) -> bytes:
    """Fetch a small document whole.

    Raises:
        NotFound, AuthRequired, RateLimited, NetworkError: As the server says, or after the last try.
    """
    stop, home = Stop(), Origin.of(url)
    retry = Retry(shown(url), patience, stop)
    while True:
        try:
            with get(url, own={}, private=private, patience=patience, stop=stop, home=home) as answer:
                require_status(answer, 200)
                return answer.read(limit)
        except Transient as error:
            retry.pause(error)


def require_status(answer: Answer, *wanted: int) -> None:
    """Turn any other status into the error it means."""
    status, url = answer.status, shown(answer.url)
    if status in wanted:
        encoding = answer.headers.get("Content-Encoding", "identity")
        if encoding != "identity":
            raise NetworkError(f"{url} answers in {encoding[:20]} although identity was asked for")
        return
    answer.drain()
    if status in PASSING:
        server, pause = str(Origin.of(answer.url)), asked_pause(answer.headers)
        raise Transient(f"status {status}", server=server, status=status, after=pause)
    code = answer.headers.get("X-Error-Code", "")
    if status in {401, 403}:
        if code == "GatedRepo":
            raise AuthRequired(f"{url} is gated", hint="accept its terms on the Hub, then: hf auth login")
        raise AuthRequired(f"{url} does not exist or may not be read ({status})")
    if status in {404, 410}:
        missing = {"RepoNotFound": "repository", "RevisionNotFound": "revision"}.get(code, "file")
        raise NotFound(f"{url}: there is no such {missing}")
    raise NetworkError(f"{url} answers with status {status}")


def _redirected(answer: Answer, origin: Origin) -> str:
    location = answer.headers.get("Location")
    if not location:
        raise NetworkError(f"{shown(answer.url)} redirects to nowhere")
    target = urljoin(answer.url, location)
    try:
        onward = Origin.of(target)
    except UsageError as error:
        raise NetworkError(f"{shown(answer.url)} redirects badly: {error}") from None
    if origin.scheme == "https" and onward.scheme == "http" and not onward.is_loopback:
        raise NetworkError(f"{shown(answer.url)} redirects from https to http")
    return target


def _exchange(url: str, origin: Origin, headers: Mapping[str, str], patience: Patience, stop: Stop) -> Answer:
    """One request, one response. A kept connection that turns out to be dead is replaced at once."""
    PAUSES.keep(str(origin), stop)
    while True:
        kept = POOL.take(origin)
        connection = kept or new_connection(origin, patience.connect)
        try:
            return Answer(url, connection, *_send(url, connection, headers, patience, stop), stop)
        except ssl.SSLCertVerificationError as error:
            raise NetworkError(f"{origin}: the certificate is not valid: {error.verify_message}") from error
        except gaierror as error:  # asking again will not make the name known
            raise NetworkError(f"the network does not know {origin}", hint=_UNKNOWN_HOST) from error
        except (OSError, HTTPException) as error:
            if kept is None or isinstance(error, TimeoutError):
                raise Transient(f"no answer from {origin} ({type(error).__name__})") from error


def _send(
    url: str, connection: HTTPConnection, headers: Mapping[str, str], patience: Patience, stop: Stop
) -> tuple[HTTPResponse, socket]:
    parts = urlsplit(url)
    target = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe=_URL_SAFE)
    used = connection.sock
    try:
        if used is None:
            connection.connect()
            used = connection.sock
        used.settimeout(patience.silence)
        stop.watch(used)
        connection.request("GET", target, headers=dict(headers))
        return connection.getresponse(), used
    except BaseException:
        if used is not None:
            stop.forget(used)
        connection.close()
        raise
