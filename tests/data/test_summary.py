from __future__ import annotations

import json

from hilm.data import DataConfig, preview, stats


def test_figures_of_a_small_file(tmp_path):
    texts = ["a", "bb", "bb", "dddd", None]
    rows = [{"text": text, "label": len(text or "") % 2} for text in texts]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "e.jsonl").write_text("\n".join(map(json.dumps, [rows[0], {"text": "new", "label": 1}])))
    config = DataConfig(str(tmp_path / "a.jsonl"), eval=str(tmp_path / "e.jsonl"))
    figures = stats(config)
    assert (figures["rows"], figures["duplicates"], figures["overlap"]) == (5, 1, 1)
    text = figures["columns"]["text"]
    assert text["nulls"] == 1
    assert text["characters"] == [1, 2, 4, 4, 4]
    assert figures["columns"]["label"]["values"] == {"0": 4, "1": 1}
    assert stats(config, limit=2)["rows"] == 2


def test_tokens_and_rows_that_are_too_long(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("one two\none\none two three four\n")
    text = stats(DataConfig(str(tmp_path / "a.txt")), tokenizer=tokenizer, max_length=2)["columns"]["text"]
    assert text["tokens"] == [1, 2, 4, 4, 4]
    assert text["too_long"] == 1 / 3


def test_a_preview_holds_what_json_can(tmp_path):
    (tmp_path / "a.csv").write_text("day,n\n2020-01-02,1.5\n2020-01-03,\n")
    shown = preview(DataConfig(str(tmp_path / "a.csv")), limit=1)
    assert shown["rows"] == [{"day": "2020-01-02", "n": 1.5}]
    assert list(shown["columns"]) == ["day", "n"]
