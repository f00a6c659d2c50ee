"""What rows look like, and figures that show trouble before training does."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from hilm.data.loading import load_data, load_eval
from hilm.data.rows import canonical, columns_of, digest, rows_of
from hilm.extras import require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from hilm.data.loading import DataConfig

_QUANTILES = (0, 0.5, 0.9, 0.99, 1)
_LABELS = 50
"""Different values that a column of labels has at most."""


def preview(config: DataConfig, *, limit: int = 5) -> dict[str, Any]:
    """Return ``columns`` (name → type) and the first ``rows``, as JSON can hold them."""
    dataset = load_data(config)
    rows = [json.loads(canonical(row)) for row in islice(rows_of(dataset), limit)]
    return {"columns": columns_of(dataset), "rows": rows}


def stats(
    config: DataConfig, *, limit: int | None = None, tokenizer: str | None = None, max_length: int = 1024
) -> dict[str, Any]:
    """Count and measure the rows.

    Args:
        config: Which rows.
        limit: Read so many at most; all of a stream by default.
        tokenizer: Folder or Hub id; measures texts in tokens as well.
        max_length: Tokens a row may have before ``too_long`` counts it.

    Returns:
        ``rows``; ``duplicates`` (rows that were there before); ``columns``: per column ``type``, ``nulls``,
        ``characters`` and ``tokens`` (quantiles 0, 50, 90, 99 and 100 % of texts) with ``too_long`` (their
        share), ``values`` (how often each occurs, where few do); ``overlap``: rows of ``config.eval`` that
        are trained on too, None without.
    """
    dataset = load_data(config)
    rows = list(islice(rows_of(dataset), limit))
    seen = {digest(row) for row in rows}
    evaluated = load_eval(config)
    encode = None if tokenizer is None else require("transformers").AutoTokenizer.from_pretrained(tokenizer)
    return {
        "rows": len(rows),
        "duplicates": len(rows) - len(seen),
        "columns": {
            name: {"type": kind, **_column([row[name] for row in rows], encode, max_length)}
            for name, kind in columns_of(dataset).items()
        },
        "overlap": None
        if evaluated is None
        else sum(digest(row) in seen for row in islice(rows_of(evaluated), limit)),
    }


def _column(values: Sequence[Any], encode: Callable[..., Any] | None, max_length: int) -> dict[str, Any]:
    figures: dict[str, Any] = {"nulls": sum(value is None for value in values)}
    texts = [value for value in values if isinstance(value, str)]
    if texts:
        figures["characters"] = _quantiles(map(len, texts))
    if texts and encode:
        lengths = [len(ids) for ids in encode(texts)["input_ids"]]
        figures["tokens"] = _quantiles(lengths)
        figures["too_long"] = sum(length > max_length for length in lengths) / len(lengths)
    kept = [value for value in values if isinstance(value, str | int)]
    counted = Counter(map(str, kept))
    if kept and len(counted) <= min(_LABELS, max(2, len(kept) // 2)):
        figures["values"] = dict(counted.most_common())
    return figures


def _quantiles(lengths: Iterable[int]) -> list[int]:
    return [int(value) for value in np.quantile(list(lengths), _QUANTILES, method="higher")]
