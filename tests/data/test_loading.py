from __future__ import annotations

import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hilm.data import DataConfig, load_data, load_eval, rows_of, rows_sha256, source_digests
from hilm.errors import InputError, OfflineError, UnsupportedFormat

ROWS = [{"text": "é, one", "label": 1}, {"text": 'say "two"', "label": 0}]


@pytest.fixture
def files(tmp_path):
    table = pa.Table.from_pylist(ROWS)
    pq.write_table(table, tmp_path / "a.parquet")
    pq.write_table(table, tmp_path / "without_suffix")
    lines = "\n".join(json.dumps(row) for row in ROWS)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    (tmp_path / "lines").write_text(lines)
    (tmp_path / "a.csv").write_text('text,label\n"é, one",1\n"say ""two""",0\n')
    (tmp_path / "a.tsv").write_text('text\tlabel\né, one\t1\n"say ""two"""\t0\n')
    return tmp_path


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "name", ["a.csv", "a.tsv", "a.json", "a.jsonl", "a.parquet", "without_suffix", "lines"]
)
def test_every_format_gives_the_same_rows(files, name, streaming):
    dataset = load_data(DataConfig(str(files / name), streaming=streaming))
    assert list(rows_of(dataset)) == ROWS
    lines = (json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=False) for row in ROWS)
    assert rows_sha256(dataset) == hashlib.sha256("".join(f"{x}\n" for x in lines).encode()).hexdigest()


def test_text_by_line_and_by_document(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo")
    path = str(tmp_path / "a.txt")
    assert [row["text"] for row in load_data(path)] == ["one", "", "two"]
    assert [row["text"] for row in load_data(DataConfig(path, sample_by="document"))] == ["one\n\ntwo"]


def test_several_files_and_folders(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    for name in ("1.jsonl", "2.jsonl"):
        (folder / name).write_text(json.dumps({"text": name}))
    (folder / "README").write_text("no rows")
    assert [row["text"] for row in load_data(str(folder))] == ["1.jsonl", "2.jsonl"]
    both = DataConfig((str(folder / "2.jsonl"), str(folder / "1.jsonl")))
    assert [row["text"] for row in load_data(both)] == ["2.jsonl", "1.jsonl"]
    assert [source["path"] for source in source_digests(both)] == ["2.jsonl", "1.jsonl"]
    with pytest.raises(InputError, match="several formats"):
        load_data(str(files))


def test_columns_are_renamed_before_the_steps(files):
    config = DataConfig(str(files / "a.csv"), columns={"review": "text"}, map=({"lower": "review"},))
    assert load_data(config).column_names == ["review", "label"]


def test_rows_to_evaluate_on_are_shaped_the_same(files):
    config = DataConfig(str(files / "a.csv"), eval=str(files / "a.tsv"), filter=({"min_chars": 7},))
    assert list(load_eval(config)) == [ROWS[1]]
    assert len(load_eval(DataConfig(str(files / "a.csv"), eval="train[:1]"))) == 1
    assert load_eval(DataConfig(str(files / "a.csv"))) is None


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("bad.csv", b"\xb0\xff\x00", "decode"),
        ("bad.parquet", b"PAR1 no", "Parquet"),
        ("bad.jsonl", b'{"text": 1}\n{"text": {', "position"),
        ("empty.csv", b"", "empty"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_damaged_files(tmp_path, name, content, told, streaming):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=told):
        rows_sha256(load_data(DataConfig(str(tmp_path / name), streaming=streaming)))


def test_what_is_not_there(files):
    path = str(files / "a.csv")
    with pytest.raises(InputError, match=r"no file .*none\.csv"):
        load_data("none.csv")
    with pytest.raises(InputError, match="test"):
        load_data(DataConfig(path, split="test"))
    with pytest.raises(InputError, match="no column 'review'"):
        load_data(DataConfig(path, columns={"text": "review"}))
    (files / "binary").write_bytes(b"\0\1\2")
    with pytest.raises(UnsupportedFormat):
        load_data(str(files / "binary"))


@pytest.mark.parametrize("config", [DataConfig("org/none"), DataConfig("wikitext", "wikitext-2")])
def test_the_hub_needs_the_network(config):
    with pytest.raises(OfflineError, match="/"):
        load_data(config)
