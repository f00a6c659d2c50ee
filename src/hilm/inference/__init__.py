"""Eight tasks on texts with any model that has the head for them."""

from __future__ import annotations

from hilm.inference.runner import Runner, create, run_task
from hilm.inference.tasks import TASKS, Task, find_task

__all__ = ["TASKS", "Runner", "Task", "create", "find_task", "run_task"]
