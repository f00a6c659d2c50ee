from __future__ import annotations

import pytest

from hilm.errors import UsageError
from hilm.inference import TASKS, find_task


def test_names_aliases_and_languages():
    assert len(TASKS) == 8
    assert find_task("text-classification") is TASKS["sentiment-analysis"]
    assert find_task("token-classification") is TASKS["ner"]
    assert (find_task("translation_fr_to_ro").source, find_task("translation_fr_to_ro").target) == (
        "fr",
        "ro",
    )


@pytest.mark.parametrize(
    ("name", "hint"),
    [("sentiment", "sentiment-analysis"), ("translation", "translation_en_to_de"), ("zzz", "one of")],
)
def test_a_task_there_is_not(name, hint):
    with pytest.raises(UsageError, match=name) as caught:
        find_task(name)
    assert hint in caught.value.hint
