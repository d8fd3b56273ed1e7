"""Parts of a page: sections of texts, tables and figures, common to the page and report.json."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from latentlab.store.directory import plain

MARKS = {
    "pass": "✓",
    "warn": "!",
    "fail": "✗",
    "not applicable": "–",
    "summary-like": "◎",
    "draw-like": "○",
    "distinct": "✗",
    "undetermined": "?",
}
"""Sign of each verdict, so that verdicts do not depend on colour."""


ROUND_OFF = 1e-12
"""Magnitude below which numbers are shown as 0."""


SPACE = "\N{NO-BREAK SPACE}"
"""Thousands separator, at which no line is broken."""


SUPERSCRIPTS = str.maketrans("T0123456789", "ᵀ⁰¹²³⁴⁵⁶⁷⁸⁹")
_POWER = re.compile(r"(?<=[A-Za-z|)\]])\^(T|\d+)(?!\w)")


@dataclass(frozen=True)
class Text:
    """A paragraph, or a list if there are several lines; `kind` is the style of its box."""

    lines: tuple[str, ...]
    kind: str = "plain"

    def record(self) -> dict[str, Any]:
        return {"kind": "text", "lines": list(self.lines)}


@dataclass(frozen=True)
class Table:
    """A table of numbers (shown with `digits` digits) and texts; a `folded` table is opened by a click, and open in print."""

    name: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    folded: bool = False
    digits: int = 3

    @classmethod
    def of(
        cls, name: str, caption: str, records: Sequence[Mapping[Any, Any]], *, folded: bool = False, digits: int = 3
    ) -> "Table":
        """Build a table from records with the same keys, which are its columns."""
        columns = tuple(records[0]) if records else ()
        return cls(name, caption, columns, tuple(tuple(record[key] for key in columns) for record in records), folded, digits)

    @cached_property
    def numeric(self) -> tuple[bool, ...]:
        """Whether each column contains only numbers."""
        return tuple(all(_is_number(row[i]) for row in self.rows) for i in range(len(self.columns)))

    def record(self) -> dict[str, Any]:
        rows = [dict(zip(self.columns, map(plain, row), strict=True)) for row in self.rows]
        return {"kind": "table", "name": self.name, "caption": self.caption, "rows": rows}


@dataclass(frozen=True)
class Figure:
    """A figure: `svg` is its SVG text, `alt` the text alternative for screen readers."""

    name: str
    caption: str
    alt: str
    svg: str

    def record(self) -> dict[str, Any]:
        return {"kind": "figure", "name": self.name, "caption": self.caption, "alt": self.alt}


@dataclass(frozen=True)
class Formulas:
    """Paragraphs with formulas between dollar signs, as in docstrings."""

    paragraphs: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        return {"kind": "text", "lines": list(self.paragraphs)}


@dataclass(frozen=True)
class Brush:
    """Panels of the same units side by side, drawn by the page's script; see `latentlab.report.linked_panels`."""

    data: Mapping[str, Any]
    name: str = "brush"

    def record(self) -> dict[str, Any]:
        return {"kind": "panels", **self.data}


Item = Text | Table | Figure | Formulas | Brush


@dataclass(frozen=True)
class Section:
    """A numbered part of the page."""

    name: str
    title: str
    items: tuple[Item, ...]

    def record(self) -> dict[str, Any]:
        return {"name": self.name, "title": self.title, "items": [item.record() for item in self.items]}


def shown(value: Any, digits: int = 3) -> str:
    """Format a value for display: numbers with `digits` digits, an en dash for None and NaN, yes or no for a truth value.

    A mapping is its name with the options in brackets.

    Example:
        >>> shown({"name": "convolutional", "shape": [1, 8, 8], "stride": 2})
        'convolutional (shape = 1, 8, 8; stride = 2)'
        >>> [shown(v) for v in (0.123456, 1234567.0, 12.0, 3, 1e-7, float("nan"), float("inf"), "word", None, True)]
        ['0.123', '1\\xa0234\\xa0567', '12', '3', '1e-07', '–', '∞', 'word', '–', 'yes']
    """
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", SPACE) if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return _number(value, digits)
    if isinstance(value, list | tuple):
        return ", ".join(shown(entry, digits) for entry in value)
    if isinstance(value, Mapping):
        options = "; ".join(f"{key} = {shown(entry, digits)}" for key, entry in value.items() if key != "name")
        return f"{value['name']} ({options})" if "name" in value and options else str(value.get("name", options))
    return str(value)


def _number(value: float, digits: int) -> str:
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    if size < ROUND_OFF:
        return "0"
    if size >= 1e7 or 0 < size < 1e-4:
        return f"{value:.2g}".replace("-", "−") if size >= 1e7 else f"{value:.1g}"
    if size >= 1000:
        return f"{value:,.0f}".replace(",", SPACE).replace("-", "−")
    return f"{value:.{digits}g}".replace("-", "−")


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float | np.number) and not isinstance(value, bool | np.bool_))


def mathematics(text: str) -> str:
    """Write transposes, powers and sums over components in a plain formula by Unicode characters.

    Example:
        >>> mathematics("W W^T[ash, hue]"), mathematics("|z[43]|^2"), mathematics("sum_k weights[k]^3")
        ('W Wᵀ[ash, hue]', '|z[43]|²', 'Σₖ weights[k]³')
    """
    return _POWER.sub(lambda match: match.group(1).translate(SUPERSCRIPTS), re.sub(r"\bsum_k\b", "Σₖ", text))


def count(n: int, noun: str, plural: str = "") -> str:
    """Format a number with its noun.

    Example:
        >>> count(1, "unit"), count(12, "unit"), count(2, "class", "classes")
        ('1 unit', '12 units', '2 classes')
    """
    return f"{shown(n)} {noun if n == 1 else plural or noun + 's'}"


def listed(words: Sequence[Any], most: int = 5) -> str:
    """Join words for a sentence; if there are more than `most`, the number of the others is added.

    Example:
        >>> listed(["a", "b", "c"]), listed(range(7), most=2)
        ('a, b and c', '0, 1 and 5 more')
    """
    words = [str(word) for word in words]
    if len(words) > most:
        words = [*words[:most], f"{len(words) - most} more"]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else "none"
