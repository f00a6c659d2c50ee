"""What a coder makes of a slab: a head, and functions that code and decode chunks on their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from hilm.reel.carrier import Carried
    from hilm.reel.head import SlabHead
    from hilm.reel.words import WordView

Words: TypeAlias = NDArray[np.unsignedinteger]
ChunkEncoder: TypeAlias = Callable[[int, int], bytes]
"""Code the words from a start to a stop; thread-safe."""
ChunkDecoder: TypeAlias = Callable[[bytes, int, Words], None]
"""Decode a chunk that starts at a word into the words given; thread-safe.

Raises ChecksumMismatch for a malformed chunk.
"""
CarriedDecoder: TypeAlias = "Callable[[Carried, Words], None]"
"""The same for a chunk that a video carried."""


class Plan(NamedTuple):
    """How one slab is coded.

    Attributes:
        head: The head to be.
        encode: Codes one chunk.
        decoded: [n] the words that come back, where they are others than those that went in.
        carry: Makes of one chunk what rides in a video; None of what cannot.
    """

    head: SlabHead
    encode: ChunkEncoder
    decoded: Words | None = None
    carry: Callable[[int, int], Carried] | None = None


Planner: TypeAlias = "Callable[[Words, WordView, int], Plan | None]"
"""Plan the coding of a slab's words with a number of threads; None where another coder has to do."""
