"""Results in netCDF files: written whole or not at all, and checked before their arrays are read."""

import contextlib
import io
import itertools
import math
import warnings
from collections.abc import Collection, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import h5netcdf
import h5py
import numpy as np
import xarray as xr

from latentlab.data.memory import BLOCK, MEMORY, SMALL, Budget, Place, release, size, writable
from latentlab.errors import DataError, StoreError
from latentlab.files import write
from latentlab.results.tree import SAMPLE_DIMS, WITHOUT_DRAWS

DEFLATE = 1100
"""Largest ratio of declared to stored bytes; deflate reaches at most 1032, so a larger one indicates a false size."""
FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}
"""HDF5 filters that are accepted on reading; for any other, HDF5 would load a library by name."""
MOST_GROUPS, MOST_ITEMS = 100, 10_000
"""Largest number of groups in a file, and of arrays and groups together; a result has about twelve groups."""


def save(tree: xr.DataTree, path: str | Path) -> None:
    """Write a netCDF file, whole or not at all: compressed, with a checksum on every chunk.

    It is written to a temporary file beside `path`, read back, compared and renamed. Arrays are written and compared by
    blocks, so that the memory does not grow with them.

    Raises:
        StoreError: The file cannot be written, or differs when read back; names the path. The previous file at `path` is then
            unchanged.
    """
    target = Path(path)
    write(target, lambda stream: _fill(tree, target, stream), lambda written: _verify(written, tree, target))


def load(path: str | Path, *, groups: Sequence[str] = ("posterior",), memory: int | None = None) -> xr.DataTree:
    """Read a netCDF file written by `save`: into memory, or, if it needs more than `memory` bytes, into temporary files.

    Links, external data, and declared sizes beyond the memory or the file are refused before any array is read.

    Args:
        path: The file.
        groups: Groups that the file must have.
        memory: Size in bytes from which large arrays are kept in temporary files in the file's folder, or in the system's
            folder for temporary files if that one cannot be written. If None, a file of more than half of the free memory
            is refused.

    Raises:
        StoreError: The file is missing, damaged, too large, or no result; names file and group.
    """
    source = Path(path)
    if not source.is_file():
        raise StoreError(f"{source}: no such file." if not source.exists() else f"{source}: not a regular file.")
    found, declared = _inspect(source, limited=memory is None)
    missing = next((group for group in groups if group not in found), None)
    if missing is not None:
        raise StoreError(f"{source}: group {missing!r} is missing; groups found: {', '.join(filter(None, found)) or 'none'}.")
    place = Place(writable(source.parent)) if memory is not None and declared > memory / 2 else MEMORY
    has_draws = "posterior" in found
    with _opened(source) as file:
        return xr.DataTree.from_dict({n or "/": _read(file, source, n, has_draws=has_draws, place=place) for n in found})


class _Sink(io.RawIOBase):
    """A file for the HDF5 library, which can crash the process when the disk is full.

    After an error, further bytes are dropped, and `error` is to be raised when the library has closed the file.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.error: OSError | None = None
        self.seek, self.tell, self.readinto = stream.seek, stream.tell, stream.readinto  # type: ignore[method-assign, attr-defined]

    def write(self, data: Any) -> int:
        try:
            if self.error is None:
                self._stream.write(data)
        except OSError as error:
            self.error = error
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        try:
            return self._stream.truncate(size)
        except OSError as error:
            self.error = self.error or error
        return 0

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self.error = self.error or error


def _fill(tree: xr.DataTree, target: Path, stream: BinaryIO) -> None:
    sink = _Sink(stream)
    try:
        with h5py.File(sink, "w", track_order=True) as root, h5netcdf.File(root, "w") as file:
            for node in tree.subtree:
                dataset = node.to_dataset(inherit=False)
                store = xr.backends.H5NetCDFStore(file, group=node.path, mode="w")
                dataset.dump_to_store(store, encoding={str(n): _encoding(v) for n, v in dataset.variables.items()})
                release()
                if sink.error is not None:
                    break
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        if sink.error is None:
            raise StoreError(f"{target}: cannot be stored as netCDF: {error}") from error
    if sink.error is not None:
        raise sink.error


def _encoding(variable: xr.Variable) -> dict[str, Any]:
    """Encoding of a variable; text as characters of fixed length, since only those are compressed and checksummed."""
    packed = {"zlib": True, "complevel": 1, "shuffle": True, "fletcher32": True} if variable.ndim and variable.size else {}
    kind = {"dtype": "S1"} if variable.dtype.kind in "UO" else {}
    return {**packed, **kind, **({"_FillValue": None} if variable.dtype.kind == "f" else {})}


def _verify(written: Path, tree: xr.DataTree, target: Path) -> None:
    groups, _ = _inspect(written, limited=False)
    with _opened(written) as file:
        for node in tree.subtree:
            name = node.path.strip("/")
            expected, has_draws = node.to_dataset(inherit=False), "posterior" in groups
            same = name in groups
            for large in (
                [str(n) for n, v in expected.data_vars.items() if v.size > BLOCK and v.dtype.kind in "iuf"] if same else []
            ):
                same &= _same(file[name or "/"].variables[large], expected[large])
                expected = expected.drop_vars(large)
            left = {*expected.variables}
            if not (same and _read(file, written, name, has_draws=has_draws, names=left).equals(expected)):
                raise StoreError(
                    f"{target}, group {name!r}: the data read back differ from the data written; nothing was replaced."
                )


def _same(stored: Any, expected: xr.DataArray) -> bool:
    """Whether a large array of numbers in a file equals `expected`."""
    if stored.dimensions != expected.dims or stored.shape != expected.shape or stored.dtype != expected.dtype:
        return False
    values, array = expected.values, stored._h5ds
    nan = values.dtype.kind == "f"
    return all(np.array_equal(array[block], values[block], equal_nan=nan) for block in _blocks(array))


def _blocks(stored: h5py.Dataset) -> Iterator[tuple[slice, ...]]:
    """Divides a stored array along its first two axes into blocks of whole chunks, so that no chunk is read twice."""
    shape, chunks = stored.shape, stored.chunks or (1,) * len(stored.shape)
    n_axes = min(2, len(shape))
    outer, last = chunks[: n_axes - 1], chunks[n_axes - 1]
    n_chunks = max(1, BLOCK // max(1, math.prod(outer) * last * math.prod(shape[n_axes:])))
    steps = (*outer, n_chunks * last)
    for begin in itertools.product(*(range(0, n, step) for n, step in zip(shape, steps, strict=False))):
        yield tuple(slice(first, first + step) for first, step in zip(begin, steps, strict=True))
        release()


def _inspect(path: Path, *, limited: bool) -> tuple[list[str], int]:
    """Checks that all content is plain, local and of plausible size.

    Returns:
        The names of the groups, '' for the root, and the declared size in bytes, which must fit into the memory if `limited`.
    """
    try:
        with h5py.File(path, "r") as file:
            names, declared = [""], 0
            for group, what, item in _items(file, path):
                if isinstance(item, h5py.Group):
                    names.append(item.name.strip("/"))
                else:
                    declared += _declared(item, f"{path}, group {group!r}, {what!r}")
            if limited:
                Budget.of(None).need(declared, str(path))
    except StoreError:
        raise
    except DataError as error:
        how = "load it with `memory`, which keeps arrays on disk"
        raise StoreError(f"{path}: declares {size(declared)} of data, more than half of the free memory; {how}.") from error
    except Exception as error:  # a damaged file can make h5py raise any error
        raise StoreError(f"{path}: not a readable netCDF (HDF5) file, or truncated: {_line(error)}") from error
    return names, declared


def _items(group: h5py.Group, path: Path) -> Iterator[tuple[str, str, Any]]:
    """Yield all content of the file as (group, name, group or dataset); links and content with two names raise an error."""
    visited = {h5py.h5o.get_info(group.id).addr}
    waiting, n_groups = [group], 0
    while waiting:
        parent = waiting.pop(0)
        inside = parent.name.strip("/")
        if len(visited) > MOST_ITEMS or len(parent) > MOST_ITEMS:
            raise StoreError(f"{path}, group {inside!r}: more than {MOST_ITEMS} arrays and groups; not a result of latentlab.")
        for name in parent:
            if not isinstance(parent.get(name, getlink=True), h5py.HardLink):
                raise StoreError(f"{path}, group {inside!r}: {name!r} is a soft or external link; links are not followed.")
            item = parent[name]
            address = h5py.h5o.get_info(item.id).addr
            if address in visited or not isinstance(item, h5py.Group | h5py.Dataset):
                raise StoreError(f"{path}, group {inside!r}: {name!r} is a duplicate, or neither a group nor an array.")
            visited.add(address)
            if isinstance(item, h5py.Group):
                waiting.append(item)
                n_groups += 1
                if n_groups > MOST_GROUPS:
                    raise StoreError(f"{path}: more than {MOST_GROUPS} groups; not a result of latentlab.")
            yield inside, name, item


def _declared(array: h5py.Dataset, where: str) -> int:
    """Size in bytes that an array declares, after a check of its storage, type and filters."""
    if array.is_virtual or array.external:
        raise StoreError(f"{where}: the data are in other files, which are not read.")
    if array.dtype.kind not in "biufS":
        raise StoreError(f"{where}: the dtype must be numeric or text of fixed length; got {array.dtype}.")
    properties = array.id.get_create_plist()
    if not {properties.get_filter(i)[0] for i in range(properties.get_nfilters())} <= FILTERS:
        raise StoreError(f"{where}: compressed by an unknown filter.")
    declared, stored = math.prod(array.shape) * array.dtype.itemsize, array.id.get_storage_size()
    if declared > SMALL and declared > DEFLATE * stored:
        raise StoreError(f"{where}: declares {size(declared)}, but the file contains only {size(stored)} of it.")
    return declared


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[h5netcdf.File]:
    try:
        file = h5netcdf.File(path, "r")
    except Exception as error:  # a damaged file can make the libraries raise any error
        raise StoreError(f"{path}: damaged and not readable: {_line(error)}") from error
    with file:
        yield file


def _read(  # one argument for each choice of the two callers
    file: h5netcdf.File,
    path: Path,
    group: str,
    *,
    has_draws: bool,
    place: Place = MEMORY,
    names: Collection[Hashable] | None = None,
) -> xr.Dataset:
    """Read a group like `xr.open_dataset`, without looking up the chunks and filters of every array.

    If the file has a posterior (`has_draws`), arrays with draws must have chain and draw as first dims. With `names`, only the
    arrays of these names are read.
    """
    try:
        node = file[group] if group else file
        arrays = {
            n: xr.Variable(v.dimensions, _values(v._h5ds, place), dict(v.attrs))
            for n, v in node.variables.items()
            if names is None or n in names
        }
        with warnings.catch_warnings():  # xarray adds a warning filter
            dataset = xr.decode_cf(xr.Dataset(arrays, attrs=dict(node.attrs)))
    except StoreError:  # there is no room for the arrays
        raise
    except Exception as error:  # a damaged file can make the libraries raise any error
        raise StoreError(f"{path}, group {group!r}: damaged and not readable: {_line(error)}") from error
    draws = has_draws and group not in (*WITHOUT_DRAWS, "optimization", "") and "chain" in dataset.dims
    invalid = next((n for n, v in dataset.data_vars.items() if draws and v.dims[:2] != SAMPLE_DIMS), None)
    if invalid is not None or (group == "posterior" and not draws):
        what = f"{invalid!r}" if invalid is not None else "the arrays"
        dims = dataset[invalid].dims if invalid is not None else tuple(dataset.dims)
        raise StoreError(f"{path}, group {group!r}: {what} must have dims (chain, draw, ...); got {dims}.")
    text = {name: variable.astype(str) for name, variable in dataset.variables.items() if variable.dtype.kind == "O"}
    return dataset.assign_coords({n: v for n, v in text.items() if n in dataset.coords}).assign(
        {n: v for n, v in text.items() if n not in dataset.coords}
    ).drop_encoding()  # fmt: skip


def _values(stored: h5py.Dataset, place: Place) -> np.ndarray:
    """Reads an array: at once, or block by block into a file if it is large and its place is one of files."""
    if place is MEMORY or stored.size <= BLOCK or stored.dtype.kind not in "iuf":
        return stored[()]
    found = place.empty(stored.shape, stored.dtype)
    for block in _blocks(stored):
        found[block] = stored[block]
    return found


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
