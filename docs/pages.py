"""Write a page per command and one of Python functions, from their help and docstrings.

Run: python docs/pages.py [--check]    (--check only says whether they are up to date)
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

import hilm
from hilm.cli.main import COMMANDS
from hilm.cli.main import hilm as program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DOCS = Path(__file__).parent
WIDTH = 100
NOTE = "<!-- written by docs/pages.py -->\n\n"
UGLY = {
    r"^\(self(, )?": "(",
    r"ForwardRef\(('.*?')\)(?=[ ,)])": r"\1",
    r"(: |-> )'([^']*)'": r"\1\2",
    r"<function (\w+) at \w+>": r"\1",
}
"""How `inspect` writes signatures → how people do."""

SECTIONS = ("Args", "Returns", "Raises", "Attributes")


def command_page(name: str, command: click.Command) -> str:
    """Write the page of one command: its help, that of its sub-commands, and its function in Python."""
    parts = [f"# hilm {name}\n", help_block(f"hilm {name}", command)]
    if isinstance(command, click.Group):
        for sub, child in command.commands.items():
            parts += [f"## hilm {name} {sub}\n", help_block(f"hilm {name} {sub}", child)]
    home, called = (hilm.Store, "hilm.Store()") if hasattr(hilm.Store, name) else (hilm, "hilm")
    function = getattr(home, name, None)
    if inspect.isfunction(function):
        parts += ["## In Python\n", function_text(f"{called}.{name}", function)]
    return NOTE + "\n".join(parts)


def help_block(path: str, command: click.Command) -> str:
    """Write what ``--help`` prints, as it does on a wide terminal."""
    context = click.Context(command, info_name=path, terminal_width=WIDTH, max_content_width=WIDTH)
    return f"```text\n{command.get_help(context).rstrip()}\n```\n"


def function_text(name: str, function: Callable[..., object]) -> str:
    """Write a function's signature and docstring as Markdown; of a class also its methods."""
    call = str(inspect.signature(function))
    for pattern, plain in UGLY.items():
        call = re.sub(pattern, plain, call)
    call = name + call
    if len(call) > WIDTH:
        call = re.sub(r"(?<=[(,]) ?(?=\*|\w+:)", "\n    ", call)
    text = "\n".join(markdown(inspect.getdoc(function) or ""))
    methods = [(n, m) for n, m in vars(function).items() if inspect.isfunction(m) and not n.startswith("_")]
    listed = [
        f"- `.{n}()`: {(m.__doc__ or '').splitlines()[0]}".replace("``", "`")
        for n, m in methods
        if isinstance(function, type)
    ]
    return "\n".join(
        [f"```python\n{call}\n```\n", text, *(["", "**Methods**", "", *listed] if listed else []), ""]
    )


def markdown(text: str) -> Iterator[str]:
    """Turn a docstring of Google's style into Markdown: its sections become lists."""
    section = ""
    for line in text.replace("``", "`").splitlines():
        entry = re.fullmatch(r"    (\*?\w[\w.]*): (.*)", line) if section else None
        if line.rstrip(":") in SECTIONS and line.endswith(":"):
            section = line.rstrip(":")
            yield f"**{section.replace('Args', 'Arguments')}**\n"
        elif entry:
            yield f"- `{entry[1]}`: {entry[2]}"
        else:
            yield line[4:] if section and line.startswith("    ") else line


def contents_page() -> str:
    """Write the table of all commands."""
    parts = ["# Commands\n"]
    for section in dict.fromkeys(entry.section for entry in COMMANDS.values()):
        parts += [f"## {section}\n", "| command | |", "|---|---|"]
        rows = ((name, entry.help) for name, entry in COMMANDS.items() if entry.section == section)
        parts += [*(f"| [hilm {name}]({name}.md) | {text} |" for name, text in rows), ""]
    return NOTE + "\n".join(parts)


def python_page() -> str:
    """Write the page of the public functions and classes."""
    parts = ["# Python\n", inspect.cleandoc(hilm.__doc__ or "") + "\n"]
    for name in hilm.__all__:
        parts += [f"## {name}\n", function_text(f"hilm.{name}", getattr(hilm, name))]
    return NOTE + "\n".join(parts)


def pages() -> dict[Path, str]:
    """Every page by its path."""
    context = click.Context(program, info_name="hilm")
    found = {}
    for name in COMMANDS:
        command = program.get_command(context, name)
        if command is not None:
            found[DOCS / "commands" / f"{name}.md"] = command_page(name, command)
    return found | {DOCS / "commands" / "index.md": contents_page(), DOCS / "python.md": python_page()}


def main() -> int:
    """Write the pages, or say which are out of date."""
    written = pages()
    stale = [p for p, text in written.items() if not p.is_file() or p.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv:
        for path in stale:
            print(f"{path.relative_to(DOCS.parent)} is out of date: python docs/pages.py")
        return bool(stale)
    for path in stale:
        path.parent.mkdir(exist_ok=True)
        path.write_text(written[path], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
