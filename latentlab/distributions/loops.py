"""Loops compiled by Numba, if it is installed. Their modules are loaded at first use, because the import of Numba is slow."""

import functools
import hashlib
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

KERNELS = "compiled*.py"
"""Names of the files of compiled functions; a function may call those of other such files in its folder."""


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compile a function to machine code, cached on disk between runs if a cache folder is writable.

    The compiled function runs in one thread and releases the interpreter's lock. Numba compares the file of the function only
    with that of the cached code, so the name of a function, and thereby of its cache, contains a hash of all `KERNELS`.
    """
    import numba

    function.__qualname__ += f"_{_version(Path(function.__code__.co_filename).parent)}"

    options |= {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # Numba has no writable folder for its cache
        return numba.njit(**options)(function)


def summing(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function whose sums the compiler may reorder, to vectorise them; the order is the same in every run."""
    return compiled(function, fastmath={"reassoc"})


@functools.cache
def _version(folder: Path) -> str:
    """Return a hash of this file and of the kernels in a folder."""
    files = [Path(__file__), *sorted(folder.glob(KERNELS))]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files if file.is_file())).hexdigest()[:12]


@functools.cache
def load(module: str) -> Any:
    """Import a module of compiled loops; return None if Numba is absent or does not support the installed NumPy."""
    try:
        return importlib.import_module(f"latentlab.{module}")
    except ImportError:
        return None
