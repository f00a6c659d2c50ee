"""Rounded differences: those of floats, as float32, go through the trellis like small weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from hilm.errors import UsageError
from hilm.reel.head import Coder, SlabHead
from hilm.reel.quantizer import Quantizer, trellis_decoder
from hilm.reel.words import as_floats, as_words

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hilm.reel.plan import ChunkDecoder, Plan, Words
    from hilm.reel.words import WordView

MOST_LOST: Final = 0.5
"""Share of the energy of a difference beyond which what is left is no fine-tune."""

_COSTS = np.array([0.5, 0.9, 1.59, 2.56, 3.53, 4.49, 5.47, 6.94, 8.0])
_STEPS = np.array([2.0, 1.15, 0.75, 0.37, 0.18, 0.09, 0.045, 0.0162, 0.0078])


@dataclass(slots=True)
class Energy:
    """Sums of squares over a tensor.

    Attributes:
        lost: Of what is missing from the difference.
        whole: Of the difference.
    """

    lost: float = 0.0
    whole: float = 0.0

    @property
    def share(self) -> float:
        """How much of the difference is lost."""
        return self.lost / self.whole if self.whole else 0.0

    def add(self, words: Words, base: Words, decoded: Words, view: WordView) -> None:
        """Take a slab, what it is a difference from, and what comes back of it."""
        for start, stop in view.ranges():
            new, old, back = (
                as_floats(part[start:stop], view).astype(np.float64) for part in (words, base, decoded)
            )
            self.lost += float(np.square(new - back).sum())
            self.whole += float(np.square(new - old).sum())


def delta_quantizer(bits: float) -> Quantizer:
    """The quantiser that takes about so many bits per weight of a Gaussian difference.

    Raises:
        UsageError: There is none.
    """
    if not _COSTS[0] <= bits <= _COSTS[-1]:
        raise UsageError(
            f"{bits:g} bits per weight of a difference; 0.5 to 8 is possible",
            hint="without --bits every bit is kept",
        )
    step = np.exp2(np.rint(64 * np.interp(bits, _COSTS, np.log2(_STEPS))) / 64)
    return Quantizer(float(step))


def plan_rounded_delta(
    words: Words, base: Words, view: WordView, quantizer: Quantizer, threads: int
) -> Plan | None:
    """Plan the coding of a slab of floats of at most 32 bits as rounded differences.

    Args:
        words: [view.size] stored words.
        base: [view.size] those of the base.
        view: Their shape and type.
        quantizer: Rounds the differences.
        threads: Chunks worked on at a time.

    Returns:
        The plan, or None where a value is not finite or would not come back so, or nothing differs.
    """
    differences = np.empty(view.size, np.float32)
    for start, stop in view.ranges():
        new, old = (as_floats(part[start:stop], view).astype(np.float64) for part in (words, base))
        with np.errstate(invalid="ignore", over="ignore"):
            differences[start:stop] = new - old
    plan = quantizer(differences.view("<u4"), _wide(view), threads)
    if plan is None or plan.decoded is None:
        return None
    decoded = np.empty_like(words)
    for start, stop in view.ranges():
        decoded[start:stop] = _add(base[start:stop], plan.decoded[start:stop].view("<f4"), view)
        if not np.isfinite(as_floats(decoded[start:stop], view)).all():
            return None
    return plan._replace(head=replace(plan.head, coder=Coder.TCQ_DELTA, view=view), decoded=decoded)


def rounded_delta_decoder(head: SlabHead) -> ChunkDecoder:
    """Make the thread-safe function that decodes a chunk; it is given the base's words in ``out``."""
    decode_differences = trellis_decoder(replace(head, view=_wide(head.view)))

    def decode(chunk: bytes, start: int, out: Words) -> None:
        differences = np.empty(out.size, "<u4")
        decode_differences(chunk, start, differences)
        out[:] = _add(out, differences.view("<f4"), head.view)

    return decode


def _add(base: Words, differences: NDArray[np.float32], view: WordView) -> Words:
    """Sum in float64, rounded to float32, then to the stored type."""
    total = as_floats(base, view).astype(np.float64) + differences
    with np.errstate(over="ignore"):
        return as_words(total.astype(np.float32), view)


def _wide(view: WordView) -> WordView:
    """The slab as float32."""
    return replace(view, word=np.dtype("<u4"), mantissa=23)
