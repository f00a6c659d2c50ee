"""Vocabulary of the tokenizer that lies beside the weights, as data: piece → token id."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hilm.errors import CorruptCheckpoint
from hilm.weights.folder import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

MAX_TOKENIZER = 64 << 20
_MARKERS = ("Ġ", "▁", "")
"""What stands before a word's first piece in byte-level, SentencePiece and WordPiece vocabularies."""


def read_vocabulary(folder: Path) -> Mapping[str, Any] | None:
    """Read ``vocab.txt``, ``vocab.json`` or ``tokenizer.json``; None when there is none that can be read.

    A tokenizer that is damaged is as good as none: the anchors then fall back to fixed ids, and say so.
    """
    path = folder / "vocab.txt"
    if path.is_file() and path.stat().st_size <= MAX_TOKENIZER:
        lines = path.read_text("utf-8", "replace").split("\n")
        return dict(zip(lines, range(len(lines)), strict=True))
    for name, parse in (("vocab.json", dict), ("tokenizer.json", _from_tokenizer)):
        if (folder / name).is_file():
            try:
                table: dict[str, Any] = parse(read_json(folder / name, MAX_TOKENIZER))
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
        return {pair[0]: i for i, pair in enumerate(vocabulary) if isinstance(pair, list) and pair}
    return {}


def find_words(vocabulary: Mapping[str, Any], words: Sequence[str]) -> list[int | None]:
    """Token ids of whole words at the start of a word; None where a word is not one token.

    A bare word counts only in a WordPiece vocabulary, where pieces inside words are marked instead.
    """
    pieces = any(piece.startswith("##") for piece in vocabulary)
    markers = _MARKERS if pieces else _MARKERS[:2]
    found = [next((vocabulary[m + w] for m in markers if m + w in vocabulary), None) for w in words]
    return [i if type(i) is int and i >= 0 else None for i in found]
