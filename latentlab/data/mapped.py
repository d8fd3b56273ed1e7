"""Large arrays in temporary files, whose pages the system drops from memory when it needs the room.

Such an array is an ordinary NumPy array. Its file has no name, and is removed with the array, also if the process is killed.
"""

import errno
import math
import mmap
import os
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from latentlab.errors import StoreError

LARGE = 2**20
"""Size in bytes from which an array is kept in a file."""
ALIGNMENT = 64
"""Alignment of arrays in bytes, as of tensors of torch: the last digits of products depend on it."""

_folders: "weakref.WeakKeyDictionary[mmap.mmap, Path]" = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Place:
    """Place of large arrays: temporary files in a folder, or memory if there is no folder."""

    folder: Path | None = None

    def empty(self, shape: tuple[int, ...], dtype: Any = np.float64) -> np.ndarray:
        """Returns an array with arbitrary values.

        Raises:
            StoreError: The disk has no room for it.
        """
        n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        if self.folder is not None and n_bytes >= LARGE:
            buffer: Any = _mapped(self.folder, n_bytes)
            return np.frombuffer(buffer, dtype=dtype).reshape(shape)
        raw = np.empty(n_bytes + ALIGNMENT, dtype=np.uint8)
        first = -raw.ctypes.data % ALIGNMENT
        return raw[first : first + n_bytes].view(dtype).reshape(shape)


MEMORY = Place()


def _mapped(folder: Path, n_bytes: int) -> mmap.mmap:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):  # a full disk is then an error here, and not a crash at a later write
                os.posix_fallocate(file.fileno(), 0, n_bytes)
            file.truncate(n_bytes)
            found = mmap.mmap(file.fileno(), n_bytes)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        why = "the disk is full" if full else f"it cannot be written: {error.strerror or error}"
        raise StoreError(f"{folder}: an array of {n_bytes} bytes needs a temporary file, and {why}.") from error
    _folders[found] = folder
    return found


def writable(folder: Path) -> Path:
    """Returns the folder if files can be written there, else the system's folder for temporary files."""
    return folder if os.access(folder, os.W_OK) else Path(tempfile.gettempdir())


def place_of(*arrays: np.ndarray) -> Place:
    """Returns the place of the first array that is kept in a file; memory if there is none."""
    for array in arrays:
        base: Any = array
        while isinstance(base, np.ndarray):
            base = base.base
        base = base.obj if isinstance(base, memoryview) else base
        if isinstance(base, mmap.mmap) and base in _folders:
            return Place(_folders[base])
    return MEMORY


def is_mapped(array: np.ndarray) -> bool:
    """Whether an array is kept in a file."""
    return place_of(array).folder is not None


def release() -> None:
    """Drops the pages of all mapped files from the process's memory; the files keep their content."""
    for one in list(_folders):
        one.madvise(mmap.MADV_DONTNEED)
