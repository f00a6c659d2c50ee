from __future__ import annotations

import shutil
import socket
from pathlib import Path

import psutil
import pytest

import hilm
from hilm.cluster import SerialExecutor, open_executor
from hilm.cluster.process import ONE_THREAD
from hilm.errors import ClusterMismatch, MissingExtra, NetworkError, UsageError, WorkerError
from tests.cluster import jobs
from tests.cluster.ray_nodes import family, foreign_sockets, left_over, local_ray, two_nodes
from tests.cluster.test_process import gone, run_script, tasks, values, wait_for


def folders():
    """What executors have put on the disk."""
    return sorted(Path("/tmp").glob("hilm-ray-*"))


@pytest.mark.parametrize("address", ["", "auto", "ray://host:10001", "host", "host:port", "a b:1", "local:"])
def test_only_an_address_is_one(address):
    with pytest.raises(UsageError, match="no address"):
        open_executor("ray", address=address or " ")


def test_no_workers_cannot_do_anything():
    with pytest.raises(UsageError, match="0 workers"):
        open_executor("ray", 0)


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "ray.py").write_text("raise ModuleNotFoundError('no ray', name='ray')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtra, match="'ray'") as caught:
        open_executor("ray")
    assert caught.value.hint == 'pip install "hilm[cluster]"'


def test_a_start_that_aborts_is_tried_twice_and_says_why(tmp_path, monkeypatch):
    marks = tmp_path / "marks"
    (tmp_path / "ray.py").write_text(
        f"import os; open({str(marks)!r}, 'a').write('x'); print('raylet: no room', flush=True); os.abort()"
    )
    monkeypatch.syspath_prepend(tmp_path)
    before = folders()
    with pytest.raises(WorkerError, match="Ray ended while it started: raylet: no room"):
        open_executor("ray")
    assert marks.read_text() == "xx"
    assert folders() == before


def test_where_nobody_listens_there_is_no_cluster():
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(NetworkError, match=f"no Ray cluster at {address}"):
            open_executor("ray", address=address)


@pytest.fixture(scope="module")
def pool():
    with local_ray(2) as executor:
        yield executor


@pytest.mark.cluster
class TestLocal:
    def test_results_equal_serial(self, pool):
        work = tasks(*range(50), "not a number")
        ray, serial = (
            {(o.task.key, o.value, o.error and o.error.name) for o in e.map_unordered(jobs.square, work)}
            for e in (pool, SerialExecutor())
        )
        assert ray == serial
        assert len(ray) == 51

    def test_workers_compute_on_one_thread(self, pool):
        assert set(values(pool.map_unordered(jobs.environment, tasks(*ONE_THREAD))).values()) == {"1"}

    def test_large_results(self, pool):
        got = values(pool.map_unordered(jobs.ten_megabytes, tasks(1, 2, 3)))
        assert got == {str(n).encode(): bytes([n + 1]) * 10_000_000 for n in range(3)}

    def test_errors_travel_with_their_advice(self, pool):
        (outcome,) = pool.map_unordered(jobs.refuse, tasks("model"))
        (expected,) = SerialExecutor().map_unordered(jobs.refuse, tasks("model"))
        for field in ("name", "message", "hint", "exit_code", "transient"):
            assert getattr(outcome.error, field) == getattr(expected.error, field)

    @pytest.mark.parametrize("fn", [jobs.raise_unpicklable, jobs.return_unpicklable])
    def test_what_cannot_be_pickled_is_an_error_of_its_task(self, pool, fn):
        (outcome,) = pool.map_unordered(fn, tasks(1))
        assert outcome.error is not None
        assert outcome.attempts == 1

    def test_a_task_may_survive_the_death_of_its_worker(self, pool, tmp_path):
        work = tasks((str(tmp_path / "marks"), 2), None, None)
        outcomes = {o.task.key: o for o in pool.map_unordered(jobs.die, work)}
        assert (outcomes[b"0"].value, outcomes[b"0"].attempts) == ("survived", 3)
        assert {o.attempts for o in outcomes.values()} == {1, 3}

    def test_a_task_that_kills_every_worker_is_given_up(self, pool, tmp_path):
        (outcome,) = pool.map_unordered(jobs.die, tasks((str(tmp_path / "marks"), 99)), retries=1)
        assert (outcome.value, outcome.attempts, outcome.error.name) == (None, 2, "WorkerError")

    def test_a_hanging_task_is_killed_and_the_others_finish(self, pool, tmp_path):
        work = tasks(str(tmp_path / "marks"), None, None)
        outcomes = {o.task.key: o for o in pool.map_unordered(jobs.hang, work, timeout_s=6, retries=0)}
        assert "no result within 6 s" in outcomes[b"0"].error.message
        assert [outcomes[key].value for key in (b"1", b"2")] == ["quick", "quick"]

    def test_nothing_listens_to_the_network(self, pool):
        assert len(values(pool.map_unordered(jobs.square, tasks(*range(4))))) == 4
        assert len(family()) > 4
        assert foreign_sockets(family()) == []

    def test_an_abandoned_iterator_stops_its_tasks_and_the_next_starts_again(self, pool):
        outcomes = pool.map_unordered(jobs.sleep, tasks(0, 600, 600))
        assert next(outcomes).value == 0
        outcomes.close()
        assert left_over() == []
        assert [o.value for o in pool.map_unordered(jobs.square, tasks(3))] == [9]

    def test_closing_leaves_neither_process_nor_file(self, pool):
        assert list(pool.map_unordered(jobs.square, tasks(1)))
        pool.close()
        assert left_over(0) == []
        assert folders() == []

    def test_everything_ends_with_a_killed_parent(self, tmp_path):
        path = tmp_path / "pids"
        script = run_script(tmp_path, "spawn_sleeper", str(path), executor="ray")
        worker, sleeper = map(int, wait_for(path, 200).split())
        started = {process.pid for process in psutil.Process(script.pid).children(recursive=True)}
        assert {worker, sleeper} < started
        script.kill()
        script.communicate(timeout=20)
        psutil.Process(sleeper).kill()  # what a task itself starts is not Ray's
        for folder in folders():
            shutil.rmtree(folder)  # nobody is left to do it
        assert all(gone(pid) for pid in started)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with two_nodes(tmp_path_factory.mktemp("nodes")) as (address, _):
        yield address


@pytest.mark.cluster
class TestTwoNodes:
    def test_both_work_and_no_secret_is_sent(self, cluster, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 30)
        with open_executor("ray", address=cluster) as executor:
            assert executor.workers == 4
            (outcome,) = executor.map_unordered(jobs.environment, tasks("HF_TOKEN"))
            assert (outcome.value, outcome.error) == (None, None)
            assert values(executor.map_unordered(jobs.square, tasks(*range(100)))) == values(
                SerialExecutor().map_unordered(jobs.square, tasks(*range(100)))
            )
            assert foreign_sockets(family()) == []

    def test_another_hilm_is_refused(self, cluster, tmp_path, monkeypatch):
        other = shutil.copytree(Path(hilm.__file__).parent, tmp_path / "hilm")
        (other / "added.py").touch()
        monkeypatch.syspath_prepend(tmp_path)
        with open_executor("ray", address=cluster) as executor, pytest.raises(ClusterMismatch, match="code"):
            list(executor.map_unordered(jobs.square, tasks(1)))

    def test_workers_may_be_limited(self, cluster):
        with open_executor("ray", 1, address=cluster) as executor:
            assert executor.workers == 1

    def test_a_lost_driver_is_an_error_and_the_next_call_starts_another(self, cluster):
        with open_executor("ray", 2, address=cluster) as executor:
            outcomes = executor.map_unordered(jobs.sleep, tasks(0, 60, 60))
            assert next(outcomes).value == 0
            executor._driver.process.kill()
            with pytest.raises(WorkerError, match=f"Ray at {cluster} was lost"):
                list(outcomes)
            assert values(executor.map_unordered(jobs.square, tasks(2, 3))) == {b"0": 4, b"1": 9}
