"""The process between an executor and Ray, and what Ray's workers run."""

from __future__ import annotations

import hashlib
import logging
import os
import socket
from functools import cache, partial
from importlib.metadata import version
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeAlias

from threadpoolctl import threadpool_limits

from hilm.cluster.executor import TaskError, attempt
from hilm.cluster.process import RECYCLE_AFTER, call, listen
from hilm.errors import ClusterMismatch, HilmError, NetworkError
from hilm.extras import require

if TYPE_CHECKING:
    from concurrent.futures import Future
    from multiprocessing.connection import Connection

OBJECT_STORE = 200_000_000
"""Bytes of shared memory for results over 100 KiB; what does not fit goes to disk."""

_LOOPBACK = "127.0.0.1"
_KNOCK_SECONDS = 10.0

Answer: TypeAlias = tuple[bytes | None, TaskError | None, float, str]
"""A pickled value or why there is none, seconds, and where it ran."""


def serve(descriptor: int) -> None:
    """Hand requests from a socket to Ray, and its answers back, until the socket closes."""
    connection, inbox = listen(descriptor)
    try:
        ray = _join(*ForkingPickler.loads(inbox.get()))
    except HilmError as error:
        connection.send(error)
        return
    connection.send(int(ray.cluster_resources().get("CPU", 0)) or 1)
    answers: SimpleQueue[tuple[int, Answer | HilmError]] = SimpleQueue()
    Thread(target=_send, args=(connection, answers), daemon=True).start()
    task, running = ray.remote(max_retries=0, max_calls=RECYCLE_AFTER)(run), {}
    while True:
        number, request = ForkingPickler.loads(inbox.get())
        if request is not None:
            running[number] = task.remote(code(), request)
            running[number].future().add_done_callback(partial(_done, ray, number, running, answers))
        elif (late := running.get(number)) is not None:
            ray.cancel(late, force=True)


def _join(address: str, workers: int | None, folder: str) -> Any:  # noqa: ANN401 - Ray is optional
    """Connect to a cluster, or start one here; returns the module."""
    ray = require("ray")
    if address != "local":
        _knock(address)
    logging.getLogger("ray").setLevel(logging.ERROR)
    options: dict[str, Any] = {"address": address, "logging_level": logging.ERROR, "log_to_driver": False}
    if address == "local":
        options |= {
            "num_cpus": workers,
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE,
            "_node_ip_address": _LOOPBACK,
            "_temp_dir": folder,
        }
    try:
        ray.init(**options)
    except RuntimeError as error:
        if "Version mismatch" not in str(error):
            raise
        raise ClusterMismatch(" ".join(str(error).split())) from error
    return ray


def _knock(address: str) -> None:
    """Find out quickly that nobody listens: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise NetworkError(
            f"no Ray cluster at {address}: {error}", hint="start one: ray start --head"
        ) from error


def _send(connection: Connection, answers: SimpleQueue[tuple[int, Answer | HilmError]]) -> None:
    while True:
        connection.send(answers.get())


def _done(
    ray: Any,  # noqa: ANN401 - the module
    number: int,
    running: dict[int, Any],
    answers: SimpleQueue[tuple[int, Answer | HilmError]],
    future: Future[Answer | str],
) -> None:
    """Pass on what became of a task: its answer, a worker that was lost, or a machine that cannot do it."""
    del running[number]
    error = future.exception()
    if isinstance(error, ray.exceptions.RayTaskError):  # before our own code: `run` raises nothing
        last = str(error).strip().split("\n")[-1]
        answers.put((number, ClusterMismatch(f"a machine of the cluster cannot run hilm: {last}")))
    elif error is not None:
        lost = TaskError(
            "WorkerError", _first_line(error), "if memory ran out, use fewer workers", transient=True
        )
        answers.put((number, (None, lost, 0.0, "lost")))
    elif isinstance(answer := future.result(), str):
        answers.put((number, ClusterMismatch(f"{answer}; this is hilm {version('hilm')}, code {code()}")))
    else:
        answers.put((number, answer))


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def run(expected: str, request: bytes) -> Answer | str:
    """Run a pickled task in a worker of Ray, with BLAS on one thread.

    Returns:
        The answer; or what there is here, if it is not the ``expected`` code.
    """
    place = f"pid {os.getpid()} on {socket.gethostname()}"
    if code() != expected:
        return f"{place} has hilm {version('hilm')}, code {code()}"
    with threadpool_limits(1, "blas"):
        reply, error, seconds = attempt(call, request)
    return (None if error else bytes(reply)), error, seconds, place


@cache
def code() -> str:
    """A digest of hilm's source: what it computes may differ where this does."""
    digest, root = hashlib.sha256(), Path(__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
