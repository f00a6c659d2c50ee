"""Tiny models with byte-level tokenizers, and rows to train them on: made here, nothing is downloaded."""

from __future__ import annotations

import json

import torch
import transformers

from hilm.models.resnet_bk import ResNetBKForCausalLM
from hilm.models.resnet_bk.tokenizer import train_tokenizer
from tests.models.resnet_bk.tiny import config as resnet_bk_config

WORDS = ("red", "blue", "green", "sun", "moon", "tree", "river", "stone")
CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


def tokenizer(**options):
    """259 tokens: the bytes and three special ones."""
    made = train_tokenizer(["no pairs to learn"], 259)
    for name, value in options.items():
        setattr(made, name, value)
    return made


def llama():
    config = transformers.LlamaConfig(
        vocab_size=259, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def t5():
    config = transformers.T5Config(
        vocab_size=259, d_model=32, d_ff=64, d_kv=8, num_layers=2, num_heads=4, pad_token_id=0,
        eos_token_id=2, decoder_start_token_id=0,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config)


def bert():
    config = transformers.BertConfig(
        vocab_size=259, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=128, pad_token_id=0,
    )  # fmt: skip
    return transformers.BertForMaskedLM(config)


def resnet_bk():
    return ResNetBKForCausalLM(resnet_bk_config(vocab_size=259, n_seq=64))


MAKERS = {"llama": llama, "t5": t5, "bert": bert, "resnet_bk": resnet_bk}


def write_models(folder):
    """Write each under its name."""
    for name, make in MAKERS.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            make().save_pretrained(folder / name)
        tokenizer().save_pretrained(folder / name)
    return folder


def rows_for(name, count=64):
    """Rows of a method; what is right depends on the text."""
    rows = []
    for i in range(count):
        word, other = WORDS[i % len(WORDS)], WORDS[(i + 3) % len(WORDS)]
        prompt, right, wrong = f"{word} {i % 5}: ", f"{word} {word}", f"{other} no"
        rows.append(
            {
                "sft": {"text": prompt + right},
                "seq2seq": {"source": prompt, "target": right},
                "dpo": {"prompt": prompt, "chosen": right, "rejected": wrong},
                "reward": {"chosen": prompt + right, "rejected": prompt + wrong},
                "kto": {"prompt": prompt, "completion": right if i % 2 else wrong, "label": bool(i % 2)},
                "classify": {"text": prompt, "label": int(i % len(WORDS) >= len(WORDS) // 2)},
                "pretrain": {"text": prompt + right},
            }.get(name, {"prompt": prompt})
        )
    return rows


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
