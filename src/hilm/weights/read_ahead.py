"""Reading ahead: announced ranges are fetched by several threads before they are asked for."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from concurrent.futures import Future, ThreadPoolExecutor

    from numpy.typing import NDArray

    from hilm.weights.retry import Stop

    Fetch = Callable[[int, memoryview, Stop], None]

MAX_GAP = 1 << 20
"""Bytes between two runs that are cheaper to fetch than to skip."""


@dataclass(frozen=True, slots=True)
class _Slot:
    start: int
    stop: int
    buffer: NDArray[np.uint8]
    done: Future[None]


class ReadAhead:
    """A ring of buffers that runs ahead of one reader; not for use by two threads at once.

    Holds at most ``depth + 1`` buffers of ``block`` bytes: one being consumed, the rest in flight.

    Args:
        fetch: Fills a buffer from a position on, until stopped.
        pool: Where fetches run.
        runs: Half-open byte ranges in the order they will be read; near neighbours are fetched as one.
        depth: Fetches in flight.
        block: Largest fetch, in bytes.
        stop: Ends the fetches; set on closing.
    """

    def __init__(
        self,
        fetch: Fetch,
        pool: ThreadPoolExecutor,
        runs: Iterable[tuple[int, int]],
        *,
        depth: int,
        block: int,
        stop: Stop,
    ) -> None:
        self._fetch, self._pool, self._block, self._stop = fetch, pool, block, stop
        self._plan = cut_runs(join_runs(runs), block)
        self._slots: deque[_Slot] = deque()
        for _ in range(depth + 1):
            self._request(None)

    def read_into(self, start: int, out: memoryview) -> int:
        """Copy what was fetched from ``start`` on.

        Returns:
            Bytes delivered; fewer than asked for where the announced ranges skip, or do not hold, the next.

        Raises:
            NetworkError: A fetch failed for good.
        """
        filled = 0
        while filled < len(out) and self._slots:
            slot, position = self._slots[0], start + filled
            if position < slot.start:
                break
            if position < slot.stop:
                slot.done.result()
                count = min(slot.stop - position, len(out) - filled)
                offset = position - slot.start
                out[filled : filled + count] = slot.buffer.data[offset : offset + count]
                filled += count
            if start + filled >= slot.stop:
                self._retire()
        return filled

    def holds(self, position: int) -> bool:
        """Whether ``position`` lies in what is fetched or being fetched."""
        return bool(self._slots) and self._slots[0].start <= position < self._slots[-1].stop

    def close(self) -> None:
        """Abandon all that is in flight and wait until its threads are idle."""
        self._stop.set()
        for slot in tuple(self._slots):
            slot.done.exception()
        self._slots.clear()

    def _retire(self) -> None:
        """Give the first buffer to the next fetch."""
        slot = self._slots.popleft()
        if not slot.done.cancel():
            slot.done.exception()
        self._request(slot.buffer)

    def _request(self, buffer: NDArray[np.uint8] | None) -> None:
        following = next(self._plan, None)
        if following is None:
            return
        self._stop.check()
        start, stop = following
        if buffer is None:
            buffer = np.empty(self._block, np.uint8)
        done = self._pool.submit(self._fetch, start, buffer.data[: stop - start], self._stop)
        self._slots.append(_Slot(start, stop, buffer, done))


def join_runs(runs: Iterable[tuple[int, int]]) -> Sequence[tuple[int, int]]:
    """Ordered half-open ranges, with neighbours at most ``MAX_GAP`` apart made one."""
    joined: list[tuple[int, int]] = []
    for start, stop in runs:
        if start >= stop:
            continue
        if joined and joined[-1][0] <= start <= joined[-1][1] + MAX_GAP:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return joined


def cut_runs(runs: Iterable[tuple[int, int]], block: int) -> Iterator[tuple[int, int]]:
    """Cut ranges into pieces of at most ``block`` bytes."""
    for start, stop in runs:
        for at in range(start, stop, block):
            yield at, min(at + block, stop)
