"""A film of one tensor: a frame per checkpoint, all at one scale."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hilm.errors import UsageError
from hilm.files import write_file
from hilm.reel.decoder import Reel
from hilm.reel.front import FPS
from hilm.reel.pictures import Drawable, drawables
from hilm.reel.preview import draw_state, measure
from hilm.reel.video import encode_preview
from hilm.store.bases import is_reel, open_reel
from hilm.weights import open_checkpoint
from hilm.weights.roles import classify

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager
    from os import PathLike

    from numpy.typing import NDArray

    from hilm.store.store import Store
    from hilm.weights import Checkpoint

_NOTE = "A picture of one tensor of several checkpoints, for people; no weights are in this file."


def film_models(
    store: Store,
    models: Sequence[str | PathLike[str]],
    out: str | PathLike[str],
    *,
    tensor: str | None,
    difference: bool,
) -> dict[str, Any]:
    """See ``Store.film``."""
    if len(models) < 2:
        raise UsageError(
            "a film of one tensor takes two checkpoints or more", hint="hilm show A B --film F.mp4"
        )
    places = [store.locate(model) for model in models]
    first = read_drawable(store, places[0], tensor)
    shown = (
        _differ(read_drawable(store, places[-1], first.name, first), first) if difference else first.values
    )
    scale, sigmas = measure(shown)[1], list[float]()
    titles = _titles([os.fspath(model) for model in models])

    def frames() -> Iterator[NDArray[np.uint8]]:
        for title, place in zip(titles, places, strict=True):
            state = read_drawable(store, place, first.name, first)
            values = _differ(state, first) if difference else state.values
            facts = f"{'difference  ' * difference}{'sampled  ' * state.sampled}s {scale:.3g}"
            frame = draw_state(values, title=title, name=first.name, facts=facts, scale=scale)
            sigmas.append(frame.sigma)
            yield frame.pixels

    chapters = [(title, number) for number, title in enumerate(titles)]
    write_file(Path(out), encode_preview(frames(), fps=FPS, chapters=chapters, comment=_NOTE))
    return {
        "film": str(out),
        "tensor": first.name,
        "shape": list(first.shape),
        "difference": difference,
        "scale": scale,
        "frames": [{"model": title, "sigma": s} for title, s in zip(titles, sigmas, strict=True)],
    }


def _titles(models: list[str]) -> list[str]:
    """Names of files and folders where these differ, else what was given."""
    names = [Path(model).name.removesuffix(".reel.mp4") for model in models]
    return names if len(set(names)) == len(names) else models


def open_place(store: Store, place: str) -> AbstractContextManager[Checkpoint | Reel]:
    """Open a reel with what it stands on, or a checkpoint."""
    return open_reel(place, None, store) if is_reel(place) else open_checkpoint(place)


def read_drawable(store: Store, place: str, name: str | None, like: Drawable | None = None) -> Drawable:
    """The tensor of that name, or by default the largest; it must have the shape of ``like``.

    Raises:
        UsageError: There is none, or it has another shape.
    """
    with open_place(store, place) as source:
        shapes = shapes_of(source)
        name = _largest(shapes) if name is None else name
        if name not in shapes:
            raise UsageError(f"{place} has no tensor {name!r}", hint="hilm inspect lists what is in it")
        if like is not None and shapes[name] != like.shape:
            raise UsageError(f"{name} has the shape {shapes[name]} in {place}, {like.shape} in the first")
        return next(drawables(source, frozenset({name})))


def shapes_of(source: Checkpoint | Reel) -> dict[str, tuple[int, ...]]:
    """Every stored tensor and its shape; further names of one are left out."""
    if isinstance(source, Reel):
        return {n: tuple(e["shape"]) for n, e in source.tensors.items() if e.get("alias_of") is None}
    return {name: info.shape for name, info in source.tensors.items() if info.alias_of is None}


def _largest(shapes: dict[str, tuple[int, ...]]) -> str:
    """The largest matrix of attention or MLP, or else the largest tensor."""
    if not shapes:
        raise UsageError("there are no tensors to film", hint="give checkpoints or archives")

    def rank(name: str) -> tuple[bool, int]:
        shape = shapes[name]
        return len(shape) > 1 and classify(name, shape).type in {"attention", "mlp"}, int(np.prod(shape))

    return max(shapes, key=rank)


def _differ(state: Drawable, first: Drawable) -> NDArray[np.float32]:
    with np.errstate(invalid="ignore"):  # of infinities
        return state.values - first.values
