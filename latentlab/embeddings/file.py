"""User-supplied vectors from a file."""

from pathlib import Path

from latentlab.data.file import file as read_table
from latentlab.embeddings.embedding import Embedding
from latentlab.errors import DataError


def file(path: str, *, unit: str | None = None, columns: list[str] | None = None, kind: str | None = None) -> Embedding:
    """User-supplied vectors from a file, one row for each unit, joined with the data by the name of the unit.

    The vectors are not changed: neither centred nor scaled, and no sign is flipped.

    Args:
        path: CSV, TSV, NPY, NPZ or Parquet file, as for data.
        unit: Column with the names of the units; by default rows are numbered from 0, like the units of data without names.
        columns: Columns of the vectors, in this order; by default all except `unit`.
        kind: Kind of the units in the rows, such as `user`, if the data have several kinds.

    Raises:
        DataError: The file cannot be read, or a value is missing.
    """
    dataset = read_table(path, columns=columns, unit=unit)
    if dataset.mask is not None:
        n_missing = int((~dataset.mask).sum())
        raise DataError(
            f"embedding file {path}: {n_missing} values are missing or not numbers; an embedding requires all values."
        )
    label = Path(path).stem
    if kind is not None:
        return Embedding("file", {kind: dataset.x}, {kind: dataset.units}, label=label)
    return Embedding("file", dataset.x, dataset.units, label=label)
