"""Run what a page of the documentation shows, and compare what it prints with what the page says."""

from __future__ import annotations

import re
import shlex
from doctest import ELLIPSIS, NORMALIZE_WHITESPACE, OutputChecker
from pathlib import Path

from hilm.cli.main import main

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(
    r"^(?:<!-- (\w+)(?:: (.*?))? -->\n)?```(python|console)\n(.*?)^```", re.DOTALL | re.MULTILINE
)


def run_page(path: Path, capsys) -> int:
    """Run the Python blocks and the ``$ hilm`` lines of a page in order; returns how many blocks there were.

    A comment ``<!-- skip: reason -->`` before a block leaves it out.
    """
    names: dict[str, object] = {}
    blocks = BLOCK.findall(path.read_text(encoding="utf-8"))
    for mark, reason, language, text in blocks:
        if mark == "skip":
            assert reason
        elif language == "python":
            exec(compile(text, path.name, "exec"), names)
        else:
            run_console(text, capsys)
    return len(blocks)


def run_console(text: str, capsys) -> None:
    """Run each ``$ hilm …`` line and compare its output, where ``...`` stands for anything."""
    for line, shown in re.findall(r"^\$ hilm (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE):
        capsys.readouterr()
        code = main([*shlex.split(line, comments=True), "-q"])
        printed = capsys.readouterr()
        assert code == 0, f"hilm {line}: {printed.err}"
        same = OutputChecker().check_output(shown, printed.out, ELLIPSIS | NORMALIZE_WHITESPACE)
        assert same or not shown.strip(), f"hilm {line} printed\n{printed.out}"
