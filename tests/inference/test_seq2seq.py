from __future__ import annotations

import pytest
import transformers

from hilm.errors import UsageError
from hilm.inference.seq2seq import find_language, find_prefix
from hilm.inference.tasks import find_task


def test_the_checkpoint_names_the_prefix_before_the_rule_does():
    own = transformers.T5Config(task_specific_params={"summarization": {"prefix": "tl;dr: "}})
    assert find_prefix(find_task("summarization"), own) == "tl;dr: "
    assert find_prefix(find_task("translation_en_to_fr"), own) == "translate English to French: "
    assert find_prefix(find_task("summarization"), transformers.BartConfig()) == ""


def test_a_t5_knows_four_languages():
    with pytest.raises(UsageError, match="translation_en_to_ja"):
        find_prefix(find_task("translation_en_to_ja"), transformers.T5Config())


@pytest.mark.parametrize(
    ("tokens", "source", "target"),
    [
        (["<s>", "en_XX", "de_DE"], "en_XX", "de_DE"),
        (["<s>", "eng_Latn", "deu_Latn", "zho_Hans"], "eng_Latn", "deu_Latn"),
        (["__de__", "__en__"], "__en__", "__de__"),
    ],
)
def test_tokens_of_languages(tokens, source, target):
    assert (find_language(tokens, "en"), find_language(tokens, "de")) == (source, target)
    with pytest.raises(UsageError, match="'fr'"):
        find_language(tokens, "fr")
