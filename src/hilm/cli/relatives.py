"""Relatives of a BERT checkpoint, made the way people make them, for ``hilm demo`` to recognise."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ml_dtypes import bfloat16

from hilm.extras import require

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import ModuleType

    from numpy.typing import NDArray
    from torch import Tensor
    from torch.nn import Module

    Tensors = Mapping[str, NDArray[Any]]
    Pair = tuple[str, str]

WEIGHTS = "model.safetensors"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")

BATCH = 16
MAX_TOKENS = 32
TEMPERATURE = 0.05
SENTENCE_WORDS = (5, 40)

AXES = {
    r"(word|position|token_type)_embeddings\.weight": ("", "residual"),
    r"LayerNorm\.(weight|bias)": ("residual",),
    r"attention\.self\.(query|key|value)\.weight": ("heads", "residual"),
    r"attention\.self\.(query|key|value)\.bias": ("heads",),
    r"attention\.output\.dense\.weight": ("residual", "heads"),
    r"intermediate\.dense\.weight": ("hidden", "residual"),
    r"intermediate\.dense\.bias": ("hidden",),
    r"(?<!attention\.)output\.dense\.weight": ("residual", "hidden"),
    r"output\.dense\.bias": ("residual",),
    r"pooler\.dense\.weight": ("", "residual"),
}
"""End of a BERT parameter's name → what each of its axes counts; an axis without a name keeps its order."""


def read(folder: Path) -> Tensors:
    """Read all tensors of a checkpoint folder with one weight file."""
    from safetensors.numpy import load_file  # noqa: PLC0415 only the demo pays for it

    return load_file(folder / WEIGHTS)


def write(folder: Path, like: Path, tensors: Tensors) -> None:
    """Write a checkpoint folder with the config and the tokenizer of another.

    Args:
        folder: Made if missing; its files are replaced.
        like: The checkpoint the config and the tokenizer are taken from.
        tensors: The weights; the config is told the type of those that are not integers.
    """
    from safetensors.numpy import save_file  # noqa: PLC0415 only the demo pays for it

    folder.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER:
        shutil.copyfile(like / name, folder / name)
    config = json.loads((like / "config.json").read_text("utf-8"))
    config["dtype"] = next(str(tensor.dtype) for tensor in tensors.values() if tensor.dtype.kind != "i")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    temporary = folder / f"{WEIGHTS}.part"
    save_file(
        {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()},
        temporary,
        metadata={"format": "pt"},
    )
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(folder / WEIGHTS)


def cast(tensors: Tensors) -> Tensors:
    """Round float32 to bfloat16, to the nearest, ties to even."""
    return {n: t.astype(bfloat16) if t.dtype == np.float32 else t for n, t in tensors.items()}


def quantize(tensors: Tensors) -> Tensors:
    """Round each row of each matrix to 255 evenly spaced levels, symmetric about 0; stored as float32."""
    return {n: _to_levels(t) if _is_matrix(t) else t for n, t in tensors.items()}


def _to_levels(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    largest = np.abs(matrix).max(axis=1, keepdims=True)
    step = np.where(largest > 0, largest / np.float32(127), np.float32(1))
    return np.rint(matrix / step) * step


def prune(tensors: Tensors) -> Tensors:
    """Set the smaller half of each matrix to zero, by magnitude."""
    return {n: _without_smaller_half(t) if _is_matrix(t) else t for n, t in tensors.items()}


def _without_smaller_half(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    magnitude = np.abs(matrix)
    return np.where(magnitude < np.median(magnitude), np.float32(0), matrix)


def _is_matrix(tensor: NDArray[Any]) -> bool:
    return tensor.ndim == 2 and tensor.dtype == np.float32


def permute(tensors: Tensors, heads: int, seed: int) -> Tensors:
    """Reorder everything in a BERT model whose order carries no meaning; it still computes the same.

    The coordinates of the residual stream, and in each layer the attention heads and the hidden units of the
    MLP. Hidden states, and embeddings pooled from them, come out with their coordinates reordered.

    Args:
        tensors: The weights, named as transformers' ``BertModel`` does.
        heads: Attention heads of a layer.
        seed: Of the random orders.
    """
    rng = np.random.default_rng(seed)
    orders: dict[tuple[str, str], NDArray[np.intp]] = {}

    def order(name: str, axis: str, size: int) -> NDArray[np.intp]:
        layer = "" if axis == "residual" else name.partition("layer.")[2].partition(".")[0]
        if (axis, layer) not in orders:
            blocks = np.arange(size).reshape(heads if axis == "heads" else size, -1)
            orders[axis, layer] = rng.permutation(blocks).reshape(-1)
        return orders[axis, layer]

    permuted = dict(tensors)
    for name in sorted(tensors):
        for number, axis in enumerate(_axes(name)):
            if axis:
                size = tensors[name].shape[number]
                permuted[name] = permuted[name].take(order(name, axis, size), axis=number)
    return permuted


def _axes(name: str) -> tuple[str, ...]:
    return next((axes for pattern, axes in AXES.items() if re.search(rf"{pattern}$", name)), ())


def docstring_pairs(count: int) -> list[Pair]:
    """Return pairs of a first and a second sentence of docstrings in Python's standard library.

    Args:
        count: How many, drawn evenly from all; the same ones every time. No sentence comes twice.
    """
    found = {}
    for path in sorted(Path(ast.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = " ".join((ast.get_docstring(node) or "").split())
                sentences = re.split(r"(?<=[a-z][.!?]) (?=[A-Z])", text)[:2]
                if len(sentences) > 1 and all(map(_is_prose, sentences)):
                    found[sentences[1]] = sentences[0]
    pairs = list({first: second for second, first in found.items()}.items())
    return [pairs[i] for i in np.random.default_rng(0).permutation(len(pairs))[:count]]


def _is_prose(sentence: str) -> bool:
    return SENTENCE_WORDS[0] <= len(sentence.split()) <= SENTENCE_WORDS[1] and ">>>" not in sentence


def train(
    folder: Path, pairs: Sequence[Pair], *, rate: float, seed: int = 0, fresh: bool = False
) -> tuple[Tensors, list[float]]:
    """Train a sentence-embedding model to tell which sentence follows which.

    One pass of AdamW in batches of 16 pairs, sentences cut at 32 tokens. The loss is the cross-entropy of the
    true neighbour among the batch, by cosine at temperature 0.05. The same call gives the same weights.

    Args:
        folder: The checkpoint.
        pairs: Sentences and their neighbours.
        rate: Learning rate.
        seed: Of dropout, and of the weights when fresh.
        fresh: Begin from random weights; only the config and the tokenizer are read.

    Returns:
        The trained weights, and the loss of each step.

    Raises:
        MissingExtra: torch or transformers is not installed.
    """
    torch, transformers = require("torch"), require("transformers")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with _repeatable(torch, seed):
        config = transformers.AutoConfig.from_pretrained(folder)
        bert = transformers.AutoModel
        model = bert.from_config(config) if fresh else bert.from_pretrained(folder, config=config)
        optimizer = torch.optim.AdamW(model.train().parameters(), lr=rate, fused=True)
        losses = []
        for start in range(0, len(pairs), BATCH):
            optimizer.zero_grad()
            loss = contrast(model, tokenizer, pairs[start : start + BATCH])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return {name: value.numpy() for name, value in model.state_dict().items()}, losses


@contextmanager
def _repeatable(torch: ModuleType, seed: int) -> Iterator[None]:
    """Seed torch, and compute on one thread: how many there are changes the order of sums."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def contrast(model: Module, tokenizer: Any, pairs: Sequence[Pair]) -> Tensor:  # noqa: ANN401 a duck
    """Return the cross-entropy of finding each sentence's neighbour among the batch."""
    torch = require("torch")
    first, second = embed(model, tokenizer, [*chain(*zip(*pairs, strict=True))]).chunk(2)
    return torch.nn.functional.cross_entropy(first @ second.T / TEMPERATURE, torch.arange(len(pairs)))


def embed(model: Module, tokenizer: Any, sentences: Sequence[str]) -> Tensor:  # noqa: ANN401 a duck
    """Return one unit vector a sentence: the mean of its tokens' last hidden states."""
    torch = require("torch")
    tokens = tokenizer(
        list(sentences), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
    )
    mask = tokens["attention_mask"].unsqueeze(-1)
    total = (model(**tokens).last_hidden_state * mask).sum(1)
    return torch.nn.functional.normalize(total, dim=-1)
