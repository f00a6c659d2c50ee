"""Write the tables of the README and of the benchmark page from the result files.

Run: python benchmarks/tables.py [--check]    (--check only says whether they are up to date)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from harness import RESULTS, number

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ROOT = Path(__file__).parent.parent
START, END = "<!-- benchmarks:start -->", "<!-- benchmarks:end -->"
SIGNS = {"<": "<", "<=": "≤", ">=": "≥"}

Document: TypeAlias = dict[str, Any]


def load(folder: Path = RESULTS) -> list[Document]:
    """Every result there is, in order of the file names."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def measured(gate: Document) -> str:
    """Write a gate's measurement; a failed one says so."""
    text = number(gate["value"], gate["unit"], gate["comparison"], gate["required"])
    return text if gate["ok"] else f"{text} (missed)"


def required(gate: Document) -> str:
    """Write a gate's limit, and its aim if it has one."""
    text = f"{SIGNS[gate['comparison']]} {number(gate['required'], gate['unit'])}"
    return text if gate["aim"] is None else f"{text}, aim {number(gate['aim'], gate['unit'])}"


def rows(results: Sequence[Document]) -> list[tuple[str, str, str]]:
    """One row per gate: what, measured, required."""
    return [
        (f"{result['name']}: {gate['name']}", measured(gate), required(gate))
        for result in results
        for gate in result["gates"]
    ]


def table(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [header, ["---"] * len(header), *body]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def short(results: Sequence[Document]) -> list[str]:
    """One row per claim, for the README."""
    body = [
        (
            result["claim"],
            "<br>".join(f"{gate['name']}: {measured(gate)}" for gate in result["gates"]),
            "<br>".join(required(gate) for gate in result["gates"]),
        )
        for result in results
    ]
    return [*table(("claim", "measured", "gate"), body), "", *machines(results)]


def long(results: Sequence[Document]) -> list[str]:
    """One section per claim, for the page."""
    lines = machines(results)
    for result in results:
        gates = [(gate["name"], measured(gate), required(gate)) for gate in result["gates"]]
        figures = [(name, number(f["value"], f["unit"]), "") for name, f in result["figures"].items()]
        lines += ["", f"## {result['name'].capitalize()}", "", f"{result['claim']}.", ""]
        lines += [f"`{result['command']}`", "", *table(("figure", "measured", "gate"), gates + figures)]
        if "table" in result:
            lines += ["", *table(result["table"][0], result["table"][1:])]
            lines += ["", *(f"- {miss}" for miss in result["misses"])]
    return lines


def machines(results: Sequence[Document]) -> list[str]:
    """What the results were measured on, one line per machine."""
    lines = [
        "Measured on {cpu}, {cores} cores, {memory_gib} GiB, {system}, Python {python}, numpy {numpy}, "
        "numba {numba}.".format(**result["machine"])
        for result in results
    ]
    return list(dict.fromkeys(lines))


PAGES: dict[str, Callable[[Sequence[Document]], list[str]]] = {"README.md": short, "docs/benchmarks.md": long}


def fill(page: str, lines: Sequence[str]) -> str:
    """Put lines between the markers of a page.

    Raises:
        ValueError: The page does not have exactly one pair of markers.
    """
    if page.count(START) != 1 or page.count(END) != 1 or page.index(START) > page.index(END):
        raise ValueError(f"the page needs {START} and {END}, once each and in this order")
    return "\n".join([page.partition(START)[0] + START, "", *lines, "", END + page.partition(END)[2]])


def main(arguments: Sequence[str], root: Path = ROOT, folder: Path = RESULTS) -> int:
    """Write all pages, or with ``--check`` return 1 if any is not what would be written."""
    stale = []
    for name, compose in PAGES.items():
        page = (root / name).read_text(encoding="utf-8")
        new = fill(page, compose(load(folder)))
        if new != page:
            stale.append(name)
            if "--check" not in arguments:
                (root / name).write_text(new, encoding="utf-8")
    verb = "are not up to date, run make bench" if "--check" in arguments else "written"
    print(f"{', '.join(stale)} {verb}" if stale else "benchmark tables are up to date")
    return int("--check" in arguments and bool(stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
