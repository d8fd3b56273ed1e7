"""Limits on memory: a budget checked before a file is read, blocks of large arrays, and a subset of posterior draws.

Large arrays may be kept in temporary files. Such an array is an ordinary NumPy array, whose pages the system drops from memory
when it needs the room. Its file has no name, and is removed with the array, also if the process is killed.
"""

import contextlib
import errno
import math
import mmap
import os
import re
import tempfile
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from latentlab.errors import ConfigError, DataError, StoreError

SHARE = 0.5
"""Share of the free memory that data may take; the rest is for inference."""

COPIES = 3
"""Number of copies of a table in memory while it is read: as blocks, joined, and checked."""

RATIO = 500
"""Largest accepted compression ratio: deflate reaches 1032 (decompression bombs), and tables stay far below 500."""

SMALL = 2**26
"""Size in bytes (64 MB) below which the compression ratio is not checked."""

BLOCK = 2**21
"""Number of values in a block of a large array: 16 MB, which fits into the cache."""


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
    folder = folder if folder.is_dir() else Path(tempfile.gettempdir())  # a folder of checkpoints ends with its run
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
    for reference in _folders.keyrefs():  # a list, which other threads do not change
        if (one := reference()) is not None:
            one.madvise(mmap.MADV_DONTNEED)


def blocks(n: int, numbers: int) -> Iterator[slice]:
    """Slices that divide n items of `numbers` values each into blocks.

    Example:
        >>> list(blocks(5, BLOCK // 2))
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    step = max(1, BLOCK // max(1, numbers))
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))
        release()


def parts(array: np.ndarray) -> Iterator[np.ndarray]:
    """Divides an array into views of about one block each, in the order of its values."""
    if array.size <= BLOCK:
        yield array
    elif array[0].size > BLOCK:
        for row in array:
            yield from parts(row)
    else:
        yield from (array[s] for s in blocks(len(array), array[0].size))


def n_not_finite(array: np.ndarray) -> int:
    """Counts the values that are NaN or infinite, block by block."""
    return sum(int((~np.isfinite(part)).sum()) for part in parts(np.asarray(array)))


def by_draw(function: Callable[..., Any], *arrays: np.ndarray) -> Any:
    """Applies a function of draws `(chain, draw, ...)` to blocks of the draws, and joins the results.

    Args:
        function: Function of the arrays that treats every draw alike, and returns an array of draws or a dict of them.
        arrays: Arrays of the same draws; others are passed to the function whole, in one call. If one of them is kept in a file,
            so are large results.
    """
    shapes = {array.shape[:2] for array in arrays}
    if max(array.size for array in arrays) <= BLOCK or len(shapes) > 1 or len(arrays[0].shape) < 2:
        return function(*arrays)
    n_chains, n_draws = arrays[0].shape[:2]
    numbers = max(array.size for array in arrays) // (n_chains * n_draws)
    place, joined = place_of(*arrays), {}
    for chain in range(n_chains):
        for s in blocks(n_draws, numbers):
            found = function(*(array[chain : chain + 1, s] for array in arrays))
            for name, part in found.items() if isinstance(found, dict) else [("", found)]:
                if name not in joined:
                    joined[name] = place.empty((n_chains, n_draws, *part.shape[2:]), part.dtype)
                joined[name][chain, s] = part[0]
    return joined if isinstance(found, dict) else joined[""]


def by_row(function: Callable[[np.ndarray], np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Applies a function that treats every row alike to blocks of rows, and joins the results in the place of the rows."""
    joined = np.zeros(0)
    for s in blocks(len(rows), rows[0].size):
        found = function(rows[s])
        if not len(joined):
            joined = place_of(rows).empty((len(rows), *found.shape[1:]), found.dtype)
        joined[s] = found
    return joined


def by_quantity(function: Callable[[np.ndarray], np.ndarray], flat: np.ndarray) -> np.ndarray:
    """Applies a function of quantities `(..., n)` to blocks of them, and joins the results along the last axis.

    A block has two quantities or more, since NumPy adds the values of a single one in another order.
    """
    n = flat.shape[-1]
    n_blocks = max(1, min(n // 2, -(-flat.size // BLOCK)))
    edges = [n * i // n_blocks for i in range(n_blocks + 1)]
    found = []
    for i in range(n_blocks):
        found.append(np.asarray(function(flat[..., edges[i] : edges[i + 1]])))
        release()
    return found[0] if n_blocks == 1 else np.concatenate(found, axis=-1)


@dataclass(frozen=True)
class Budget:
    """Largest number of bytes; `set_by_user` is False for the default."""

    n_bytes: int
    set_by_user: bool

    @classmethod
    def of(cls, max_bytes: int | None) -> "Budget":
        """Budget of `max_bytes`, or of half of the memory that is free now if None."""
        if max_bytes is None:
            return cls(int(SHARE * _available()), set_by_user=False)
        if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < 1:
            raise DataError(f"`max_bytes` must be a whole number of at least 1; got {max_bytes!r}.")
        return cls(max_bytes, set_by_user=True)

    def need(self, n_bytes: int, what: str) -> None:
        """Refuse data that need more than the budget."""
        if n_bytes > self.n_bytes:
            limit = "`max_bytes`" if self.set_by_user else "half of the free memory"
            raise DataError(
                f"{what} needs about {size(n_bytes)} of memory; {limit} is {size(self.n_bytes)}. "
                "Select fewer `columns`, or increase `max_bytes`."
            )

    def decompress(self, n_compressed: int, n_bytes: int, what: str) -> None:
        """Refuse a file whose decompressed size exceeds the budget, or `RATIO` times its size unless the user set the budget."""
        self.need(n_bytes, f"{what} after decompression")
        if not self.set_by_user and n_bytes > SMALL and n_bytes > RATIO * max(n_compressed, 1):
            raise DataError(
                f"{what} decompresses from {size(n_compressed)} to {size(n_bytes)} or more, as a decompression bomb does; "
                "if the file is trusted, set its largest size by `max_bytes`."
            )


def memory_bytes(value: int | str | None) -> int | None:
    """Returns a size in bytes that is given as such or as text; None stays None.

    Raises:
        ConfigError: The value is neither.

    Example:
        >>> memory_bytes("2 GiB"), memory_bytes("1.5 MB"), memory_bytes(10**9)
        (2147483648, 1500000, 1000000000)
    """
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(?:([kKMGT])(i?))?B?\s*", value) if isinstance(value, str) else None
    number, prefix, binary = found.groups() if found else ("0", None, None)
    n_bytes = float(number) * (1024 if binary else 1000) ** (" KMGT".index(prefix.upper()) if prefix else 0)
    if n_bytes < 1:
        raise ConfigError(f"memory: must be a number of bytes, or a size such as '2 GiB'; got {value!r}.")
    return int(n_bytes)


def size(n_bytes: int) -> str:
    """Format a number of bytes with a unit.

    Example:
        >>> size(8 * 10**12), size(128)
        ('8.0 TB', '128 B')
    """
    value, unit = float(n_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB", "PB", "EB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{n_bytes} B" if unit == "B" else f"{value:.1f} {unit}"


def _available() -> int:
    """Bytes that this process can still allocate: the smallest limit of machine, container and process."""
    return max(0, min(_limits(), default=2**33))


def _limits() -> Iterator[int]:
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        yield 1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable")))
    with contextlib.suppress(OSError, ValueError, AttributeError):
        yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        yield int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            yield limit - int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def thinned(draws: np.ndarray, n_draws: int) -> np.ndarray:
    """Select about `n_draws` of the draws `(chain, draw, ...)`, evenly spaced in each chain; all if there are no more."""
    n_chains, each = draws.shape[:2]
    kept = max(1, min(each, n_draws // n_chains))
    return draws if kept == each else draws[:, np.unique(np.linspace(0, each - 1, kept).astype(int))]
