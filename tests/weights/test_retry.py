from __future__ import annotations

import socket
import threading
import time
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilm.errors import Cancelled, NetworkError, RateLimited
from hilm.weights.retry import PAUSES, Patience, Pauses, Retry, Stop, Transient, asked_pause

BRISK = Patience(tries=4, first=0.01, longest=0.02, obey=5.0)


def test_tries_are_counted_and_the_last_failure_is_told():
    retry = Retry("the file", BRISK, Stop())
    for _ in range(3):
        retry.pause(Transient("status 500", status=500))
    with pytest.raises(NetworkError, match="the file: status 500; tried 4 times") as caught:
        retry.pause(Transient("status 500", status=500))
    assert not isinstance(caught.value, RateLimited)


def test_pauses_grow_to_a_limit(monkeypatch):
    ceilings = []
    monkeypatch.setattr(
        "hilm.weights.retry.random.uniform", lambda low, high: ceilings.append((low, high)) or 0
    )
    retry = Retry("x", Patience(tries=9, first=0.5, longest=4.0), Stop())
    for _ in range(6):
        retry.pause(Transient("reset"))
    assert ceilings == [(0, c) for c in (0.5, 1, 2, 4, 4, 4)]


def test_a_rate_limit_holds_the_server_that_said_so_and_no_other():
    Retry("x", BRISK, Stop()).pause(Transient("429", server="http://busy:1", status=429, after=0.3))
    began = time.monotonic()
    PAUSES.keep("http://idle:1", Stop())
    assert time.monotonic() - began < 0.2
    PAUSES.keep("http://busy:1", Stop())
    assert time.monotonic() - began > 0.2


def test_the_longest_wish_counts():
    pauses = Pauses()
    pauses.hold("s", 0.2)
    pauses.hold("s", 0.01)
    began = time.monotonic()
    pauses.keep("s", Stop())
    assert time.monotonic() - began > 0.15


def test_a_wish_beyond_patience_is_refused():
    with pytest.raises(RateLimited, match="6 s") as caught:
        Retry("x", BRISK, Stop()).pause(Transient("429", status=429, after=6.0))
    assert caught.value.exit_code == 5
    assert caught.value.hint


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": " 0 "}, 0),
        ({"Retry-After": "-3"}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        ({"RateLimit": '"api";r=0;t=55'}, 55),
        ({"Retry-After": "3", "RateLimit": '"api";r=0;t=55'}, 3),
    ],
)
def test_what_a_server_asks_for(headers, seconds):
    assert asked_pause(headers) == seconds


def test_a_date_means_until_then():
    seconds = asked_pause({"Retry-After": formatdate(time.time() + 100, usegmt=True)})
    assert 97 < seconds <= 100


@given(st.text(max_size=40))
def test_no_header_is_too_strange(text):
    seconds = asked_pause({"Retry-After": text, "RateLimit": text})
    assert seconds is None or seconds >= 0


def test_stopping_wakes_sleepers_and_cuts_connections():
    stop, (mine, other) = Stop(), socket.socketpair()
    with mine, other:
        stop.watch(mine)
        woken = []

        def sleep():
            try:
                stop.sleep(30)
            except Cancelled:
                woken.append(True)

        sleeper = threading.Thread(target=sleep)
        sleeper.start()
        stop.set()
        sleeper.join(5)
        assert woken
        assert mine.recv(1) == b""
        with pytest.raises(Cancelled):
            stop.watch(other)


def test_what_is_forgotten_is_left_alone():
    stop, (mine, other) = Stop(), socket.socketpair()
    with mine, other:
        stop.watch(mine)
        stop.forget(mine)
        stop.set()
        other.sendall(b"x")
        assert mine.recv(1) == b"x"


def test_a_part_stops_with_the_whole_and_not_the_other_way():
    whole = Stop()
    first, second = whole.part(), whole.part()
    first.set()
    second.check()
    whole.check()
    whole.set()
    with pytest.raises(Cancelled):
        second.check()
    with pytest.raises(Cancelled):
        whole.part()
