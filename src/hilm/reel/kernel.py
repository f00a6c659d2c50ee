"""The one way reel compiles its inner loops."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from numba import njit

if TYPE_CHECKING:
    from collections.abc import Callable

_Function = TypeVar("_Function", bound="Callable[..., Any]")


def kernel(function: _Function) -> _Function:
    """Compile a function at its first call; it runs without the interpreter lock and keeps its types.

    Kernels check nothing: bounds are checked before they are called, or by what they return.
    """
    compiled: _Function = njit(cache=True, nogil=True)(function)
    return compiled
