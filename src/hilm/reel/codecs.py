"""Lossless codecs of others, as far as they are installed, so that exact tensors can be compared.

Every tensor, or 64 MiB of it, is compressed alone, as a reel codes it; what does not get smaller counts as
it is.
"""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from hilm.extras import require

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from hilm.weights.dtypes import DType

    Bytes = NDArray[np.uint8]
    Codec = Callable[[Bytes, DType, Bytes | None], int]

XOR: Final = "xor+zstd-3"
_ZIPNN_TYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def _zstd(level: int) -> Codec:
    return lambda words, *_: len(require("zstandard").compress(words.data, level))


def _zipnn(words: Bytes, dtype: DType, _: Bytes | None) -> int:
    if dtype.name not in _ZIPNN_TYPES:
        return len(words)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its import of torch
        codec = require("zipnn").ZipNN(bytearray_dtype=_ZIPNN_TYPES[dtype.name])
    return len(codec.compress(words.tobytes()))  # a copy: it writes into what it is given


def compress_planes(words: Bytes, dtype: DType, old: Bytes | None) -> int:
    """Bytes that words take, less a base by XOR where there is one, plane by plane with zstd -3."""
    changes = words if old is None else words ^ old
    planes = changes.reshape(-1, dtype.word.itemsize).T
    return sum(len(require("zstandard").compress(plane.tobytes(), 3)) for plane in planes)


_CODECS: Final[Mapping[str, tuple[str, Codec]]] = MappingProxyType({
    "zstd-3": ("zstandard", _zstd(3)),
    "zstd-19": ("zstandard", _zstd(19)),
    "zipnn": ("zipnn", _zipnn),
    XOR: ("zstandard", compress_planes),
})  # fmt: skip


def find_codecs(*, delta: bool) -> tuple[dict[str, Codec], dict[str, str]]:
    """Codecs that are installed, and for those that are not the command which installs them.

    A codec takes stored bytes, their type and, of a delta, those of the base, and returns how many bytes it
    makes of them. ZipNN leaves types that it does not know as they are.
    """
    wanted = {name: entry for name, entry in _CODECS.items() if delta or name != XOR}
    found = {name: codec for name, (package, codec) in wanted.items() if find_spec(package)}
    return found, {
        name: f"pip install {package}" for name, (package, _) in wanted.items() if name not in found
    }
