from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from contextlib import closing

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilm import errors
from hilm.weights.http_pool import POOL
from hilm.weights.http_source import HttpSource
from hilm.weights.retry import Patience
from tests.servers import BRISK, Fault, Server, forget_connections

DATA = np.random.default_rng(7).integers(0, 256, 3_000_000, np.uint8).tobytes()
SECRET = "canary-4711"
PRIVATE = {"Authorization": f"Bearer {SECRET}"}
BLOCK = 1 << 18


@pytest.fixture
def server():
    with Server({"/file": DATA}) as running:
        yield running


def source_of(server, path="/file", **options):
    options = {"patience": BRISK, "block": BLOCK, "head": 1000, **options}
    return closing(HttpSource.open(server.url(path), **options))


def in_pieces(source, size, step=50_000):
    out = np.empty(size, np.uint8)
    for at in range(0, size, step):
        source.read_into(at, out[at : at + step])
    return out.tobytes()


def test_single_ranges_fetch_nothing_ahead(server):
    with source_of(server) as source:
        assert b"".join(source.read(at, at + 300_000) for at in range(0, 900_000, 300_000)) == DATA[:900_000]
    assert max(stop for _, stop in server.ranges()) == 900_000


def test_reads_in_order_are_right_and_few(server):
    with source_of(server) as source:
        assert (source.size, source.etag) == (len(DATA), server.etag("/file"))
        assert in_pieces(source, len(DATA)) == DATA
    assert len(server.seen) <= -(-len(DATA) // BLOCK) + 1 + 2


def test_random_reads_fetch_what_they_ask_for_and_no_more(server):
    with source_of(server) as source:
        for start, stop in ((2_000_000, 2_000_100), (10, 900), (500_000, 500_001), (900, 1_100)):
            assert source.read(start, stop) == DATA[start:stop]
    assert server.ranges() == [(0, 1000), (2_000_000, 2_000_100), (500_000, 500_001), (1000, 1100)]


def test_one_long_read_goes_over_several_connections_and_fetches_every_byte_once(server):
    with source_of(server) as source:
        assert source.read(5_000, 2_900_000) == DATA[5_000:2_900_000]
    ranges = sorted(server.ranges()[1:])
    assert [a for a, _ in ranges] == list(range(5_000, 2_900_000, BLOCK))
    assert sum(b - a for a, b in ranges) == 2_895_000
    assert len({s.client for s in server.seen}) > 1


def test_announced_runs_are_fetched_ahead_and_nothing_else(server):
    runs = [(2_000, 300_000), (310_000, 500_000), (2_700_000, 2_800_000)]
    with source_of(server) as source:
        source.expect(runs)
        for start, stop in runs:
            for at in range(start, stop, 30_000):
                assert source.read(at, min(at + 30_000, stop)) == DATA[at : min(at + 30_000, stop)]
        assert source.read(1_500_000, 1_500_010) == DATA[1_500_000:1_500_010]
        assert source.read(1_500_010, 1_500_020) == DATA[1_500_010:1_500_020]
    edges = [(2_000, 2_000 + BLOCK), (2_000 + BLOCK, 500_000), (2_700_000, 2_800_000)]
    assert sorted(server.ranges()) == sorted(
        [(0, 1000), *edges, (1_500_000, 1_500_010), (1_500_010, 1_500_020)]
    )


def test_a_run_announced_inside_the_head_costs_nothing(server):
    with source_of(server) as source:
        source.expect([(10, 900)])
        assert source.read(10, 900) == DATA[10:900]
    assert server.ranges() == [(0, 1000)]


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 60_000), st.integers(0, 20_000), st.booleans()), max_size=12))
def test_any_order_of_reads_equals_the_file(reads):
    small, position = DATA[:60_000], 0
    with Server({"/file": small}) as server, source_of(server, block=4096, head=100, connections=3) as source:
        for jump, count, follow in reads:
            start = position if follow else jump
            position = min(start + count, len(small))
            assert source.read(start, position) == small[start:position]


def test_several_threads_may_read_at_once(server):
    wrong = []

    def work(source, seed):
        rng = np.random.default_rng(seed)
        for start in rng.integers(0, len(DATA) - 40_000, 15):
            for at in (int(start), int(start) + 20_000):
                wrong.extend([at] * (source.read(at, at + 20_000) != DATA[at : at + 20_000]))

    with source_of(server) as source:
        threads = [threading.Thread(target=work, args=(source, seed)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


@pytest.mark.parametrize(
    "fault",
    [
        Fault(500),
        Fault(503, {"Retry-After": "0"}),
        Fault(408),
        Fault(429),
        Fault(cut=0),
        Fault(cut=700),
        Fault(stall=1.5),
    ],
    ids=lambda f: f"{f.status or ''}{f.cut}{f.stall}",
)
def test_failures_that_pass_are_outlasted_and_resumed(server, fault):
    server.faults.extend([fault, fault, None, fault, None, None, fault])
    with source_of(server) as source:
        assert in_pieces(source, len(DATA)) == DATA


FAULTS = st.one_of(
    st.none(),
    st.builds(Fault, status=st.sampled_from([408, 429, 500, 502, 503, 504])),
    st.builds(Fault, cut=st.integers(0, 5000)),
)


@settings(max_examples=30)
@given(st.lists(FAULTS, max_size=12), st.integers(500, 9_000))
def test_whatever_passes_leaves_the_bytes_right(faults, step):
    patience = Patience(tries=13, first=0.001, longest=0.002)
    with Server({"/file": DATA[:40_000]}) as server:
        server.faults.extend(faults)
        with source_of(server, block=4096, patience=patience) as source:
            assert in_pieces(source, 40_000, step) == DATA[:40_000]


def test_a_cut_body_is_resumed_at_the_byte_reached(server):
    server.faults.extend([None, Fault(cut=100_000), Fault(cut=50_000)])
    with source_of(server) as source:
        assert source.read(10_000, 210_000) == DATA[10_000:210_000]
    assert server.ranges()[1:] == [(10_000, 210_000), (110_000, 210_000), (160_000, 210_000)]


def test_a_server_that_stays_broken_is_given_up(server):
    server.always["/file"] = Fault(500)
    with pytest.raises(errors.NetworkError, match="status 500; tried 4 times"):
        source_of(server)
    assert len(server.seen) == 4
    server.always["/file"] = Fault(429)
    with pytest.raises(errors.RateLimited):
        source_of(server)


def test_a_failure_while_reading_ahead_reaches_the_reader(server):
    with source_of(server) as source:
        source.read(1000, 2000)
        server.always["/file"] = Fault(500)
        with pytest.raises(errors.NetworkError, match="status 500"):
            source.read(2000, 3000)


def test_nobody_listens():
    with Server() as server:
        url = server.url()
    with pytest.raises(errors.NetworkError, match="no answer from"):
        HttpSource.open(url, patience=BRISK)


def test_retry_after_binds_every_connection_of_the_process(server):
    server.faults.append(Fault(429, {"Retry-After": "1"}))
    with source_of(server, patience=Patience(first=0.01)) as first:
        began = time.monotonic()
        server.faults.append(Fault(429, {"Retry-After": "1"}))
        reader = threading.Thread(target=first.read, args=(5_000, 6_000))
        reader.start()
        while len(server.seen) < 3:
            time.sleep(0.01)
        time.sleep(0.05)
        with source_of(server):
            assert time.monotonic() - began >= 0.9
        reader.join()


def test_a_pause_longer_than_sensible_is_refused_at_once(server):
    server.faults.append(Fault(429, {"Retry-After": "3600"}))
    with pytest.raises(errors.RateLimited, match="3,600 s"):
        source_of(server)
    assert len(server.seen) == 1


def test_ranges_must_be_understood(server):
    server.always["/file"] = Fault(whole=True)
    with pytest.raises(errors.RangeUnsupported):
        source_of(server)


def test_a_whole_answer_will_do_when_all_was_asked_for(server):
    server.always["/file"] = Fault(whole=True)
    with source_of(server, head=len(DATA)) as source:
        assert source.read(0, source.size) == DATA


@pytest.mark.parametrize(
    ("replace", "kind"),
    [
        ({"Content-Range": f"bytes 1-1000/{len(DATA)}"}, errors.NetworkError),
        ({"Content-Range": f"bytes 0-998/{len(DATA)}"}, errors.NetworkError),
        ({"Content-Range": "bytes 0-999/*"}, errors.NetworkError),
        ({"Content-Range": "nonsense"}, errors.NetworkError),
        ({"Content-Length": "999"}, errors.NetworkError),
        ({"Content-Encoding": "gzip"}, errors.NetworkError),
        ({"Content-Range": "bytes 0-999/1000"}, errors.RemoteSourceChanged),
    ],
)
def test_answers_that_are_not_what_was_asked_for_are_refused(server, replace, kind):
    server.always["/file"] = Fault(replace=replace)
    with pytest.raises(errors.NetworkError) as caught:
        source_of(server, size=len(DATA))
    assert type(caught.value) is kind
    assert len(server.seen) == 1


def test_a_body_longer_than_its_range_is_refused(server):
    server.always["/file"] = Fault(extra=b"more")
    with pytest.raises(errors.NetworkError, match="more bytes"):
        source_of(server)


def test_another_version_is_noticed(server):
    with pytest.raises(errors.RemoteSourceChanged):
        source_of(server, etag="another")
    with pytest.raises(errors.RemoteSourceChanged):
        source_of(server, size=len(DATA) - 1)
    with source_of(server, size=len(DATA), etag=server.etag("/file")) as source:
        source.read(5_000, 6_000)
        server.etags["/file"] = "new"
        with pytest.raises(errors.RemoteSourceChanged):
            source.read(6_000, 7_000)
        server.files["/file"] = DATA[:5_000]
        with pytest.raises(errors.RemoteSourceChanged):
            source.read(9_000, 9_500)


@pytest.mark.parametrize(
    ("status", "kind"), [(401, errors.AuthRequired), (403, errors.AuthRequired), (404, errors.NotFound)]
)
def test_refusals_are_not_retried(server, status, kind):
    server.always["/file"] = Fault(status)
    with pytest.raises(kind) as caught:
        source_of(server)
    assert caught.value.exit_code == 5
    assert len(server.seen) == 1


def test_a_kept_location_serves_all_ranges_and_the_home_alone_sees_the_secret():
    with Server({"/blob": DATA}) as cdn, Server() as home:
        home.always["/file"] = Fault(302, {"Location": cdn.url("/blob?signature=abc")})
        with source_of(home, headers=PRIVATE) as source:
            assert in_pieces(source, len(DATA)) == DATA
        assert len(home.seen) == 1
        assert home.seen[0].headers["authorization"] == f"Bearer {SECRET}"
        assert len(cdn.seen) > 5
        assert not any(SECRET in str(s) for s in cdn.seen)


def test_an_expired_location_is_renewed_once_for_all_connections():
    with Server({"/old": DATA, "/new": DATA}) as cdn, Server() as home:
        cdn.etags = dict.fromkeys(cdn.files, "same")
        home.always["/file"] = Fault(302, {"Location": cdn.url("/old")})
        with source_of(home) as source:
            home.always["/file"] = Fault(302, {"Location": cdn.url("/new")})
            cdn.always["/old"] = Fault(403)
            cdn.seen.clear()
            assert source.read(2_000, len(DATA)) == DATA[2_000:]
        assert len(home.seen) == 2
        assert 1 <= sum(s.path == "/old" for s in cdn.seen) <= 4


def test_a_redirect_that_never_ends_is_left(server):
    server.always["/loop"] = Fault(302, {"Location": "/loop"})
    with pytest.raises(errors.NetworkError, match="more than 5 redirects"):
        source_of(server, "/loop")
    assert len(server.seen) == 6


def test_a_location_that_is_never_valid_is_renewed_three_times():
    with Server() as cdn, Server() as home:
        home.always["/file"] = Fault(302, {"Location": cdn.url("/blob?signature=abc")})
        cdn.always["/blob"] = Fault(403)
        with pytest.raises(errors.AuthRequired) as caught:
            source_of(home)
        assert len(home.seen) == 4
        assert "signature" not in str(caught.value)


def test_another_servers_name_for_the_file_must_stay_unless_the_home_vouches_for_it():
    with Server({"/old": DATA, "/new": DATA}) as cdn, Server() as home:
        for vouch in ({}, {"X-Linked-ETag": '"version"'}):
            cdn.always.clear()
            home.always["/file"] = Fault(302, {"Location": cdn.url("/old"), **vouch})
            with source_of(home, etag="version") as source:
                cdn.etags["/new"] = "otherwise"
                cdn.always["/old"] = Fault(403)
                home.always["/file"] = Fault(302, {"Location": cdn.url("/new"), **vouch})
                if vouch:
                    assert source.read(5_000, 6_000) == DATA[5_000:6_000]
                    cdn.etags["/new"] = "otherwise again"
                with pytest.raises(errors.RemoteSourceChanged):
                    source.read(5_000, 6_000)
        home.always["/file"] = Fault(302, {"Location": cdn.url("/new"), "X-Linked-ETag": '"next"'})
        with pytest.raises(errors.RemoteSourceChanged):
            source_of(home, etag="version")


def test_a_refusal_by_the_home_after_a_rename_is_no_expiry(server):
    server.always["/file"] = Fault(307, {"Location": "/renamed"})
    server.always["/renamed"] = Fault(401)
    with pytest.raises(errors.AuthRequired):
        source_of(server)
    assert len(server.seen) == 2


def test_a_fresh_url_is_asked_for_where_somebody_can_give_one(server):
    server.files["/fresh"] = DATA
    server.always["/moved"] = Fault(302, {"Location": "/old"})
    server.files["/old"] = DATA
    with source_of(server, "/moved", resolve=lambda: server.url("/fresh")) as source:
        server.always["/old"] = Fault(403)
        server.etags["/fresh"] = server.etags["/old"] = server.etag("/old")
        assert source.read(5_000, 6_000) == DATA[5_000:6_000]
    assert [s.path for s in server.seen] == ["/moved", "/old", "/old", "/fresh"]


@pytest.mark.parametrize("reads", [[(1000, 200_000)], [(1000, 2_900_000)], [(1000, 2000), (2000, 3000)]])
def test_closing_ends_whatever_is_being_read(server, reads):
    """One range, one long read over several connections, and reading ahead."""
    source = HttpSource.open(server.url(), head=1000, block=BLOCK, patience=Patience())
    server.faults.extend([None] * (len(reads) - 1) + [Fault(stall=4)] * 8)
    caught = []

    def read():
        try:
            for start, stop in reads:
                source.read(start, stop)
        except errors.Cancelled as error:
            caught.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    while len(server.seen) < 1 + len(reads):
        time.sleep(0.01)
    time.sleep(0.05)
    began = time.monotonic()
    source.close()
    source.close()
    reader.join()
    assert time.monotonic() - began < 2
    assert caught
    with pytest.raises(errors.Cancelled):
        source.read(0, len(DATA))


def test_descriptors_and_threads_go_back(server):
    forget_connections()
    process = psutil.Process()
    before = process.num_fds()
    with source_of(server) as source:
        in_pieces(source, len(DATA))
        assert process.num_fds() > before
    assert not [t for t in threading.enumerate() if t.name.startswith("hilm-http")]
    assert not POOL._idle
    deadline = time.monotonic() + 5
    while process.num_fds() > before and time.monotonic() < deadline:
        time.sleep(0.02)  # the server closes its ends in its own time
    assert process.num_fds() <= before


def test_bounds_and_urls_are_checked(server):
    with source_of(server) as source:
        for start, stop in ((0, len(DATA) + 1), (len(DATA), len(DATA) + 1)):
            with pytest.raises(errors.TruncatedFile):
                source.read(start, stop)
        assert source.read(len(DATA), len(DATA)) == b""
    for url in ("ftp://x/y", "http://", "/etc/passwd", f"http://me:{SECRET}@localhost/x", "http://x y/"):
        with pytest.raises(errors.UsageError) as caught:
            HttpSource.open(url)
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize("value", [f"{SECRET}\r\nX-Other: 1", f"{SECRET}\n", f"{SECRET}\u2713"])
def test_headers_that_cannot_be_sent_are_not_shown(server, value):
    with pytest.raises(errors.UsageError) as caught:
        source_of(server, headers={"X-Key": value})
    assert SECRET not in str(caught.value)
    assert not server.seen


def test_empty_files(server):
    server.files["/none"] = b""
    with source_of(server, "/none", size=0) as source:
        assert source.read(0, 0) == b""
    with pytest.raises(errors.NetworkError):
        source_of(server, "/none")


def test_secrets_are_shown_nowhere(server):
    server.always["/file"] = Fault(500)
    with pytest.raises(errors.NetworkError) as caught:
        HttpSource.open(server.url(f"/file?key={SECRET}"), headers=PRIVATE, patience=BRISK)
    chain, seen = caught.value, []
    while chain is not None:
        seen.append(repr(chain) + str(chain))
        chain = chain.__cause__ or chain.__context__
    assert SECRET not in "".join(seen)
    server.always.clear()
    with source_of(server, headers=PRIVATE) as source:
        assert SECRET not in repr(source) + source.name


@pytest.mark.slow
def test_latency_is_hidden(tmp_path):
    size, block, latency = 256 << 20, 8 << 20, 0.05
    path = tmp_path / "big"
    path.write_bytes(os.urandom(1 << 20) * (size >> 20))
    out = np.empty(1 << 20, np.uint8)

    def rate(delay, connections):
        with subprocess.Popen(
            [sys.executable, "-m", "tests.servers", str(path), str(delay)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            url = f"http://127.0.0.1:{int(process.stdout.readline())}/file"
            with closing(HttpSource.open(url, connections=connections)) as source:
                began = time.perf_counter()
                for at in range(0, size, len(out)):
                    source.read_into(at, out)
                took = time.perf_counter() - began
            process.stdin.close()
        return size / took

    bandwidth = max(rate(0, 1) for _ in range(2))
    for connections in (1, 4):
        formula = connections * block / (latency + block / bandwidth)
        best = max(rate(latency, connections) for _ in range(3))
        print(f"{connections} connections: {best / 1e6:.0f} MB/s, formula {formula / 1e6:.0f}")  # noqa: T201
        assert best >= 0.6 * formula
