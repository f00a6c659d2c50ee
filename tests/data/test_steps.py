from __future__ import annotations

import datasets
import pytest

from hilm.data.rows import rows_of
from hilm.data.steps import apply
from hilm.errors import InputError, UsageError

ROWS = [
    {"text": " One ", "n": 1},
    {"text": "two", "n": 2},
    {"text": None, "n": 3},
    {"text": " ", "n": 4},
    {"text": "two", "n": 2},
]


def shaped(stream, *, maps=(), filters=()):
    dataset = datasets.Dataset.from_list(ROWS)
    return list(rows_of(apply(dataset.to_iterable_dataset() if stream else dataset, maps, filters)))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("maps", "filters", "texts"),
    [
        (["lower"], [], [" one ", "two", None, " ", "two"]),
        (["strip", {"lower": ["text"]}], [], ["one", "two", None, "", "two"]),
        ([{"template": "{n}: {text}{n.real}"}], [], [f"{r['n']}: {r['text'] or ''}{{n.real}}" for r in ROWS]),
        ([lambda row: {"text": str(row["n"])}], [], list("12342")),
        ([], ["not_empty"], [" One ", "two", "two"]),
        ([], [{"not_empty": "n"}], [row["text"] for row in ROWS]),
        ([], [{"min_chars": 4}], [" One "]),
        ([], [{"max_chars": {"text": 1}}], [None, " "]),
        ([], [{"regex": {"column": "text", "pattern": "^t|O"}}], [" One ", "two", "two"]),
        ([], [lambda row: row["n"] > 2], [None, " "]),
    ],
)
def test_what_steps_do(stream, maps, filters, texts):
    assert [row["text"] for row in shaped(stream, maps=maps, filters=filters)] == texts


@pytest.mark.parametrize("stream", [False, True])
def test_columns_are_chosen_and_renamed(stream):
    maps = [{"rename": {"n": "number"}}, {"keep": ["number"]}]
    assert shaped(stream, maps=maps)[0] == {"number": 1}
    assert shaped(stream, maps=[{"drop": "n"}])[1] == {"text": "two"}
    assert shaped(stream, maps=[{"template": {"both": "{text}/{n}"}}])[1]["both"] == "two/2"


def test_the_first_of_equal_rows_stays():
    assert [row["n"] for row in shaped(False, filters=["dedupe"])] == [1, 2, 3, 4]
    with pytest.raises(UsageError, match="stream"):
        shaped(True, filters=["dedupe"])


@pytest.mark.parametrize("stream", [False, True])
def test_a_sample_is_the_same_for_a_seed(stream):
    drawn = [shaped(stream, filters=[{"sample": {"n": 3, "seed": seed}}]) for seed in (1, 1, 2)]
    assert len(drawn[0]) == 3
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(shaped(stream, filters=[{"sample": {"n": 99}}])) == len(ROWS)


@pytest.mark.parametrize(
    ("step", "error", "told"),
    [
        ("lowr", UsageError, "lower"),
        ({"eval": "1"}, UsageError, "one of"),
        ({"lower": 1, "strip": 2}, UsageError, "one of"),
        ({"rename": ["a"]}, InputError, "there are"),
        ({"rename": {"a": "b"}}, InputError, "text, n"),
        ({"template": 5}, UsageError, "table"),
        ({"template": "{a}"}, InputError, "text, n"),
    ],
)
def test_wrong_steps(step, error, told):
    with pytest.raises(error) as caught:
        shaped(False, maps=[step])
    assert told in caught.value.hint


@pytest.mark.parametrize("step", [{"regex": {"column": "text", "pattern": "("}}, {"sample": 3}, "min_chars"])
def test_wrong_filters(step):
    with pytest.raises(UsageError, match="cannot use"):
        shaped(False, filters=[step])
