from __future__ import annotations

import pytest

from hilm.data import check_columns
from hilm.data.columns import COLUMNS
from hilm.errors import InputError, UsageError


@pytest.mark.parametrize("method", COLUMNS)
def test_each_set_of_columns_will_do_and_none_without_one_of_its_columns(method):
    for wanted in COLUMNS[method]:
        assert check_columns(method, [*wanted, "extra"]) == wanted
        for missing in wanted:
            with pytest.raises(InputError, match=method):
                check_columns(method, ["extra", *(set(wanted) - {missing})])


@pytest.mark.parametrize(
    ("method", "found", "rename"),
    [
        ("dpo", ["question", "preferred", "refused"], "{chosen: preferred, rejected: refused}"),
        ("classify", ["Review", "sentiment"], "{text: Review, label: sentiment}"),
        ("sft", ["instruction", "response"], "{prompt: instruction, completion: response}"),
        ("kto", ["prompt", "completions", "label"], "{completion: completions}"),
    ],
)
def test_the_hint_renames_the_nearest(method, found, rename):
    with pytest.raises(InputError) as caught:
        check_columns(method, found)
    assert rename in caught.value.hint
    assert all(name in caught.value.message for name in found)


def test_a_method_there_is_not():
    with pytest.raises(UsageError, match="sftt"):
        check_columns("sftt", ["text"])
