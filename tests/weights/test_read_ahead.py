from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilm.errors import Cancelled, NetworkError
from hilm.weights.read_ahead import MAX_GAP, ReadAhead, cut_runs, join_runs
from hilm.weights.retry import Stop

DATA = bytes(range(256)) * 40
BLOCK, DEPTH = 1000, 3


class Fetcher:
    """Fetches from DATA and notes what it was asked for, and how many buffers it saw."""

    def __init__(self):
        self.asked, self.buffers = [], set()
        self.gate = threading.Event()
        self.gate.set()
        self.broken_at = -1

    def __call__(self, start, view, stop):
        stop.check()
        self.asked.append((start, start + len(view)))
        self.buffers.add(id(view.obj))
        while not self.gate.wait(0.01):
            stop.check()
        if start == self.broken_at:
            raise NetworkError("broken")
        view[:] = DATA[start : start + len(view)]


@pytest.fixture
def pool():
    with ThreadPoolExecutor(DEPTH) as running:
        yield running


def ring_of(fetch, pool, runs):
    return ReadAhead(fetch, pool, runs, depth=DEPTH, block=BLOCK, stop=Stop())


def read(ahead, start, stop):
    out = bytearray(stop - start)
    return bytes(out[: ahead.read_into(start, memoryview(out))])


@given(st.integers(1, 4000), st.integers(1, 3500), st.integers(0, 500))
def test_a_run_read_in_steps_is_right_and_fetched_once(step, length, begin):
    fetch, stop = Fetcher(), begin + length
    with ThreadPoolExecutor(DEPTH) as pool:
        ahead = ring_of(fetch, pool, [(begin, stop)])
        got = b"".join(read(ahead, at, min(at + step, stop)) for at in range(begin, stop, step))
        ahead.close()
    assert got == DATA[begin:stop]
    assert sorted(fetch.asked) == list(cut_runs([(begin, stop)], BLOCK))


def test_memory_is_bounded_however_long_the_run(pool):
    fetch = Fetcher()
    fetch.gate.clear()
    ahead = ring_of(fetch, pool, [(0, len(DATA))])
    assert len(ahead._slots) == DEPTH + 1
    fetch.gate.set()
    for at in range(0, len(DATA), 100):
        assert read(ahead, at, min(at + 100, len(DATA))) == DATA[at : at + 100]
        assert len(ahead._slots) <= DEPTH + 1
    assert len(fetch.buffers) <= DEPTH + 1
    assert not ahead._slots
    ahead.close()


def test_it_holds_what_is_under_way_and_nothing_else(pool):
    ahead = ring_of(Fetcher(), pool, [(500, 9_000)])
    assert [ahead.holds(p) for p in (499, 500, 4_499, 4_500, 8_000)] == [False, True, True, False, False]
    assert read(ahead, 2_600, 2_700) == DATA[2_600:2_700], "a jump ahead inside the window"
    assert [ahead.holds(p) for p in (2_499, 2_500, 6_499, 6_500)] == [False, True, True, False]
    ahead.close()
    assert not ahead.holds(2_500)


def test_a_read_stops_where_the_runs_do(pool):
    ahead = ring_of(Fetcher(), pool, [(0, 1_500)])
    assert read(ahead, 1_000, 5_000) == DATA[1_000:1_500]
    assert read(ahead, 1_500, 2_000) == b""
    ahead.close()


def test_a_failed_fetch_is_raised_where_its_bytes_are_needed(pool):
    fetch = Fetcher()
    fetch.broken_at = 1_000
    ahead = ring_of(fetch, pool, [(0, 5_000)])
    assert read(ahead, 0, 1_000) == DATA[:1_000]
    with pytest.raises(NetworkError):
        read(ahead, 1_000, 1_100)
    assert read(ahead, 2_000, 2_100) == DATA[2_000:2_100], "unneeded failures are passed over"
    ahead.close()


def test_closing_does_not_wait_for_the_network(pool):
    fetch = Fetcher()
    fetch.gate.clear()
    ahead = ring_of(fetch, pool, [(0, len(DATA))])
    ahead.close()
    assert len(fetch.asked) <= DEPTH
    assert not ahead._slots
    with pytest.raises(Cancelled):
        ahead._stop.check()


def test_near_runs_are_joined_and_empty_ones_dropped():
    far = 100 + MAX_GAP + 1
    assert join_runs([(0, 0), (0, 50), (60, 100), (far, far + 5)]) == [(0, 100), (far, far + 5)]
    assert join_runs([(500, 600), (0, 100)]) == [(500, 600), (0, 100)], "an order that was announced is kept"
    assert join_runs([(0, 100), (10, 20)]) == [(0, 100)]
