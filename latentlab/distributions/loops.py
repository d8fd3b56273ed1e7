"""Loops in machine code, where Numba is installed. A module of them is loaded at its first use: Numba's import takes a while."""

import functools
import importlib
from collections.abc import Callable
from typing import Any


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """The function in machine code, kept in a cache between runs where a folder can be written.

    It runs in one thread, with the interpreter's lock released.
    """
    import numba

    options |= {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder for the cache
        return numba.njit(**options)(function)


def summing(function: Callable[..., Any]) -> Callable[..., Any]:
    """`compiled`, and its sums may be taken in the order that the processor likes: always the same one."""
    return compiled(function, fastmath={"reassoc"})


@functools.cache
def load(module: str) -> Any:
    """A module of such loops; None where Numba is absent, or refuses the numpy that it finds."""
    try:
        return importlib.import_module(f"latentlab.{module}")
    except ImportError:
        return None
