"""Connections to servers: TLS verified, proxies by CONNECT, kept for the next request."""

from __future__ import annotations

import ssl
from base64 import b64encode
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from http.client import HTTPConnection, HTTPSConnection
from ipaddress import ip_address
from threading import Lock
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

from hilm.errors import NetworkError, UsageError

IDLE_PER_ORIGIN = 16
_DEFAULT_PORT = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Origin:
    """A server as one is trusted or not: scheme, host and port together."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Origin:
        """The origin of a URL.

        Raises:
            UsageError: The URL is not plain http or https, or carries a password.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise UsageError(f"{shown(url)!r} is not a URL") from None
        if parts.scheme not in _DEFAULT_PORT or not parts.hostname or not url.isprintable() or " " in url:
            raise UsageError(f"{shown(url)!r} is not an http or https URL")
        if parts.username is not None:
            raise UsageError(f"{shown(url)} carries a user name; give credentials as a token or header")
        return cls(parts.scheme, parts.hostname, port or _DEFAULT_PORT[parts.scheme])

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether it is this machine."""
        with suppress(ValueError):
            return ip_address(self.host).is_loopback
        return self.host == "localhost"


def shown(url: str) -> str:
    """A URL as it may be shown and stored: without user, query and fragment, where secrets travel."""
    head, separator, rest = url.partition("://")
    if not separator:
        return url.partition("?")[0].partition("#")[0][:200]
    place, slash, path = rest.partition("?")[0].partition("#")[0].partition("/")
    return f"{head}://{place.rpartition('@')[2]}{slash}{path}"


class Pool:
    """Idle connections of the process, by origin; closed when the last reader of remote files is."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._idle: dict[Origin, list[HTTPConnection]] = {}
        self._readers = 0

    def take(self, origin: Origin) -> HTTPConnection | None:
        """An idle connection, if there is one."""
        with self._lock:
            idle = self._idle.get(origin)
            return idle.pop() if idle else None

    def give(self, origin: Origin, connection: HTTPConnection) -> None:
        """Keep a connection for the next request."""
        with self._lock:
            idle = self._idle.setdefault(origin, [])
            if len(idle) < IDLE_PER_ORIGIN:
                idle.append(connection)
                return
        connection.close()

    def enter(self) -> None:
        """One more reader."""
        with self._lock:
            self._readers += 1

    def leave(self) -> None:
        """One reader less; the last one closes what is idle."""
        with self._lock:
            self._readers -= 1
            if self._readers > 0:
                return
            connections = [c for idle in self._idle.values() for c in idle]
            self._idle.clear()
        for connection in connections:
            connection.close()


POOL = Pool()


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def new_connection(origin: Origin, timeout: float) -> HTTPConnection:
    """A connection not yet made, by way of the environment's proxy if it names one."""
    host, port, tunnel = origin.host, origin.port, {}
    proxy = _proxy(origin)
    if proxy:
        parts = urlsplit(proxy)
        host, port = parts.hostname or "", parts.port or 80
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            tunnel["Proxy-Authorization"] = "Basic " + b64encode(pair.encode()).decode()
    connection = (
        HTTPSConnection(host, port, timeout=timeout, context=_tls())
        if origin.scheme == "https"
        else HTTPConnection(host, port, timeout=timeout)
    )
    if proxy:
        connection.set_tunnel(origin.host, origin.port, tunnel)
    return connection


def _proxy(origin: Origin) -> str:
    """The proxy the environment names for a server, or nothing."""
    proxies = getproxies_environment()
    if proxy_bypass_environment(f"{origin.host}:{origin.port}", proxies):
        return ""
    proxy = proxies.get(origin.scheme) or proxies.get("all") or ""
    if proxy and "://" not in proxy:
        proxy = f"http://{proxy}"
    if proxy and not proxy.startswith("http://"):
        raise NetworkError(f"{shown(proxy)}: only http:// proxies are supported")
    return proxy
