"""Run the benchmarks, one at a time and each in a process of its own, and print what came out.

Run: python benchmarks/run.py [--list] [NAME…]
"""

from __future__ import annotations

import argparse
import ast
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from harness import MISSED
from tables import load, rows

if TYPE_CHECKING:
    from collections.abc import Mapping

HERE = Path(__file__).parent
BENCHMARKS = (
    "startup",
    "web",
    "streaming",
    "readers",
    "remote",
    "archive",
    "small",
    "report",
    "carriers",
    "delta",
    "corruption",
    "fingerprint",
    "units",
    "search",
    "lineage_zoo",
    "sampling",
    "demo",
    "resnet_bk",
    "learning",
    "inference",
    "export",
    "onevision",
    "parity",
    "fit",
)


def claim(name: str) -> str:
    """First line of a benchmark's docstring."""
    tree = ast.parse((HERE / f"{name}.py").read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").partition("\n")[0]


def run(name: str) -> int:
    """Run one benchmark and return its exit code: 0, or ``MISSED``, or it did not get to a result."""
    print(f"\n{name}", flush=True)
    return subprocess.run([sys.executable, HERE / f"{name}.py"], check=False).returncode


def summary(codes: Mapping[str, int]) -> str:
    """Write one line per gate, and what broke."""
    body = rows([document for document in load() if codes.get(document["name"]) in {0, MISSED}])
    width = max((len(what) for what, _, _ in body), default=0)
    lines = [f"{what:{width}}  {shown:24} {limit}" for what, shown, limit in body]
    return "\n".join(
        ["", *lines, *(f"{name}: broken" for name, code in codes.items() if code not in {0, MISSED})]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the benchmarks one at a time.")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; all by default"
    )
    parser.add_argument("--list", action="store_true", help="say what there is and stop")
    options = parser.parse_args()
    unknown = set(options.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    if options.list:
        print("\n".join(f"{name:12} {claim(name)}" for name in BENCHMARKS))
        return 0
    codes = {name: run(name) for name in options.names or BENCHMARKS}
    print(summary(codes))
    return int(any(codes.values()))


if __name__ == "__main__":
    sys.exit(main())
