"""One's own table in a file."""

import os
from pathlib import Path

from latentlab.data import binary, delimited
from latentlab.data.columns import Wanted
from latentlab.data.dataset import Dataset
from latentlab.data.memory import Budget
from latentlab.errors import DataError

MISSING = ("", "NA", "N/A", "NaN", "nan", "NULL", "null", "None", "?")
TEXT = (".csv", ".tsv", ".tab", ".txt")
FORMATS = (*TEXT, *(f"{suffix}.gz" for suffix in TEXT), ".npy", ".npz", ".parquet")


def file(
    path: str,
    columns: list[str] | None = None,
    label: str | None = None,
    unit: str | None = None,
    missing_values: tuple[str, ...] = MISSING,
    delimiter: str | None = None,
    encoding: str = "utf-8",
    max_bytes: int | None = None,
) -> Dataset:
    r"""A table in a CSV, TSV, NPY, NPZ or Parquet file; text may be compressed (.csv.gz).

    A text table has a header. Its features are plain numbers with a decimal point; label and unit are kept as text, so
    that a category may be called None. An NPY matrix has columns 0, 1, 2, ...; an NPZ file has a matrix `x` with the
    columns' names in `feature`, or a vector for each column. Nothing is unpickled.

    Args:
        path: The file, relative to the working directory. `~` is one's home; variables such as `$HOME` stay as they are.
        columns: The features, by name and in this order; all columns but label and unit if not given.
        label: The column with a label for each unit.
        unit: The column with the units' names, each of them different.
        missing_values: Text that means a missing entry in a feature; an empty cell always does.
        delimiter: What separates the columns (`tab` for a tabulator); seen from the header if not given.
        encoding: The text's encoding.
        max_bytes: Refuse a table that takes more memory; half of the free memory if not given.

    Raises:
        DataError: The file cannot be used; names line and column, or what it declares.
        MissingDependencyError: A Parquet file, and pyarrow is not installed.

    Example:
        >>> import tempfile
        >>> where = Path(tempfile.mkdtemp()) / "mine.csv"
        >>> _ = where.write_text("id,a,b,kind\nu1,1.5,2,x\nu2,NA,3,y\n")
        >>> dataset = file(str(where), label="kind", unit="id")
        >>> dataset.x.tolist(), dataset.features.tolist(), dataset.labels.tolist(), dataset.units.tolist()
        ([[1.5, 2.0], [nan, 3.0]], ['a', 'b'], ['x', 'y'], ['u1', 'u2'])
    """
    found = _found(path)
    name = found.name.lower()
    wanted, budget = Wanted(columns, label, unit), Budget.of(max_bytes)
    try:
        if name.endswith(TEXT) or name.removesuffix(".gz").endswith(TEXT):
            markers = _markers(missing_values)
            table = delimited.read(found, wanted, missing_values=markers, delimiter=delimiter, encoding=encoding, budget=budget)
        else:
            if delimiter is not None:
                raise DataError(f"{found}: `delimiter` is for text tables.")
            readers = {".npy": binary.read_npy, ".npz": binary.read_npz, ".parquet": binary.read_parquet}
            if found.suffix.lower() not in readers:
                raise DataError(f"{found}: cannot tell its format; the name must end in one of {', '.join(FORMATS)}.")
            table = readers[found.suffix.lower()](found, wanted, budget)
    except MemoryError as error:
        raise DataError(f"{found}: does not fit into memory; take fewer `columns`.") from error
    except OSError as error:
        raise DataError(f"{found}: cannot be read: {error.strerror or error}.") from error
    return Dataset(
        {"x": table.x},
        dims={"x": ("unit", "feature")},
        coords={"feature": table.features} | ({} if table.units is None else {"unit": table.units}),
        labels=table.labels,
        name=found.name.split(".")[0] or found.name,
    )


def _found(path: str) -> Path:
    if not isinstance(path, str | os.PathLike) or not str(path).strip() or "\0" in str(path):
        raise DataError(f"`path` must name a file; got {path!r}.")
    try:
        found = Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(f"{path}: no home directory is known for `~`.") from error
    try:
        if found.is_dir():
            raise DataError(f"{found}: is a directory; expected a file.")
        if not found.exists():
            hint = "; variables such as $HOME are not replaced, `~` is" if "$" in str(found) else ""
            raise DataError(f"{found}: no such file (working directory {Path.cwd()}){hint}.")
    except OSError as error:
        raise DataError(f"{found}: cannot be read: {error.strerror or error}.") from error
    if not found.is_file():
        raise DataError(f"{found}: is not a regular file.")
    return found


def _markers(missing_values: tuple[str, ...]) -> list[str]:
    texts = (
        []
        if isinstance(missing_values, str)
        else [value for value in missing_values if isinstance(value, str | int | float) and not isinstance(value, bool)]
    )
    if len(texts) != len(missing_values):
        raise DataError(f"`missing_values` must be a list of texts, in quotes; got {missing_values!r}.")
    return [str(value) for value in texts]
