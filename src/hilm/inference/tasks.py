"""The tasks, what each needs of a model, and whether a model has it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from hilm.errors import UsageError
from hilm.extras import require

if TYPE_CHECKING:
    from collections.abc import Mapping

_GENERATION = frozenset({
    "max_new_tokens", "min_new_tokens", "num_beams", "do_sample", "temperature", "top_k", "top_p",
    "length_penalty", "repetition_penalty", "no_repeat_ngram_size",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Task:
    """One task.

    Attributes:
        name: As it is called here.
        head: The ``AutoModelFor…`` class of models that can do it, without these first words.
        model: Taken when none is named.
        revision: Of it; the default branch when None.
        options: What a call may set.
        listed: Whether one input gives a list of one result.
        source: Language translated from.
        target: Language translated to.
    """

    name: str
    head: str
    model: str
    revision: str | None = None
    options: frozenset[str] = field(default_factory=frozenset)
    listed: bool = False
    source: str = ""
    target: str = ""


_CLASSIFIER = "SequenceClassification"
_TASKS = (
    Task("sentiment-analysis", _CLASSIFIER, "distilbert/distilbert-base-uncased-finetuned-sst-2-english",
         "714eb0f", frozenset({"top_k", "function_to_apply"}), listed=True),
    Task("ner", "TokenClassification", "dbmdz/bert-large-cased-finetuned-conll03-english", "4c53496",
         frozenset({"grouped_entities", "aggregation_strategy", "ignore_labels"})),
    Task("question-answering", "QuestionAnswering", "distilbert/distilbert-base-cased-distilled-squad", None,
         frozenset({"top_k", "max_answer_len", "no_answer", "score_scope"})),
    Task("summarization", "Seq2SeqLM", "sshleifer/distilbart-cnn-12-6", None, _GENERATION, listed=True),
    Task("translation_en_to_de", "Seq2SeqLM", "google-t5/t5-base", None, _GENERATION, listed=True,
         source="en", target="de"),
    Task("text-generation", "CausalLM", "openai-community/gpt2", None,
         _GENERATION | {"num_return_sequences", "return_full_text"}),
    Task("zero-shot-classification", _CLASSIFIER, "facebook/bart-large-mnli", "d7645e1",
         frozenset({"labels", "multi_label", "hypothesis_template"})),
    Task("fill-mask", "MaskedLM", "distilbert/distilroberta-base", "fb53ab8",
         frozenset({"top_k", "targets"})),
)  # fmt: skip
TASKS: Mapping[str, Task] = {task.name: task for task in _TASKS}
"""Name → task. Any ``translation_XX_to_YY`` is one too."""

ALIASES = {"text-classification": "sentiment-analysis", "token-classification": "ner"}

_HEADS = {
    "SequenceClassification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "TokenClassification": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "QuestionAnswering": "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
    "Seq2SeqLM": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "CausalLM": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "MaskedLM": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
}


def find_task(name: str) -> Task:
    """Return the task of a name or alias.

    Raises:
        UsageError: There is none; the hint is the nearest.
    """
    name = ALIASES.get(name, name)
    if name in TASKS:
        return TASKS[name]
    languages = re.fullmatch(r"translation_([a-z]{2,3})_to_([a-z]{2,3})", name)
    if languages:
        known = TASKS["translation_en_to_de"]
        return Task(name, known.head, known.model, None, known.options, True, *languages.groups())
    near = get_close_matches(name, [*TASKS, *ALIASES], n=1)
    hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(TASKS)}"
    raise UsageError(f"there is no task {name!r}", hint=hint)


def check_head(task: Task, config: Any) -> None:  # noqa: ANN401 - a configuration of transformers
    """Make sure, before any weight is read, that a model was trained with the head the task needs.

    Raises:
        UsageError: It was not; the message names the tasks it can do.
    """
    written = set(config.architectures or ())
    able = [name for name, other in TASKS.items() if written & _architectures(other.head, config)]
    if not _entails(config) and "zero-shot-classification" in able:
        able.remove("zero-shot-classification")
    if task.name in able or (task.source and "translation_en_to_de" in able):
        return
    shown = ", ".join(sorted(written)) or "no head that config.json names"
    if task.name == "zero-shot-classification" and written & _architectures(task.head, config):
        raise UsageError(
            f"{task.name} needs a label that begins with 'entail'; the labels are "
            f"{', '.join(config.label2id)}",
            hint="choose a model trained on natural language inference, such as facebook/bart-large-mnli",
        )
    hint = f"it can do {', '.join(able)}" if able else "name a model fine-tuned for the task"
    raise UsageError(f"{task.name} needs a model for {task.head}; this one is {shown}", hint=hint)


def _entails(config: Any) -> bool:  # noqa: ANN401 - a configuration of transformers
    return any(str(label).lower().startswith("entail") for label in config.label2id or ())


def _architectures(head: str, config: Any) -> set[str]:  # noqa: ANN401 - as above
    """Return the classes with this head: those of transformers, and those that come with the checkpoint."""
    known = getattr(require("transformers.models.auto.modeling_auto"), _HEADS[head]).values()
    names = {name for value in known for name in ([value] if isinstance(value, str) else value)}
    own = (getattr(config, "auto_map", None) or {}).get(f"AutoModelFor{head}", "")
    return names | {own.rpartition(".")[2]}
