"""A remote file read by ranges: only the bytes asked for, several requests in flight when read in order."""

from __future__ import annotations

import re
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Lock, RLock
from typing import TYPE_CHECKING, Self

import numpy as np

from hilm.errors import NetworkError, RangeUnsupported, RemoteSourceChanged, TruncatedFile, UsageError
from hilm.weights.http_get import Answer, get, require_status
from hilm.weights.http_pool import POOL, Origin, shown
from hilm.weights.read_ahead import ReadAhead, cut_runs
from hilm.weights.retry import PATIENCE, Patience, Retry, Stop, Transient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from numpy.typing import NDArray

HEAD = 256 << 10
"""Bytes fetched on opening and kept: the header of most weight files; five shards stay within 2 MiB."""

MAX_RENEWALS = 3
"""How often in a row an expired location is asked for anew."""

_PIECE = 1 << 20
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
_EXPIRED = frozenset({401, 403, 410})


class HttpSource:
    """A file behind a URL, as a ``ByteSource``; reads may come from several threads.

    A read fetches what it asks for, a long one over several connections. Reads that follow one another, or
    that were announced with ``expect``, are fetched ahead. The location that a redirect leads to is kept for
    all ranges. Memory: ``connections + 1`` buffers of ``block`` bytes, and the head.

    Attributes:
        name: The URL without secrets.
        size: In bytes.
        etag: What the server calls this version of the file; empty if it does not.
        requests: Ranges asked for so far.
        fetched: Bytes received so far.

    Raises:
        UsageError: The URL is not plain http or https, or a header cannot be sent.
        NotFound: There is no such file.
        AuthRequired: It may not be read with the headers given.
        RangeUnsupported: The server sends whole files only.
        RemoteSourceChanged: The file is not, or no longer, the one announced or opened.
        RateLimited: The server wants a longer pause than is sensible.
        NetworkError: Connections keep failing, or the server contradicts itself.
        TruncatedFile: A read goes beyond the end.
    """

    def __init__(
        self, url: str, headers: Mapping[str, str], patience: Patience, block: int, connections: int
    ) -> None:
        self.name, self.size, self.etag = shown(url), -1, ""
        self.requests = self.fetched = 0
        self._url, self._private, self._patience = url, dict(headers), patience
        self._home = Origin.of(url)
        self._block, self._connections = block, connections
        self._resolve: Callable[[], str] | None = None
        self._location = ("", "")  # where ranges are read, and its ETag
        self._renewals = 0
        self._resolving, self._reading, self._counting = RLock(), Lock(), Lock()
        self._stop, self._closed = Stop(), False
        self._pool = ThreadPoolExecutor(connections, "hilm-http")
        self._ahead: ReadAhead | None = None
        self._announced = False
        self._cursor = -1
        self._kept, self._kept_from = np.empty(0, np.uint8), 0

    @classmethod
    def open(
        cls,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        size: int | None = None,
        etag: str | None = None,
        block: int = 8 << 20,
        connections: int = 4,
        resolve: Callable[[], str] | None = None,
        head: int = HEAD,
        tail: int = 0,
        patience: Patience = PATIENCE,
    ) -> Self:
        """Open a remote file and fetch its head, or its tail.

        Args:
            url: ``http`` or ``https``.
            headers: Sent to the server of ``url`` only, never to one it redirects to.
            size: Bytes the file must have.
            etag: ETag the file must have, linked ETags of the Hub included.
            block: Largest range asked for at once, in bytes.
            connections: Ranges in flight.
            resolve: Gives a fresh URL when the location has expired; ``url`` is asked again without it.
            head: Bytes fetched at once and kept.
            tail: Bytes at the end that are fetched and kept instead, where the header stands there.
            patience: How long to bear with the server.
        """
        for header, value in (headers or {}).items():
            if not value.isascii() or not value.isprintable():
                raise UsageError(
                    f"the value of header {header} cannot be sent"
                )  # nor shown: it may be a secret
        source = cls(url, headers or {}, patience, block, connections)
        source._resolve = resolve
        source.size = -1 if size is None else size
        source.etag = _opaque(etag or "")
        POOL.enter()
        try:
            if size != 0:
                buffer = np.empty(min(tail or head, size or sys.maxsize), np.uint8)
                source._fetch(-tail, buffer.data, source._stop)
                source._kept = buffer[: source.size]
                source._kept_from = source.size - len(source._kept) if tail else 0
        except BaseException:
            source.close()
            raise
        return source

    @property
    def state(self) -> str:
        """URL, size and ETag."""
        return f"{self.name}|{self.size}|{self.etag}"

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes of one range; nothing is fetched ahead for it, so that headers cost no weights."""
        out = np.empty(stop - start, np.uint8)
        self._fill(start, out, guess=False)
        return out.tobytes()

    def read_into(self, start: int, out: NDArray[np.uint8]) -> None:
        """Fill ``out`` with the bytes from ``start`` on."""
        self._fill(start, out, guess=True)

    def _fill(self, start: int, out: NDArray[np.uint8], *, guess: bool) -> None:
        self._stop.check()
        view, end = out.data, start + len(out)
        if not 0 <= start <= end <= self.size:
            raise TruncatedFile(
                f"{self.name} has {self.size:,} bytes; {start:,} to {end:,} is no range of it"
            )
        at = start - self._kept_from
        known = self._kept[at : at + len(out)] if at >= 0 else self._kept[:0]
        view[: len(known)] = known.data
        start, view = start + len(known), view[len(known) :]
        if not view:
            return
        done = self._read_ahead(start, view, guess=guess)
        self._read_now(start + done, view[done:])

    def expect(self, runs: Iterable[tuple[int, int]]) -> None:
        """Announce the byte ranges to be read next, in their order; only announced ones are fetched ahead."""
        kept = 0 if self._kept_from else len(self._kept)
        with self._reading:
            self._announced = True
            self._look_ahead((max(start, kept), stop) for start, stop in runs)

    def check_unchanged(self) -> None:
        """Nothing to do: every answer was compared with the version opened."""

    def close(self) -> None:
        """Give buffers, threads and connections back; closing twice is harmless."""
        if self._closed:
            return
        self._closed = True
        self._stop.set()
        if self._ahead:
            self._ahead.close()
        self._pool.shutdown()
        POOL.leave()

    def _read_ahead(self, start: int, view: memoryview, *, guess: bool) -> int:
        """Take what was fetched ahead; begin to fetch ahead at the second of two adjoining reads."""
        with self._reading:
            follows = guess and start == self._cursor
            self._cursor = start + len(view) if guess else self._cursor
            if self._ahead and self._ahead.holds(start):
                return self._ahead.read_into(start, view)
            if self._announced or not follows:
                return 0
            self._look_ahead([(start, self.size)])
            return self._ahead.read_into(start, view) if self._ahead else 0

    def _look_ahead(self, runs: Iterable[tuple[int, int]]) -> None:
        if self._ahead:
            self._ahead.close()
        stop = self._stop.part()
        self._ahead = ReadAhead(
            self._fetch, self._pool, runs, depth=self._connections, block=self._block, stop=stop
        )

    def _read_now(self, start: int, view: memoryview) -> None:
        """Fetch exactly these bytes, in parallel when they are many."""
        pieces = list(cut_runs([(start, start + len(view))], self._block))
        if len(pieces) < 2:
            for _ in pieces:
                self._fetch(start, view, self._stop)
            return
        stop = self._stop.part()
        futures = [self._pool.submit(self._fetch, a, view[a - start : b - start], stop) for a, b in pieces]
        try:
            for future in futures:
                future.result()
        except BaseException:
            stop.set()
            raise
        finally:  # nobody may write into the caller's buffer after this call
            wait([future for future in futures if not future.cancel()])

    def _fetch(self, start: int, view: memoryview, stop: Stop) -> None:
        """Fill ``view`` by ranged requests, resuming after each failure at the byte reached.

        A negative ``start`` counts from the end of the file, whose size the first answer tells.
        """
        stop.check()
        retry, reached, asked = Retry(self.name, self._patience, stop), 0, 0
        end = len(view)
        while reached < end:
            try:
                asked += 1
                with self._ask(start + reached, start + end, stop) as answer:
                    start = start if start >= 0 else max(self.size + start, 0)
                    end = min(end, self.size - start)
                    for count in _receive(answer, view[reached:end]):
                        reached += count
                self._renewals = 0
            except Transient as error:
                retry.pause(error)
        with self._counting:
            self.requests += asked
            self.fetched += reached

    def _ask(self, start: int, stop: int, halt: Stop) -> Answer:
        """One checked answer for a range. One thread at a time finds the location, the others wait for it."""
        location, etag = self._location
        if not location:
            with self._resolving:
                location, etag = self._location
                if not location:
                    url = self._resolve() if self._resolve and self._renewals else self._url
                    answer = self._request(url, start, stop, halt, etag, kept=False)
                    self._location = answer.url, answer.etag
                    return answer
        return self._request(location, start, stop, halt, etag, kept=True)

    def _request(self, url: str, start: int, stop: int, halt: Stop, etag: str, *, kept: bool) -> Answer:
        answer = get(
            url,
            own={"Range": f"bytes={start}-{stop - 1}" if start >= 0 else f"bytes={start}"},
            private=self._private,
            patience=self._patience,
            stop=halt,
            home=self._home,
        )
        try:
            if answer.status in _EXPIRED and (Origin.of(answer.url) != self._home or url != self._url):
                self._expire(url, kept=kept)
            total = _check_range(answer, start, stop)
            self._check_version(answer, total, etag)
        except BaseException:
            answer.close()
            raise
        return answer

    def _expire(self, url: str, *, kept: bool) -> None:
        """Forget the location, unless another thread did or it has been renewed too often."""
        with self._resolving:
            location, etag = self._location
            if not kept or location == url:
                if self._renewals >= MAX_RENEWALS:
                    return
                self._renewals += 1
                self._location = "", etag
        raise Transient("the location has expired")

    def _check_version(self, answer: Answer, total: int, etag: str) -> None:
        """Compare size and ETags with what was announced, or with the first answer.

        What the home says of the file, in its own answer or beside a redirect, is the version. Another server
        may call it differently, but always the same, unless the home has just vouched for a new location.
        """
        linked = _opaque(answer.linked_etag)
        version = linked or (_opaque(answer.etag) if Origin.of(answer.url) == self._home else "")
        self.size = total if self.size < 0 else self.size
        self.etag = self.etag or version
        moved = etag and answer.etag and answer.etag != etag and not linked
        if total != self.size or (version and version != self.etag) or moved:
            raise RemoteSourceChanged(f"{self.name} is not the version that was announced or opened")


def _check_range(answer: Answer, start: int, stop: int) -> int:
    """Check that an answer is the range asked for, and return the size of the whole file."""
    if answer.status == 416:
        raise RemoteSourceChanged(f"{shown(answer.url)} is shorter than {max(start + 1, 1):,} bytes")
    require_status(answer, 200, 206)
    length = answer.headers.get("Content-Length", "")
    if answer.status == 200:
        if start > 0 or not length.isdigit() or int(length) > stop - min(start, 0):
            raise RangeUnsupported(f"{shown(answer.url)} answers a range with the whole file")
        return int(length)
    match = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    first, last, total = map(int, match.groups()) if match else (0, 0, 0)
    if start < 0:
        start, stop = max(total + start, 0), total
    if (
        not match
        or first != start
        or last + 1 != min(stop, total)
        or length not in {"", str(last + 1 - first)}
    ):
        raise NetworkError(f"{shown(answer.url)} answers with another range than {start:,} to {stop:,}")
    return total


def _receive(answer: Answer, view: memoryview) -> Iterator[int]:
    """Fill ``view`` from a body, telling how far it got after each piece."""
    while view:
        count = answer.read_into(view[:_PIECE])
        if not count:
            raise Transient("the body ended early")
        yield count
        view = view[count:]
    if answer.read_into(memoryview(bytearray(1))):
        raise NetworkError(f"{shown(answer.url)} sends more bytes than asked for")


def _opaque(etag: str) -> str:
    """An ETag without its quotes and weakness."""
    return etag.strip().removeprefix("W/").strip('"')
