"""What stands for the names, calls and dictionaries of a pickle: records that do nothing.

They compare and hash by identity, so that no depth, cycle or crafted key in a pickle can cost time or stack.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, eq=False)
class Global:
    """A name that a pickle wanted imported, as ``module.name``. Nothing was imported."""

    name: str


@dataclass(slots=True, eq=False)
class Call:
    """A call that a pickle wanted made. Nothing was called.

    Attributes:
        function: What was to be called.
        arguments: With what.
        contents: State, items and elements that were to be put into the result.
    """

    function: Global | Call
    arguments: tuple[object, ...]
    contents: list[object] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Table:
    """A dictionary as its pairs, in order; keys may be anything and may repeat."""

    pairs: list[tuple[object, object]] = field(default_factory=list)
