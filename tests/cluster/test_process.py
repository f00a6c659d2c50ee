from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import psutil
import pytest

from hilm.cluster import ProcessExecutor, SerialExecutor, Task
from hilm.cluster.process import ONE_THREAD, RECYCLE_AFTER
from hilm.errors import HilmError
from tests.cluster import jobs


def children():
    return {child.pid for child in psutil.Process().children(recursive=True)}


@pytest.fixture(scope="module")
def before():
    """Processes that other tests have started."""
    return children()


@pytest.fixture(scope="module")
def pool(before):
    with ProcessExecutor(2) as executor:
        yield executor


@pytest.fixture(autouse=True)
def _nothing_is_left(pool, before):
    yield
    assert children() - before == {worker.process.pid for worker in pool._idle}


def tasks(*payloads):
    return [Task(str(number).encode(), payload) for number, payload in enumerate(payloads)]


def values(outcomes):
    return {outcome.task.key: outcome.value for outcome in outcomes}


def gone(pid):
    """Whether a process ends within five seconds."""
    deadline = time.monotonic() + 5
    with suppress(psutil.NoSuchProcess):
        while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
    return True


def wait_for(path, seconds=20):
    deadline = time.monotonic() + seconds
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return path.read_text()


def test_results_equal_serial(pool):
    work = tasks(*range(50), "not a number")
    got = {(o.task.key, o.value, o.error and o.error.name) for o in pool.map_unordered(jobs.square, work)}
    want = {
        (o.task.key, o.value, o.error and o.error.name)
        for o in SerialExecutor().map_unordered(jobs.square, work)
    }
    assert got == want
    assert len(got) == 51


def test_every_task_yields_exactly_once(pool):
    keys = [o.task.key for o in pool.map_unordered(jobs.square, tasks(*range(100)))]
    assert len(keys) == len(set(keys)) == 100


def test_no_tasks_no_workers():
    with ProcessExecutor(2) as executor:
        assert list(executor.map_unordered(jobs.square, [])) == []
        assert executor._idle == []


def test_one_task_starts_one_worker():
    with ProcessExecutor(2) as executor:
        assert [o.value for o in executor.map_unordered(jobs.square, tasks(7))] == [49]
        assert len(executor._idle) == 1


@pytest.mark.parametrize("limit", [None, 1])
def test_tasks_are_pulled_lazily(pool, limit):
    pulled = []

    def source():
        for task in tasks(*range(20)):
            pulled.append(task)
            yield task

    for seen, _ in enumerate(pool.map_unordered(jobs.square, source(), max_in_flight=limit), start=1):
        assert len(pulled) - seen <= (limit or 2) * 2


def test_workers_are_others_and_are_reused(pool):
    first = set(values(pool.map_unordered(jobs.pid, tasks(*range(20)))).values())
    second = set(values(pool.map_unordered(jobs.pid, tasks(*range(20)))).values())
    assert os.getpid() not in first
    assert len(first | second) <= 2


def test_workers_are_replaced_in_time():
    with ProcessExecutor(1) as executor:
        pids = [o.value for o in executor.map_unordered(jobs.pid, tasks(*range(RECYCLE_AFTER + 1)))]
    assert len(set(pids[:RECYCLE_AFTER])) == 1
    assert pids[-1] != pids[0]


def test_workers_compute_on_one_thread_and_the_parent_keeps_its_environment(pool):
    before = dict(os.environ)
    assert set(values(pool.map_unordered(jobs.environment, tasks(*ONE_THREAD))).values()) == {"1"}
    assert dict(os.environ) == before


def test_large_results(pool):
    got = values(pool.map_unordered(jobs.ten_megabytes, tasks(1, 2, 3)))
    assert got == {str(n).encode(): bytes([n + 1]) * 10_000_000 for n in range(3)}


def test_errors_travel_with_their_advice(pool):
    (outcome,) = pool.map_unordered(jobs.refuse, tasks("model"))
    (expected,) = SerialExecutor().map_unordered(jobs.refuse, tasks("model"))
    for field in ("name", "message", "hint", "exit_code", "transient"):
        assert getattr(outcome.error, field) == getattr(expected.error, field)
    assert outcome.error.exit_code == 2


@pytest.mark.parametrize("fn", [jobs.raise_unpicklable, jobs.return_unpicklable])
def test_what_cannot_be_pickled_is_an_error_of_its_task(pool, fn):
    (outcome,) = pool.map_unordered(fn, tasks(1))
    assert outcome.value is None
    assert outcome.error.name in {"Unpicklable", "TypeError"}
    assert outcome.attempts == 1


def test_transient_errors_are_tried_again(pool, tmp_path):
    (outcome,) = pool.map_unordered(jobs.flaky, tasks((str(tmp_path / "marks"), 2)))
    assert (outcome.value, outcome.attempts) == ("done", 3)


def test_only_the_task_that_kills_its_worker_is_charged(pool, tmp_path):
    killer = (str(tmp_path / "marks"), 99)
    outcomes = {
        o.task.key: o for o in pool.map_unordered(jobs.die, tasks(None, killer, *[None] * 20), retries=2)
    }
    guilty = outcomes.pop(b"1")
    assert (guilty.error.name, guilty.error.transient, guilty.attempts) == ("WorkerError", True, 3)
    assert "-9" in guilty.error.message
    assert guilty.error.exit_code == HilmError.exit_code
    assert {(o.value, o.attempts) for o in outcomes.values()} == {("alive", 1)}
    assert len(outcomes) == 21


def test_a_task_may_survive_the_death_of_its_worker(pool, tmp_path):
    (outcome,) = pool.map_unordered(jobs.die, tasks((str(tmp_path / "marks"), 1)))
    assert (outcome.value, outcome.attempts, outcome.error) == ("survived", 2, None)


def test_a_half_sent_answer_is_a_death(pool, tmp_path):
    outcomes = pool.map_unordered(jobs.die_while_answering, tasks(None, str(tmp_path / "marks")))
    assert next(outcomes).value is None
    time.sleep(1.3)  # the other worker fills the socket and dies
    (outcome,) = outcomes
    assert (outcome.value, outcome.attempts) == (bytes(10_000_000), 2)


def test_a_worker_killed_from_outside_loses_no_task():
    with ProcessExecutor(2) as executor:
        outcomes = executor.map_unordered(jobs.pid, tasks(*range(60)))
        first = next(outcomes)
        os.kill(first.value, signal.SIGKILL)
        rest = list(outcomes)
    assert len({first.task.key, *(o.task.key for o in rest)}) == 60
    assert all(o.error is None for o in rest)


def test_a_hanging_task_is_killed_and_the_others_finish(tmp_path):
    path = tmp_path / "marks"
    with ProcessExecutor(2) as executor:
        work = tasks(None, str(path), None, None)
        outcomes = {o.task.key: o for o in executor.map_unordered(jobs.hang, work, timeout_s=2, retries=1)}
    hung = outcomes.pop(b"1")
    assert (hung.error.name, hung.attempts) == ("WorkerError", 2)
    assert "2 s" in hung.error.message
    assert path.read_text() == "xx"
    assert {o.value for o in outcomes.values()} == {"quick"}


def test_killing_a_worker_ends_what_it_started(tmp_path):
    path = tmp_path / "pids"
    with ProcessExecutor(1) as executor:
        (outcome,) = executor.map_unordered(jobs.spawn_sleeper, tasks(str(path)), timeout_s=2, retries=0)
    assert outcome.error is not None
    worker, sleeper = map(int, path.read_text().split())
    assert gone(worker)
    assert gone(sleeper)


def test_an_abandoned_iterator_stops_its_tasks():
    with ProcessExecutor(2) as executor:
        outcomes = executor.map_unordered(jobs.sleep, tasks(0, 600, 600))
        assert next(outcomes).value == 0
        start = time.monotonic()
        outcomes.close()
        assert time.monotonic() - start < 2
        assert [o.value for o in executor.map_unordered(jobs.square, tasks(3))] == [9]


def test_an_error_of_the_source_reaches_the_caller_and_stops_the_work():
    def source():
        yield Task(b"a", 600)
        raise OSError("disk")

    with ProcessExecutor(2) as executor, pytest.raises(OSError, match="disk"):
        list(executor.map_unordered(jobs.sleep, source()))


def test_an_interrupt_leaves_no_process():
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    executor = ProcessExecutor(2)
    timer.start()
    with pytest.raises(KeyboardInterrupt), executor:
        list(executor.map_unordered(jobs.sleep, tasks(600, 600)))
    timer.join()
    assert [c for c in psutil.Process().children() if "hilm.cluster.process" in c.cmdline()[2:3]] == []


SCRIPT = """
import sys
from hilm.cluster import Task, open_executor
from tests.cluster import jobs
executor = open_executor(sys.argv[3], 1)
print([o.value for o in executor.map_unordered(getattr(jobs, sys.argv[1]), [Task(b"k", sys.argv[2])])])
executor.close()
"""


def run_script(tmp_path, *arguments, executor="process"):
    (tmp_path / "script.py").write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, tmp_path / "script.py", *arguments, executor],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_script_needs_no_main_guard_and_its_stdout_stays_its_own(tmp_path):
    out, err = run_script(tmp_path, "say", "hello").communicate(timeout=60)
    assert out == "['hello']\n"
    assert "hello" in err


def test_workers_end_with_a_killed_parent(tmp_path):
    path = tmp_path / "pids"
    script = run_script(tmp_path, "spawn_sleeper", str(path))
    worker, sleeper = map(int, wait_for(path).split())
    script.kill()
    script.communicate(timeout=20)
    assert gone(worker)
    assert gone(sleeper)


def test_two_workers_are_productive_within_a_second():
    def start_up():
        start = time.monotonic()
        with ProcessExecutor(2) as executor:
            assert len(values(executor.map_unordered(jobs.square, tasks(1, 2)))) == 2
        return time.monotonic() - start

    assert min(start_up() for _ in range(3)) < 1.0
