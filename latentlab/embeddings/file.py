"""One's own vectors from a file."""

from pathlib import Path

from latentlab.data.file import file as read_table
from latentlab.embeddings.embedding import Embedding
from latentlab.errors import DataError


def file(path: str, *, unit: str | None = None, columns: list[str] | None = None) -> Embedding:
    """Vectors of one's own, a row for each unit, joined with the data by the unit's name.

    Args:
        path: CSV, TSV, NPY, NPZ or Parquet, as for data.
        unit: The column with the units' names; rows are numbered from 0 without it.
        columns: The vectors' columns; all but `unit` if not given.
    """
    dataset = read_table(path, columns=columns, unit=unit)
    if dataset.mask is not None:
        raise DataError(f"embedding file {path}: {int((~dataset.mask).sum())} values are missing; an embedding has none.")
    return Embedding("file", dataset.x, dataset.units, label=Path(path).stem)
