"""Which tokens anchor a model: fixed words where the tokenizer lies beside the weights, else fixed ids."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from hilm.errors import CorruptCheckpoint
from hilm.lineage.gram import ANCHORS, WORDS, Anchors
from hilm.lineage.tables import token_rows
from hilm.weights.places import read_json, read_small

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hilm.lineage.anatomy import Anatomy
    from hilm.weights.checkpoint import Checkpoint
    from hilm.weights.places import Place

MIN_WORDS = 24
"""Fewer anchor words than this in the vocabulary, and fixed ids are used instead."""

FIRST_ID, LAST_ID = 130, 2470
"""Range of the fixed ids: behind special tokens, inside every vocabulary of ``MIN_IDS`` tokens."""

MIN_IDS = 2600
"""In smaller vocabularies the ids spread over all of it, and move when it grows."""

MAX_TOKENIZER = 64 << 20
_MARKERS = ("Ġ", "▁", "")
"""What stands before a word's first piece in byte-level, SentencePiece and WordPiece vocabularies."""


def read_anchors(checkpoint: Checkpoint, anatomy: Anatomy) -> tuple[Anchors | None, dict[str, Any]]:
    """Read 64 rows of the embedding, of kind ``text-64/1`` or ``ids-64/1``.

    Returns:
        The anchors, or None without an embedding; and what identifies the choice.
    """
    if anatomy.embedding is None:
        return None, {}
    size = anatomy.vocabulary or 0
    vocabulary = read_vocabulary(checkpoint.place)
    found = find_words(vocabulary, WORDS) if vocabulary else []
    ids = [i if i is not None and i < size else None for i in found]
    kind = "text-64/1"
    if sum(i is not None for i in ids) < MIN_WORDS:
        first, last = (FIRST_ID, LAST_ID) if size >= MIN_IDS else (0, size - 1)
        ids, kind = np.linspace(first, last, ANCHORS).astype(int).tolist(), "ids-64/1"
    present = np.array([i is not None for i in ids])
    rows = token_rows(checkpoint, anatomy.embedding, [i or 0 for i in ids])
    digest = hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]
    return Anchors.from_rows(kind, rows, present), {"anchors": kind, "ids": digest}


def read_vocabulary(place: Place) -> Mapping[str, Any] | None:
    """Read ``vocab.txt``, ``vocab.json`` or ``tokenizer.json``; None when there is none that can be read.

    A tokenizer that is damaged is as good as none: the anchors then fall back to fixed ids, and say so.
    """
    names = place.names()
    text = read_small(place, "vocab.txt", MAX_TOKENIZER) if "vocab.txt" in names else None
    if text is not None:
        lines = re.split("\r\n|\r|\n", text.decode("utf-8", "replace"))
        return dict(zip(lines, range(len(lines)), strict=True))
    for name, parse in (("vocab.json", dict), ("tokenizer.json", _from_tokenizer)):
        if name in names:
            try:
                table: dict[str, Any] = parse(read_json(place, name, MAX_TOKENIZER))
            except CorruptCheckpoint:
                continue
            if table:
                return table
    return None


def _from_tokenizer(table: Mapping[str, Any]) -> dict[str, Any]:
    model = table.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        return vocabulary
    if isinstance(vocabulary, list):  # Unigram: pairs of piece and score
        firsts = [pair[0] if isinstance(pair, list) and pair else None for pair in vocabulary]
        return {piece: i for i, piece in enumerate(firsts) if isinstance(piece, str)}
    return {}


def find_words(vocabulary: Mapping[str, Any], words: Sequence[str]) -> list[int | None]:
    """Token ids of whole words at the start of a word; None where a word is not one token.

    A bare word counts only in a WordPiece vocabulary, where pieces inside words are marked instead.
    """
    pieces = any(piece.startswith("##") for piece in vocabulary)
    markers = _MARKERS if pieces else _MARKERS[:2]
    found = [next((vocabulary[m + w] for m in markers if m + w in vocabulary), None) for w in words]
    return [i if type(i) is int and i >= 0 else None for i in found]
