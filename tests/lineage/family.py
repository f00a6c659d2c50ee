"""Small models and what people do to models, for tests of fingerprints."""

from __future__ import annotations

import json
import re

import ml_dtypes
import numpy as np

from hilm.lineage.fingerprint import fingerprint
from hilm.weights.checkpoint import open_checkpoint
from tests.tiny import stored, write_model

TABLE = "embeddings.word_embeddings.weight"


def print_of(folder, tensors, *, threads=1, **how):
    """Fingerprint of tensors, written to ``folder`` first."""
    with open_checkpoint(write_model(folder, tensors, **how)) as checkpoint:
        return fingerprint(checkpoint, threads=threads)


def cosine(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def cosines(a, b):
    """F1 and F2 of two fingerprints."""
    return cosine(a.position, b.position), cosine(a.anchored, b.anchored)


def mixed(seed=0, *, width=64, layers=3, hidden=192, vocabulary=1000):
    """A gated model without a matrix of width x width: its heads are narrower than the stream (GQA-like)."""
    rng = np.random.default_rng([seed, 77])
    scale = np.exp(0.3 * rng.standard_normal(width)).astype(np.float32)

    def matrix(rows, columns):
        drawn = (0.02 * rng.standard_normal((rows, columns))).astype(np.float32)
        return drawn * scale if columns == width else drawn

    tensors = {"model.embed_tokens.weight": matrix(vocabulary, width)}
    for n in range(layers):
        block = f"model.layers.{n}."
        tensors[block + "self_attn.q_proj.weight"] = matrix(width // 2, width)
        tensors[block + "self_attn.k_proj.weight"] = matrix(width // 4, width)
        tensors[block + "self_attn.v_proj.weight"] = matrix(width // 4, width)
        tensors[block + "self_attn.o_proj.weight"] = matrix(width, width // 2)
        tensors[block + "mlp.gate_proj.weight"] = matrix(hidden, width)
        tensors[block + "mlp.up_proj.weight"] = matrix(hidden, width)
        tensors[block + "mlp.down_proj.weight"] = matrix(width, hidden)
        tensors[block + "input_layernorm.weight"] = np.ones(width, np.float32)
    tensors["model.norm.weight"] = np.ones(width, np.float32)
    return tensors


def reads_stream(name):
    """Whether a matrix is stored with the residual stream as its columns."""
    return not re.search(r"(o_proj|down_proj|attention\.output\.dense|\d\.output\.dense)\.weight$", name)


def turned(tensors, turn):
    """The residual stream in another basis: ``turn`` is orthogonal, float64 [d, d]."""
    out = {}
    for name, values in tensors.items():
        if values.ndim < 2:
            out[name] = values
        elif reads_stream(name):
            out[name] = (values @ turn).astype(np.float32)
        else:
            out[name] = (turn.T @ values).astype(np.float32)
    return out


def permutation(width, rng):
    return np.eye(width)[rng.permutation(width)]


def signed(width, rng):
    return permutation(width, rng) * rng.choice([-1.0, 1.0], width)


def rotation(width, rng):
    return np.linalg.qr(rng.standard_normal((width, width)))[0]


def shuffled_units(tensors, rng):
    """Hidden units of every feed-forward block, and values of every head, in another order."""
    out, orders = dict(tensors), {}
    for name, values in tensors.items():
        inner = re.search(r"(gate_proj|up_proj|intermediate\.dense|v_proj)\.weight$", name)
        if inner and inner[1] != "v_proj":
            key = re.match(r".*?\.(\d+)\.", name)[1]
            order = orders.setdefault(key, rng.permutation(len(values)))
            out[name] = values[order]
    for name, values in tensors.items():
        if re.search(r"(down_proj|\d\.output\.dense)\.weight$", name):
            out[name] = values[:, orders[re.match(r".*?\.(\d+)\.", name)[1]]]
    return out


def noisy(tensors, share, rng):
    """Noise of ``share`` of every matrix's standard deviation, another for every model."""
    return {
        n: (v + share * v.std() * rng.standard_normal(v.shape)).astype(np.float32) if v.ndim > 1 else v
        for n, v in tensors.items()
    }


def bf16(tensors):
    return {name: stored(values, "BF16") for name, values in tensors.items()}


def f16(tensors):
    return {name: values.astype(np.float16) for name, values in tensors.items()}


def rounded(tensors, dtype):
    """float32 values that ``dtype`` holds exactly."""
    kind = ml_dtypes.bfloat16 if dtype == "BF16" else np.float16
    return {name: values.astype(kind).astype(np.float32) for name, values in tensors.items()}


def without_layer(tensors, number):
    return {n: v for n, v in tensors.items() if f".{number}." not in n}


def with_layer_twice(tensors, number, new):
    return tensors | {
        n.replace(f".{number}.", f".{new}."): v for n, v in tensors.items() if f".{number}." in n
    }


def renamed(tensors, rng):
    """Every name replaced by letters drawn at random."""
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    return {"".join(rng.choice(letters, 12)): values for values in tensors.values()}


def write_tokenizer(folder, tokenizer):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
