"""Rows as the trainers take them; TRL tokenises its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import transformers

from hilm.data import check_columns, columns_of
from hilm.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from transformers import PreTrainedTokenizerBase

    from hilm.training.config import TrainConfig
    from hilm.training.methods import Method


def prepare_rows(
    rows: Any,  # noqa: ANN401 - a datasets.Dataset
    name: str,
    method: Method,
    tokenizer: PreTrainedTokenizerBase,
    train: TrainConfig,
) -> Any:  # noqa: ANN401 - the same
    """Keep the columns the method needs, and tokenise them where its trainer does not.

    Raises:
        InputError: A column is missing.
    """
    wanted = find_columns(columns_of(rows), name, method)
    rows = rows.select_columns(wanted)
    if name == "kto":
        return rows.map(lambda row: {"label": bool(row["label"])})
    if method.is_trl or name == "ppo":
        return rows
    return rows.map(_tokeniser(name, tokenizer, train.max_length), batched=True, remove_columns=wanted)


def find_columns(columns: Collection[str], name: str, method: Method) -> list[str]:
    """The columns a method trains on.

    Raises:
        InputError: One is missing, or this architecture takes others.
    """
    pairs = method.task == "SEQ_2_SEQ_LM"
    wanted = ["source", "target"] if pairs else list(check_columns(name, columns))
    if not set(wanted) <= set(columns) or (wanted == ["source", "target"] and not pairs):
        names = ("source, target", "text") if pairs else ("text, or prompt, completion", "source")
        raise InputError(f"this model is trained on {names[0]}", hint=f"data.columns={{{names[1]}: …}}")
    return [*wanted, *(["prompt"] if name in {"dpo", "reward"} and "prompt" in columns else [])]


def _tokeniser(
    name: str, tokenizer: PreTrainedTokenizerBase, longest: int
) -> Callable[[dict[str, list[Any]]], dict[str, Any]]:
    """A function of a batch of rows: numbered labels, pairs of texts, or texts joined and cut into blocks."""

    def classified(batch: dict[str, list[Any]]) -> dict[str, Any]:
        tokens = tokenizer(batch["text"], truncation=True, max_length=longest)
        return {**tokens, "labels": [int(label) for label in batch["label"]]}

    def paired(batch: dict[str, list[Any]]) -> dict[str, Any]:
        tokens = tokenizer(batch["source"], truncation=True, max_length=longest)
        targets = tokenizer(text_target=batch["target"], truncation=True, max_length=longest)
        return {**tokens, "labels": targets["input_ids"]}

    def joined(batch: dict[str, list[Any]]) -> dict[str, Any]:
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        texts = tokenizer(batch["text"], add_special_tokens=False)["input_ids"]
        stream = [token for text in texts for token in [*text, *end]]
        return {"input_ids": [stream[start : start + longest] for start in range(0, len(stream), longest)]}

    return {"classify": classified, "sft": paired, "pretrain": joined}[name]


def collator(name: str, method: Method, tokenizer: PreTrainedTokenizerBase, model: Any) -> Any | None:  # noqa: ANN401
    """What makes batches of tokenised rows; None where the trainer has its own."""
    if method.is_trl or name == "ppo":
        return None
    if name == "classify":
        return transformers.DataCollatorWithPadding(tokenizer)
    if name == "pretrain":
        return transformers.DataCollatorForLanguageModeling(
            tokenizer, mlm=method.head == "AutoModelForMaskedLM"
        )
    return transformers.DataCollatorForSeq2Seq(tokenizer, model)
