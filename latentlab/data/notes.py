"""Notes for the report on unusual properties of the data, which are not errors but can explain unusual results."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

SHOWN = 5
FAR = 20.0
"""Smallest distance of an outlier from the mean of the other values, in their standard deviations."""
FEWEST = 8
"""Smallest number of observed values of a column that is examined for outliers."""


def on_values(x: np.ndarray, units: Sequence[Any], columns: Sequence[Any] | None) -> list[str]:
    """Notes on constant and identical columns, repeated rows and missing entries; units on the first axis.

    Example:
        >>> on_values(np.array([[1.0, 2, 1], [3, 2, 3], [1, 2, 1]]), ["u", "v", "w"], ["a", "b", "c"])
        ["Column 'b' is constant.", "Columns 'a' and 'c' are identical.", "Units 'u' and 'w' have identical rows."]
    """
    rows = x.reshape(len(x), -1)
    notes = _on_columns(rows, columns) if columns is not None else []
    return [*notes, *_on_rows(rows, units), *_on_missing(rows, units, columns)]


def on_outliers(x: np.ndarray, units: Sequence[Any], columns: Sequence[Any]) -> list[str]:
    """Note on the most extreme outlier, if it is over `FAR` standard deviations from the mean of the other values of its column.

    Example:
        >>> on_outliers(np.array([[1.0], [3], [2], [4], [2], [3], [1], [-999]]), list("abcdefgh"), ["p"])[0][:58]
        "column 'p', unit 'h': the value -999 is 972 standard devia"
    """
    enough = np.flatnonzero((~np.isnan(x)).sum(axis=0) >= FEWEST)
    if not len(enough):
        return []
    x, every = x[:, enough], np.arange(len(enough))
    worst = np.nanargmax(np.abs(x - np.nanmean(x, axis=0)), axis=0)
    others = x.copy()
    others[worst, every] = np.nan
    sd = np.nanstd(others, axis=0)
    gap = np.abs(x[worst, every] - np.nanmean(others, axis=0))
    distance = np.divide(gap, sd, out=np.zeros(len(enough)), where=sd > 0)
    far = np.flatnonzero(distance > FAR)
    if not len(far):
        return []
    j = far[np.argmax(distance[far])]
    others_too = f" ({len(far) - 1} more column{'s have' if len(far) > 2 else ' has'} an outlier)" if len(far) > 1 else ""
    return [
        f"column {str(columns[enough[j]])!r}, unit {str(units[worst[j]])!r}: the value {x[worst[j], j]:g} is {distance[j]:.3g} "
        f"standard deviations from the mean of the other values{others_too}; check for a typing error, a total, or a code for "
        "missing values"
    ]


def on_labels(labels: np.ndarray | None) -> list[str]:
    """Notes on labels with a single class, with one class for each unit, or with classes of one unit.

    Example:
        >>> on_labels(np.array(["a", "a"]))
        ["All 2 labels are 'a', so there is only one class."]
    """
    if labels is None:
        return []
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) == 1:
        return [f"All {len(labels)} labels are {classes[0].item()!r}, so there is only one class."]
    if len(classes) == len(labels):
        return [f"All {len(labels)} labels are distinct, so they do not define classes."]
    single = classes[counts == 1].tolist()
    if not single:
        return []
    verb = "has" if len(single) == 1 else "have"
    return [f"Of {len(classes)} classes, {_joined(single)} {verb} only one unit."]


def _on_columns(rows: np.ndarray, columns: Sequence[Any]) -> list[str]:
    observed = ~np.isnan(rows).all(axis=0)
    low, high = (
        np.min(rows, axis=0, initial=np.inf, where=~np.isnan(rows)),
        np.max(rows, axis=0, initial=-np.inf, where=~np.isnan(rows)),
    )
    constant = [columns[i] for i in np.flatnonzero(observed & (low == high)).tolist()]
    notes = []
    if constant:
        several = len(constant) > 1
        notes.append(f"Column{'s' * several} {_joined(constant)} {'are' if several else 'is'} constant.")
    varying = [group for group in _alike(rows.T) if low[group[0]] < high[group[0]]]
    notes += [f"Columns {_joined([columns[i] for i in group])} are identical." for group in varying[:SHOWN]]
    if len(varying) > SHOWN:
        n_more = len(varying) - SHOWN
        notes.append(f"There {'are' if n_more > 1 else 'is'} {n_more} more group{'s' * (n_more > 1)} of identical columns.")
    return notes


def _on_rows(rows: np.ndarray, units: Sequence[Any]) -> list[str]:
    groups = [group for group in _alike(rows) if not np.isnan(rows[group[0]]).all()]
    if not groups:
        return []
    if len(groups[0]) == len(rows):
        return [f"All {len(rows)} rows are identical."]
    if len(groups) == 1:
        return [f"Units {_joined([units[i] for i in groups[0]])} have identical rows."]
    n_duplicates = sum(len(group) - 1 for group in groups)
    return [f"{n_duplicates} rows are duplicates of other rows; the first are units {_joined([units[i] for i in groups[0]])}."]


def _on_missing(rows: np.ndarray, units: Sequence[Any], columns: Sequence[Any] | None) -> list[str]:
    missing = np.isnan(rows)
    notes = []
    if missing.any():
        notes.append(f"{missing.sum()} of {missing.size} entries are missing ({missing.mean():.1%}).")
    empty = [units[i] for i in np.flatnonzero(missing.all(axis=1)).tolist()]
    if empty:
        notes.append(
            f"{'Units' if len(empty) > 1 else 'Unit'} {_joined(empty)} {'have' if len(empty) > 1 else 'has'} no entries."
        )
    if columns is not None:
        mostly = [columns[i] for i in np.flatnonzero(missing.mean(axis=0) > 0.5).tolist()]
        if mostly:
            several = len(mostly) > 1
            notes.append(f"More than half of the entries of column{'s' * several} {_joined(mostly)} are missing.")
    return notes


def _alike(rows: np.ndarray) -> list[list[int]]:
    """Groups of rows that are equal value by value, missing entries included."""
    groups: dict[bytes, list[int]] = {}
    for i, row in enumerate(np.ascontiguousarray(rows) + 0.0):
        groups.setdefault(hashlib.blake2b(row.tobytes(), digest_size=16).digest(), []).append(i)
    return [group for group in groups.values() if len(group) > 1]


def _joined(names: Sequence[Any]) -> str:
    shown = [repr(name) for name in names[:SHOWN]]
    if len(names) > SHOWN:
        return f"{', '.join(shown)} and {len(names) - SHOWN} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
