"""The demonstration ends in under two minutes and under 1.5 GB, with every relative recognised.

Run: python benchmarks/demo.py
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from harness import Gate, Result, main
from processes import HILM, pinned, watch

CORES = 2


def measure() -> Result:
    with tempfile.TemporaryDirectory() as temporary, pinned(CORES):
        run = watch([HILM, "demo", "--out", str(Path(temporary) / "demo"), "--json"])
    queries = json.loads(run.out)["queries"]
    wrong = [q for q in queries if q["relation"] != q["expected"]]
    return Result(
        name="demo",
        claim="`hilm demo` recognises every relative of a real model in two minutes on two cores",
        command="python benchmarks/demo.py",
        gates=(
            Gate("wall time", run.wall, "<", 120, "s"),
            Gate("peak memory, all processes", run.peak / 1e9, "<", 1.5, "GB"),
            Gate("relations not as expected", len(wrong), "<=", 0, ""),
        ),
        figures={"relations judged": (len(queries), ""), "processor time": (run.cpu, "s")},
    )


if __name__ == "__main__":
    main(measure)
