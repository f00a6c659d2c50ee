from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import hilm
from hilm.cluster.ray_driver import code, run
from tests.cluster import jobs


def test_a_worker_answers_with_the_pickled_value_and_where_it_was():
    reply, error, seconds, place = run(code(), pickle.dumps((jobs.square, 7)))
    assert (pickle.loads(reply), error) == (49, None)
    assert seconds >= 0
    assert place.startswith("pid ")


def test_a_worker_answers_with_the_error():
    reply, error, _, _ = run(code(), pickle.dumps((jobs.refuse, "model")))
    assert reply is None
    assert (error.name, error.exit_code) == ("HeaderError", 2)


def test_a_request_that_cannot_be_read_is_an_error_of_its_task():
    reply, error, _, _ = run(code(), b"cno.such.module\nf\n.")
    assert reply is None
    assert error.name == "ModuleNotFoundError"


def test_a_worker_of_another_code_does_not_look_at_the_task():
    answer = run("another code", b"no pickle")
    assert isinstance(answer, str)
    assert f"hilm {hilm.__version__}, code {code()}" in answer


def test_the_digest_is_that_of_the_source(tmp_path):
    copy = shutil.copytree(Path(hilm.__file__).parent, tmp_path / "hilm")
    program = [sys.executable, "-c", "from hilm.cluster.ray_driver import code; print(code())"]

    def digest():
        return subprocess.run(
            program, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=True
        ).stdout.strip()

    assert digest() == code()
    (copy / "errors.py").write_text((copy / "errors.py").read_text() + "\n")
    assert digest() != code()
