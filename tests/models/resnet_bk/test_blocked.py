from __future__ import annotations

import pytest
import torch

from hilm.models.resnet_bk.blocked import exported_fraction, exported_values
from tests.models.resnet_bk.test_scan import problem, sequential


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # inside the compiler
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("length", [1, 16, 33, 200])
def test_the_exported_form_is_the_recurrence(length, masked):
    a, start, x, first, keep = problem(length, masked)
    if masked:
        keep[0, :20] = False  # whole blocks that change nothing
    n = exported_fraction(a, start, keep)
    expected = sequential(a, start, x, first, keep)
    torch.testing.assert_close(n, expected[0], atol=1e-12, rtol=0)
    torch.testing.assert_close(exported_values(n, x, first, keep), expected[1], atol=1e-12, rtol=0)
