"""Where the bases of deltas are, and reels opened together with what they stand on."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hilm.errors import InputError, NetworkError, UsageError
from hilm.reel.decoder import Reel
from hilm.reel.delta_base import CheckpointBase
from hilm.reel.manifest import MAX_DEPTH
from hilm.store.store import Store
from hilm.weights import open_checkpoint
from hilm.weights.folder import is_remote

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from os import PathLike

    from hilm.reel.delta_base import Base

    Place = str | PathLike[str]


@contextmanager
def open_reel(reel: Place, base: Place | None, store: Store | None) -> Iterator[Reel]:
    """Open a reel; of a delta also its base, the base's base and so on.

    Args:
        reel: The file.
        base: A checkpoint, a reel, or the name of a model in the store; looked up in the store when None.
        store: Where to look; the default store when None.

    Raises:
        NotAReel: The file is something else.
        UsageError: The base is nowhere, or the reel is no delta and has none.
    """
    with ExitStack() as stack:
        opened = stack.enter_context(Reel.open(reel))
        if opened.pinned is not None:
            store = store or Store()
            places = find_base(store, base) if base is not None else _look_up(store, opened)
            opened.stand_on(stack.enter_context(open_base(places)))
        elif base is not None:
            raise UsageError(f"{reel} is no delta: it has no base", hint="leave --base out")
        yield opened


@contextmanager
def open_base(places: Sequence[str]) -> Iterator[Base]:
    """Open a base and what it stands on, as `find_base` found them."""
    with ExitStack() as stack:
        base: Base | None = None
        for place in reversed(places):
            if is_reel(place):
                reel = stack.enter_context(Reel.open(place))
                if base is not None:
                    reel.stand_on(base)
                base = reel
            else:
                base = CheckpointBase(stack.enter_context(open_checkpoint(place)))
        assert base is not None  # noqa: S101 - there is at least one place
        yield base


def settle_base(store: Store, base: Place) -> dict[str, Any]:
    """Find a base and its content key: fields of a ``Job``.

    A checkpoint is indexed, so that the store finds it again when the delta is decoded.

    Raises:
        UsageError: It is nowhere, or a reel that does not hold every bit of its source.
        HilmError: Whatever is wrong with it.
    """
    places = find_base(store, base)
    if is_reel(places[0]):
        with Reel.open(places[0]) as reel:
            source = reel.file.manifest["source"]
            if source is None or any("sha256_source" in tensor for tensor in reel.tensors.values()):
                raise UsageError(
                    f"{reel.name} does not hold every bit of its source",
                    hint="take a checkpoint or an archive",
                )
            return {"base": places, "base_key": bytes.fromhex(source["content_key"])}
    open_checkpoint(places[0]).close()  # what is wrong with it is raised here
    outcome = store.index(places)
    if outcome["failed"]:
        raise UsageError(f"{places[0]}: {outcome['failed'][0]['message']}", hint=outcome["failed"][0]["hint"])
    name = (outcome["indexed"] or outcome["skipped"])[0]
    return {"base": places, "base_key": store.row(name)["content_key"]}


def find_base(store: Store, base: Place) -> tuple[str, ...]:
    """Find a base: deltas if it is one, each standing on the next, and last a checkpoint or an archive.

    Args:
        store: Where to look.
        base: A checkpoint, a reel, or the name of a model in the store.

    Raises:
        UsageError: It, or what it stands on, is nowhere; or there are too many deltas.
        UnknownModel: There is neither a path nor a model of that name.
    """
    if is_reel(base):
        return find_chain(store, os.fspath(base), 1)
    row = store.find(base)
    if row is None:
        return (os.fspath(base),)
    places = find_content(store, row["content_key"], 1)
    if not places:
        raise UsageError(
            f"{row['name']} is not at {row['uri']} any more, and has no reel", hint="--base PATH"
        )
    return places


def is_reel(place: Place) -> bool:
    """Whether something is a reel, by its name: a file or a URL; else it is a model."""
    text = os.fspath(place)
    return text.endswith(".mp4") and (is_remote(text) or Path(place).is_file())


def find_chain(store: Store, path: str, depth: int = 0) -> tuple[str, ...]:
    """Find what it takes to decode a reel: itself, and of a delta what it stands on."""
    with Reel.open(path) as reel:
        return (path, *(_look_up(store, reel, depth + 1) if reel.pinned is not None else ()))


def _look_up(store: Store, reel: Reel, depth: int = 1) -> tuple[str, ...]:
    """Find the base of a delta in the store."""
    if depth > MAX_DEPTH:
        raise UsageError(f"more than {MAX_DEPTH} deltas stand on each other", hint="archive one of them")
    pinned = reel.pinned
    assert pinned is not None  # noqa: S101 - the callers look for bases of deltas only
    key = pinned.get("content_key")
    places = find_content(store, bytes.fromhex(key), depth) if key else ()
    if not places:
        raise UsageError(
            f"{reel.name} is a delta against {pinned['hint']!r}, which is not in the store",
            hint="name the base it was made against: --base MODEL",
        )
    return places


def find_content(store: Store, key: bytes, depth: int = 1) -> tuple[str, ...]:
    """Where the bytes of that content key are: the checkpoint itself, else an archive, else a delta."""
    if not store.exists:
        return ()
    for row in store.catalog.models({"content_key": key}):
        if _is_unchanged(row["uri"], row["commit"]):
            return (str(row["uri"]),)
    entries = store.catalog.rows(
        "reels", {"content_key": key, "mode": ["archive", "delta"], "lossless": True}
    )
    paths = [store.reels / entry["uri"] for entry in sorted(entries, key=lambda entry: entry["mode"])]
    return next((find_chain(store, str(path), depth) for path in paths if path.is_file()), ())


def _is_unchanged(uri: str, state: str) -> bool:
    try:
        with open_checkpoint(uri) as checkpoint:
            return checkpoint.state.hex() == state
    except (InputError, NetworkError):
        return False
