"""Tiny models of the eight tasks, with tokenizers made on the spot; texts are words of WORDS."""

from __future__ import annotations

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = (  # noqa: SIM905 - words read better as a text
    "the a cat dog sat on mat anna lives in berlin and works at acme who where is what love this movie bad "
    "good example about sport politics translate summarize english to german okay it s i hello world"
).split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = {word: index for index, word in enumerate([*SPECIAL, *WORDS, ".", "?", ":", "!"])}
SIZE = len(VOCABULARY)
BERT = {
    "vocab_size": SIZE, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 37, "max_position_embeddings": 64,
}  # fmt: skip


def tokenizer(kind: str):
    """A fast tokenizer that splits words; a pair is ``[CLS] a [SEP] b [SEP]`` for BERT."""
    words = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = {"unk_token": "[UNK]"}
    if kind == "gpt2":
        return transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="[SEP]", **names)
    names |= {"pad_token": "[PAD]", "sep_token": "[SEP]", "eos_token": "[SEP]"}
    if kind == "bert":
        words.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
        names |= {"cls_token": "[CLS]", "mask_token": "[MASK]"}
        return transformers.PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=64, **names)
    words.post_processor = processors.TemplateProcessing(single="$A [SEP]", special_tokens=[("[SEP]", 3)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, **names)


def bert(head: str, labels: tuple[str, ...] = ()):
    config = transformers.BertConfig(**BERT, pad_token_id=0)
    if labels:
        config.id2label, config.label2id = dict(enumerate(labels)), {n: i for i, n in enumerate(labels)}
    return getattr(transformers, f"BertFor{head}")(config)


def t5():
    config = transformers.T5Config(
        vocab_size=SIZE, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4, pad_token_id=0,
        eos_token_id=3, decoder_start_token_id=0,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config)


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=SIZE, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=3, eos_token_id=3
    )
    return transformers.GPT2LMHeadModel(config)


MAKERS = {
    "sentiment-analysis": ("bert", lambda: bert("SequenceClassification", ("NEGATIVE", "POSITIVE"))),
    "ner": ("bert", lambda: bert("TokenClassification", ("O", "B-PER", "I-PER", "B-LOC"))),
    "question-answering": ("bert", lambda: bert("QuestionAnswering")),
    "summarization": ("t5", t5),
    "translation_en_to_de": ("t5", t5),
    "text-generation": ("gpt2", gpt2),
    "zero-shot-classification": (
        "bert",
        lambda: bert("SequenceClassification", ("contradiction", "neutral", "entailment")),
    ),
    "fill-mask": ("bert", lambda: bert("MaskedLM")),
}


def write(task: str, folder) -> str:
    """Save the task's tiny model with its tokenizer; weights are large enough that answers differ."""
    kind, make = MAKERS[task]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = make()
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(4 if weight.ndim > 1 else 1)
    model.save_pretrained(folder)
    tokenizer(kind).save_pretrained(folder)
    return str(folder)
