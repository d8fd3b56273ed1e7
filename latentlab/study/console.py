"""Tables as text on a terminal."""

from collections.abc import Sequence
from typing import Any


def print_table(table: Any) -> None:
    """Print a data frame."""
    print("\n".join(table_lines(table)))


def table_lines(table: Any) -> list[str]:
    """Format a data frame as lines: numbers with two decimals, NaN as an empty cell."""

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return "" if value != value else f"{value:.2f}"
        return "yes" if value is True else "no" if value is False else str(value)

    rows = [[cell(value) for value in row.values()] for row in table.to_dict("records")]
    return _aligned([list(map(str, table.columns)), *rows], "  ")


def print_rows(rows: Sequence[Sequence[str]], indent: str = "") -> None:
    """Print rows of text in aligned columns."""
    for line in _aligned(rows, indent):
        print(line)


def _aligned(rows: Sequence[Sequence[str]], indent: str) -> list[str]:
    """Align columns to their widest cell; the last column is not padded."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)] if rows else []
    cells = [[cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=True)] for row in rows]
    return [indent + "  ".join([*padded, row[-1]]).rstrip() for padded, row in zip(cells, rows, strict=True)]
