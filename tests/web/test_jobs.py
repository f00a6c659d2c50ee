from __future__ import annotations

import time

import pytest

from hilm.errors import UsageError
from hilm.store import Store
from hilm.web import jobs as rooms
from hilm.web.jobs import Jobs
from tests.tiny import bert_like, write_model
from tests.web.conftest import SIZES

LARGE = SIZES | {"layers": 2, "width": 512, "hidden": 2048}  # seconds of work, few tensors


def ended(jobs, number, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        job = next(job for job in jobs.list() if job.number == number)
        if not job.active:
            return job
        time.sleep(0.02)
    pytest.fail(f"job {number} is still {job.state}")


@pytest.fixture
def jobs(tmp_path):
    found = Jobs(tmp_path / "store")
    yield found
    found.close()


def test_models_come_into_the_store(house, jobs, tmp_path):
    filmed, indexed = (jobs.start(str(house / n), m) for n, m in (("late", "archive"), ("base", "index")))
    job = ended(jobs, filmed.number)
    assert (job.state, job.name, job.problem) == ("done", "late", ("", ""))
    assert job.values == job.total > 10_000
    assert job.memory > 1 << 20
    assert job.layer.endswith("weight")
    assert ended(jobs, indexed.number).name == "base"
    rows = {row["model"]: row["mode"] for row in Store(tmp_path / "store").list()["models"]}
    assert rows == {"late": "archive", "base": None}


def test_a_job_that_cannot_be_done_says_why(tmp_path, jobs):
    (tmp_path / "nothing").mkdir()
    job = ended(jobs, jobs.start(str(tmp_path / "nothing"), "archive").number)
    assert job.state == "failed"
    assert job.problem[0]
    assert job.problem[1]


def test_a_running_job_is_cancelled_and_leaves_no_model(tmp_path, jobs):
    folder = write_model(tmp_path / "large", bert_like(5, **LARGE))
    job = jobs.start(str(folder), "archive")
    while not next(iter(jobs.list())).values:
        time.sleep(0.005)
    jobs.cancel(job.number)
    assert ended(jobs, job.number).state == "cancelled"
    store = Store(tmp_path / "store")
    assert store.list()["models"] == []
    assert not [path for path in store.reels.glob("*") if path.suffix == ".mp4"]


def test_two_run_and_the_rest_wait(tmp_path, jobs, monkeypatch):
    folders = [write_model(tmp_path / f"m{k}", bert_like(k, **LARGE)) for k in range(4)]
    for folder in folders:
        jobs.start(str(folder), "index")
    seen = set()
    while any(job.active for job in jobs.list()):
        seen.add(sum(job.state == "running" for job in jobs.list()))
        time.sleep(0.005)
    assert max(seen) <= rooms.AT_ONCE
    assert [job.state for job in jobs.list()] == ["done"] * 4


def test_closing_cancels_what_waits(tmp_path):
    folder, jobs = write_model(tmp_path / "large", bert_like(5, **LARGE)), Jobs(tmp_path / "store")
    for _ in range(4):
        jobs.start(str(folder), "archive")
    jobs.close()
    assert {job.state for job in jobs.list()} <= {"cancelled", "done"}
    assert sum(job.state == "cancelled" for job in jobs.list()) >= 2


@pytest.mark.parametrize(("model", "mode"), [("", "archive"), ("x", "nonsense")])
def test_what_cannot_be_started(jobs, model, mode):
    with pytest.raises(UsageError):
        jobs.start(model, mode)
    assert jobs.list() == ()


def test_there_is_an_end_to_waiting(tmp_path, jobs, monkeypatch):
    monkeypatch.setattr(rooms, "MOST", 2)
    folder = str(write_model(tmp_path / "large", bert_like(5, **LARGE)))
    for _ in range(2):
        jobs.start(folder, "archive")
    with pytest.raises(UsageError, match="waiting"):
        jobs.start(folder, "archive")
