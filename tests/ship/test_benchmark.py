from __future__ import annotations

import pytest

from hilm.errors import UsageError
from hilm.ship import bench


def test_both_sides_are_timed(models):
    report = bench(models["gpt2"], lengths=(4, 4096), runs=1)
    assert report.ok
    assert [speed.length for speed in report.forward] == [4]
    (speed,) = report.forward
    assert min(speed.torch_ms, speed.onnxruntime_ms) > 0
    assert speed.speedup == pytest.approx(speed.torch_ms / speed.onnxruntime_ms)
    assert report.step_tokens_per_second is None


def test_lengths_that_the_model_does_not_take(models):
    with pytest.raises(UsageError, match="at most 48"):
        bench(models["gpt2"], lengths=(4096,))
