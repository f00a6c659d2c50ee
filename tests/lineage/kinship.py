"""Families with a known tree: what training, merging and cutting do to small models."""

from __future__ import annotations

import numpy as np

from hilm.lineage.search import Print
from tests.lineage.family import print_of


def task(base, seed, *, size=0.05, shared=None, share=0.0):
    """What training changes: heavy-tailed, in part the same as with seed ``shared``."""

    def drawn(number, shape):
        return np.random.default_rng(number).standard_t(4, shape) / np.sqrt(2)

    out = {}
    for number, (name, values) in enumerate(base.items()):
        change = drawn([seed, number], values.shape)
        if shared is not None:
            change = np.sqrt(1 - share) * change + np.sqrt(share) * drawn([shared, number], values.shape)
        out[name] = (size * values.std() * change).astype(np.float32)
    return out


def plus(base, *tasks):
    """The base and weighted tasks: pairs of a weight and a task."""
    return {n: sum((w * t[n] for w, t in tasks), v).astype(np.float32) for n, v in base.items()}


def average(*parts):
    """Pairs of a weight and a model."""
    return {n: sum(w * model[n] for w, model in parts).astype(np.float32) for n in parts[0][1]}


def slerp(a, b, t):
    """Spherical interpolation, tensor by tensor."""
    out = {}
    for name in a:
        x, y = a[name].astype(np.float64), b[name].astype(np.float64)
        angle = np.arccos(np.clip((x * y).sum() / max(np.linalg.norm(x) * np.linalg.norm(y), 1e-30), -1, 1))
        mixed = (np.sin((1 - t) * angle) * x + np.sin(t * angle) * y) / np.sin(angle) if angle > 1e-6 else x
        out[name] = mixed.astype(np.float32)
    return out


def ties(base, *tasks, density=0.2):
    """Trim each task, elect signs, average what agrees (arXiv 2306.01708)."""
    out = {}
    for name, values in base.items():
        stack = np.stack([t[name] for t in tasks])
        floors = [np.quantile(np.abs(change), 1 - density) for change in stack]
        stack = np.stack([np.where(np.abs(c) >= floor, c, 0) for c, floor in zip(stack, floors, strict=True)])
        agree = (np.sign(stack) == np.sign(stack.sum(axis=0))) & (stack != 0)
        out[name] = (values + (stack * agree).sum(axis=0) / np.maximum(agree.sum(axis=0), 1)).astype(
            np.float32
        )
    return out


def levels(tensors, steps=127):
    """Matrices rounded to symmetric levels by row."""
    out = {}
    for name, values in tensors.items():
        step = np.abs(values).max(axis=-1, keepdims=True) / steps
        out[name] = (np.rint(values / step) * step).astype(np.float32) if values.ndim > 1 else values
    return out


def pruned(tensors):
    """The smaller half of every matrix set to zero."""
    return {
        n: np.where(np.abs(v) < np.median(np.abs(v)), 0, v) if v.ndim > 1 else v for n, v in tensors.items()
    }


class Prints:
    """Fingerprints of models, as the catalog keeps them."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, **models):
        found = []
        for name, tensors in models.items():
            row = print_of(self.folder / name, tensors).to_row(bytes(32))
            found.append(Print(name, row | {"coverage": 1.0}))
        return found
