from __future__ import annotations

import pytest

from hilm.errors import UsageError
from hilm.store import plan_hub

# Tier: bytes, calls of the Hub, ranges, quota hours of the free, the PRO and the largest plan, worker-hours
PUBLISHED = {
    "listing": (30e9, 2.2e6, 0, (183, 73, 18), None),
    "headers": (0.9e12, 3.3e6, 3.3e6, (55, 23, 3), 12),
    "sample": (148e12, 0, 35e6, (0, 0, 0), 270),
    "everything": (22e15, 0, 2.6e9, (0, 0, 0), 30_600),
}


def test_the_whole_hub_costs_what_the_design_says():
    tiers = {tier["tier"]: tier for tier in plan_hub()["tiers"]}
    assert list(tiers) == list(PUBLISHED)
    for name, (size, calls, ranges, quotas, hours) in PUBLISHED.items():
        tier = tiers[name]
        assert tier["bytes"] == pytest.approx(size, rel=0.05)
        assert tier["api_calls"] + tier["resolver_calls"] == pytest.approx(calls)
        assert tier["range_requests"] == pytest.approx(ranges, rel=0.01)
        assert list(tier["quota_hours"].values()) == pytest.approx(quotas, abs=0.5)
        assert tier["worker_hours"] == (hours if hours is None else pytest.approx(hours, rel=0.06))


@pytest.mark.parametrize(("workers", "sample", "days"), [(16, 17, 80), (64, 4.2, 20), (256, 1.1, 5)])
def test_workers_share_the_work_but_not_the_quota(workers, sample, days):
    tiers = {tier["tier"]: tier for tier in plan_hub(2_200_000, workers=workers)["tiers"]}
    assert tiers["sample"]["hours"] == pytest.approx(sample, rel=0.06)
    assert tiers["everything"]["hours"] / 24 == pytest.approx(days, rel=0.01)
    assert tiers["listing"]["hours"] is None
    assert tiers["listing"]["quota_hours"] == plan_hub(workers=1)["tiers"][0]["quota_hours"]


def test_costs_grow_with_the_models():
    small, large = plan_hub(1000)["tiers"], plan_hub(3000)["tiers"]
    assert large[2]["bytes"] == 3 * small[2]["bytes"] == 3000 * (64 << 20)
    with pytest.raises(UsageError):
        plan_hub(0)
    with pytest.raises(UsageError):
        plan_hub(1, workers=0)
