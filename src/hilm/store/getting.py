"""One tensor of a reel, or a few rows of it: fetched, looked at and written to a file."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hilm.errors import UsageError
from hilm.files import write_file
from hilm.store.bases import open_reel
from hilm.weights.dtypes import DTYPES, ELEMENTS, decode
from hilm.weights.statistics import LayerStatistics

if TYPE_CHECKING:
    from os import PathLike

    from numpy.typing import NDArray

    from hilm.store.store import Store

_NUMPY = {"BOOL": "?", "C64": "<c8"} | {
    f"{kind}{bits}": f"<{kind.lower()}{bits // 8}" for kind in "IU" for bits in (8, 16, 32, 64)
} | {f"F{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)}  # fmt: skip
_SHOWN = 8  # values at the beginning


def get(
    reel: str | PathLike[str],
    name: str,
    *,
    rows: tuple[int, int] | None = None,
    out: str | PathLike[str] | None = None,
    base: str | PathLike[str] | None = None,
    store: Store | None = None,
) -> dict[str, Any]:
    """Fetch one tensor of a reel, or a few rows of it; nothing else is read but the end of the file.

    Args:
        reel: A file, or an http or https URL.
        name: The tensor.
        rows: First and last-plus-one row along its first axis; only the chunks that cover them are read.
        out: ``.safetensors`` (stored type) or ``.npy`` (stored type where numpy has it, else float32).
        base: As of `decode`; the rows of a difference take the whole tensor.
        store: As of `decode`.

    Returns:
        ``tensor``, ``dtype``, ``shape`` (of what was read), ``rows``, ``first`` (8 values), ``out``;
        figures as of :func:`hilm.stream` over what was read; of a remote reel ``requests`` and ``fetched``
        (bytes), None of a local one.

    Raises:
        NotAReel: The file is something else.
        UsageError: There is no such tensor, it has no such rows, or ``out`` is of another kind.
        VerificationError: What was read is damaged.
        NetworkError: The server does not answer, sends whole files only, or the file changed meanwhile.
    """
    path = None if out is None else Path(out)
    if path is not None and path.suffix not in _WRITERS:
        raise UsageError(f"{path.name} is neither .npy nor .safetensors", hint="-o NAME.npy")
    with open_reel(reel, base, store) as opened:
        dtype, shape = opened.entry(name)["dtype"], opened.entry(name)["shape"]
        words, traffic = opened.words(name, rows), opened.file.traffic
    shape = shape if rows is None else [rows[1] - rows[0], *shape[1:]]
    values = _decoded(dtype, words) if DTYPES[dtype].kind != "packed" else np.empty(0, np.float32)
    statistics = LayerStatistics()
    statistics.update(name, tuple(shape), values)
    if path is not None:
        write_file(path, *_WRITERS[path.suffix](name, dtype, shape, words))
    return {
        "tensor": name,
        "dtype": dtype,
        "shape": shape,
        "rows": rows,
        "first": values[:_SHOWN].tolist(),
        **statistics.fold(lambda *_: name)[name].summary(),
        "out": None if path is None else str(path),
        **traffic,
    }


def _decoded(dtype: str, words: NDArray[np.uint8]) -> NDArray[np.float32]:
    values = np.empty(DTYPES[dtype].count(len(words)), np.float32)
    decode(DTYPES[dtype], words, values)
    return values


def safetensors_file(
    name: str, dtype: str, shape: list[int], words: NDArray[np.uint8]
) -> tuple[bytes | memoryview, ...]:
    """Pieces of a safetensors file of one tensor; quantised blocks, for which it has no name, as float32."""
    if dtype not in ELEMENTS:
        dtype, words = "F32", _decoded(dtype, words).astype("<f4").view(np.uint8)
    place = {"dtype": dtype, "shape": shape, "data_offsets": [0, words.nbytes]}
    header = json.dumps({name: place}).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little"), header, words.data


def _npy_file(
    name: str, dtype: str, shape: list[int], words: NDArray[np.uint8]
) -> tuple[bytes | memoryview, ...]:
    """Pieces of a file of numpy's format 1.0, which bears no name."""
    del name
    values = (words.view(_NUMPY[dtype]) if dtype in _NUMPY else _decoded(dtype, words)).reshape(shape)
    header = BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(values))
    return header.getvalue(), values.reshape(-1).view(np.uint8).data


_WRITERS = {".safetensors": safetensors_file, ".npy": _npy_file}
