"""Failures that pass: how often to ask again, how long to wait, and who else has to wait."""

from __future__ import annotations

import random
import re
import socket
import time
from dataclasses import dataclass
from email.utils import mktime_tz, parsedate_tz
from threading import Event, Lock
from typing import TYPE_CHECKING
from weakref import WeakSet

from hilm.errors import Cancelled, NetworkError, RateLimited

if TYPE_CHECKING:
    from collections.abc import Mapping

TOO_MANY = 429
PASSING = frozenset({408, TOO_MANY, 500, 502, 503, 504})
"""Statuses that say: not now."""

_RESET = re.compile(r"\bt=(\d{1,9})\b")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to bear with a server; all in seconds but ``tries``.

    Attributes:
        connect: For a connection to stand.
        silence: Without a byte on a connection.
        tries: How often one range is asked for.
        first: Longest pause after the first failure; it doubles with each further one.
        longest: Longest pause of our own choosing.
        obey: Longest pause a server may ask for.
    """

    connect: float = 10.0
    silence: float = 30.0
    tries: int = 6
    first: float = 0.5
    longest: float = 30.0
    obey: float = 300.0


PATIENCE = Patience()


class Transient(Exception):
    """A failure that may pass.

    Args:
        found: What happened.
        server: Who should be left alone for a while, when it was the server's wish.
        status: HTTP status, 0 when there was no answer.
        after: Seconds the server asks to wait.
    """

    def __init__(self, found: str, *, server: str = "", status: int = 0, after: float | None = None) -> None:
        super().__init__(found)
        self.server, self.status, self.after = server, status, after


class Stop:
    """Ends, from another thread, the waiting and receiving done for one purpose."""

    def __init__(self) -> None:
        self._event, self._lock = Event(), Lock()
        self._sockets: set[socket.socket] = set()
        self._parts: WeakSet[Stop] = WeakSet()

    def part(self) -> Stop:
        """A stop for a part of the purpose; stopping the whole stops it."""
        part = Stop()
        with self._lock:
            self._parts.add(part)
        self.check()
        return part

    def set(self) -> None:
        """Wake every sleeper and cut every connection in use."""
        self._event.set()
        with self._lock:
            parts = list(self._parts)
            for watched in self._sockets:
                try:
                    socket.socket.shutdown(watched, socket.SHUT_RDWR)  # below TLS: no farewell to wait for
                except OSError:
                    continue  # the other side was faster
        for part in parts:
            part.set()

    def check(self) -> None:
        """Raise ``Cancelled`` once stopped."""
        if self._event.is_set():
            raise Cancelled("the remote file was closed while it was being read")

    def sleep(self, seconds: float) -> None:
        """Wait, unless stopped."""
        self._event.wait(seconds)
        self.check()

    def watch(self, used: socket.socket) -> None:
        """Cut this connection when stopped."""
        with self._lock:
            self._sockets.add(used)
        self.check()

    def forget(self, used: socket.socket) -> None:
        """The connection is no longer in use here."""
        with self._lock:
            self._sockets.discard(used)


class Pauses:
    """Servers that asked for quiet, and until when; every connection of the process keeps to it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._until: dict[str, float] = {}

    def hold(self, server: str, seconds: float) -> None:
        """Send nothing to ``server`` for so long."""
        now = time.monotonic()
        with self._lock:
            self._until = {name: until for name, until in self._until.items() if until > now}
            self._until[server] = max(now + seconds, self._until.get(server, now))

    def keep(self, server: str, stop: Stop) -> None:
        """Return when ``server`` may be asked again."""
        while (left := self._until.get(server, 0.0) - time.monotonic()) > 0:
            stop.sleep(left)


PAUSES = Pauses()


class Retry:
    """Counts the failures of one request and waits between its tries, with full jitter.

    Args:
        what: What is asked for, to be shown in errors.
        patience: How long to bear with it.
        stop: Ends the waiting.
    """

    def __init__(self, what: str, patience: Patience, stop: Stop) -> None:
        self._what, self._patience, self._stop = what, patience, stop
        self._failures = 0

    def pause(self, error: Transient) -> None:
        """Wait as long as this failure deserves.

        Raises:
            RateLimited: The tries are used up, or the pause asked for is too long.
            NetworkError: The tries are used up.
            Cancelled: The owner was closed.
        """
        self._stop.check()
        self._failures += 1
        patience = self._patience
        if error.after is not None and error.after > patience.obey:
            raise RateLimited(f"{self._what}: the server asks for a pause of {error.after:,.0f} s") from error
        if self._failures >= patience.tries:
            kind = RateLimited if error.status == TOO_MANY else NetworkError
            hint = "" if kind is RateLimited else "check the network, then run the command again"
            raise kind(f"{self._what}: {error}; tried {self._failures} times", hint=hint) from error
        ceiling = min(patience.longest, patience.first * 2.0 ** (self._failures - 1))
        delay = random.uniform(0, ceiling)  # noqa: S311  spreads requests, guards nothing
        if error.status == TOO_MANY or error.after is not None:
            PAUSES.hold(error.server, delay if error.after is None else error.after)
        self._stop.sleep(delay)


def asked_pause(headers: Mapping[str, str]) -> float | None:
    """Seconds of quiet a server asks for in ``Retry-After`` or in the reset of ``RateLimit``, if any."""
    value = headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    if date := parsedate_tz(value):
        try:
            return max(0.0, mktime_tz(date) - time.time())
        except (ValueError, OverflowError):
            return None  # a date that no calendar has
    reset = _RESET.search(headers.get("RateLimit", ""))
    return float(reset[1]) if reset else None
