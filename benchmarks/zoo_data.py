"""What the models of the zoo are made of before any is trained: random numbers, a vocabulary, a language."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from hilm.lineage.gram import WORDS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Tensors = Mapping[str, NDArray[Any]]

VOCABULARY, LENGTH = 2048, 32
SENTENCES, CLASSES, TOPICS = 4096, 8, 16
SPECIAL = ("<pad>", "<s>", "</s>", "<mask>")
MASK = SPECIAL.index("<mask>")
WIDTH, LAYERS, HEADS = 128, 4, 4


def stream(*parts: object) -> np.random.Generator:
    """Random numbers that belong to these words alone: no two roles, seeds or architectures share any."""
    text = "/".join(map(str, parts))
    return np.random.default_rng(
        int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")
    )


@dataclass(frozen=True, slots=True)
class Model:
    """Weights by name, and the ``config.json`` they go with."""

    tensors: Tensors
    config: dict[str, Any]

    def having(self, tensors: Tensors, **settings: object) -> Model:
        """Other weights, and other settings where they need them."""
        return Model(tensors, self.config | settings)


def vocabulary() -> dict[str, int]:
    """Token → id: special tokens, the anchor words, and words of three syllables."""
    rng = stream("words")
    words, letters = list(SPECIAL) + [f"▁{w}" for w in WORDS], (list("bdfgklmnprstvz"), list("aeiou"))
    while len(words) < VOCABULARY:
        word = "▁" + "".join(str(rng.choice(letters[i % 2])) for i in range(6))
        words += [word] * (word not in words)
    return {word: number for number, word in enumerate(words)}


@cache
def corpus(name: str) -> NDArray[np.int64]:
    """Sentences of a random grammar: word classes follow one another, a topic prefers words of each class."""
    rng = stream("corpus", name)
    words = (
        np.arange(len(SPECIAL), VOCABULARY)[: VOCABULARY // CLASSES * CLASSES - CLASSES]
        .reshape(-1, CLASSES)
        .T
    )
    order = np.argsort(rng.random((TOPICS, *words.shape)), axis=-1)
    follows = rng.dirichlet(np.full(CLASSES, 0.3), CLASSES).cumsum(axis=1)
    chances = (1 / np.arange(1, words.shape[1] + 1) ** 1.2).cumsum()
    topic, kind = rng.integers(TOPICS, size=SENTENCES), np.zeros(SENTENCES, int)
    text = np.empty((SENTENCES, LENGTH), np.int64)
    for place in range(LENGTH):
        kind = (rng.random((SENTENCES, 1)) > follows[kind]).sum(axis=1).clip(max=CLASSES - 1)
        rank = np.searchsorted(chances, rng.random(SENTENCES) * chances[-1])
        text[:, place] = words[kind, order[topic, kind, rank]]
    return text
