"""One function over many tasks: in this process, in worker processes, on many machines."""

from __future__ import annotations

from hilm.cluster.executor import Executor, Outcome, SerialExecutor, Task, TaskError
from hilm.cluster.process import ProcessExecutor
from hilm.cluster.ray_executor import RayExecutor
from hilm.errors import UsageError

__all__ = [
    "Executor",
    "Outcome",
    "ProcessExecutor",
    "RayExecutor",
    "SerialExecutor",
    "Task",
    "TaskError",
    "open_executor",
]


def open_executor(name: str, workers: int | None = None, *, address: str | None = None) -> Executor:
    """Open an executor; close it, or use it as a context manager.

    Args:
        name: ``serial``, ``process`` or ``ray``.
        workers: Number of processes; all usable CPUs if None.
        address: For Ray, ``host:port`` of a running cluster or ``local``.

    Raises:
        UsageError: There is no executor of this name, or ``workers`` is less than 1.
        MissingExtra: Ray is not installed.
        WorkerError: Ray does not start.
    """
    if name == "serial":
        return SerialExecutor()
    if name == "process":
        return ProcessExecutor(workers)
    if name == "ray":
        return RayExecutor(address or "local", workers)
    raise UsageError(f"there is no executor {name!r}", hint="choose serial, process or ray")
