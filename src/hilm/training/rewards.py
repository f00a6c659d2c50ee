"""What a completion is worth: as a classifier scores it, a function of the user's, or a rule."""

from __future__ import annotations

import importlib.util
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hilm.errors import InputError, UsageError
from hilm.extras import require

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hilm.training.config import RewardConfig

    Reward = Callable[..., list[float]]


def load_reward(config: RewardConfig) -> Reward:
    """Return a function of ``prompts`` and ``completions`` (texts, or lists of messages) that scores each.

    ``length`` is 1 at ``length`` words and falls on both sides; ``regex`` is 1 where the pattern is found;
    ``keyword`` is the share of the words in ``pattern`` that occur.

    Raises:
        UsageError: What this kind needs is not given.
        InputError: The function or model cannot be loaded.
    """
    needed = {"model": "model", "function": "function", "regex": "pattern", "keyword": "pattern"}
    key = needed.get(config.kind)
    if key is not None and not getattr(config, key):
        raise UsageError(f"a reward of kind {config.kind} needs reward.{key}", hint="see docs/fit.md")
    if config.kind == "model":
        return _Scorer(str(config.model))
    if config.kind == "function":
        return _load_function(str(config.function))
    pattern = config.pattern or ""
    rules: dict[str, Callable[[str], float]] = {
        "length": lambda text: math.exp(-abs(len(text.split()) / config.length - 1)),
        "regex": lambda text: float(re.search(pattern, text) is not None),
        "keyword": lambda text: _share(pattern.split(), text),
    }
    rule = rules[config.kind]

    def reward(completions: Sequence[Any], **_: Any) -> list[float]:  # noqa: ANN401 - TRL passes all columns
        return [rule(_text(completion)) for completion in completions]

    return reward


def _share(words: list[str], text: str) -> float:
    return sum(word.lower() in text.lower() for word in words) / len(words)


def _text(said: str | list[dict[str, str]]) -> str:
    """A text as it is, or what messages say."""
    return said if isinstance(said, str) else "".join(message["content"] for message in said)


def _load_function(place: str) -> Reward:
    """Import ``file.py:name``, code that the user wrote."""
    file, _, name = place.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise InputError(f"there is no file {file!r} with the reward", hint="reward.function=file.py:name")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{file} is no Python file", hint="reward.function=file.py:name")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Reward | None = getattr(module, name, None)
    if found is None:
        raise InputError(f"{file} has no function {name!r}", hint="reward.function=file.py:name")
    return found


class _Scorer:
    """The first output of a sequence classifier for prompt and completion together."""

    __name__ = "reward_model"

    def __init__(self, path: str) -> None:
        transformers = require("transformers")
        try:
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(path)
            self.model = transformers.AutoModelForSequenceClassification.from_pretrained(path).eval()
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(
                f"no reward model at {path}: {reason}", hint="hilm fit reward makes one"
            ) from error
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model.config.pad_token_id = self.tokenizer.pad_token_id

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:  # noqa: ANN401
        torch = require("torch")
        texts = [_text(p) + _text(c) for p, c in zip(prompts, completions, strict=True)]
        batch = self.tokenizer(texts, return_tensors="pt", padding=True, truncation=True).to(
            self.model.device
        )
        with torch.no_grad():
            scores: list[float] = self.model(**batch).logits[:, 0].float().tolist()
        return scores
