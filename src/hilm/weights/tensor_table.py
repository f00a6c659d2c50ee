"""One table of tensors over all files of a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hilm.errors import CorruptCheckpoint, DuplicateTensor, MissingShard
from hilm.weights.roles import classify
from hilm.weights.tensor import Span, TensorInfo

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hilm.weights.tensor import Entry, Listing


def merge_listings(
    files: Sequence[str], listings: Sequence[Listing], shard_of: Mapping[str, str], notes: list[str]
) -> tuple[dict[str, TensorInfo], dict[str, Entry]]:
    """Put the tensors of all shards into one table; the index decides where a name stands twice.

    Args:
        files: Names of the files.
        listings: What each holds.
        shard_of: Tensor name to file name, as an index says; empty without one.
        notes: Gets what was tolerated.

    Returns:
        The tensors in storage order; and those not stored in order, as their files describe them.

    Raises:
        DuplicateTensor: Two shards hold a tensor and no index decides between them.
        CorruptCheckpoint: The index names a tensor that its shard does not hold.
    """
    tensors: dict[str, TensorInfo] = {}
    scattered: dict[str, Entry] = {}
    for number, (file, listing) in enumerate(zip(files, listings, strict=True)):
        own: set[str] = set()
        for entry in listing.entries:
            if entry.name in tensors or shard_of.get(entry.name, file) != file:
                if entry.name not in shard_of:
                    raise DuplicateTensor(f"{entry.name!r} is in {file} and in another shard")
                notes.append(f"{entry.name} in {file} is shadowed by the index")
                continue
            owner = entry.alias_of if entry.alias_of in own else None
            tensors[entry.name] = _place(entry, number, owner)
            own.add(entry.name)
            if not entry.in_order:
                scattered[entry.name] = entry
        _add_aliases(tensors, listing)
        notes += listing.notes
    absent = [name for name in shard_of if name not in tensors]
    if absent:
        raise CorruptCheckpoint(f"the index places {absent[0]!r} in a shard that does not hold it")
    return tensors, scattered


def check_splits(listings: Sequence[Listing]) -> None:
    """Check that the parts of a split GGUF file, which count themselves, are all there.

    Raises:
        MissingShard: There are more.
        CorruptCheckpoint: They are out of order, or belong to splits of several sizes.
    """
    parts = [
        (listing.metadata.get("split.no", "0"), listing.metadata.get("split.count", "1"))
        for listing in listings
    ]
    counts = {count for _, count in parts}
    if counts == {str(len(parts))} and [number for number, _ in parts] == [str(i) for i in range(len(parts))]:
        return
    if len(counts) > 1 or counts == {str(len(parts))}:
        found = ", ".join(f"{number[:20]} of {count[:20]}" for number, count in parts[:8])
        raise CorruptCheckpoint(f"these are no whole split, in order: parts {found}")
    raise MissingShard(
        f"the file says that it is one of {counts.pop()[:20]}, of which {len(listings)} are here"
    )


def _place(entry: Entry, number: int, owner: str | None) -> TensorInfo:
    return TensorInfo(
        entry.name,
        entry.dtype,
        entry.shape,
        Span(number, entry.start, entry.stop),
        classify(entry.name, entry.shape),
        owner,
        entry.in_order,
    )


def _add_aliases(tensors: dict[str, TensorInfo], listing: Listing) -> None:
    """Savers of shared tensors note removed names as ``removed: kept`` in the metadata."""
    for removed, kept in listing.metadata.items():
        if kept in tensors and removed not in tensors and tensors[kept].alias_of is None:
            owner = tensors[kept]
            role = classify(removed, owner.shape)
            tensors[removed] = TensorInfo(removed, owner.dtype, owner.shape, owner.span, role, kept)
