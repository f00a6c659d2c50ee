"""What reels cost and lose, beside other codecs on the same tensors."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hilm.errors import UsageError
from hilm.files import write_file
from hilm.html import Document
from hilm.reel.decoder import Reel
from hilm.reel.rate_plot import Point, draw_rates
from hilm.reel.report import measure_reel, total
from hilm.store.bases import find_base, find_content, open_base, open_reel
from hilm.store.reading import no_progress
from hilm.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from os import PathLike

    from hilm.store.reading import Progress

    Place = str | PathLike[str]


def report(
    reels: Sequence[Place],
    *,
    against: Place | None = None,
    base: Place | None = None,
    others: bool = True,
    picture: Place | None = None,
    store: Store | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Measure what every tensor of some reels costs and loses, and how other codecs do on the same tensors.

    Exact tensors are compared with zstd and ZipNN, as far as these are installed, and exact deltas with XOR,
    byte planes and zstd; rounded weights with formats of blocks, for which it takes the source.

    Args:
        reels: Reels of whole tensors.
        against: The model the reels were made from; looked up in the store when None.
        base: As of `decode`.
        others: Whether other codecs are tried; else nothing is decoded.
        picture: PNG to write: bits and errors of rounded weights, and the bound.
        store: Where to look; the default store when None.
        progress: Called with tensors done, tensors in all, and a name.

    Returns:
        ``reels``: per reel ``reel``, ``mode``, ``bytes``, ``bits_per_weight`` (with everything but the
        film), ``source``, ``tensors``, totals of those ``rounded`` and those ``exact``, and ``unavailable``:
        what was not compared, and why. Tensors and totals have ``weights``, ``bits_per_weight``, ``nmse``,
        ``max_abs``, ``cosine``, ``gap`` (bits above the bound of a Gaussian) and ``others``: the same per
        codec, and the bits per weight ``saved``, at equal error; below 0 where the other one wins.
        ``picture``.

    Raises:
        NotAReel: A file is something else.
        UsageError: A reel holds samples, a base is nowhere, or a picture has nothing to show.
        VerificationError: A reel is damaged, or ``against`` is another model.
    """
    store = store or Store()
    documents = [_measure(path, against, base, store, progress, others=others) for path in reels]
    if picture is not None:
        points = list(dict.fromkeys(point for document in documents for point in _points(document)))
        if not points:
            raise UsageError("every bit is kept: there is no error to draw", hint="hilm encode --mode small")
        title = ", ".join(Path(path).name for path in reels)
        write_file(Path(picture), draw_rates(points, title=title))
    return Document(reels=documents, picture=None if picture is None else str(picture))


def _measure(
    path: Place, against: Place | None, base: Place | None, store: Store, progress: Progress, *, others: bool
) -> dict[str, Any]:
    """What is said of one reel."""
    done = 0
    with ExitStack() as stack:
        reel = stack.enter_context(open_reel(path, base, store) if others else Reel.open(path))
        sources = _find_source(store, reel, against) if others else ()
        truth = stack.enter_context(open_base(sources)) if sources else None

        def tick(name: str) -> None:
            nonlocal done
            done += 1
            progress(done, len(reel.tensors), name)

        measured, unavailable = measure_reel(reel, truth, others=others, tick=tick)
    rounded = total(tensor for tensor in measured if tensor.rounded)
    if others and rounded and not rounded["others"]:
        unavailable["block formats"] = _explain(reel)
    return {
        "reel": str(path),
        "mode": reel.mode,
        "bytes": Path(path).stat().st_size,
        "bits_per_weight": reel.file.manifest["totals"].get("bits_per_weight"),
        "source": sources[0] if sources else None,
        "rounded": rounded,
        "exact": total(tensor for tensor in measured if not tensor.rounded),
        "unavailable": unavailable,
        "tensors": [tensor.document() for tensor in measured],
    }


def _find_source(store: Store, reel: Reel, against: Place | None) -> tuple[str, ...]:
    """Where the weights are that a reel was made from; empty where nobody knows, or nothing is rounded."""
    source = reel.file.manifest["source"]
    if source is None or not any("error" in entry for entry in reel.tensors.values()):
        return ()
    if against is not None:
        return find_base(store, against)
    return find_content(store, bytes.fromhex(source["content_key"]))


def _explain(reel: Reel) -> str:
    if reel.mode == "delta":
        return "differences are rounded here, not weights"
    return "the model the reel was made from is not in the store: --against MODEL"


def _points(document: dict[str, Any]) -> Iterator[Point]:
    """What a plot shows of a reel."""
    rounded = document["rounded"]
    if rounded is None:
        return
    name = Path(document["reel"]).name.removesuffix(".mp4").removesuffix(".reel")
    drawn = [(name, True, rounded)] + [(label, False, other) for label, other in rounded["others"].items()]
    drawn += [("", True, tensor) for tensor in document["tensors"] if "nmse" in tensor]
    for label, own, figures in drawn:
        bits, gap = figures["bits_per_weight"], figures["gap"]
        if gap is not None:
            yield Point(bits, 4 ** (gap - bits), label, own)
