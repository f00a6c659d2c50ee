from __future__ import annotations

import json

import pytest

from hilm.cli.main import main
from tests.data.conftest import STREAMS, _own_cache  # noqa: F401 - fixture

pytestmark = STREAMS


@pytest.fixture
def rows(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\nHello,1\nworld,0\n,1\nHello,1\n")
    return str(tmp_path / "a.csv")


def run(capsys, *words):
    code = main(["data", *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_rows_are_loaded_and_identified(rows, capsys):
    code, out, _ = run(capsys, "load", rows, "--map", "lower", "--filter", "not_empty", "--json")
    document = json.loads(out)
    assert (code, document["rows"]) == (0, 3)
    assert document["sources"][0]["path"] == "a.csv"
    again = json.loads(run(capsys, "load", rows, "--filter", "not_empty", "--json")[1])
    assert again["rows_sha256"] != document["rows_sha256"]
    streamed = ["load", rows, "--map", "lower", "--filter", "not_empty", "--streaming", "--json"]
    assert json.loads(run(capsys, *streamed)[1])["rows_sha256"] == document["rows_sha256"]
    code, out, _ = run(
        capsys, "load", rows, "--columns", "{completion: label, prompt: text}", "--method", "sft"
    )
    assert code == 0
    assert "prompt, completion" in out


def test_rows_are_shown_and_measured(rows, capsys):
    code, out, _ = run(capsys, "preview", rows, "--limit", "2")
    assert (code, out.splitlines()[1:]) == (0, ["Hello                1", "world                0"])
    code, out, _ = run(capsys, "stats", rows, "--eval", rows)
    assert code == 0
    assert "4 rows, 1 of them there before" in out
    assert "4 rows to evaluate on" in out
    assert "1: 3, 0: 1" in out


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["preview", "none.csv"], 2, "no file"),
        (["preview", "org/none"], 5, "HF_HUB_OFFLINE"),
        (["load", "FILE", "--filter", "min_char: 3"], 2, "min_chars"),
        (["load", "FILE", "--map", "{"], 2, "not YAML"),
        (["load", "FILE", "--method", "dpo"], 2, "chosen: my_column"),
        (["load", "FILE", "--columns", "{prompt: question}"], 2, "text, label"),
    ],
)
def test_bad_command_lines(words, code, told, rows, capsys):
    ended, out, err = run(capsys, *(rows if word == "FILE" else word for word in words))
    assert (ended, out) == (code, "")
    assert told in err
