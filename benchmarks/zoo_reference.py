"""A plain reading of AWM (arXiv 2510.06738), to compare with: what a pairwise method says of the same pairs.

The columns of two embeddings are matched by linear assignment; in these coordinates the query and key
matrices of matched blocks are compared by unbiased centred kernel alignment. Needs names, unlike hilm.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from hilm.lineage.assignment import assign
from hilm.weights import open_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from hilm.weights.checkpoint import Checkpoint

    Float = NDArray[np.float64]

EMBEDDING = re.compile(r"(wte|word_embeddings|embed_tokens|shared|token_embd)\.weight$")
QUERY = re.compile(r"(query|q_proj|\.q|attn_q)\.weight$")
KEY = re.compile(r"(key|k_proj|\.k|attn_k)\.weight$")
FUSED = re.compile(r"c_attn\.weight$")
SIDES = ("query", "key")


def awm(a: Path, b: Path) -> float | None:
    """Mean alignment of matched blocks, about 0 for strangers; None where the names say too little."""
    sides = [read(folder) for folder in (a, b)]
    if any(embedding is None or not blocks for embedding, blocks in sides):
        return None
    (first, left), (second, right) = sides
    tokens = min(len(first), len(second))
    x, y = (unit_columns(e[:tokens]) for e in (first, second))
    similar = x.T @ y
    rows, columns = assign(np.abs(similar))
    signs = np.where(similar[rows, columns] < 0, -1.0, 1.0)
    u = np.array([[similarity(m[:, rows]) for m in block] for block in left])
    v = np.array([[similarity(m[:, columns] * signs) for m in block] for block in right])
    scores = np.einsum("ime,jme->ij", u, v) / len(SIDES)
    return float(scores[assign(scores)].mean())


def read(folder: Path) -> tuple[Float | None, list[tuple[Float, Float]]]:
    """Embedding [V, d], and query and key matrices [n, d] of every block in storage order of their names."""
    with open_checkpoint(folder) as checkpoint:
        names = sorted(
            checkpoint.tensors, key=lambda n: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", n)]
        )
        table = next((n for n in names if EMBEDDING.search(n)), None)
        if table is None:
            return None, []
        found = {p: [whole(checkpoint, n) for n in names if p.search(n)] for p in (QUERY, KEY, FUSED)}
        parts = [np.split(m.T, 3) for m in found[FUSED]]  # stored [d, 3 d]
        pairs = zip(found[QUERY], found[KEY], strict=True)
        return whole(checkpoint, table), [*pairs, *((q, k) for q, k, _ in parts)]


def whole(checkpoint: Checkpoint, name: str) -> Float:
    info = checkpoint.tensors[name]
    return checkpoint.values(name, 0, info.numel).reshape(info.shape).astype(np.float64)


def unit_columns(matrix: Float) -> Float:
    centred = matrix - matrix.mean(axis=0)
    return centred / np.maximum(np.linalg.norm(centred, axis=0), 1e-30)


def similarity(matrix: Float) -> Float:
    """How similarly it treats each pair of columns, U-centred and of norm 1.

    The product of two of them is the unbiased linear centred kernel alignment (Song et al. 2012).
    """
    gram = matrix.T @ matrix
    n, hollow = len(gram), gram - np.diag(np.diag(gram))
    means = hollow.sum(axis=0) / (n - 2)
    centred = hollow - means - means[:, None] + hollow.sum() / ((n - 1) * (n - 2))
    flat: Float = centred[~np.eye(n, dtype=bool)]
    return flat / np.linalg.norm(flat)
