"""What it would take to read the whole Hub, on paper.

Four tiers, each with more of every model: a listing, its headers, a sample of its weights, all of them.
Workers read in several connections at a time; where latency and transfer follow each other, both count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hilm.errors import UsageError

HUB_MODELS = 2_200_000
WORKERS = 64
FILES = 1.5
"""Distinct weight files of a model, on average, after exact duplicates are left out."""

LISTING = 13_500
"""Bytes of a model's entry in the listing and its file tree."""

HEADER = 256 << 10
SAMPLE, SAMPLE_RANGES = 64 << 20, 16
MODEL, RANGE = 10_000_000_000, 8 << 20
RATE, LATENCY, CONNECTIONS = 200e6, 0.05, 8
"""Bytes a second of a worker, seconds of a round trip, and requests at a time."""

PERIOD = 300
QUOTAS = {"free": (1_000, 5_000), "pro": (2_500, 12_000), "enterprise_plus": (10_000, 100_000)}
"""Requests that the Hub answers in 5 minutes, as its documentation said in late 2025: API, resolver."""


@dataclass(frozen=True, slots=True)
class Tier:
    """Bytes and requests that one model takes.

    Attributes:
        name: What is read.
        size: Bytes.
        api: Calls of the Hub's API.
        resolved: Files resolved to where they are stored.
        ranges: Ranged reads.
        waiting: Round trips that transfer does not hide.
    """

    name: str
    size: float
    api: float = 0
    resolved: float = 0
    ranges: float = 0
    waiting: float = 0

    def cost(self, models: int, workers: int) -> dict[str, Any]:
        """Cost of so many models; hours by quota do not depend on the workers."""
        seconds = models * (self.size / RATE + self.waiting * LATENCY / CONNECTIONS)
        hours = None if self.api else seconds / 3600
        return {
            "tier": self.name,
            "bytes": round(models * self.size),
            "api_calls": round(models * self.api),
            "resolver_calls": round(models * self.resolved),
            "range_requests": round(models * self.ranges),
            "quota_hours": {
                name: models * max(self.api / api, self.resolved / resolver) * PERIOD / 3600
                for name, (api, resolver) in QUOTAS.items()
            },
            "worker_hours": hours,
            "hours": None if hours is None else hours / workers,
        }


TIERS = (
    Tier("listing", LISTING, api=1),
    Tier("headers", FILES * HEADER, resolved=FILES, ranges=FILES, waiting=2 * FILES),
    Tier("sample", SAMPLE, ranges=SAMPLE_RANGES, waiting=SAMPLE_RANGES),
    Tier("everything", MODEL, ranges=MODEL / RANGE),
)


def plan_hub(models: int = HUB_MODELS, *, workers: int = WORKERS) -> dict[str, Any]:
    """Say what reading many models from the Hub takes, from averages and quotas: an estimate throughout.

    Args:
        models: How many.
        workers: Machines that read at the same time.

    Returns:
        ``models``, ``workers``, ``tiers``: ``tier``, ``bytes``, ``api_calls``, ``resolver_calls``,
        ``range_requests``, ``quota_hours`` (least hours by plan of the account), ``worker_hours`` and
        ``hours`` (None where the quota alone decides).

    Raises:
        UsageError: A number below 1.
    """
    if models < 1 or workers < 1:
        raise UsageError(f"{models} models and {workers} workers; at least 1 of each")
    return {"models": models, "workers": workers, "tiers": [tier.cost(models, workers) for tier in TIERS]}
