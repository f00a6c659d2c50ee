"""The trained models of the zoo: small architectures, what they learn, and their training."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
import transformers
from peft import LoraConfig, get_peft_model
from zoo_data import HEADS, LAYERS, LENGTH, MASK, VOCABULARY, WIDTH, Model, corpus, stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray
BATCH = 16
SIDE, LABELS = 32, 64
WARM_UP = 20


# Batches


def causal(rng: np.random.Generator, data: str) -> dict[str, Any]:
    """A batch whose next token is to be told."""
    text = torch.from_numpy(rng.choice(corpus(data), BATCH))
    return {"input_ids": text, "labels": text}


def masked(rng: np.random.Generator, data: str) -> dict[str, Any]:
    """A batch with gaps to be filled."""
    text = rng.choice(corpus(data), BATCH)
    hidden = rng.random(text.shape) < 0.15
    ids, labels = np.where(hidden, MASK, text), np.where(hidden, text, -100)
    return {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}


def restored(rng: np.random.Generator, data: str) -> dict[str, Any]:
    """A batch with gaps, to be written out in full."""
    text = rng.choice(corpus(data), BATCH)
    ids = np.where(rng.random(text.shape) < 0.15, MASK, text)
    return {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(text)}


def pictured(rng: np.random.Generator, data: str) -> dict[str, Any]:
    """A batch of noisy gratings, to be told by direction and colour."""
    labels = rng.integers(LABELS, size=BATCH)
    waves = stream("pictures", data).normal(size=(LABELS, 2))[labels] * 0.5
    colours = stream("colours", data).normal(size=(LABELS, 3))[labels]
    grid = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)))
    phase = np.einsum("bk,kxy->bxy", waves, grid) + rng.random((BATCH, 1, 1)) * 6
    pixels = colours[..., None, None] * np.sin(phase)[:, None] + rng.normal(size=(BATCH, 3, SIDE, SIDE))
    return {"pixel_values": torch.from_numpy(pixels.astype(np.float32)), "labels": torch.from_numpy(labels)}


# Architectures

SIZES = {"vocab_size": VOCABULARY, "max_position_embeddings": 2 * LENGTH, "hidden_size": WIDTH}
DEPTH = {"num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

Batches: TypeAlias = "Callable[[np.random.Generator, str], dict[str, Any]]"

ARCHITECTURES: Mapping[str, tuple[str, dict[str, Any], Batches]] = {
    "gpt2": (
        "GPT2LMHeadModel",
        {"vocab_size": VOCABULARY, "n_positions": 2 * LENGTH, "n_embd": WIDTH, "n_layer": LAYERS,
         "n_head": HEADS}
        | ENDS,
        causal,
    ),
    "bert": ("BertForMaskedLM", SIZES | DEPTH | ENDS | {"intermediate_size": 4 * WIDTH}, masked),
    "llama": ("LlamaForCausalLM", SIZES | DEPTH | ENDS | {"intermediate_size": 352}, causal),
    "qwen2": (
        "Qwen2ForCausalLM",
        SIZES | DEPTH | ENDS
        | {"intermediate_size": 384, "num_key_value_heads": 2, "tie_word_embeddings": True},
        causal,
    ),
    "t5": (
        "T5ForConditionalGeneration",
        {"vocab_size": VOCABULARY, "d_model": WIDTH, "d_kv": WIDTH // HEADS, "d_ff": 4 * WIDTH,
         "num_layers": 2, "num_heads": HEADS, "decoder_start_token_id": 0, "pad_token_id": 0,
         "eos_token_id": 2},
        restored,
    ),
    "vit": (
        "ViTForImageClassification",
        {"hidden_size": WIDTH, **DEPTH, "intermediate_size": 4 * WIDTH, "image_size": SIDE, "patch_size": 4,
         "num_labels": LABELS},
        pictured,
    ),
}  # fmt: skip
"""Name → class in transformers, its settings, and what it is trained on."""


def fresh(architecture: str, seed: int) -> Model:
    """An untrained model."""
    name, settings, _ = ARCHITECTURES[architecture]
    kind = getattr(transformers, name)
    with repeatable(stream(architecture, seed, "start")):
        model = kind(kind.config_class(**settings, architectures=[name]))
    return Model(weights(model), model.config.to_dict())


def weights(model: torch.nn.Module) -> dict[str, NDArray[np.float32]]:
    """Every parameter once, tied ones under their first name."""
    return {name: value.detach().numpy().copy() for name, value in model.named_parameters()}


def instance(model: Model) -> torch.nn.Module:
    """The model as transformers makes it, with these weights."""
    kind = getattr(transformers, model.config["architectures"][0])
    made = kind(kind.config_class(**model.config))
    state = {name: torch.from_numpy(np.array(value, np.float32)) for name, value in model.tensors.items()}
    missing, unexpected = made.load_state_dict(state, strict=False)
    absent = set(missing) & {name for name, _ in made.named_parameters()}
    assert not absent, absent
    assert not unexpected, unexpected
    return made.eval()


def outputs(model: Model, batch: dict[str, Any]) -> NDArray[np.float32]:
    """Logits of a batch, without dropout."""
    with torch.no_grad():
        logits: NDArray[np.float32] = instance(model)(**batch).logits.numpy()
    return logits


def batch_of(architecture: str, rng: np.random.Generator, data: str) -> dict[str, Any]:
    """What that architecture is trained on."""
    return ARCHITECTURES[architecture][2](rng, data)


# Training


def train(
    model: Model,
    architecture: str,
    role: tuple[object, ...],
    *,
    steps: int,
    rate: float,
    data: str = "first",
    rank: int | None = None,
) -> tuple[Model, tuple[float, float]]:
    """Train with AdamW; the same call gives the same weights.

    Args:
        model: Where to begin.
        architecture: Which decides on the task.
        role: Words its random numbers belong to: dropout and order of the data.
        steps: Batches.
        rate: Learning rate, reached after 20 steps.
        data: Name of the corpus.
        rank: Of the LoRA adapter that is trained and merged; everything is trained without one.

    Returns:
        The trained model, and its mean loss over the first and the last five steps.
    """
    rng = stream(*role, "order")
    with repeatable(stream(*role, "dropout")):
        whole = instance(model).train()
        trained = whole if rank is None else get_peft_model(whole, adapter(architecture, rank))
        losses = fit(trained, lambda: batch_of(architecture, rng, data), steps, rate)
        merged = trained if rank is None else trained.merge_and_unload()
    return replace(model, tensors=weights(merged)), (float(np.mean(losses[:5])), float(np.mean(losses[-5:])))


def adapter(architecture: str, rank: int) -> LoraConfig:
    """Low-rank updates of all matrices of the blocks."""
    fused = architecture == "gpt2"  # stored transposed
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", fan_in_fan_out=fused)


def fit(model: torch.nn.Module, batch: Callable[[], dict[str, Any]], steps: int, rate: float) -> list[float]:
    """Losses of the steps."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, fused=True)
    losses = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / WARM_UP)
        loss = model(**batch()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@contextmanager
def repeatable(rng: np.random.Generator) -> Iterator[None]:
    """Seed torch, and compute on one thread: how many there are changes the order of sums."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(1 << 62)))
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
