from __future__ import annotations

import pytest

from hilm.weights import MemoryMonitor, StreamingProgress


def test_time_left_is_told_after_half_a_second_and_ends_at_zero(monkeypatch):
    now = 100.0
    monkeypatch.setattr("hilm.weights.progress.time.perf_counter", lambda: now)
    progress, monitor = StreamingProgress("m", 1000, started=now), MemoryMonitor()
    lefts = []
    for _ in range(10):
        now += 0.25
        progress.processed_parameters += 100
        progress.refresh(monitor)
        lefts.append(progress.eta_seconds)
    assert lefts == [None, *(pytest.approx(0.25 * n) for n in range(8, -1, -1))]
    assert lefts[-1] == 0.0


def test_the_rate_follows_the_last_seconds_and_looks_are_rare(monkeypatch):
    now = 100.0
    monkeypatch.setattr("hilm.weights.progress.time.perf_counter", lambda: now)
    progress = StreamingProgress("m", 10**9, started=now)
    with MemoryMonitor() as monitor:
        for step in range(2000):  # 100 values a second for 10 seconds, then ten times as many
            now += 0.02
            progress.processed_parameters += 2 if step < 500 else 20
            progress.refresh(monitor)
    assert progress.processing_rate == pytest.approx(775)
    left = progress.total_parameters - progress.processed_parameters
    assert left / progress.eta_seconds == pytest.approx(1000, rel=0.01)
    assert progress.memory_usage_mb > 1
    progress.memory_usage_mb = 0.0
    now += 0.01
    progress.refresh(monitor)
    assert progress.memory_usage_mb == 0.0
