"""Summarise and translate with an encoder-decoder, which needs to be told what to do in its own way."""

from __future__ import annotations

import re
from inspect import signature
from typing import TYPE_CHECKING, Any

from hilm.errors import UsageError
from hilm.extras import require

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from hilm.inference.tasks import Task

_LANGUAGES = {"de": "German", "en": "English", "fr": "French", "ro": "Romanian"}
"""Those T5 was trained to name."""
_LONG_CODES = {
    "ar": "arb", "cs": "ces", "de": "deu", "en": "eng", "es": "spa", "fi": "fin", "fr": "fra", "hi": "hin",
    "it": "ita", "ja": "jpn", "ko": "kor", "nl": "nld", "pl": "pol", "pt": "por", "ro": "ron", "ru": "rus",
    "sv": "swe", "tr": "tur", "uk": "ukr", "vi": "vie", "zh": "zho",
}  # fmt: skip


class Rewriter:
    """Turns texts into texts with a model for Seq2SeqLM."""

    def __init__(self, task: Task, model: Any, tokenizer: Any) -> None:  # noqa: ANN401 - of transformers
        self.model, self.tokenizer = model, tokenizer
        self.key = "translation_text" if task.source else "summary_text"
        self.prefix, self.forced = find_prefix(task, model.config), {}
        self.takes = set(signature(model.forward).parameters)
        if task.source and hasattr(tokenizer, "src_lang"):
            tokens = tokenizer.all_special_tokens
            tokenizer.src_lang = find_language(tokens, task.source).strip("_")
            target = find_language(tokens, task.target)
            self.forced = {"forced_bos_token_id": tokenizer.convert_tokens_to_ids(target)}

    def __call__(self, inputs: Sequence[str], batch_size: int, **options: object) -> list[dict[str, str]]:
        """Rewrite texts, the longest together; ``options`` override the checkpoint's generation config."""
        torch = require("torch")
        order = sorted(range(len(inputs)), key=lambda index: len(inputs[index]))
        texts: dict[int, str] = {}
        for first in range(0, len(order), batch_size):
            chosen = order[first : first + batch_size]
            batch = self.tokenizer(
                [self.prefix + inputs[index] for index in chosen], return_tensors="pt", padding=True
            ).to(self.model.device)
            fed = {name: batch[name] for name in batch if name in self.takes}
            with torch.inference_mode():
                ids = self.model.generate(**fed, **self.forced, **options)
            texts |= zip(chosen, self.tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True)
        return [{self.key: texts[index]} for index in range(len(inputs))]


def find_prefix(task: Task, config: Any) -> str:  # noqa: ANN401 - of transformers
    """Return the words before a text that tell the model its task: those it was trained with, or those of T5.

    Raises:
        UsageError: A T5 is to translate a language it was not taught to name.
    """
    known = (getattr(config, "task_specific_params", None) or {}).get(task.name, {})
    if "prefix" in known:
        return str(known["prefix"])
    if config.model_type not in {"t5", "mt5", "umt5", "longt5"}:
        return ""
    if not task.source:
        return "summarize: "
    if not {task.source, task.target} <= set(_LANGUAGES):
        raise UsageError(
            f"{task.name}: a T5 does not know these languages", hint=f"it knows {', '.join(_LANGUAGES)}"
        )
    return f"translate {_LANGUAGES[task.source]} to {_LANGUAGES[task.target]}: "


def find_language(tokens: Iterable[str], code: str) -> str:
    """Return a tokenizer's token for a language: ``en_XX``, ``eng_Latn``, ``__en__``.

    Raises:
        UsageError: It has none.
    """
    codes = {code, _LONG_CODES.get(code, code)}
    match = next((token for token in tokens if re.split("_", token.strip("_"))[0] in codes), None)
    if match is None:
        raise UsageError(f"the tokenizer has no language {code!r}", hint="choose another model")
    return match
