"""What a video carrier will cost a model."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from hilm.reel.carrier import CARRIERS
from hilm.reel.price import quote
from hilm.weights import open_checkpoint

if TYPE_CHECKING:
    from hilm.reel.plan import Planner
    from hilm.reel.rate import Rounding
    from hilm.weights.tensor import TensorInfo


def quote_carrier(model: str, carrier: str, rounding: Rounding | None) -> dict[str, Any]:
    """As of ``Store.quote``; weights are rounded with the step that typical ones need."""

    def choose(info: TensorInfo) -> Planner | None:
        fits = rounding is not None and rounding.applies(info)
        return rounding.quantizer(rounding.guess, rounding.effort) if rounding and fits else None

    with open_checkpoint(model) as checkpoint:
        price = quote(checkpoint, CARRIERS[carrier], choose, os.cpu_count() or 1)
    facts = price._asdict() if price else {"tensor": None, "carried": None, "packed": None}
    return {"model": model, "carrier": carrier, **facts}
