"""A batch is faster than a loop, and both than loading the model for every text.

Run: python benchmarks/inference.py
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
import transformers
from harness import Gate, Result, main, paired, seconds
from tokenizers import Tokenizer, models, pre_tokenizers

from hilm.inference import create

TEXTS = [" ".join(f"w{(7 * i + j) % 50}" for j in range(4 + i % 13)) for i in range(64)]
SIZES = {"tiny BERT, 32 x 2 layers": (32, 2), "MiniLM's shape, 384 x 6 layers": (384, 6)}


def write(folder: Path, width: int, layers: int) -> str:
    """Save a classifier of random weights and a tokenizer that splits at spaces."""
    vocabulary = {"[UNK]": 0, "[PAD]": 1} | {f"w{i}": 2 + i for i in range(50)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]"
    ).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary), hidden_size=width, num_hidden_layers=layers, num_attention_heads=4,
        intermediate_size=4 * width, max_position_embeddings=64, pad_token_id=1,
    )  # fmt: skip
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    return str(folder)


def compare(name: str) -> tuple[float, float, dict[str, tuple[float, str]]]:
    """Loop / batch of 32, largest difference of a score, and figures of one model."""
    width, layers = SIZES[name]
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), width, layers)
        runner = create("sentiment-analysis", path, device="cpu")
        batched = create("sentiment-analysis", path, device="cpu", batch_size=32)
        loop, batch = (lambda: [runner(text)[0] for text in TEXTS]), (lambda: batched(TEXTS))
        times = paired(loop, batch, clock=time.process_time)
        rebuild = seconds(lambda: [create("sentiment-analysis", path, device="cpu")(t) for t in TEXTS[:8]])
        apart = max(abs(a["score"] - b["score"]) for a, b in zip(loop(), batch(), strict=True))
    figures = {
        f"{name}: a text in a loop": (1e3 * min(times.first) / 64, "ms"),
        f"{name}: a text in a batch": (1e3 * min(times.second) / 64, "ms"),
        f"{name}: a text with the model loaded anew": (1e3 * rebuild / 8, "ms"),
    }
    return times.ratio, apart, figures


def measure() -> Result:
    """Compare both sizes."""
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    small, large = (compare(name) for name in SIZES)
    return Result(
        name="inference",
        claim="64 texts in batches of 32 take less processor time than one by one, with the same scores",
        command="python benchmarks/inference.py",
        gates=(
            Gate("loop / batch, tiny BERT", small[0], ">=", 2, "x"),
            Gate("largest difference of a score", max(small[1], large[1]), "<=", 1e-5, ""),
        ),
        figures={"loop / batch, MiniLM's shape": (large[0], "x")} | small[2] | large[2],
    )


if __name__ == "__main__":
    main(measure)
