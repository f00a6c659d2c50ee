"""Check a model card against itself, the files beside it and the weights; nothing leaves the machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hilm.errors import InputError, NotACheckpoint
from hilm.ship import front_matter
from hilm.ship.card_facts import read_json
from hilm.ship.card_rules import CARD, RULES, Found, Subject
from hilm.ship.identifiers import LICENSES
from hilm.ship.references import ABSOLUTE, SECRET
from hilm.store import inspect, stream

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from os import PathLike

SETTINGS = ("config.json", "generation_config.json", "adapter_config.json", "tokenizer_config.json")
TEXTS = {".md", ".json", ".txt", ".py", ".yaml", ".yml", ".toml", ".jinja", ".csv", ".jsonl", ""}
MAX_TEXT = 64 << 20


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing wrong.

    Attributes:
        rule: ``C01`` to ``C20``.
        level: ``error`` or ``warning``.
        file: Path in the folder.
        line: From 1; 0 when it is not on one line.
        message: What was found.
        fix: What to do.
    """

    rule: str
    level: str
    file: str
    line: int
    message: str
    fix: str


def check(
    folder: str | PathLike[str],
    repo_id: str = "",
    *,
    files: Mapping[str, Path] | None = None,
    scan: bool = True,
    licenses: Iterable[str] = (),
) -> list[Finding]:
    """Check the card of a folder by rules C01 to C20; offline, and without torch.

    Args:
        folder: Of the model; or its README.md.
        repo_id: Repository it is for, where that is known.
        files: What would be published: path in the repository → file; all of the folder by default.
        scan: Whether to read all weights, looking for values that are not finite.
        licenses: Further identifiers that are to be taken.

    Returns:
        What is wrong, in the order of the rules; empty for a good card.

    Raises:
        InputError: There is no such folder.
    """
    root = Path(folder).parent if Path(folder).is_file() else Path(folder)
    if not root.is_dir():
        raise InputError(f"{root} is no folder", hint="name the folder of a model")
    if files is None:
        found = {path.relative_to(root): path for path in sorted(root.rglob("*")) if path.is_file()}
        files = {n.as_posix(): p for n, p in found.items() if not any(x.startswith(".") for x in n.parts)}
    subject = Subject(root, repo_id, files, LICENSES | set(licenses))
    findings = list(_read(subject))
    if subject.fields:
        for rule, level, where, find in RULES:
            findings += [_finding(subject, rule, level, (*found, where)) for found in find(subject)]
    findings += [*_texts(subject), *(_finite(subject) if scan else ())]
    return sorted(findings, key=lambda found: (found.rule, found.file, found.line))


def _finding(subject: Subject, rule: str, level: str, found: Found, file: str = CARD) -> Finding:
    message, fix, words = found[:3]
    level = "warning" if message.startswith("~") else level
    lines = subject.text.splitlines() if words and file == CARD else []
    line = next((number for number, text in enumerate(lines, 1) if words in text), 0)
    return Finding(rule, level, file, line, message.lstrip("~"), fix)


def _read(subject: Subject) -> Iterator[Finding]:
    """Fill the subject; what cannot be read is a finding."""
    card = subject.files.get(CARD)
    problem = ""
    if card is None or card.stat().st_size > front_matter.MAX_CARD:
        problem = "there is no README.md that could be a card"
    else:
        try:
            subject.text = card.read_text("utf-8")
            subject.fields, subject.body = front_matter.split(subject.text)
            problem = "" if subject.fields else "the front matter is empty"
        except (InputError, UnicodeDecodeError) as error:
            problem = str(error)
    if problem:
        yield _finding(subject, "C01", "error", (problem, "hilm card build writes one", ""))
    for name, target in (("config.json", "config"), ("adapter_config.json", "adapter")):
        try:
            setattr(subject, target, read_json(subject.folder / name))
        except InputError as error:
            yield _finding(subject, "C16", "error", (str(error), "write it again", ""), name)
    try:
        subject.weights = inspect(subject.folder)
    except NotACheckpoint:
        return
    except InputError as error:
        yield _finding(subject, "C16", "error", (str(error), error.hint, ""), "")


def _texts(subject: Subject) -> Iterator[Finding]:
    """C13 and C14: absolute paths and secrets, in every text file."""
    for name, path in subject.files.items():
        if path.suffix not in TEXTS or path.stat().st_size > MAX_TEXT:
            continue
        told = name == CARD or name in SETTINGS or name.startswith("report")
        with path.open(encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, 1):
                if SECRET.search(line):
                    fix = "remove it, and revoke it where it is from"
                    yield Finding("C14", "error", name, number, "a secret", fix)
                if told and (found := ABSOLUTE.search(line)):
                    fix = "name a repository, or remove it"
                    yield Finding("C13", "error", name, number, f"the path {found[0]}", fix)


def _finite(subject: Subject) -> Iterator[Finding]:
    """C17, in one pass over the weights."""
    if subject.weights:
        layers = stream(subject.folder, chunk_size=1 << 22)["layers"]
        for role, figures in layers.items():
            if bad := figures["nonfinite"]:
                found = f"{bad:,} values of the {role} layers are not finite"
                yield Finding("C17", "error", "", 0, found, "do not publish these weights")
