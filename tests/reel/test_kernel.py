from __future__ import annotations

import numpy as np

from hilm.reel.kernel import kernel


@kernel
def total_of(values):
    total = 0.0
    for value in values:
        total += value
    return total


def test_kernels_compute_what_their_python_does_to_the_bit():
    values = np.random.default_rng(0).standard_normal(1000)
    assert total_of(values) == total_of.py_func(values)


def test_kernels_leave_the_interpreter_to_other_threads():
    assert total_of.targetoptions["nogil"]
