"""Strict parser of text tables (CSV, TSV): files are read in blocks, and errors name the line.

Other readers accept malformed files silently. pandas renames duplicated columns, shifts the columns when rows are longer
than the header, fills short rows and reads the category `None` as missing. Arrow reads `"3"4` as 34, accepts an open quote
and NUL, skips blank lines, and counts rows instead of lines.
"""

import csv
import itertools
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from latentlab.data import text
from latentlab.data.columns import Chosen, Requested, Table, choose
from latentlab.data.convert import EXACT, first_duplicate
from latentlab.data.memory import COPIES, Budget
from latentlab.errors import DataError

DELIMITERS = (",", ";", "\t", "|")
BLANK = " "
"""Delimiter for columns separated by one or more blanks or tabs."""
INDEX = re.compile(r"|Unnamed: \d+")
"""Column names of an unnamed index in a file written by pandas once or repeatedly."""
BLOCK = 2**17
"""Number of cells that are read before they are converted to numbers."""

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
WHOLE = re.compile(r"[+-]?\d+")
HINTS = (
    (
        re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?"),
        "thousands separators (write 1234.5) or a decimal comma (set `decimal: ','`)",
    ),
    (re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?"), "a decimal comma (write a decimal point, or set `decimal: ','`)"),
    (re.compile(r"[+-]?\d{1,3}(\.\d{3})+,\d*"), "thousands separators and a decimal comma (write 1234.5)"),
    (re.compile(r"[+-]?\d{1,3}([ '\u00a0\u202f\u2019]\d{3})+([.,]\d+)?"), "thousands separators (write 1234.5)"),
    (re.compile(r"[+-]?(inf|infinity)", re.IGNORECASE), "infinite; expected a finite number"),
    (re.compile(r"true|false|yes|no", re.IGNORECASE), "a boolean (write 0 or 1)"),
    (re.compile(r"[-+\u2212]?[\d.,]+ ?%"), "a percentage (write 12.5, and add the sign to the column name)"),
    (re.compile(r"[\u2010-\u2015\u2212]\d[\d.,]*"), "a number with a typographic minus sign (write '-')"),
    (
        re.compile(r"[-+(]?([$\u20ac\u00a3\u00a5] ?\d[\d.,]*|\d[\d.,]* ?[$\u20ac\u00a3\u00a5])\)?"),
        "an amount of money (write 1234.5)",
    ),
)


def read(  # one argument for each option of the file
    path: Path,
    requested: Requested,
    *,
    missing_values: Iterable[str],
    delimiter: str | None,
    encoding: str,
    budget: Budget,
    decimal: str = ".",
) -> Table:
    """Read the requested columns of a text table: features as numbers, all others as text.

    An unnamed index column of a file written by pandas gives the units' names, unless it counts from 0.

    Raises:
        DataError: The file is not a valid table; names line and column.
    """
    opening, names, rows = _opened(path, delimiter, encoding, budget, decimal)
    index = next((i for i, name in enumerate(names) if INDEX.fullmatch(name)), None)
    requested_names = {str(name) for name in (*(requested.columns or ()), *requested.others.values())}
    if index is None or requested.unit is not None or requested.columns is not None or names[index] in requested_names:
        index = None
    original, requested = requested, requested if index is None else replace(requested, unit=names[index])
    chosen = choose(names, requested, str(path))
    _need(path, len(opening[0]), len(names), chosen, budget)
    parser = _Parser(path, names, chosen, frozenset({"", *missing_values}), budget, decimal)
    n_rows = max(1, BLOCK // len(names))
    while block := list(itertools.islice(rows, n_rows)):
        parser.add(block)
    table = parser.table()
    if index is None:
        return table
    table = _without_numbers(table)
    units = table.others["unit"].tolist()
    duplicate = first_duplicate(units)
    if duplicate is None:
        counted = units == [str(i) for i in range(len(units))]
        return replace(table, others={k: v for k, v in table.others.items() if k != "unit" or not counted})
    if not names[index]:
        raise DataError(
            f"{path}, line 1: column {index + 1} of {len(names)} has no name. It cannot be the units' names either, because "
            f"{duplicate!r} occurs more than once; name the column, or leave it out."
        )
    columns = [name for name in names if name not in original.others.values()]
    return read(
        path,
        replace(original, columns=columns),
        missing_values=missing_values,
        delimiter=delimiter,
        encoding=encoding,
        budget=budget,
        decimal=decimal,
    )


def preview(path: Path, n_rows: int, encoding: str = "utf-8") -> tuple[str, list[str], list[list[str]]]:
    """Read delimiter, header and first rows of a text table, without the unnamed index column of a file written by pandas.

    Raises:
        DataError: The file is not a valid table; names line and column.
    """
    opening, names, rows = _opened(path, None, encoding, Budget.of(None), ".")
    named = [i for i, name in enumerate(names) if not INDEX.fullmatch(name)]
    return (
        _delimiter(path, opening, "."),
        [names[i] for i in named],
        [[row[i].strip() for i in named] for _, row in itertools.islice(rows, n_rows)],
    )


def _opened(
    path: Path, delimiter: str | None, encoding: str, budget: Budget, decimal: str
) -> tuple[list[str], list[str], Iterator[tuple[int, list[str]]]]:
    """First two lines, names of the columns, and rows of a text table."""
    lines = text.lines(path, encoding, budget)
    opening = list(itertools.islice(lines, 2))
    if not "".join(opening).strip():
        raise DataError(f"{path}: the file is empty; expected a header and rows.")
    if decimal not in (".", ","):
        raise DataError(f"`decimal` must be '.' or ','; got {decimal!r}.")
    sign = _delimiter(path, opening, decimal) if delimiter is None else _valid_delimiter(delimiter)
    if sign == decimal:
        raise DataError(f"{path}: `delimiter` and `decimal` must differ; got {sign!r} for both.")
    source: Iterator[str] = itertools.chain(opening, lines)
    if sign == BLANK:
        source = (f"{line.expandtabs(1).rstrip()}\n" for line in source)
    reader = csv.reader(source, delimiter=sign, strict=True, skipinitialspace=sign == BLANK)
    rows = _rows(path, reader)
    titles = next(rows)[1]
    if sign == BLANK and len(_words(opening[-1])) == len(titles) + 1:  # R writes no header for row names
        titles = ["", *titles]
        rows = _rows(path, reader, len(titles), 2)
    return opening, _header(path, titles, sign), rows


class _Parser:
    """Converter of blocks of rows to numbers and text, with a check of the memory budget after each block."""

    def __init__(
        self, path: Path, names: list[str], chosen: Chosen, missing: frozenset[str], budget: Budget, decimal: str
    ) -> None:
        self.path, self.names, self.chosen, self.missing, self.budget = path, names, chosen, missing, budget
        self.decimal = decimal
        self.pick = _picker(chosen.features, len(names))
        self.blocks: list[np.ndarray] = []
        self.others: dict[str, list[str]] = {option: [] for option in chosen.others}
        self.n_cells = 0

    def add(self, block: list[tuple[int, list[str]]]) -> None:
        cells = list(itertools.chain.from_iterable(self.pick(row) for _, row in block))
        values = self._quick(cells)
        if values is None:
            values = self._careful(cells, [line for line, _ in block])
        self.blocks.append(values.reshape(len(block), -1))
        for option, position in self.chosen.others.items():
            self.others[option].extend(self._text(option, line, row, position) for line, row in block)
        self.n_cells += len(cells) + len(block)
        self.budget.need(COPIES * 8 * self.n_cells, f"{self.path}: the table")

    def table(self) -> Table:
        if not self.blocks:
            raise DataError(f"{self.path}: the file has a header, but no rows.")
        x = np.concatenate(self.blocks)
        self.blocks.clear()
        others = {option: np.array(texts) for option, texts in self.others.items()}
        return Table([self.names[i] for i in self.chosen.features], x, others)

    def _quick(self, cells: list[str]) -> np.ndarray | None:
        """Convert all cells at once; None if a cell needs the careful conversion."""
        missing, nan = self.missing, np.nan
        text = "".join(cells)
        if "_" in text or (self.decimal == "," and "." in text):  # float() accepts 1_000
            return None
        if self.decimal == ",":
            cells = [cell if cell in missing else cell.replace(",", ".") for cell in cells]
        try:
            values = np.array([nan if cell in missing else float(cell) for cell in cells])
        except ValueError:
            return None
        n_missing = sum(cell in missing for cell in cells) if np.isnan(values).any() else 0
        if np.isnan(values).sum() != n_missing or (np.abs(values) >= EXACT).any():
            return None
        return values

    def _careful(self, cells: list[str], lines: list[int]) -> np.ndarray:
        values, width = np.empty(len(cells)), len(self.chosen.features)
        for i, cell in enumerate(cells):
            word = cell.strip()
            if word in self.missing:
                values[i] = np.nan
                continue
            plain = word if self.decimal == "." else word.replace(".", " ").replace(",", ".")
            values[i] = float(plain) if NUMBER.fullmatch(plain) else np.nan
            lost = WHOLE.fullmatch(word) is not None and abs(values[i]) >= EXACT and word.lstrip("+-0") != str(EXACT)
            if lost or not np.isfinite(values[i]):
                column = self.names[self.chosen.features[i % width]]
                problem = (
                    "a whole number that exceeds 2**53, so float64 cannot represent it exactly"
                    if lost
                    else _hint(word, self.decimal)
                )
                raise DataError(
                    f"{self.path}, line {lines[i // width]}, column {column!r}: {word[:40]!r} is {problem}. "
                    "Select other `columns`, use it as `label` or `unit`, or delete the line if it is not a row of data."
                )
        return values

    def _text(self, option: str, line: int, row: list[str], position: int) -> str:
        word = row[position].strip()
        if not word:
            raise DataError(f"{self.path}, line {line}, column {self.names[position]!r}: the {option} is missing.")
        return word


def _hint(word: str, decimal: str) -> str:
    if decimal == "," and re.fullmatch(r"[+-]?\d{1,3}(\.\d{3})+,\d*", word):
        return "not a number; it looks like thousands separators (write 1234,5)"
    if decimal == "," and "." in word:
        return "not a number; it has a decimal point, but `decimal` is ','"
    if NUMBER.fullmatch(word):
        return "outside the range of float64"
    for pattern, what in HINTS:
        if pattern.fullmatch(word):
            return f"not a number; it looks like {what}" if "infinite" not in what else what
    return "neither a number nor one of `missing_values`" if word else "blank"


def _picker(features: list[int], n_columns: int) -> Callable[[list[str]], Sequence[str]]:
    if features == list(range(n_columns)):
        return lambda row: row
    if len(features) < 2:
        return lambda row: [row[i] for i in features]
    return operator.itemgetter(*features)


def _need(path: Path, n_header: int, n_columns: int, chosen: Chosen, budget: Budget) -> None:
    """Refuse a file whose estimated size exceeds the budget; row lengths are extrapolated from the first 64 kB."""
    n_bytes = path.stat().st_size
    with path.open("rb") as stream:
        sample = stream.read(2**16)
    if path.suffix.lower() == ".gz" or len(sample) == n_bytes:
        return
    rows = sample[n_header:]
    # Without a line end in the sample, each cell is assumed to take its minimum of two bytes.
    per_row = len(rows) / rows.count(b"\n") if rows.count(b"\n") else 2 * n_columns
    n_rows = n_bytes / max(per_row, 1)
    n_cells = n_rows * len(chosen.all)
    budget.need(int(COPIES * 8 * n_cells), f"{path}: the table with about {n_rows:.2g} rows")


def _without_numbers(table: Table) -> Table:
    """Remove unnamed columns that count the rows from 0, which are indices of earlier exports."""
    numbers = np.arange(len(table.x))
    kept = [i for i, one in enumerate(table.features) if not (INDEX.fullmatch(one) and np.array_equal(table.x[:, i], numbers))]
    return replace(table, features=[table.features[i] for i in kept], x=table.x[:, kept])


def _words(line: str) -> list[str]:
    """Cells of a line delimited by blanks; empty if it cannot be parsed."""
    try:
        return next(csv.reader([line.expandtabs(1).strip()], delimiter=BLANK, skipinitialspace=True), [])
    except csv.Error:
        return []


def _rows(path: Path, reader: Any, width: int = 0, start: int = 1) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and cells of each row; trailing blank lines are ignored."""
    blank = 0
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{path}, line {start}: {error}; check for an unclosed quote or a very long field.") from error
        line, start = start, reader.line_num + 1
        if not row:
            blank = blank or line
            continue
        if blank:
            raise DataError(
                f"{path}: line {blank} is blank, but rows follow it; delete the line, or write NA for missing entries."
            )
        if width and len(row) != width:
            raise DataError(
                f"{path}, line {line}: {_fields(len(row))}, but the header has {width}; "
                "delete the line if it is not a row of data."
            )
        width = len(row)
        yield line, row


def _fields(n_fields: int) -> str:
    return f"{n_fields} field{'s' * (n_fields != 1)}"


def _header(path: Path, row: list[str], delimiter: str) -> list[str]:
    names = [name.strip() for name in row]
    for i, name in enumerate(names):
        if not name and (i or len(names) == 1):
            raise DataError(
                f"{path}, line 1: column {i + 1} of {len(names)} has no name (delimiter {delimiter!r}); the first line must name "
                "every column, with no delimiter at its end."
            )
    nonempty = [name for name in names if name]
    numbers = [NUMBER.fullmatch(name) is not None for name in nonempty]
    counted = [str(i) for i in range(len(nonempty))], [str(i + 1) for i in range(len(nonempty))]
    if all(numbers) and nonempty not in counted:
        raise DataError(f"{path}, line 1: {', '.join(names[:4])} look like data, not column names; add a header.")
    duplicate = first_duplicate(names)
    if duplicate is not None:
        where = [i + 1 for i, name in enumerate(names) if name == duplicate]
        raise DataError(
            f"{path}, line 1: {len(where)} columns have the name {duplicate!r}, such as columns {where[0]} and {where[1]}; "
            "give each column a unique name."
        )
    return names


def _valid_delimiter(delimiter: str) -> str:
    sign = {"tab": "\t", "\\t": "\t", "blank": BLANK}.get(delimiter, delimiter)
    if not isinstance(sign, str) or len(sign) != 1 or sign in '"\r\n':
        raise DataError(f"`delimiter` must be one character other than a quote, or 'tab', or 'blank'; got {delimiter!r}.")
    return sign


def _delimiter(path: Path, opening: list[str], decimal: str) -> str:
    """Detect the delimiter in the header; among several, the one with equal counts in header and first row."""
    if path.name.lower().removesuffix(".gz").endswith((".tsv", ".tab")):
        return "\t"
    header, *rows = (re.sub(r'"[^"]*"?', "", line) for line in opening)
    candidates = [sign for sign in DELIMITERS if sign in header and sign != decimal]
    if not candidates and decimal == "," and "," in header:
        raise DataError(f"{path}: the header has commas, but `decimal` is ','; set `delimiter`.")
    if not candidates and len(opening) > 1:
        n_header, n_row = len(_words(opening[0])), len(_words(opening[1]))
        if n_row > 1 and n_row - n_header in (0, 1):
            return BLANK
    if len(candidates) > 1:
        candidates = [sign for sign in candidates if rows and rows[0].count(sign) == header.count(sign)]
        if len(candidates) != 1:
            raise DataError(f"{path}: the delimiter cannot be detected from the first lines; set `delimiter`.")
    return candidates[0] if candidates else "," if decimal != "," else ";"
