"""A cluster in one process that does, by seed, everything a real one may do wrong."""

from __future__ import annotations

import random

from hilm.cluster import Outcome, TaskError
from hilm.cluster.executor import Pool, attempt

LOST = TaskError("WorkerError", "the worker was lost", transient=True)


class FakeCluster(Pool):
    """Runs a task once or twice, late and in any order; a worker that is lost takes several with it.

    No task is lost more than three times: with that, the contract demands a result.
    """

    name = "fake"

    def __init__(self, seed, workers=4):
        self.workers = workers
        self.calls = 0
        self._random = random.Random(seed)
        self._waiting = []

    def hand_out(self, fn, task, attempts):
        self._waiting.append((fn, task, attempts))

    def collect(self, timeout_s):
        self._random.shuffle(self._waiting)
        ready = self._random.randrange(len(self._waiting) + 1)  # none: all are late
        ended, self._waiting = self._waiting[:ready], self._waiting[ready:]
        crash = self._random.random() < 0.3
        return [self._end(*job, lost=crash and job[2] <= 3) for job in ended]

    def _end(self, fn, task, attempts, *, lost):
        value, error, seconds = None, LOST, 0.0
        if not lost or self._random.random() < 0.5:  # a lost worker may have been done, and not have told
            for _ in range(self._random.choice([1, 1, 2])):
                value, error, seconds = attempt(fn, task.payload)
                self.calls += 1
        if lost:
            value, error = None, LOST
        return Outcome(task, value, error, attempts, seconds, "fake")

    def abandon(self):
        self._waiting.clear()
