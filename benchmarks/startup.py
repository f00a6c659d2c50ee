"""``hilm --help`` answers at once, because it imports nothing heavy.

Run: python benchmarks/startup.py
"""

from __future__ import annotations

import statistics
import sys

from harness import Gate, Result, main
from processes import HILM, watch

RUNS = 10
HEAVY = {"numpy", "torch", "transformers", "huggingface_hub"}


def measure() -> Result:
    watch([HILM, "--help"])
    runs = [watch([HILM, "--help"]) for _ in range(RUNS)]
    listing = watch([sys.executable, "-X", "importtime", HILM, "--help"]).err
    modules = {line.rpartition("|")[2].strip().partition(".")[0] for line in listing.splitlines()}
    return Result(
        name="startup",
        claim="`hilm --help` answers at once and imports none of " + ", ".join(sorted(HEAVY)),
        command="python benchmarks/startup.py",
        gates=(
            Gate(
                "processor time, median of 10", 1e3 * statistics.median(r.cpu for r in runs), "<", 150, "ms"
            ),
            Gate("heavy packages imported", len(HEAVY & modules), "<=", 0, ""),
        ),
        figures={
            "wall time, median of 10": (1e3 * statistics.median(r.wall for r in runs), "ms"),
        },
    )


if __name__ == "__main__":
    main(measure)
