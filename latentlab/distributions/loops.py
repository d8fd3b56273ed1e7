"""Loops compiled by Numba, if it is installed. Their modules are loaded at first use, because the import of Numba is slow."""

import functools
import importlib
from collections.abc import Callable
from typing import Any


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compile a function to machine code, cached on disk between runs if a cache folder is writable.

    The compiled function runs in one thread and releases the interpreter's lock.
    """
    import numba

    options |= {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # Numba has no writable folder for its cache
        return numba.njit(**options)(function)


def summing(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function whose sums the compiler may reorder, to vectorise them; the order is the same in every run."""
    return compiled(function, fastmath={"reassoc"})


@functools.cache
def load(module: str) -> Any:
    """Import a module of compiled loops; return None if Numba is absent or does not support the installed NumPy."""
    try:
        return importlib.import_module(f"latentlab.{module}")
    except ImportError:
        return None
