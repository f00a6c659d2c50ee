"""What a video carrier costs, measured by the real codec on a few chunks before anything is written."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hilm.reel.carrier import LAYOUTS, Placement, is_carried
from hilm.reel.layout import CHUNK_ELEMENTS, coded_view
from hilm.reel.quantizer import Quantizer
from hilm.reel.records import RECORD
from hilm.reel.slab import carry_slab, encode_slab
from hilm.reel.video import encode_frames
from hilm.weights.dtypes import DTYPES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hilm.reel.carrier import Carrier
    from hilm.reel.plan import Planner
    from hilm.reel.rate import Rounding
    from hilm.weights.checkpoint import Checkpoint
    from hilm.weights.dtypes import DType

_WORTH = 0.005  # of the bytes: less does not pay for another layout
_SAMPLE = 4 * CHUNK_ELEMENTS


class Price(NamedTuple):
    """Bits per weight of a video and of packed streams, on the same rows of one tensor; None without one."""

    tensor: str | None = None
    carried: float | None = None
    packed: float | None = None


def choose_layout(
    words: NDArray[np.uint8],
    dtype: DType,
    rows: int,
    columns: int,
    carrier: Carrier,
    planner: Planner | None = None,
    wanted: str = "auto",
    threads: int = 1,
) -> tuple[str, float]:
    """Choose the layout of a slab by the bytes of its first, middle and last frame in each.

    Raster it is, or flat where raster leaves an eighth of its cells unused, unless another saves 0.5 %.
    Of weights that are to be rounded on a trellis, those are measured that one quantiser makes.

    Args:
        words: As of `hilm.reel.slab.encode_slab`.
        dtype: As of `encode_slab`.
        rows: As of `encode_slab`.
        columns: As of `encode_slab`.
        carrier: Whose codec is asked.
        planner: As of `encode_slab`.
        wanted: ``auto``, or the one layout that is wanted.
        threads: As of `encode_slab`.

    Returns:
        The layout, and by how many percent it is smaller than the one it replaces; 0 if it replaces none.
    """
    places = [Placement(rows, columns, layout) for layout in LAYOUTS if wanted in {"auto", layout}]
    places = [place for place in places if not place.padded] or [Placement(rows, columns, "flat")]
    if len(places) == 1:
        return places[0].layout, 0.0
    planner = planner.coarse if isinstance(planner, Quantizer) else planner
    flat = Placement(rows, columns, "flat")
    slab = carry_slab(words, dtype, flat, planner=planner, threads=threads)
    if slab is None:
        return places[0].layout, 0.0
    pixels = np.concatenate([flat.read(i, frame) for i, frame in enumerate(slab.frames)])
    costs = [_cost(place, place.arrange(pixels), carrier) for place in places]
    best = int(np.argmin(costs))
    gain = 1 - costs[best] / costs[0]
    return (places[best].layout, 100 * gain) if gain >= _WORTH else (places[0].layout, 0.0)


def _cost(place: Placement, pixels: NDArray[np.uint8], carrier: Carrier) -> float:
    """Bytes for each element of the first, middle and last frame."""
    lengths = place.lengths
    ends, chosen = np.cumsum(lengths), sorted({0, len(lengths) // 2, len(lengths) - 1})
    unused = int(np.bincount(pixels).argmax())
    frames = [place.draw(n, pixels[ends[n] - lengths[n] : ends[n]], unused) for n in chosen]
    return encode_frames(carrier, frames) / sum(lengths[n] for n in chosen)


def quote(checkpoint: Checkpoint, carrier: Carrier, rounding: Rounding | None, threads: int = 1) -> Price:
    """Measure what a video costs on rows from the middle of the largest tensor, if that is carried.

    Weights are rounded with the step that typical ones need.

    Raises:
        SourceChanged: A file changed while it was read.
    """
    owners = [t for t in checkpoint.stored.values() if t.alias_of is None]
    info = max(owners, key=lambda t: t.numel, default=None)
    if info is None:
        return Price()
    rows, columns, word = coded_view(info.dtype, info.shape)
    taken = min(rows, max(1, _SAMPLE // max(columns, 1)))
    width = columns if taken * columns <= 2 * _SAMPLE else _SAMPLE
    if not is_carried(taken * width):
        return Price()
    start = (rows - taken) // 2 * columns * word
    words = np.empty(taken * width * word, np.uint8)
    checkpoint.source(info).read_into(info.span.start + start, words)
    dtype, rounds = DTYPES[info.dtype], rounding is not None and rounding.applies(info)
    planner = rounding.quantizer(rounding.guess, rounding.effort) if rounding and rounds else None
    packed = encode_slab(words, dtype, taken, width, planner=planner, threads=threads)
    place = Placement(taken, width, "flat")
    slab = carry_slab(words, dtype, place, planner=planner, threads=threads)
    if slab is None:
        return Price()
    video = slab.nbytes + encode_frames(carrier, slab.frames) + RECORD.itemsize * len(packed.chunks)
    return Price(info.name, 8 * video / (taken * width), 8 * packed.nbytes / (taken * width))
