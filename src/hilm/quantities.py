"""Numbers as people read them: counts, bytes, durations, figures and p-values."""

from __future__ import annotations

import math

ABSENT = "-"


def count(number: float | None) -> str:
    """Write a number of things: ``30,522``, ``22.7 M``, ``1.1 B``."""
    if number is None:
        return ABSENT
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if number >= limit:
            return f"{number / limit:.1f} {unit}"
    return f"{number:,.0f}"


def size(number: float | None) -> str:
    """Write a number of bytes: ``512 B``, ``86.7 MiB``."""
    if number is None:
        return ABSENT
    for power, unit in ((5, "PiB"), (4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if number >= 1024**power:
            return f"{number / 1024**power:.1f} {unit}"
    return f"{number:.0f} B"


def seconds(number: float | None) -> str:
    """Write a duration: ``0.42 s``, ``3 min 05 s``, ``2 h 10 min``."""
    if number is None:
        return ABSENT
    if number < 60:
        return f"{number:.2f} s"
    minutes, rest = divmod(round(number), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def figure(number: float | None) -> str:
    """Write a measured figure with four digits; nothing measured is a dash."""
    if number is None or not math.isfinite(number):
        return ABSENT
    return f"{number:.4g}"


def chance(number: float | None) -> str:
    """Write a p-value; one that underflowed is a bound, not zero."""
    return "< 1e-300" if number is not None and number < 1e-300 else figure(number)


def share(part: float, whole: float) -> str:
    """Write a part as per cent of the whole."""
    return f"{100 * part / whole:.1f} %" if whole else ABSENT
