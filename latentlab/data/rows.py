"""Rows of a matrix that stays on disk, read on demand.

Rows are read by their offset in the file, not through a memory map: mapped pages count as memory of the process, and a truncated
file under a map ends the process. A file that changed since it was opened is refused.
"""

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from latentlab.data import binary
from latentlab.data.memory import blocks
from latentlab.errors import DataError

SPAN = 2**20
"""Largest number of bytes in one read."""

REACH = 2**14
"""Largest gap in bytes between two requested rows over which one read is faster than two."""

Read = Callable[[int, int], np.ndarray]
"""Function from start and stop (exclusive) to these rows, in the file's dtype; the next call may overwrite them."""


@dataclass(frozen=True)
class Rows(ABC):
    """A matrix `(unit, feature)` in a file.

    Args:
        path: The file, or the folder of an array.
        shape: Numbers of units and features in the file.
        dtype: Data type of the file.
        columns: Numbers of the selected columns.
    """

    path: Path
    shape: tuple[int, int]
    dtype: np.dtype
    columns: tuple[int, ...]

    @property
    @abstractmethod
    def span(self) -> int:
        """Number of rows in a block of the file, which is read at once if all its rows are requested."""

    @property
    @abstractmethod
    def reach(self) -> int:
        """Largest gap in rows between two requested rows of a block that are read together."""

    @abstractmethod
    def reading(self) -> contextlib.AbstractContextManager[Read]:
        """Open the file in a `with` block, and return a function that reads rows.

        Raises:
            DataError: The file does not exist any more, was changed since it was opened, or is truncated.
        """

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def row_bytes(self) -> int:
        """Number of bytes of the selected columns in a row."""
        return len(self.columns) * self.dtype.itemsize

    def select(self, columns: np.ndarray) -> "Rows":
        """Select columns by their number among the columns selected so far."""
        return replace(self, columns=tuple(self.columns[i] for i in columns))

    def take(self, index: np.ndarray, is_cancelled: Callable[[], bool] = lambda: False) -> np.ndarray:
        """Read rows by their numbers, in the given order, in the file's dtype.

        Args:
            index: Numbers of the rows, `(n,)`.
            is_cancelled: Function that returns True if the rows are not needed any more.

        Raises:
            DataError: The file does not exist any more, was changed since it was opened, or is truncated.
            CancelledError: The rows are not needed any more.
        """
        order = np.argsort(index)
        rows = index[order]
        apart = (np.diff(rows) > self.reach) | (np.diff(rows // self.span) > 0)
        ends = np.append(np.flatnonzero(apart) + 1, len(rows))
        begins = np.append(0, ends[:-1])
        lasts = (rows[ends - 1] + 1).tolist()
        result, chosen = np.empty((len(index), len(self.columns)), self.dtype), self._columns()
        with self.reading() as read:
            for begin, end, first, last in zip(begins.tolist(), ends.tolist(), rows[begins].tolist(), lasts, strict=True):
                if is_cancelled():
                    raise CancelledError
                block = read(first, last)[:, chosen]
                result[order[begin:end]] = block if last == first + 1 else block[rows[begin:end] - first]
        return result

    def blocks(self) -> Iterator[np.ndarray]:
        """Iterate over all rows in blocks, in the file's dtype."""
        chosen = self._columns()
        for part in blocks(len(self), len(self.columns)):
            with self.reading() as read:
                rows = np.empty((part.stop - part.start, len(self.columns)), self.dtype)
                start = part.start
                while start < part.stop:  # up to the end of the file's block
                    stop = min((start // self.span + 1) * self.span, part.stop)
                    rows[start - part.start : stop - part.start] = read(start, stop)[:, chosen]
                    start = stop
            yield rows

    def _columns(self) -> slice | list[int]:
        return slice(None) if self.columns == tuple(range(self.shape[1])) else list(self.columns)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Convert errors of the system to `DataError`."""
        try:
            yield
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror or error}.") from error


@dataclass(frozen=True)
class NpyRows(Rows):
    """Rows of an NPY file in C or Fortran order; in Fortran order each column needs a separate read."""

    fortran: bool
    offset: int
    identity: tuple[int, ...]

    @property
    def span(self) -> int:
        return max(1, SPAN // (self.shape[1] * self.dtype.itemsize))

    @property
    def reach(self) -> int:
        return max(1, REACH // (self.shape[1] * self.dtype.itemsize))

    @contextlib.contextmanager
    def reading(self) -> Iterator[Read]:
        with self._explained(), self.path.open("rb", buffering=0) as stream:
            descriptor = stream.fileno()
            self._check(descriptor)
            yield self._by_columns(descriptor) if self.fortran else self._by_rows(descriptor)
            self._check(descriptor)

    def _check(self, descriptor: int) -> None:
        if _identity(os.fstat(descriptor)) != self.identity:
            raise DataError(f"{self.path}: the file was changed after it was opened; load the data again.")

    def _by_rows(self, descriptor: int) -> Read:
        buffer = np.empty((self.span, self.shape[1]), self.dtype)
        view, size, offset = _bytes_of(buffer), self.shape[1] * self.dtype.itemsize, self.offset

        def read(start: int, stop: int) -> np.ndarray:
            self._fill(descriptor, view[: (stop - start) * size], offset + start * size)
            return buffer[: stop - start]

        return read

    def _by_columns(self, descriptor: int) -> Read:
        def read(start: int, stop: int) -> np.ndarray:
            columns = np.empty((self.shape[1], stop - start), self.dtype)
            for j, column in enumerate(columns):
                self._fill(descriptor, _bytes_of(column), self.offset + (j * self.shape[0] + start) * self.dtype.itemsize)
            return columns.T

        return read

    def _fill(self, descriptor: int, view: memoryview, offset: int) -> None:
        n = os.preadv(descriptor, [view], offset)
        while n < len(view):
            more = os.preadv(descriptor, [view[n:]], offset + n)
            if more == 0:
                raise DataError(f"{self.path}: the file is truncated at byte {offset + n}.")
            n += more


def _bytes_of(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def npy_rows(path: Path) -> NpyRows:
    """Open the rows of an NPY file; only its header is read.

    Raises:
        DataError: The file is not a plain matrix of numbers, or is shorter than declared.
    """
    with path.open("rb") as stream:
        status = os.fstat(stream.fileno())
        shape, fortran, dtype = binary.declared(stream, status.st_size, str(path))
        offset = stream.tell()
    check_matrix(path, shape, dtype)
    return NpyRows(path, (shape[0], shape[1]), dtype, tuple(range(shape[1])), fortran, offset, _identity(status))


def check_matrix(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Refuse arrays that are empty or not matrices of real numbers.

    Raises:
        DataError: Names the shape, or the dtype.
    """
    if dtype.hasobject:
        raise DataError(f"{path}: the file contains Python objects (pickle), which are never loaded.")
    if dtype.kind not in "biuf":
        raise DataError(f"{path} has dtype {dtype}; expected real numbers.")
    if len(shape) != 2:
        raise DataError(f"{path}: expected shape (n_units, n_features); got {shape}.")
    if 0 in shape:
        raise DataError(f"{path} has no {('units', 'features')[shape.index(0)]} (shape {shape}); expected at least one.")


def _identity(status: os.stat_result) -> tuple[int, ...]:
    """Device, inode, size and modification time of a file, which change if it is replaced or written to."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
