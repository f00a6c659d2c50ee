from __future__ import annotations

import io
import json

import pytest

from hilm.cli.main import main
from tests.inference.conftest import _one_thread, folders  # noqa: F401 - fixtures


def run(capsys, *words):
    code = main(["run", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_one_input_prints_the_documented_document(folders, capsys):  # noqa: F811
    code, out, _ = run(
        capsys, "sentiment-analysis", "--model", folders["sentiment-analysis"], "okay", "--json"
    )
    assert code == 0
    ((label, score),) = [entry.values() for entry in json.loads(out)]
    assert label in {"NEGATIVE", "POSITIVE"}
    assert 0 < score < 1


def test_lines_of_a_file_of_standard_input_and_of_jsonl(folders, capsys, tmp_path, monkeypatch):  # noqa: F811
    task = ["fill-mask", "--model", folders["fill-mask"], "--json", "--option", "top_k=2"]
    (tmp_path / "a.txt").write_text("the [MASK] sat\ni [MASK] this\n")
    _, from_file, _ = run(capsys, *task, "--file", tmp_path / "a.txt", "--batch-size", 2)
    monkeypatch.setattr("sys.stdin", io.StringIO("the [MASK] sat\ni [MASK] this\n"))
    _, from_stdin, _ = run(capsys, *task, "-")
    found = json.loads(from_file)
    assert [[f["token"] for f in each] for each in found] == [
        [f["token"] for f in each] for each in json.loads(from_stdin)
    ]
    assert [len(each) for each in found] == [2, 2]
    (tmp_path / "a.jsonl").write_text('{"question": "who?", "context": "the cat sat"}\n')
    answered = run(
        capsys, "question-answering", "--model", folders["question-answering"], "--file", tmp_path / "a.jsonl"
    )
    assert answered[0] == 0
    assert "score  start  end  answer" in answered[1]


def test_labels_context_and_texts(folders, capsys):  # noqa: F811
    nli, squad = folders["zero-shot-classification"], folders["question-answering"]
    code, out, _ = run(
        capsys,
        "zero-shot-classification",
        "--model",
        nli,
        "the cat",
        "--labels",
        "sport",
        "politics",
        "--json",
    )
    assert (code, sorted(json.loads(out)["labels"])) == (0, ["politics", "sport"])
    code, out, _ = run(
        capsys, "question-answering", "--model", squad, "who?", "--context", "the cat sat", "--json"
    )
    assert (code, json.loads(out)["answer"] in "the cat sat") == (0, True)
    three = ["--option", "min_new_tokens=3", "--option", "max_new_tokens=3"]
    code, out, _ = run(capsys, "summarization", "--model", folders["summarization"], "the cat", *three)
    assert (code, len(out.split())) == (0, 3)


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["nerr", "x"], 2, "did you mean ner?"),
        (["ner"], 2, "standard input"),
        (["ner", "x", "--text", "y"], 2, "standard input"),
        (["ner", "--file", "none.txt"], 2, "none.txt"),
        (["ner", "x"], 5, "--model FOLDER"),
        (["ner", "x", "--model", "./none/at/all"], 2, "no folder"),
        (["ner", "x", "--option", "top_k"], 2, "no value"),
    ],
)
def test_bad_command_lines(words, code, told, capsys):
    ended, out, err = run(capsys, *words)
    assert (ended, out) == (code, "")
    assert told in err
    assert "Traceback" not in err


def test_bad_inputs(folders, capsys, tmp_path):  # noqa: F811
    model = ["--model", folders["sentiment-analysis"]]
    (tmp_path / "a.jsonl").write_text("{")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    for words, told in (
        (["text-generation", *model, "x"], "it can do sentiment-analysis"),
        (["sentiment-analysis", *model, ""], "input 0"),
        (["sentiment-analysis", *model, "x", "--device", "cuda:77"], "there is"),
        (["sentiment-analysis", *model, "x", "--option", "top=1"], "no option"),
        (["sentiment-analysis", *model, "--file", tmp_path / "a.jsonl"], "one JSON document a line"),
        (["sentiment-analysis", *model, "--file", tmp_path / "a.txt"], "UTF-8"),
    ):
        code, out, err = run(capsys, *words)
        assert (code, out) == (2, ""), words
        assert told in err
