"""Tables in NPY, NPZ and Parquet files: headers are checked before data are read, and nothing is unpickled."""

import contextlib
import math
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from latentlab.data.columns import Requested, Table, choose
from latentlab.data.convert import column_numbers, first_duplicate, numbers
from latentlab.data.memory import COPIES, Budget, size
from latentlab.errors import DataError, MissingDependencyError

MATRIX = "x"
FEATURES = "feature"


def read_npy(path: Path, requested: Requested, budget: Budget) -> Table:
    """Read a matrix (unit, feature) whose columns are named 0, 1, 2, ..."""

    def accept(shape: tuple[int, ...], _: np.dtype) -> None:
        if len(shape) != 2:
            raise DataError(f"{path}: expected shape (n_units, n_features); got {shape}.")

    matrix = array(path, accept, budget)
    return _from_matrix(matrix, [str(i) for i in range(matrix.shape[1])], requested, str(path))


def read_npz(path: Path, requested: Requested, budget: Budget) -> Table:
    """Read the matrix `x` (or the only one) with the names of columns in `feature`, or vectors as columns.

    Labels, names and other attributes of the units are vectors of the archive, or columns of the matrix.
    """
    with opened(path, budget) as members:
        matrices = [name for name, (shape, dtype) in members.headers.items() if len(shape) == 2 and dtype.kind in "biufc"]
        if MATRIX in members.headers or len(matrices) == 1:
            return members.matrix(MATRIX if MATRIX in members.headers else matrices[0], requested)
        if matrices:
            raise DataError(
                f"{path}: the file has several matrices ({', '.join(sorted(matrices))}); rename the data matrix to {MATRIX!r}."
            )
        return members.vectors(requested)


@contextlib.contextmanager
def opened(path: Path, budget: Budget) -> Iterator["Members"]:
    """Open an NPZ file in a `with` block."""
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise DataError(f"{path}: the file is not a valid NPZ file: {error}.") from error
    with archive:
        yield Members(archive, path, budget)


def array(path: Path, accept: Callable[[tuple[int, ...], np.dtype], None], budget: Budget) -> np.ndarray:
    """Read the array of an NPY file, after `accept` has checked its declared shape and dtype."""
    with path.open("rb") as stream:
        accept(*_header(stream, path.stat().st_size, str(path), budget))
        stream.seek(0)
        return _array(stream, str(path))


def read_parquet(path: Path, requested: Requested, budget: Budget) -> Table:
    """Read the requested columns of a Parquet file; features must be numbers, and nulls are missing entries.

    A single index column of a pandas DataFrame gives the units' names.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingDependencyError(f"reading {path}", "pyarrow", "parquet") from error
    try:
        source = pq.ParquetFile(path)
        names = source.schema_arrow.names
        duplicate = first_duplicate(names)
        if duplicate is not None:
            raise DataError(f"{path}: several columns have the name {duplicate!r}; give each column a different name.")
        requested_names = {str(name) for name in (*(requested.columns or ()), *requested.others.values())}
        index = [one for one in (source.schema_arrow.pandas_metadata or {}).get("index_columns", ()) if one in names]
        if len(index) == 1 and requested.unit is None and index[0] not in requested_names:
            requested = replace(requested, unit=index[0])
            requested_names.add(index[0])
        names = [name for name in names if name not in index or name in requested_names]
        chosen = choose(names, requested, str(path))
        taken = [names[i] for i in chosen.all]
        n_rows = source.metadata.num_rows
        if n_rows == 0:
            raise DataError(f"{path}: the table has columns, but no rows.")
        budget.need(COPIES * 8 * n_rows * len(taken), f"{path}: the table with {n_rows} rows")
        table = source.read(columns=taken)
    except pa.ArrowException as error:
        raise DataError(f"{path}: the file is not a valid Parquet file: {error}.") from error
    features = [names[i] for i in chosen.features]
    columns = [_parquet_numbers(table.column(name), f"{path}, column {name!r}") for name in features]
    x = np.column_stack(columns) if columns else np.empty((n_rows, 0))
    others = {}
    for option, i in chosen.others.items():
        others[option] = _parquet_names(table.column(names[i]), option, f"{path}, column {names[i]!r}")
    return Table(features, x, others)


def _parquet_numbers(column: Any, what: str) -> np.ndarray:
    import pandas as pd
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal, pa.types.is_null)
    if not any(test(kind) for test in tests):
        raise DataError(f"{what} has type {kind}; expected numbers. Select other `columns`, or use it as `label` or `unit`.")
    return column_numbers(column.to_pandas(types_mapper=pd.ArrowDtype), what)


def _parquet_names(column: Any, option: str, what: str) -> np.ndarray:
    import pyarrow as pa

    if column.null_count:
        raise DataError(f"{what}: the {option} is missing for {column.null_count} units.")
    if pa.types.is_timestamp(column.type) and column.type.tz is not None:
        return np.asarray(column.to_pandas(), dtype=object)
    if pa.types.is_date(column.type) or pa.types.is_timestamp(column.type):
        return column.cast(pa.timestamp("us")).to_numpy()
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    values = column.to_pylist()
    if any(isinstance(value, list | dict | bytes) for value in values):
        raise DataError(f"{what}: values must be text, numbers or dates; got {column.type}.")
    return np.array(values)


def _from_matrix(matrix: np.ndarray, names: list[str], requested: Requested, what: str) -> Table:
    chosen = choose(names, requested, what)
    others = {option: _whole(np.ascontiguousarray(matrix[:, i])) for option, i in chosen.others.items()}
    taken = matrix if chosen.features == list(range(len(names))) else matrix[:, chosen.features]
    return Table([names[i] for i in chosen.features], taken, others)


def _whole(values: np.ndarray) -> np.ndarray:
    """Convert floats that are all whole numbers to integers, since labels in a float matrix usually are."""
    if values.dtype.kind == "f" and np.isfinite(values).all() and (values == np.round(values)).all():
        return values.astype(np.int64)
    return values


class Members:
    """Arrays of an NPZ archive: headers are read first, contents on demand."""

    def __init__(self, archive: zipfile.ZipFile, path: Path, budget: Budget) -> None:
        self._archive, self._path = archive, path
        infos = archive.infolist()
        if not infos:
            raise DataError(f"{path}: the archive is empty.")
        for info in infos:
            self._check_name(info.filename)
        duplicate = first_duplicate(info.filename for info in infos)
        if duplicate is not None:
            raise DataError(f"{path}: the archive has several members with the name {duplicate!r}.")
        budget.decompress(sum(i.compress_size for i in infos), sum(i.file_size for i in infos), str(path))
        self._infos = {info.filename.removesuffix(".npy"): info for info in infos}
        self.headers = {name: self._member_header(name, budget) for name in self._infos}

    def _check_name(self, name: str) -> None:
        parts = PurePosixPath(name.replace("\\", "/")).parts
        if not parts or parts[0] == "/" or ".." in parts or ":" in parts[0] or "\\" in name:
            raise DataError(f"{self._path}: the path of the member {name!r} is outside the archive; the file was not read.")
        if not name.endswith(".npy"):
            raise DataError(f"{self._path}: the member {name!r} of the archive is not an array (.npy).")

    def _member_header(self, name: str, budget: Budget) -> tuple[tuple[int, ...], np.dtype]:
        info = self._infos[name]
        with self._open(name) as stream:
            return _header(stream, info.file_size, f"{self._path}, member {name!r}", budget)

    def _open(self, name: str) -> IO[bytes]:
        try:
            return self._archive.open(self._infos[name])
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError, OSError) as error:
            raise DataError(f"{self._path}, member {name!r}: cannot be read: {error}") from error

    def read(self, name: str) -> np.ndarray:
        with self._open(name) as stream:
            return _array(stream, f"{self._path}, member {name!r}")

    def matrix(self, name: str, requested: Requested) -> Table:
        shape, dtype = self.headers[name]
        if len(shape) != 2 or dtype.kind not in "biufc":
            what = f"{self._path}, member {name!r}"
            raise DataError(f"{what}: expected numbers of shape (n_units, n_features); got {dtype} of shape {shape}.")
        names = [str(i) for i in range(shape[1])]
        if FEATURES in self.headers:
            names = [str(feature) for feature in self.read(FEATURES)]
            if len(names) != shape[1] or len(set(names)) != len(names):
                raise DataError(
                    f"{self._path}: {FEATURES!r} must be {shape[1]} distinct names; got {len(names)} names, "
                    f"{len(set(names))} of them distinct."
                )
        vectors = {option: str(value) for option, value in requested.others.items() if str(value) in self.headers}
        table = _from_matrix(self.read(name), names, requested.without(vectors), str(self._path))
        return Table(table.features, table.x, table.others | {option: self.read(vector) for option, vector in vectors.items()})

    def vectors(self, requested: Requested) -> Table:
        names = [name for name, (shape, _) in self.headers.items() if len(shape) == 1]
        if not names:
            raise DataError(f"{self._path}: expected a matrix {MATRIX!r} or vectors; got the arrays {sorted(self.headers)}.")
        chosen = choose(names, requested, str(self._path))
        features = [names[i] for i in chosen.features]
        taken = [names[i] for i in chosen.all]
        lengths = {name: self.headers[name][0][0] for name in taken}
        unequal = next((name for name in taken if lengths[name] != lengths[taken[0]]), None)
        if unequal is not None:
            raise DataError(
                f"{self._path}: columns must have equal lengths; got {lengths[taken[0]]} for {taken[0]!r} and {lengths[unequal]} "
                f"for {unequal!r}."
            )
        for name in features:
            if self.headers[name][1].kind not in "biuf":
                raise DataError(f"{self._path}, member {name!r} has dtype {self.headers[name][1]}; expected numbers.")
        columns = [numbers(self.read(name), ("unit",), {}, f"{self._path}, member {name!r}") for name in features]
        x = np.column_stack(columns) if columns else np.empty((lengths[taken[0]], 0))
        return Table(features, x, {option: self.read(names[i]) for option, i in chosen.others.items()})


def declared(stream: IO[bytes], n_bytes: int, what: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order and dtype of an NPY array in a stream of `n_bytes` bytes.

    Raises:
        DataError: The array is not plain, or the stream is shorter than declared.
    """
    try:
        version = np.lib.format.read_magic(stream)
        reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
        if reader is None:
            raise DataError(f"{what}: NPY format {version} (structured arrays) is not supported; save a plain matrix.")
        shape, fortran, dtype = reader(stream)
    except DataError:
        raise
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{what}: the file is not a valid NPY array: {' '.join(str(error).split())[:200]}") from error
    if not all(isinstance(n, int) and n >= 0 for n in shape):
        raise DataError(f"{what}: the file declares the invalid shape {shape}.")
    if dtype.names is not None:
        raise DataError(
            f"{what}: structured arrays are not supported; save a matrix, or one array for each column in an NPZ file."
        )
    if not dtype.hasobject:
        n_declared, n_present = math.prod(shape) * dtype.itemsize, n_bytes - stream.tell()
        if n_declared > n_present:
            raise DataError(
                f"{what}: the file declares shape {shape} ({size(n_declared)}), but contains only {size(max(n_present, 0))}."
            )
    return shape, fortran, dtype


def _header(stream: IO[bytes], n_bytes: int, what: str, budget: Budget) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of the array in `stream`, after checks of its length and of the free memory."""
    shape, _, dtype = declared(stream, n_bytes, what)
    if not dtype.hasobject:
        budget.need(COPIES * math.prod(shape) * dtype.itemsize, what)
    return shape, dtype


def _array(stream: IO[bytes], what: str) -> np.ndarray:
    try:
        return np.lib.format.read_array(stream, allow_pickle=False)
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        pickled = "Object arrays" in str(error)
        why = "the file contains Python objects (pickle), which are never loaded" if pickled else f"cannot be read: {error}"
        raise DataError(f"{what}: {why}.") from error
