from __future__ import annotations

import json
import math
import pathlib
import re
import time

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from hilm.cli import output
from hilm.cli.options import switches

JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=20,
)


def run(function, words=(), **settings):
    """Run a function as a command that has the switches."""

    @click.command()
    @switches
    def command():
        function()

    return CliRunner().invoke(command, list(words), **settings)


@given(JSON_LIKE)
def test_any_document_becomes_strict_json(value):
    text = json.dumps(output.plain(value), allow_nan=False)
    assert json.dumps(output.plain(json.loads(text)), allow_nan=False) == text


def test_what_json_cannot_hold_becomes_null_or_text():
    document = {
        "nan": math.nan,
        "sup": [math.inf, -math.inf, 1.5],
        "path": pathlib.PurePosixPath("a/b"),
        3: (1,),
    }
    assert output.plain(document) == {"nan": None, "sup": [None, None, 1.5], "path": "a/b", "3": [1]}


def test_json_prints_one_document_and_nothing_else():
    ran = run(lambda: output.emit({"p": math.nan}, lambda document: "for people"), ["--json"])
    assert json.loads(ran.stdout) == {"p": None}
    assert run(lambda: output.emit({"p": 1.0}, lambda document: f"p {document['p']}")).stdout == "p 1.0\n"


@pytest.mark.parametrize(
    ("write", "value", "expected"),
    [
        (output.count, 0, "0"),
        (output.count, 30522, "30,522"),
        (output.count, 22713216, "22.7 M"),
        (output.count, 1.1e9, "1.1 B"),
        (output.count, 2e12, "2.0 T"),
        (output.count, None, "-"),
        (output.size, 0, "0 B"),
        (output.size, 1023, "1023 B"),
        (output.size, 1024, "1.0 KiB"),
        (output.size, 90868376, "86.7 MiB"),
        (output.size, 5 * 1024**4, "5.0 TiB"),
        (output.size, 5 * 1024**5, "5.0 PiB"),
        (output.size, None, "-"),
        (output.seconds, 0.4231, "0.42 s"),
        (output.seconds, 185, "3 min 05 s"),
        (output.seconds, 7800, "2 h 10 min"),
        (output.seconds, None, "-"),
        (output.figure, 0.99871234, "0.9987"),
        (output.figure, -1.2e-9, "-1.2e-09"),
        (output.figure, 0.0, "0"),
        (output.figure, math.nan, "-"),
        (output.figure, None, "-"),
        (output.chance, 0.0, "< 1e-300"),
        (output.chance, 3.2e-17, "3.2e-17"),
        (output.chance, None, "-"),
    ],
)
def test_figures_have_units(write, value, expected):
    assert write(value) == expected


def test_share():
    assert output.share(1, 8) == "12.5 %"
    assert output.share(0, 0) == "-"


def test_table_aligns_columns():
    text = click.unstyle(output.table(["model", ">score"], [["a", "1.5"], ["longer name", "12"]]))
    assert text.splitlines() == ["model        score", "a              1.5", "longer name     12"]


def test_a_table_without_rows_is_its_titles():
    assert click.unstyle(output.table(["model", ">score"], [])) == "model  score"


def test_facts_align_values():
    assert click.unstyle(output.facts({"a": "1", "long": "2"})) == "a     1\nlong  2"


def test_a_cut_table_admits_it():
    assert output.more(103, 20, "--all lists them") == ["… and 83 more (--all lists them)"]
    assert output.more(20, 20, "--all lists them") == []


@given(st.text(min_size=1), st.integers(3, 80))
def test_elided_text_fits_and_keeps_both_ends(text, width):
    short = output.elide(text, width)
    assert len(short) == min(len(text), width)
    assert short[0] == text[0]
    assert short[-1] == text[-1]


def test_names_cannot_drive_the_terminal():
    assert output.clean("a\x1b[31mb\rc\u202ed") == "a\ufffd[31mb\ufffdc\ufffdd"


def test_colours_only_for_a_terminal_and_never_with_no_color(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)

    def show():
        click.echo(output.table(["model"], [["a"]]))

    assert "\x1b[" not in run(show).stdout
    assert "\x1b[" in run(show, color=True).stdout
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in run(show, color=True).stdout


def test_notes_go_to_stderr_unless_quiet():
    ran = run(lambda: output.note("mind"))
    assert (ran.stdout, ran.stderr) == ("", "note: mind\n")
    assert run(lambda: output.note("mind"), ["--quiet"]).stderr == ""


FAILED = {"model": "b", "message": "no weights here", "hint": "look again", "exit_code": 2}


def test_some_failures_are_warnings():
    document = {"models": [{"model": "a"}], "failed": [FAILED]}
    ran = run(lambda: (output.settle(document, "models"), output.emit(document, str)), ["--json"])
    assert ran.exit_code == 0
    assert ran.stderr == "warning: b: no weights here\n"
    assert json.loads(ran.stdout) == document


def test_nothing_but_failures_is_the_first_ones_exit_code_and_no_document():
    document = {"indexed": [], "skipped": [], "failed": [FAILED, {**FAILED, "exit_code": 5, "hint": ""}]}
    ran = run(lambda: (output.settle(document, "indexed", "skipped"), output.emit(document, str)))
    assert ran.exit_code == 2
    assert ran.stdout == ""
    assert ran.stderr.splitlines()[:2] == ["error: b: no weights here", "hint: look again"]


def test_only_known_models_are_no_failure():
    document = {"indexed": [], "skipped": ["a"], "failed": []}
    assert run(lambda: output.settle(document, "indexed", "skipped")).exit_code == 0


def watch():
    with output.progress() as report:
        for done, total, label in ((1, 4, "first\x1b"), (4, 4, "first"), (1, 2, "second")):
            time.sleep(0.25)
            report(done, total, label)


def test_no_progress_where_nobody_watches():
    ran = run(watch)
    assert (ran.stdout, ran.stderr) == ("", "")


def test_a_terminal_gets_a_bar_unless_told_not_to(monkeypatch):
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda stream: True)
    ran = run(watch)
    assert ran.stdout == ""
    assert re.findall(r"(\S+) +(\d+) %", ran.stderr) == [
        ("first\ufffd", "25"),
        ("first", "100"),
        ("second", "0"),
    ]
    for words in (["--quiet"], ["--no-progress"]):
        assert run(watch, words).stderr == ""
