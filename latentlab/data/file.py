"""Reader of tables in files."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from latentlab.data import binary, delimited
from latentlab.data.columns import Requested, Table, choose
from latentlab.data.dataset import Dataset
from latentlab.data.memory import Budget
from latentlab.data.rows import npy_rows
from latentlab.data.series import assemble
from latentlab.data.stored import StoredDataset
from latentlab.data.zarr_rows import zarr_rows
from latentlab.errors import DataError

MISSING = ("", "NA", "N/A", "NaN", "nan", "NULL", "null", "None", "?")
TEXT = (".csv", ".tsv", ".tab", ".txt")
ZARR = ".zarr"
FORMATS = (*TEXT, *(f"{suffix}.gz" for suffix in TEXT), ".npy", ".npz", ".parquet")


def file(  # one keyword for each user option
    path: str,
    columns: list[str] | None = None,
    label: str | None = None,
    unit: str | None = None,
    missing_values: tuple[str, ...] = MISSING,
    delimiter: str | None = None,
    encoding: str = "utf-8",
    max_bytes: int | None = None,
    *,
    decimal: str = ".",
    sequence: str | None = None,
    time: str | None = None,
    fill_gaps: bool = True,
    in_memory: bool = True,
) -> Dataset | StoredDataset:
    r"""A table in a CSV, TSV, NPY, NPZ or Parquet file; text may be compressed (.csv.gz).

    A text table has a header. Its features are plain numbers. Label and unit are kept as text, so that a category may be
    called None. The index column of a file written by pandas gives the units' names, unless it counts from 0. An NPY matrix
    has columns 0, 1, 2, ...; an NPZ file has a matrix `x` with the columns' names in `feature`, or a vector for each column.
    Nothing is unpickled. A series has a row for each time step; `sequence` and `time` name the columns of its sequence and time.

    Args:
        path: Path of the file, relative to the working directory. `~` is the home directory; variables such as `$HOME` are not
            expanded.
        columns: Names of the features, in this order; by default all columns that are not named by another option.
        label: Name of the column with a label for each unit.
        unit: Name of the column with the units' names, all distinct.
        missing_values: Texts that mark a missing entry of a feature; an empty cell always does.
        delimiter: Separator of the columns (`tab` for a tab, `blank` for blanks); detected from the first lines if not
            given.
        encoding: Encoding of the text.
        max_bytes: Largest memory of the table in bytes; half of the free memory if not given.
        decimal: Decimal separator of numbers in text, `.` or `,`.
        sequence: Name of the column with the sequence of each row.
        time: Name of the column with the times of the rows, by which they are sorted. Without `unit` they also name the units.
        fill_gaps: Whether omitted time steps of a sequence become rows of missing entries.
        in_memory: Whether to read the table into memory. If false, an NPY matrix or a Zarr array (a folder `.zarr`) stays on
            disk, and SVI reads minibatches of it (`latentlab.data.stored`).

    Raises:
        DataError: The file is invalid; names line and column, or the declared shape, or the unit that is out of order.
        MissingDependencyError: pyarrow (for a Parquet file) or zarr (for a Zarr array) is not installed.

    Example:
        >>> import tempfile
        >>> where = Path(tempfile.mkdtemp()) / "mine.csv"
        >>> _ = where.write_text("id,a,b,kind\nu1,1.5,2,x\nu2,NA,3,y\n")
        >>> dataset = file(str(where), label="kind", unit="id")
        >>> dataset.x.tolist(), dataset.features.tolist(), dataset.labels.tolist(), dataset.units.tolist()
        ([[1.5, 2.0], [nan, 3.0]], ['a', 'b'], ['x', 'y'], ['u1', 'u2'])
    """
    if not in_memory:
        excluded = {"label": label, "unit": unit, "sequence": sequence, "time": time, "delimiter": delimiter}
        return _stored(path, columns, excluded, max_bytes)
    requested = Requested(columns, label, unit, sequence, time)
    read, name = table(path, requested, missing_values, delimiter, encoding, max_bytes, decimal)
    others = read.others
    return assemble(
        read.x,
        read.features,
        name=name,
        sequence=others.get("sequence"),
        time=others.get("time"),
        units=others.get("unit"),
        labels=others.get("label"),
        fill_gaps=fill_gaps,
    )


def table(  # one argument for each option of the file
    path: str,
    requested: Requested,
    missing_values: tuple[str, ...],
    delimiter: str | None,
    encoding: str,
    max_bytes: int | None,
    decimal: str,
) -> tuple[Table, str]:
    """Read the requested columns of a file; return them and the name of the data. Arguments and errors are those of `file`."""
    where = existing_path(path)
    name, title, budget = where.name.lower(), where.name.split(".")[0] or where.name, Budget.of(max_bytes)
    try:
        if name.endswith(TEXT) or name.removesuffix(".gz").endswith(TEXT):
            markers = _markers(missing_values)
            return delimited.read(
                where,
                requested,
                missing_values=markers,
                delimiter=delimiter,
                encoding=encoding,
                budget=budget,
                decimal=decimal,
            ), title
        if delimiter is not None:
            raise DataError(f"{where}: `delimiter` applies only to text tables; leave it out.")
        readers = {".npy": binary.read_npy, ".npz": binary.read_npz, ".parquet": binary.read_parquet}
        if where.suffix.lower() not in readers:
            raise DataError(f"{where}: the file format is unknown; the file name must end in one of {', '.join(FORMATS)}.")
        return readers[where.suffix.lower()](where, requested, budget), title
    except MemoryError as error:
        raise DataError(f"{where}: the table does not fit into memory; select fewer `columns`.") from error
    except OSError as error:
        raise DataError(f"{where}: cannot be read: {error.strerror or error}.") from error


def _stored(path: str, columns: list[str] | None, excluded: Mapping[str, str | None], max_bytes: int | None) -> StoredDataset:
    """Open a table that stays on disk and contains only features; options in `excluded` must be None."""
    where = existing_path(path, folder=ZARR)
    option = next((option for option, value in excluded.items() if value is not None), None)
    if option is not None:
        raise DataError(f"{where}: `{option}` cannot be combined with `in_memory: false`, which requires a matrix of features.")
    kind = where.suffix.lower()
    if kind not in (".npy", ZARR):
        raise DataError(f"{where}: only .npy and {ZARR} data can stay on disk; read the data into memory by `in_memory: true`.")
    try:
        rows = npy_rows(where) if kind == ".npy" else zarr_rows(where, Budget.of(max_bytes))
    except OSError as error:
        raise DataError(f"{where}: cannot be read: {error.strerror or error}.") from error
    names = [str(i) for i in range(rows.shape[1])]
    chosen = choose(names, Requested(columns), str(where)).features
    return StoredDataset(rows.select(np.array(chosen)), name=where.name.split(".")[0] or where.name)


def existing_path(path: str, folder: str | None = None) -> Path:
    """Path of a regular file, or of a directory with the suffix `folder`, with `~` expanded.

    Raises:
        DataError: It does not exist or is of another kind; names the kind.
    """
    if not isinstance(path, str | os.PathLike) or not str(path).strip() or "\0" in str(path):
        remedy = "" if isinstance(path, str) else " Convert an array or a DataFrame by `Dataset({'x': x})`."
        got = repr(path) if isinstance(path, str) else type(path).__name__
        raise DataError(f"`path` must be the path of a file; got {got}.{remedy}")
    try:
        where = Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(f"{path}: the home directory for `~` cannot be determined; write the full path.") from error
    try:
        if where.is_dir():
            if folder and where.suffix.lower() == folder:
                return where
            hint = " For a Zarr array, set `in_memory: false`." if where.suffix.lower() == ZARR else ""
            raise DataError(f"{where}: is a directory; expected a file.{hint}")
        if not where.exists():
            hint = "; variables such as $HOME are not expanded, only `~` is" if "$" in str(where) else ""
            raise DataError(f"{where}: no such file (working directory {Path.cwd()}){hint}.")
    except OSError as error:
        raise DataError(f"{where}: cannot be read: {error.strerror or error}.") from error
    if not where.is_file():
        raise DataError(f"{where}: is not a regular file.")
    return where


def _markers(missing_values: tuple[str, ...]) -> list[str]:
    texts = (
        []
        if isinstance(missing_values, str)
        else [value for value in missing_values if isinstance(value, str | int | float) and not isinstance(value, bool)]
    )
    if len(texts) != len(missing_values):
        raise DataError(f"`missing_values` must be a list of strings, each in quotes; got {missing_values!r}.")
    return [str(value) for value in texts]
