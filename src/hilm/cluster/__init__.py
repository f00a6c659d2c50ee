"""One function over many tasks: in this process, in worker processes, later on many machines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hilm.cluster.executor import Executor, Outcome, SerialExecutor, Task, TaskError
from hilm.cluster.process import ProcessExecutor
from hilm.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "Executor",
    "Outcome",
    "ProcessExecutor",
    "SerialExecutor",
    "Task",
    "TaskError",
    "open_executor",
]


def open_executor(
    name: str, workers: int | None = None, *, initializer: Callable[[], None] | None = None
) -> Executor:
    """Open an executor; close it, or use it as a context manager.

    Args:
        name: ``serial`` or ``process``.
        workers: Number of processes; all usable CPUs if None.
        initializer: An importable function that each worker process calls first.

    Raises:
        UsageError: There is no executor of this name, or ``workers`` is less than 1.
    """
    if name == "serial":
        return SerialExecutor()
    if name == "process":
        return ProcessExecutor(workers, initializer=initializer)
    raise UsageError(f"there is no executor {name!r}", hint="choose serial or process")
