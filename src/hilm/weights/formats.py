"""File formats: which reader lists the tensors of a file, and what they are called in the checkpoint."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from hilm.errors import CorruptCheckpoint, InputError, NotACheckpoint, TruncatedFile
from hilm.weights.gguf import parse_gguf
from hilm.weights.onnx_file import parse_onnx
from hilm.weights.safetensors import parse_header
from hilm.weights.tensor import Listing
from hilm.weights.tensor_table import check_splits
from hilm.weights.torch_zip import parse_archive
from hilm.weights.weight_files import FORMATS, require_files, require_inside, suffix_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from hilm.weights.byte_source import ByteSource
    from hilm.weights.places import Place
    from hilm.weights.weight_files import Location

    Parser = Callable[[Callable[[int, int], bytes], int], Listing]

_PARSERS: Mapping[str, Parser] = MappingProxyType({
    "safetensors": parse_header, "gguf": parse_gguf, "torch": parse_archive, "onnx": parse_onnx,
})  # fmt: skip
_ADAPTED = "base_model.model."
"""What adapters write before the names of the model they adapt."""


def open_listings(location: Location) -> tuple[list[str], list[ByteSource], list[Listing]]:
    """Open the weight files of a checkpoint and list the tensors of each; no weights are read.

    Files that these name as holding some of their tensors come behind them.

    Returns:
        Names of the files, the files, and what each holds under the names of the checkpoint: in a pipeline
        with the part before them, in an adapter without ``base_model.model.``.

    Raises:
        InputError: Whatever is wrong with a file.
        NetworkError: A file cannot be fetched.
    """
    place, names = location.place, [*location.weights]
    sources = place.open(names)
    try:
        listings = [
            list_tensors(source, FORMATS[suffix_of(name)])
            for name, source in zip(names, sources, strict=True)
        ]
        _check_splits(names, listings)
        beside = _list_outside(place, names, listings)
        if beside:
            sources += place.open([*beside])
            names, listings = [*names, *beside], [*listings, *beside.values()]
        _check_ends(sources, listings)
    except BaseException:
        for source in sources:
            source.close()
        raise
    if location.kind == "pipeline":
        listings = [_rename(listing, _part_of(n), "") for n, listing in zip(names, listings, strict=True)]
    elif location.kind == "adapter":
        listings = [_rename(listing, "", _ADAPTED) for listing in listings]
    return names, sources, listings


def _part_of(name: str) -> str:
    """Folder of a file, with the ``/`` behind it."""
    return name[: name.rfind("/") + 1]


def _check_splits(names: Sequence[str], listings: Sequence[Listing]) -> None:
    """Check that the split GGUF files of every part are whole."""
    splits: dict[str, list[Listing]] = {}
    for name, listing in zip(names, listings, strict=True):
        if suffix_of(name) == ".gguf":
            splits.setdefault(_part_of(name), []).append(listing)
    for parts in splits.values():
        check_splits(parts)


def _check_ends(sources: Sequence[ByteSource], listings: Sequence[Listing]) -> None:
    for source, listing in zip(sources, listings, strict=True):
        end = max((entry.stop for entry in listing.entries), default=0)
        if end > source.size:
            raise TruncatedFile(f"{source.name} has {source.size:,} bytes, its tensors need {end:,}")


def _list_outside(place: Place, names: Sequence[str], listings: Sequence[Listing]) -> dict[str, Listing]:
    """The files beside the weight files that hold tensors of theirs, by name."""
    found: dict[str, Listing] = {}
    for name, listing in zip(names, listings, strict=True):
        part = _part_of(name)
        home = place.inside(part[:-1]) if part else place
        require_inside(home, listing.outside)
        require_files(home, [*listing.outside])
        for file, entries in listing.outside.items():
            if f"{part}{file}" in {*names, *found}:
                raise CorruptCheckpoint(f"{name} places tensors in {file}, which holds others")
            found[f"{part}{file}"] = Listing(entries)
    return found


def _rename(listing: Listing, prefix: str, removed: str) -> Listing:
    """The listing with other names; metadata may map a removed name to a kept one."""

    def renamed(name: str) -> str:
        return prefix + name.removeprefix(removed)

    kept = {entry.name for entry in listing.entries}
    entries = tuple(
        replace(e, name=renamed(e.name), alias_of=e.alias_of and renamed(e.alias_of)) for e in listing.entries
    )
    metadata = {renamed(k): renamed(text) if text in kept else text for k, text in listing.metadata.items()}
    return replace(listing, entries=entries, metadata=metadata)


def list_tensors(source: ByteSource, form: str) -> Listing:
    """Read the header of a weight file; no weights are read and no code is run.

    Args:
        source: The file.
        form: A format, of ``FORMATS``.

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
