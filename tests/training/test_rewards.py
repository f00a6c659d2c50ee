from __future__ import annotations

import pytest
import torch
import transformers

from hilm.errors import InputError, UsageError
from hilm.training.config import RewardConfig
from hilm.training.rewards import load_reward


def score(completions, **settings):
    return load_reward(RewardConfig(**settings))(prompts=["p"] * len(completions), completions=completions)


def test_rules():
    assert score(["a b", "a"], kind="length", length=2) == [1.0, pytest.approx(0.6065, abs=1e-4)]
    assert score(["yes 7", "no"], kind="regex", pattern=r"\d") == [1.0, 0.0]
    assert score(["Red sun", "sun"], kind="keyword", pattern="red sun") == [1.0, 0.5]
    said = [[{"role": "assistant", "content": "red"}]]
    assert score(said, kind="keyword", pattern="red") == [1.0]


def test_a_function_of_ones_own(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def worth(completions, **_):\n    return [float(len(c)) for c in completions]\n"
    )
    assert score(["abc"], kind="function", function=f"{tmp_path}/mine.py:worth") == [3.0]
    for place in (f"{tmp_path}/mine.py:absent", f"{tmp_path}/none.py:worth", "worth"):
        with pytest.raises(InputError):
            score(["a"], kind="function", function=place)


def test_a_classifier(models, tmp_path):
    torch.manual_seed(1)
    config = transformers.AutoConfig.from_pretrained(models / "llama", num_labels=1)
    transformers.LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(models / "llama").save_pretrained(tmp_path)
    one, two = score(["a", "a much longer text"], kind="model", model=str(tmp_path))
    assert one == pytest.approx(score(["a"], kind="model", model=str(tmp_path))[0], abs=1e-6)
    assert one != two


@pytest.mark.parametrize("settings", [{"kind": "model"}, {"kind": "function"}, {"kind": "regex"}])
def test_what_is_missing(settings):
    with pytest.raises(UsageError, match="needs reward"):
        load_reward(RewardConfig(**settings))


def test_no_such_model(tmp_path):
    with pytest.raises(InputError, match="no reward model"):
        load_reward(RewardConfig(model=str(tmp_path)))
