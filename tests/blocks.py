"""Python blocks of a page with the comment before each, and a child process that runs them.

The child imports the libraries once and forks for every block: each runs in a process of its own.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import sys
import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

BLOCK = re.compile(r"^(?:<!-- (.*?) -->\n)?```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks_of(page: Path) -> list[tuple[str, str, str]]:
    """Heading, comment and code of every block."""
    text = page.read_text()
    headings = [(hit.start(), hit[1]) for hit in re.finditer(r"^## (.*)$", text, re.MULTILINE)]
    return [
        (next((h for at, h in reversed(headings) if at < hit.start()), ""), hit[1] or "", hit[2])
        for hit in BLOCK.finditer(text)
    ]


def run_block(code: str) -> str:
    """Name of the exception a block ends with, and its trace; empty when it ends well."""
    read, write = os.pipe()
    if os.fork() == 0:
        outcome = ""
        try:
            with contextlib.redirect_stdout(sys.stderr):
                exec(compile(code, "block", "exec"), {"__name__": "__main__"})
        except BaseException as error:  # noqa: BLE001 - its name is what is asked for
            outcome = f"{type(error).__name__}\n{traceback.format_exc()}"
        os.write(write, outcome.encode()[:60_000])
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        outcome = pipe.read().decode()
    os.wait()
    return outcome


def main() -> None:
    """Read a list of codes on stdin, write the list of outcomes on stdout."""
    for name in sys.argv[1:]:
        importlib.import_module(name)
    sys.stdout.write(json.dumps([run_block(code) for code in json.load(sys.stdin)]))


if __name__ == "__main__":
    main()
