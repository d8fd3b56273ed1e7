"""Results in netCDF files: written whole or not at all, and checked before their arrays are read."""

import contextlib
import io
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5netcdf
import h5py
import xarray as xr

from latentlab.data.memory import SMALL, Budget, size
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

    The file is built in memory, since the HDF5 library can crash the process when the disk is full. It is then written to
    a temporary file beside `path`, read back, compared and renamed.

    Raises:
        StoreError: The file cannot be written, or differs when read back; names the path. The previous file at `path` is then
            unchanged.
    """
    target = Path(path)
    write(target, _bytes(tree, target), lambda written: _verify(written, tree, target))


def load(path: str | Path, *, groups: Sequence[str] = ("posterior",)) -> xr.DataTree:
    """Read a netCDF file written by `save` into memory.

    Links, external data, and declared sizes beyond the memory or the file are refused before any array is read.

    Args:
        path: The file.
        groups: Groups that the file must have.

    Raises:
        StoreError: The file is missing, damaged, or no result; names file and group.
    """
    source = Path(path)
    if not source.is_file():
        raise StoreError(f"{source}: no such file." if not source.exists() else f"{source}: not a regular file.")
    found = _inspect(source)
    missing = next((group for group in groups if group not in found), None)
    if missing is not None:
        raise StoreError(f"{source}: group {missing!r} is missing; groups found: {', '.join(filter(None, found)) or 'none'}.")
    with _opened(source) as file:
        return xr.DataTree.from_dict({name or "/": _read(file, source, name, has_draws="posterior" in found) for name in found})


def _bytes(tree: xr.DataTree, target: Path) -> memoryview:
    buffer = io.BytesIO()
    try:
        with h5py.File(buffer, "w", track_order=True) as root, h5netcdf.File(root, "w") as file:
            for node in tree.subtree:
                dataset = node.to_dataset(inherit=False)
                store = xr.backends.H5NetCDFStore(file, group=node.path, mode="w")
                dataset.dump_to_store(store, encoding={str(n): _encoding(v) for n, v in dataset.variables.items()})
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        raise StoreError(f"{target}: cannot be stored as netCDF: {error}") from error
    return buffer.getbuffer()


def _encoding(variable: xr.Variable) -> dict[str, Any]:
    """Encoding of a variable; text as characters of fixed length, since only those are compressed and checksummed."""
    packed = {"zlib": True, "complevel": 1, "shuffle": True, "fletcher32": True} if variable.ndim and variable.size else {}
    kind = {"dtype": "S1"} if variable.dtype.kind in "UO" else {}
    return {**packed, **kind, **({"_FillValue": None} if variable.dtype.kind == "f" else {})}


def _verify(written: Path, tree: xr.DataTree, target: Path) -> None:
    groups = _inspect(written)
    with _opened(written) as file:
        for node in tree.subtree:
            name = node.path.strip("/")
            expected, has_draws = node.to_dataset(inherit=False), "posterior" in groups
            if name not in groups or not _read(file, written, name, has_draws=has_draws).equals(expected):
                raise StoreError(
                    f"{target}, group {name!r}: the data read back differ from the data written; nothing was replaced."
                )


def _inspect(path: Path) -> list[str]:
    """Check that all content is plain, local and of plausible size; return the names of the groups, '' for the root."""
    try:
        with h5py.File(path, "r") as file:
            names, declared = [""], 0
            for group, what, item in _items(file, path):
                if isinstance(item, h5py.Group):
                    names.append(item.name.strip("/"))
                else:
                    declared += _declared(item, f"{path}, group {group!r}, {what!r}")
            Budget.of(None).need(declared, str(path))
    except StoreError:
        raise
    except DataError as error:
        raise StoreError(f"{path}: declares {size(declared)} of data, more than half of the free memory.") from error
    except Exception as error:  # a damaged file can make h5py raise any error
        raise StoreError(f"{path}: not a readable netCDF (HDF5) file, or truncated: {_line(error)}") from error
    return names


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


def _read(file: h5netcdf.File, path: Path, group: str, *, has_draws: bool) -> xr.Dataset:
    """Read a group like `xr.open_dataset`, without looking up the chunks and filters of every array.

    If the file has a posterior (`has_draws`), arrays with draws must have chain and draw as first dims.
    """
    try:
        node = file[group] if group else file
        arrays = {n: xr.Variable(v.dimensions, v._h5ds[()], dict(v.attrs)) for n, v in node.variables.items()}
        with warnings.catch_warnings():  # xarray adds a warning filter
            dataset = xr.decode_cf(xr.Dataset(arrays, attrs=dict(node.attrs)))
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


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
