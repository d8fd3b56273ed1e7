"""One's own vectors from a file."""

from pathlib import Path

from latentlab.data.file import file as read_table
from latentlab.embeddings.embedding import Embedding
from latentlab.errors import DataError


def file(path: str, *, unit: str | None = None, columns: list[str] | None = None, kind: str | None = None) -> Embedding:
    """Vectors of one's own, a row for each unit, joined with the data by the unit's name.

    They are taken as they are: neither centred nor scaled, and no column's sign is changed.

    Args:
        path: CSV, TSV, NPY, NPZ or Parquet, as for data.
        unit: The column with the units' names; without it rows are numbered from 0, as the units of data without names are.
        columns: The vectors' columns, in this order; all but `unit` if not given.
        kind: Kind of units in the rows, such as `user`, if the data have several.

    Raises:
        DataError: The file cannot be used, or a value is missing.
    """
    dataset = read_table(path, columns=columns, unit=unit)
    if dataset.mask is not None:
        n_missing = int((~dataset.mask).sum())
        raise DataError(f"embedding file {path}: {n_missing} values are missing or no number; an embedding has all of them.")
    label = Path(path).stem
    if kind is not None:
        return Embedding("file", {kind: dataset.x}, {kind: dataset.units}, label=label)
    return Embedding("file", dataset.x, dataset.units, label=label)
