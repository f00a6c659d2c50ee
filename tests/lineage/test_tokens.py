from __future__ import annotations

import json

import numpy as np
import pytest

from hilm.lineage.anatomy import dissect
from hilm.lineage.gram import WORDS
from hilm.lineage.tokens import find_words, read_anchors, read_vocabulary
from hilm.weights.checkpoint import open_checkpoint
from hilm.weights.places import LocalPlace
from tests.lineage.family import TABLE, write_tokenizer
from tests.tiny import bert_like, write_model

FILLER = [f"x{n}" for n in range(100)]


def anchors_of(folder, tensors):
    with open_checkpoint(write_model(folder, tensors)) as checkpoint:
        return read_anchors(checkpoint, dissect(checkpoint))


def wordpiece(words):
    return "\n".join([*FILLER, "##ing", *words]) + "\n"


def byte_level(words):
    return {
        "model": {"type": "BPE", "vocab": {w: i for i, w in enumerate([*FILLER, *(f"Ġ{w}" for w in words)])}}
    }


def unigram(words):
    pieces = [[piece, -1.5] for piece in [*FILLER, *(f"▁{w}" for w in words)]]
    return {"model": {"type": "Unigram", "vocab": pieces}}


def test_wordpiece_vocabulary(tmp_path):
    tmp_path.joinpath("vocab.txt").write_text(wordpiece(WORDS), encoding="utf-8")
    anchors, options = anchors_of(tmp_path, model := bert_like(layers=1))
    assert (anchors.kind, anchors.mask) == ("text-64/1", 0)
    assert options["anchors"] == "text-64/1"
    rows = model[TABLE][101 : 101 + 64].astype(np.float64)
    rows -= rows.mean(axis=0)
    np.testing.assert_allclose(anchors.directions, rows / np.linalg.norm(rows, axis=1)[:, None], atol=1e-6)


@pytest.mark.parametrize("make", [byte_level, unigram])
def test_markers_of_other_tokenizers(tmp_path, make):
    write_tokenizer(tmp_path, make(WORDS))
    anchors, _ = anchors_of(tmp_path, bert_like(layers=1))
    assert (anchors.kind, anchors.mask) == ("text-64/1", 0)
    vocabulary = read_vocabulary(LocalPlace(tmp_path))
    assert find_words(vocabulary, ["the", "code"]) == [100, 163]


def test_all_tokenizers_with_the_same_ids_give_the_same_anchors(tmp_path):
    for name, make in (("a", byte_level), ("b", unigram)):
        write_tokenizer(tmp_path / name, make(WORDS))
    found = [anchors_of(tmp_path / name, bert_like(layers=1)) for name in "ab"]
    np.testing.assert_array_equal(found[0][0].directions, found[1][0].directions)
    assert found[0][1] == found[1][1]


def test_a_vocab_json_is_read(tmp_path):
    tmp_path.joinpath("vocab.json").write_text(json.dumps({f"Ġ{w}": i for i, w in enumerate(WORDS)}))
    assert find_words(read_vocabulary(LocalPlace(tmp_path)), WORDS) == list(range(64))


def test_missing_words_are_masked(tmp_path):
    write_tokenizer(tmp_path, byte_level(["the", *WORDS[10:]]))
    anchors, _ = anchors_of(tmp_path, bert_like(layers=1))
    assert anchors.kind == "text-64/1"
    assert anchors.mask == 0b1111111110
    assert not anchors.directions[1:10].any()
    assert anchors.directions[0].any()


def test_words_behind_the_end_of_the_table_are_missing(tmp_path):
    write_tokenizer(tmp_path, byte_level(WORDS))
    anchors, _ = anchors_of(tmp_path, bert_like(layers=1, width=16, hidden=48, vocabulary=130))
    assert anchors.kind == "text-64/1"
    assert anchors.mask == (1 << 64) - (1 << 30)


@pytest.mark.parametrize(("words", "kind"), [(24, "text-64/1"), (23, "ids-64/1")])
def test_too_few_words_fall_back_to_ids(tmp_path, words, kind):
    write_tokenizer(tmp_path, unigram(WORDS[:words]))
    assert anchors_of(tmp_path, bert_like(layers=1))[0].kind == kind


@pytest.mark.parametrize(
    "damage",
    [
        "{",
        "[1, 2]",
        '{"model": 3}',
        '{"model": {"vocab": "text"}}',
        '{"model": {"vocab": [[["a"], 1], [], 7, [{"b": 1}]]}}',
        '{"model": {"vocab": {"Ġthe": "ten", "Ġand": -4, "Ġwith": 1.5, "Ġfrom": true}}}',
        "[" * 100_000,
    ],
)
def test_a_damaged_tokenizer_is_as_good_as_none(tmp_path, damage):
    tmp_path.joinpath("tokenizer.json").write_text(damage)
    anchors, options = anchors_of(tmp_path / "", bert_like(layers=1))
    assert anchors.kind == "ids-64/1"
    assert options["anchors"] == "ids-64/1"


def test_a_damaged_vocab_json_does_not_hide_the_tokenizer(tmp_path):
    tmp_path.joinpath("vocab.json").write_text("no json")
    write_tokenizer(tmp_path, byte_level(WORDS))
    assert anchors_of(tmp_path, bert_like(layers=1))[0].kind == "text-64/1"


def test_bytes_that_are_no_text_do_not_matter(tmp_path):
    tmp_path.joinpath("vocab.txt").write_bytes(b"\xff\xfe\n" + wordpiece(WORDS).encode())
    assert anchors_of(tmp_path, bert_like(layers=1))[0].kind == "text-64/1"


def test_a_bare_word_counts_in_wordpiece_alone():
    assert find_words({"the": 5, "##ing": 6}, ["the"]) == [5]
    assert find_words({"the": 5, "Ġand": 6}, ["the", "and"]) == [None, 6]
    assert find_words({"▁the": 7, "Ġthe": 8, "the": 9, "##s": 1}, ["the"]) == [8]


@pytest.mark.parametrize(("vocabulary", "first", "last"), [(2600, 130, 2470), (2599, 0, 2598)])
def test_ids_of_models_without_tokenizer(tmp_path, vocabulary, first, last):
    model = bert_like(layers=1, width=16, hidden=48, vocabulary=vocabulary)
    anchors, _ = anchors_of(tmp_path, model)
    ids = np.floor(np.linspace(first, last, 64)).astype(int)
    rows = model[TABLE][ids].astype(np.float64)
    rows -= rows.mean(axis=0)
    np.testing.assert_allclose(anchors.directions, rows / np.linalg.norm(rows, axis=1)[:, None], atol=1e-6)


def test_a_table_by_columns_gives_the_same_anchors(tmp_path):
    model = bert_like(layers=1)
    by_rows, _ = anchors_of(tmp_path / "rows", model)
    model[TABLE] = np.ascontiguousarray(model[TABLE].T)
    by_columns, _ = anchors_of(tmp_path / "columns", model)
    np.testing.assert_array_equal(by_rows.directions, by_columns.directions)


def test_no_embedding_no_anchors(tmp_path):
    assert anchors_of(tmp_path, {"a": np.ones((64, 64), np.float32)}) == (None, {})
