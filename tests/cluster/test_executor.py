from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilm.cluster import Outcome, SerialExecutor, Task, TaskError, open_executor
from hilm.cluster.executor import without_secrets
from hilm.errors import MissingExtra, NetworkError, UsageError
from tests.cluster import jobs
from tests.cluster.fake import FakeCluster


def tasks(*payloads):
    return [Task(str(number).encode(), payload) for number, payload in enumerate(payloads)]


def test_serial_yields_every_outcome_in_order():
    outcomes = list(SerialExecutor().map_unordered(jobs.square, tasks(1, 2, 3)))
    assert [o.value for o in outcomes] == [1, 4, 9]
    assert [o.task.key for o in outcomes] == [b"0", b"1", b"2"]
    assert all(o.error is None and o.attempts == 1 and o.seconds >= 0 for o in outcomes)


def test_serial_pulls_tasks_lazily():
    pulled = []

    def source():
        for task in tasks(1, 2, 3):
            pulled.append(task)
            yield task

    outcomes = SerialExecutor().map_unordered(jobs.square, source())
    assert pulled == []
    next(outcomes)
    assert len(pulled) == 1


def test_a_failing_task_does_not_disturb_the_others():
    outcomes = list(SerialExecutor().map_unordered(jobs.square, tasks(2, "two", 3)))
    assert [o.value for o in outcomes] == [4, None, 9]
    error = outcomes[1].error
    assert error is not None
    assert (error.name, error.exit_code, error.transient) == ("TypeError", 1, False)
    assert "return number * number" in error.traceback


def test_bad_input_is_not_tried_again_and_keeps_its_advice():
    (outcome,) = SerialExecutor().map_unordered(jobs.refuse, tasks("model"))
    assert outcome.attempts == 1
    assert outcome.error == TaskError(
        "HeaderError", "model is bad [overlap]", "fetch it again", 2, False, outcome.error.traceback
    )


@pytest.mark.parametrize(
    ("failures", "retries", "attempts", "value"), [(2, 3, 3, "done"), (9, 3, 4, None), (9, 0, 1, None)]
)
def test_transient_errors_are_tried_again(tmp_path, failures, retries, attempts, value):
    payload = (str(tmp_path / "marks"), failures)
    (outcome,) = SerialExecutor().map_unordered(jobs.flaky, tasks(payload), retries=retries)
    assert (outcome.attempts, outcome.value) == (attempts, value)
    assert (outcome.error is None) == (value is not None)


def test_keyboard_interrupt_is_not_an_outcome():
    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(SerialExecutor().map_unordered(interrupt, tasks(1)))


@pytest.mark.parametrize(
    ("error", "code", "transient"),
    [
        (NetworkError("no route"), 5, True),
        (TimeoutError("slow"), 1, True),
        (MissingExtra("no torch", hint="pip install it"), 4, False),
        (MemoryError(), 1, False),
    ],
)
def test_task_error_describes_exceptions(error, code, transient):
    described = TaskError.of(error)
    assert (described.name, described.exit_code, described.transient) == (
        type(error).__name__,
        code,
        transient,
    )
    assert described.hint == getattr(error, "hint", "")


def test_outcomes_survive_pickling():
    (outcome,) = SerialExecutor().map_unordered(jobs.raise_unpicklable, tasks(1))
    assert isinstance(outcome, Outcome)
    assert pickle.loads(pickle.dumps(outcome)) == outcome


def test_secrets_are_removed_from_messages_and_tracebacks():
    token = "hf_" + "AbCd1234" * 4
    (outcome,) = SerialExecutor().map_unordered(jobs.leak, tasks(token))
    assert token not in outcome.error.message + outcome.error.traceback
    assert "https://***@hub/x?a=1&*** with *** failed" in outcome.error.message


@given(st.integers(), st.integers(1, 8), st.integers(0, 30))
def test_whatever_a_cluster_does_wrong_results_are_the_serial_ones(seed, workers, count):
    work = tasks(*range(count), "not a number")
    fake = list(FakeCluster(seed, workers).map_unordered(jobs.square, work))
    serial = list(SerialExecutor().map_unordered(jobs.square, work))
    assert {(o.task.key, o.value, o.error and o.error.name) for o in fake} == {
        (o.task.key, o.value, o.error and o.error.name) for o in serial
    }
    assert len(fake) == len(work)


def test_a_pool_gives_up_a_task_after_its_retries_and_stops_when_it_is_abandoned():
    cluster = FakeCluster(3)
    outcomes = list(cluster.map_unordered(jobs.square, tasks(*range(200)), retries=0))
    lost = [o for o in outcomes if o.error]
    assert len(outcomes) == 200
    assert {(o.attempts, o.error.name) for o in lost} == {(1, "WorkerError")}
    outcomes = cluster.map_unordered(jobs.square, tasks(*range(200)), max_in_flight=3)
    next(outcomes)
    assert len(cluster._waiting) <= 3
    outcomes.close()
    assert cluster._waiting == []


@pytest.mark.parametrize("text", ["hf_transfer", "a key=1", "org/model at 1e3f", "http://host/path?x=1"])
def test_harmless_text_stays(text):
    assert without_secrets(text) == text


def test_open_executor():
    with open_executor("serial") as serial, open_executor("process", 3) as process:
        assert (serial.name, serial.workers) == ("serial", 1)
        assert (process.name, process.workers) == ("process", 3)
    with open_executor("process") as process:
        assert process.workers >= 1


def test_open_executor_refuses_what_is_not_there():
    with pytest.raises(UsageError, match="clowder"):
        open_executor("clowder")
    with pytest.raises(UsageError, match="0 workers"):
        open_executor("process", 0)
