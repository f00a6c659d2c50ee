"""The ways to train, as one table: what trains, with which class of which library."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hilm.errors import UsageError
from hilm.extras import require

if TYPE_CHECKING:
    from collections.abc import Mapping

    Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Method:
    """A way to train.

    Attributes:
        trainer: ``module:class`` that trains.
        settings: ``module:class`` of its own configuration.
        head: Class of transformers that loads the model.
        task: Task type that PEFT knows it by.
        rewarded: Whether it maximises a reward on prompts.
        reference: Whether training everything keeps a frozen copy beside the model.
    """

    trainer: str
    settings: str
    head: str = "AutoModelForCausalLM"
    task: str = "CAUSAL_LM"
    rewarded: bool = False
    reference: bool = False

    @property
    def is_trl(self) -> bool:
        """Whether TRL prepares rows and adapters."""
        return self.trainer.startswith("trl:")


def _trl(name: str, **differences: Any) -> Method:  # noqa: ANN401 - fields of Method
    return Method(f"trl:{name}Trainer", f"trl:{name}Config", **differences)


_PLAIN = Method("transformers:Trainer", "transformers:TrainingArguments")
_SCORES: dict[str, Any] = {"head": "AutoModelForSequenceClassification", "task": "SEQ_CLS"}

METHODS: Mapping[str, Method] = {
    "sft": _trl("SFT"),
    "dpo": _trl("DPO", reference=True),
    "reward": _trl("Reward", **_SCORES),
    "kto": _trl("KTO", reference=True),
    "grpo": _trl("GRPO", rewarded=True),
    "rloo": _trl("RLOO", rewarded=True, reference=True),
    "ppo": Method(
        "hilm.training.ppo:PPOTrainer", "hilm.training.ppo:PPOConfig", rewarded=True, reference=True
    ),
    "classify": replace(_PLAIN, **_SCORES),
    "pretrain": _PLAIN,
}
_SEQUENCES = Method(
    "transformers:Seq2SeqTrainer",
    "transformers:Seq2SeqTrainingArguments",
    "AutoModelForSeq2SeqLM",
    "SEQ_2_SEQ_LM",
)
_MASKED = replace(_PLAIN, head="AutoModelForMaskedLM", task="FEATURE_EXTRACTION")

HEADS = {method.task: method.head for method in (*METHODS.values(), _SEQUENCES, _MASKED)}
"""Task type that PEFT knows → class of transformers."""


def find_method(name: str, config: Config | None = None) -> Method:
    """Look up a method, as it is for a model of this ``config.json``.

    Raises:
        UsageError: There is no such method, or not for this architecture.
    """
    if name not in METHODS:
        raise UsageError(f"there is no method {name!r}", hint=f"one of {', '.join(METHODS)}")
    named = str((config or {}).get("architectures"))
    if (config or {}).get("is_encoder_decoder"):
        if name == "sft":
            return _SEQUENCES
        raise UsageError(f"{name} does not train an encoder-decoder", hint="sft does")
    masked = "MaskedLM" in named or "PreTraining" in named
    if name == "pretrain" and masked:
        return _MASKED
    if masked and METHODS[name].head == "AutoModelForCausalLM":
        raise UsageError(
            f"{name} trains causal language models; this is {named}", hint="classify or pretrain fit it"
        )
    return METHODS[name]


def load_class(place: str) -> Any:  # noqa: ANN401 - a class of a library that is not followed
    """Import ``module:class``.

    Raises:
        MissingExtra: The library is not installed.
    """
    module, _, name = place.partition(":")
    return getattr(require(module), name)
