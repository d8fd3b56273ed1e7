"""Proposed roles of the columns of a text table (units, labels, features, times, ...), by their names and cells."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from latentlab.data.delimited import NUMBER, preview
from latentlab.data.file import MISSING, TEXT, existing_path
from latentlab.errors import DataError

N_ROWS = 10_000
"""Number of rows from which the roles are proposed."""
UNITS = ("id", "unit", "name", "key", "index", "row", "sample", "uid", "code")
LABELS = ("label", "class", "kind", "species", "target", "group", "type", "category", "cluster", "y")
TIMES = ("time", "date", "datetime", "timestamp", "year", "month", "quarter", "week", "day", "hour", "step", "period", "t")
SEQUENCES = ("sequence", "series", "subject", "session", "trial", "animal", "patient", "participant", "group", "id")
USERS = ("user", "reader", "customer", "person", "student", "firm")
ITEMS = ("item", "movie", "book", "product", "article", "question", "song")
RATINGS = ("rating", "score", "stars", "value", "response")
ENDS = (("source", "target"), ("from", "to"), ("node1", "node2"), ("i", "j"))
MOST_LABELS = 30
COMMA = re.compile(r"[+-]?\d+(,\d+)?([eE][+-]?\d+)?")
"""Number with a decimal comma."""


@dataclass(frozen=True)
class Roles:
    """Options of a reader of files, the reason for each, and remarks on columns that are left out."""

    options: Mapping[str, Any]
    reasons: Mapping[str, str]
    remarks: Sequence[str] = ()


@dataclass(frozen=True)
class Column:
    """A column of a text table: its name, and its cells without surrounding blanks."""

    name: str
    cells: Sequence[str]

    @property
    def known(self) -> list[str]:
        return [cell for cell in self.cells if cell not in MISSING]

    def is_numeric(self, number: re.Pattern[str] = NUMBER) -> bool:
        return bool(self.known) and all(number.fullmatch(cell) for cell in self.known)

    def is_mixed(self, number: re.Pattern[str] = NUMBER) -> bool:
        return len({number.fullmatch(cell) is None for cell in self.known}) == 2

    def is_distinct(self) -> bool:
        return len(self.known) == len(self.cells) == len(set(self.cells)) > 1

    def counts(self) -> bool:
        return any(list(self.cells) == [str(i + start) for i in range(len(self.cells))] for start in (0, 1))

    def is_called(self, names: Iterable[str]) -> bool:
        words = re.sub(r"([a-z])([A-Z])", r"\1_\2", self.name).lower()
        return any(name in (words, *re.split(r"[^a-z0-9]+", words)) for name in names)


def columns_of(path: str) -> tuple[list[Column], str] | None:
    """Columns of the first rows of a text table, and its delimiter; None for a file in another format.

    Raises:
        DataError: The file does not exist, or is not a valid table; names line and column.
    """
    where = existing_path(path)
    if not where.name.lower().removesuffix(".gz").endswith(TEXT):
        return None
    try:
        delimiter, names, rows = preview(where, N_ROWS)
    except OSError as error:
        raise DataError(f"{where}: cannot be read: {error.strerror or error}.") from error
    if not rows:
        raise DataError(f"{where}: the file has a header, but no rows.")
    return [Column(name, [row[i] for row in rows]) for i, name in enumerate(names)], delimiter


def table_roles(path: str, *, is_series: bool) -> Roles:
    """Roles of the columns for the data set `file`: units and labels, or sequences and times, and features.

    Raises:
        DataError: The file is not a valid table, or has no numeric column.

    Example:
        >>> import pathlib, tempfile
        >>> where = pathlib.Path(tempfile.mkdtemp()) / "mine.csv"
        >>> _ = where.write_text("id,a,b,kind,note\\nu1,1.5,2,x,?\\nu2,NA,3,y,good\\nu3,2,3,y,good\\n")
        >>> roles = table_roles(str(where), is_series=False)
        >>> roles.options, roles.remarks
        ({'unit': 'id', 'label': 'kind', 'columns': ['a', 'b']}, ["column 'note' is left out: it has text, such as 'good'"])
    """
    table = columns_of(path)
    if table is None:
        return Roles({}, {})
    columns, delimiter = table
    options: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    number = NUMBER
    if (
        delimiter != ","
        and not any(one.is_numeric() and any("." in cell for cell in one.cells) for one in columns)
        and any(one.is_numeric(COMMA) and not one.is_numeric() for one in columns)
    ):
        number, options["decimal"], reasons["decimal"] = COMMA, ",", "numbers with a decimal comma"

    def take(option: str, fits: Callable[[Column], bool], reason: str) -> None:
        found = next((one for one in columns if fits(one) and one.name not in options.values()), None)
        if found is not None:
            options[option], reasons[option] = found.name, reason

    if is_series:
        take("time", lambda one: one.is_called(TIMES), "by its name; rows are sorted by it")
        take("sequence", lambda one: one.is_called(SEQUENCES) and not one.is_distinct(), "by its name; values repeat")
    if "time" not in options:
        take("unit", lambda one: one.is_distinct() and not one.is_numeric(number), "text, and all values differ")
    if not {"time", "unit"} & set(options):
        take(
            "unit",
            lambda one: one.is_distinct() and (one.is_called((*UNITS, *TIMES)) or one.counts()),
            "all values differ, and they are names",
        )
    few = "few values that repeat; labels are not used by the fit"
    take("label", lambda one: _are_labels(one) and one.is_called(LABELS), few)
    if "label" not in options:
        take("label", lambda one: _are_labels(one) and not one.is_numeric(number) and not one.is_mixed(number), few)
    rest = [one for one in columns if one.name not in options.values()]
    numeric = [one.name for one in rest if one.is_numeric(number)]
    if not numeric:
        raise DataError(f"{path}: no column has only numbers, so there are no features; got {_listed(columns)}.")
    if len(numeric) < len(rest):
        options["columns"], reasons["columns"] = numeric, "the other columns with numbers only"
    return Roles(options, reasons, [_left_out(one, number) for one in rest if one.name not in numeric])


def rating_roles(path: str) -> Roles:
    """Roles of the columns for the data set `ratings`: user, item and rating.

    Raises:
        DataError: The file is not a valid table, has fewer than three columns, or has no numeric one.
    """
    table = columns_of(path)
    if table is None:
        return Roles({}, {})
    columns, _ = table
    if len(columns) < 3:
        raise DataError(f"{path}: ratings need three columns (user, item, rating); got {_listed(columns)}.")
    numeric = [one for one in columns if one.is_numeric()]
    users = _named(columns, USERS)
    items = _named([one for one in columns if one is not users], ITEMS)
    free = [one for one in numeric if one is not users and one is not items]
    rating = _named(free, RATINGS) or (free[-1] if free else None)
    if rating is None:
        raise DataError(f"{path}: no column has only numbers, so there are no ratings; got {_listed(columns)}.")
    left = iter([one for one in columns if one not in (users, items, rating)])
    users, items = users or next(left), items or next(left)
    return _relation({"user": users, "item": items, "rating": rating}, columns)


def edge_roles(path: str) -> Roles:
    """Roles of the columns for the data set `edges`: source and target; directed if a pair is listed in both orders.

    Raises:
        DataError: The file is not a valid table, or has one column only.
    """
    table = columns_of(path)
    if table is None:
        return Roles({}, {})
    columns, _ = table
    if len(columns) < 2:
        raise DataError(f"{path}: edges need two columns (source, target); got {_listed(columns)}.")
    pairs = [[_named(columns, (name,)) for name in ends] for ends in ENDS]
    source, target = next((pair for pair in pairs if all(pair)), columns[:2])
    roles = _relation({"source": source, "target": target}, columns)
    listed = set(zip(source.cells, target.cells, strict=True))  # type: ignore[union-attr]
    if any((j, i) in listed for i, j in listed if i != j):
        reason = "some pairs are listed in both orders"
        return Roles({**roles.options, "directed": True}, {**roles.reasons, "directed": reason}, roles.remarks)
    return roles


def _relation(chosen: Mapping[str, Any], columns: Sequence[Column]) -> Roles:
    options = {option: one.name for option, one in chosen.items()}
    reasons = {
        option: "the column of this name" if option == name else "by its name or place" for option, name in options.items()
    }
    unused = [one.name for one in columns if one.name not in options.values()]
    return Roles(options, reasons, [f"column {name!r} is left out" for name in unused])


def _named(columns: Iterable[Column], names: Iterable[str]) -> Column | None:
    return next((one for name in names for one in columns if one.is_called((name,))), None)


def _are_labels(column: Column) -> bool:
    n_values = len(set(column.cells))
    return len(column.known) == len(column.cells) and 2 <= n_values <= min(MOST_LABELS, len(column.cells) - 1)


def _left_out(column: Column, number: re.Pattern[str]) -> str:
    if not column.known:
        return f"column {column.name!r} is left out: all its cells are missing"
    example = next(cell for cell in column.known if not number.fullmatch(cell))
    what = "text between numbers" if column.is_mixed(number) else "text"
    return f"column {column.name!r} is left out: it has {what}, such as {example[:40]!r}"


def _listed(columns: Sequence[Column]) -> str:
    return f"the columns {', '.join(repr(one.name) for one in columns[:8])}{', ...' if len(columns) > 8 else ''}"
