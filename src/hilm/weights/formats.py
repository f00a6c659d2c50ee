"""File formats: which reader lists the tensors of a file."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from hilm.errors import InputError, NotACheckpoint
from hilm.weights.gguf import parse_gguf
from hilm.weights.safetensors import parse_header
from hilm.weights.torch_zip import parse_archive

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from hilm.weights.byte_source import ByteSource
    from hilm.weights.tensor import Listing

    Parser = Callable[[Callable[[int, int], bytes], int], Listing]

FORMATS: Mapping[str, str] = MappingProxyType({
    ".safetensors": "safetensors", ".gguf": "gguf",
    ".bin": "torch", ".pt": "torch", ".pth": "torch", ".ckpt": "torch",
})  # fmt: skip
"""Suffix of a weight file → its format."""

_PARSERS: Mapping[str, Parser] = {"safetensors": parse_header, "gguf": parse_gguf, "torch": parse_archive}


def list_tensors(source: ByteSource, form: str) -> Listing:
    """Read the header of a weight file; no weights are read and no code is run.

    Args:
        source: The file.
        form: ``safetensors``, ``torch`` or ``gguf``.

    Raises:
        InputError: Whatever is wrong with the file.
    """
    try:
        return _PARSERS[form](source.read, source.size)
    except InputError as error:
        _explain_foreign(source)
        error.message = f"{source.name}: {error.message}"
        error.args = (error.message,)
        raise


def _explain_foreign(source: ByteSource) -> None:
    """Say so if the file is what a failed download leaves behind."""
    if source.size == 0:
        raise NotACheckpoint(f"{source.name} is empty")
    start = source.read(0, min(64, source.size)).lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        raise NotACheckpoint(f"{source.name} is a Git LFS pointer, not the weights", hint="git lfs pull")
    if start.startswith((b"<!doctype", b"<html")):
        raise NotACheckpoint(f"{source.name} is an HTML page, not weights", hint="fetch the file again")
