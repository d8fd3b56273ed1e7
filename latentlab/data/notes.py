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
        ["column 'b' is constant.", "columns 'a' and 'c' are identical.", "units 'u' and 'w' have identical rows."]
    """
    rows = x.reshape(len(x), -1)
    said = _on_columns(rows, columns) if columns is not None else []
    return [*said, *_on_rows(rows, units), *_on_missing(rows, units, columns)]


def on_outliers(x: np.ndarray, units: Sequence[Any], columns: Sequence[Any]) -> list[str]:
    """Note on the most extreme outlier, if it is more than `FAR` standard deviations from the mean of its column's other values.

    Example:
        >>> on_outliers(np.array([[1.0], [3], [2], [4], [2], [3], [1], [-999]]), list("abcdefgh"), ["p"])[0][:48]
        "column 'p', unit 'h': -999 is 972 standard devia"
    """
    seen = ~np.isnan(x)
    enough = np.flatnonzero(seen.sum(axis=0) >= FEWEST)
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
    more = f", and so is a value of {len(far) - 1} more column{'s' * (len(far) > 2)}" if len(far) > 1 else ""
    return [
        f"column {str(columns[enough[j]])!r}, unit {str(units[worst[j]])!r}: {x[worst[j], j]:g} is {distance[j]:.3g} standard "
        f"deviations from the mean of the others{more}; check for a typing error, a total, or a code for missing values"
    ]


def on_labels(labels: np.ndarray | None) -> list[str]:
    """Notes on labels with a single class, with one class for each unit, or with classes of one unit.

    Example:
        >>> on_labels(np.array(["a", "a"]))
        ["all 2 labels are 'a': there is one class only."]
    """
    if labels is None:
        return []
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) == 1:
        return [f"all {len(labels)} labels are {classes[0].item()!r}: there is one class only."]
    if len(classes) == len(labels):
        return [f"each of the {len(labels)} units has a label of its own: the labels are no classes."]
    single = classes[counts == 1].tolist()
    if not single:
        return []
    verb = "has" if len(single) == 1 else "have"
    return [f"of {len(classes)} classes, {_joined(single)} {verb} one unit only."]


def _on_columns(rows: np.ndarray, columns: Sequence[Any]) -> list[str]:
    seen = ~np.isnan(rows).all(axis=0)
    low, high = (
        np.min(rows, axis=0, initial=np.inf, where=~np.isnan(rows)),
        np.max(rows, axis=0, initial=-np.inf, where=~np.isnan(rows)),
    )
    constant = [columns[i] for i in np.flatnonzero(seen & (low == high)).tolist()]
    said = []
    if constant:
        several = len(constant) > 1
        said.append(f"column{'s' * several} {_joined(constant)} {'are' if several else 'is'} constant.")
    varying = [group for group in _alike(rows.T) if low[group[0]] < high[group[0]]]
    said += [f"columns {_joined([columns[i] for i in group])} are identical." for group in varying[:SHOWN]]
    if len(varying) > SHOWN:
        said.append(f"{len(varying) - SHOWN} more groups of columns are identical.")
    return said


def _on_rows(rows: np.ndarray, units: Sequence[Any]) -> list[str]:
    groups = [group for group in _alike(rows) if not np.isnan(rows[group[0]]).all()]
    if not groups:
        return []
    if len(groups[0]) == len(rows):
        return [f"all {len(rows)} rows are identical."]
    if len(groups) == 1:
        return [f"units {_joined([units[i] for i in groups[0]])} have identical rows."]
    repeated = sum(len(group) - 1 for group in groups)
    return [f"{repeated} rows repeat another unit's row, the first of them units {_joined([units[i] for i in groups[0]])}."]


def _on_missing(rows: np.ndarray, units: Sequence[Any], columns: Sequence[Any] | None) -> list[str]:
    missing = np.isnan(rows)
    said = []
    if missing.any():
        said.append(f"{missing.sum()} of {missing.size} entries are missing ({missing.mean():.1%}).")
    nothing = [units[i] for i in np.flatnonzero(missing.all(axis=1)).tolist()]
    if nothing:
        said.append(f"of {_joined(nothing)} nothing was observed.")
    if columns is not None:
        mostly = [columns[i] for i in np.flatnonzero(missing.mean(axis=0) > 0.5).tolist()]
        if mostly:
            said.append(f"more than half is missing in {_joined(mostly)}.")
    return said


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
