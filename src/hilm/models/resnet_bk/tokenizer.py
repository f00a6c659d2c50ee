"""A tokenizer of one's own: byte-level pairs, so that every text has tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.decoders import ByteLevel
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

if TYPE_CHECKING:
    from collections.abc import Iterable

SPECIAL = ("<pad>", "<s>", "</s>")
"""Tokens 0, 1, 2: the defaults of ``ResNetBKConfig``."""


def train_tokenizer(texts: Iterable[str], vocab_size: int = 30000) -> PreTrainedTokenizerFast:
    """Learn byte pairs from texts.

    Args:
        texts: What to learn from.
        vocab_size: Most tokens; a short text has fewer pairs.

    Returns:
        A tokenizer that pads on the left; ``save_pretrained`` it beside the model, for ``AutoTokenizer``.

    Raises:
        ValueError: There is no room for the bytes and the special tokens.
    """
    least = 256 + len(SPECIAL)
    if vocab_size < least:
        raise ValueError(
            f"vocab_size is {vocab_size}; 256 bytes and {len(SPECIAL)} special tokens are {least}"
        )
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    names = dict(zip(("pad_token", "bos_token", "eos_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **names)
