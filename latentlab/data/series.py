"""Time series: several sequences of possibly unequal length in one dataset.

A unit is a time step. The coordinates `sequence` and `time` along `unit` are its sequence and its time. The steps of a sequence
are contiguous and in order; rows are sorted if their times are given. A step without observations must be a row of missing
entries, because the distribution of neighbouring steps depends on the distance between them.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from latentlab.data import convert
from latentlab.data.dataset import Dataset
from latentlab.data.memory import COPIES, Budget
from latentlab.data.times import read
from latentlab.errors import DataError


def series(
    sequences: Sequence[Any] | np.ndarray,
    *,
    names: Sequence[Any] | None = None,
    times: Sequence[Any] | None = None,
    features: Sequence[Any] | None = None,
    labels: Sequence[Any] | None = None,
    name: str = "series",
    fill_gaps: bool = True,
) -> Dataset:
    """Make a dataset of sequences; its units are time steps with the names `SEQUENCE:TIME`.

    A row of NaN is a time step without observations. Omitted time steps become such rows too, since the steps before and after
    a gap are not neighbours. For integer times one step is 1, so number the steps if a step is longer (0, 1, 2 for 1900, 1910,
    1920). For dates a step is the longest span that divides every gap (`latentlab.data.times`). Fractions, and text that is not
    a date, have no known step, and gaps are not filled. Rows are sorted by time, except for text without a known order.

    Args:
        sequences: An array `(n_steps, n_features)` or `(n_steps,)` for each sequence.
        names: A name for each sequence; 0, 1, 2, ... if not given.
        times: Times of the steps of each sequence, all distinct; 0, 1, 2, ... if not given.
        features: Names of the columns.
        labels: A label for each sequence, or labels of the steps of each sequence.
        name: Name of the dataset.
        fill_gaps: Whether omitted time steps become rows of missing entries.

    Raises:
        DataError: A sequence is empty or has a different number of columns, or a time occurs twice; names it.

    Example:
        >>> dataset = series([[1.0, 2.0, 4.0], [5.0]], names=["a", "b"], times=[[7, 8, 10], [7]])
        >>> dataset.units.tolist(), dataset.x[:, 0].tolist()
        (['a:7', 'a:8', 'a:9', 'a:10', 'b:7'], [1.0, 2.0, nan, 4.0, 5.0])
        >>> boundaries(dataset).tolist()
        [0, 0, 0, 0, 1]
    """
    listed = _list(sequences, f"{name}: `sequences`")
    keys = convert.names(np.arange(len(listed)) if names is None else names, f"{name}: `names`")
    _check_number(keys, listed, f"{name}: `names`")
    duplicate = convert.first_duplicate(keys.astype(str).tolist())
    if duplicate is not None:
        raise DataError(f"{name}: two sequences have the name {duplicate!r}; give each sequence a unique name.")
    tables = [_table(one, f"{name}: sequence {keys[i].item()!r}") for i, one in enumerate(listed)]
    for i, table in enumerate(tables):
        if table.shape[1] != tables[0].shape[1]:
            columns, first = table.shape[1], tables[0].shape[1]
            raise DataError(f"{name}: sequence {keys[i].item()!r} has {columns} columns, but the first sequence has {first}.")
    lengths = [len(table) for table in tables]
    where = [f"{name}: sequence {one.item()!r}" for one in keys]
    return assemble(
        np.concatenate(tables),
        features,
        name=name,
        sequence=np.repeat(keys, lengths),
        time=_times(times, lengths, where, name),
        labels=_labels(labels, lengths, where, name),
        fill_gaps=fill_gaps,
    )


def boundaries(dataset: Dataset) -> np.ndarray:
    """Number of each unit's sequence, `(unit,)`, counted from 0 in the order of the units.

    A dataset without the coordinate `sequence` is one sequence. Only the order is checked: if units were removed from the
    middle of a sequence, the remaining steps count as neighbours.

    Raises:
        DataError: The units of a sequence are not contiguous, or its times do not increase; names sequence and unit.

    Example:
        >>> boundaries(series([[1.0, 2.0], [3.0], [4.0, 5.0]])).tolist()
        [0, 0, 1, 2, 2]
    """
    return _codes(dataset.n_units, dataset.coords.get("sequence"), dataset.coords.get("time"), dataset.units, dataset.name)


def elapsed(dataset: Dataset) -> np.ndarray:
    """Time of each unit since the first of its sequence, `(unit,)`, in units of the median gap between successive times.

    It is the number of steps if the dataset has no coordinate `time`, or one of text without a known order.

    Raises:
        DataError: The units of a sequence are not contiguous, or its times do not increase; names sequence and unit.

    Example:
        >>> elapsed(series([[1.0, 2.0, 4.0], [5.0, 6.0]], times=[[0.5, 1.0, 2.5], [3.0, 3.5]])).tolist()
        [0.0, 1.0, 4.0, 0.0, 1.0]
    """
    codes = boundaries(dataset)
    first = np.searchsorted(codes, codes)
    time = dataset.coords.get("time")
    key = None if time is None else read(np.asarray(time), f"{dataset.name}: coordinate 'time'").key
    key = np.arange(len(codes)) if key is None else key
    gaps = np.diff(key)[np.diff(codes) == 0]
    return np.asarray((key - key[first]) / (np.median(gaps) if len(gaps) else 1.0), dtype=np.float64)


def assemble(  # one keyword for each part of a series
    x: np.ndarray,
    features: Sequence[Any] | None,
    *,
    name: str,
    sequence: np.ndarray | None = None,
    time: np.ndarray | None = None,
    units: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    fill_gaps: bool = True,
) -> Dataset:
    """Make a dataset of time steps, sorted by sequence and time, with gaps filled as in `series`.

    Args:
        x: Data `(unit, feature)`; NaN for missing entries.
        features: Names of the columns.
        name: Name of the dataset.
        sequence: Sequence of each step.
        time: Time of each step.
        units: Names of the steps; `SEQUENCE:TIME` if not given and there are times.
        labels: A label for each step.
        fill_gaps: Whether omitted time steps become rows of missing entries.

    Raises:
        DataError: Steps are not contiguous or not in order and cannot be sorted by time. A time occurs twice. Gaps are to be
            filled in a sequence whose steps have different labels.
    """
    sequence, time, units, labels = (
        None if value is None else convert.names(value, f"{name}: {what}")
        for value, what in (
            (sequence, "coordinate 'sequence'"),
            (time, "coordinate 'time'"),
            (units, "coordinate 'unit'"),
            (labels, "`labels`"),
        )
    )
    for value, what in ((sequence, "sequence"), (time, "time"), (units, "unit"), (labels, "label")):
        if value is not None and len(value) != len(x):
            raise DataError(f"{name}: {len(value)} values of `{what}` for {len(x)} units.")
    notes: list[str] = []
    clock = None if time is None else read(time, f"{name}: coordinate 'time'")
    if clock is not None:
        time = clock.written
        notes += [clock.note] if clock.note else []
    if clock is not None and clock.key is not None:
        order = np.lexsort((clock.key, _numbers(sequence, len(x))))
        if (np.diff(order) < 0).any():
            by = "time" if sequence is None else "sequence and time"
            notes.append(f"The rows were sorted by {by}; {(order != np.arange(len(x))).sum()} of {len(x)} rows changed position.")
        x, clock, time = x[order], replace(clock, key=clock.key[order], written=clock.written[order]), clock.written[order]
        sequence, units, labels = (None if one is None else one[order] for one in (sequence, units, labels))
    unit_names = _names(sequence, time) if units is None and time is not None else units
    codes = _codes(len(x), sequence, time, np.arange(len(x)) if unit_names is None else unit_names, name)
    step = 0 if clock is None else clock.step(codes)
    if clock is not None and clock.key is not None and step:
        spans = _spans(codes, clock.key, step)
        n_omitted, span = sum(spans) - len(x), "" if clock.tick == "step" else f"; one step is {clock.span(step)}"
        rows = (
            "1 omitted time step was added as a row" if n_omitted == 1 else f"{n_omitted} omitted time steps were added as rows"
        )
        if n_omitted and fill_gaps:
            notes.append(f"{rows} of missing entries (`fill_gaps`){span}.")
            place, ticks = _steps(codes, clock.key, step, spans, x.shape[1], name)
            first = place[np.r_[True, np.diff(codes) != 0]]
            source = np.searchsorted(first, np.arange(len(ticks)), side="right") - 1
            sequence = None if sequence is None else sequence[np.r_[True, np.diff(codes) != 0]][source]
            labels = _filled_labels(labels, codes, source, name)
            time = clock.name(ticks)
            filled = _names(sequence, time)
            if units is not None:
                filled = filled.astype(object)
                filled[place] = units.astype(str)
                filled = filled.astype(str)
            table = np.full((len(ticks), x.shape[1]), np.nan)
            table[place] = x
            x, unit_names = table, filled
    coords = {"unit": unit_names, "feature": features, "sequence": sequence, "time": time}
    return Dataset(
        {"x": x},
        dims={"x": ("unit", "feature")},
        coords={key: value for key, value in coords.items() if value is not None},
        labels=labels,
        name=name,
        preparation=tuple(notes),
    )


# -- checks of the arguments


def _list(value: Any, what: str) -> list[Any]:
    """Convert to a list of sequences; a single array is refused, since it would be read as many sequences of one step."""
    if isinstance(value, np.ndarray) and value.ndim < 2 and value.dtype != object:
        raise DataError(f"{what} must be a list of arrays, one for each sequence; got one array of shape {value.shape}.")
    if not isinstance(value, list | tuple | np.ndarray):
        raise DataError(f"{what} must be a list of arrays, one for each sequence; got {type(value).__name__}.")
    if not len(value):
        raise DataError(f"{what} has no sequences; expected at least one.")
    if all(map(_is_single, value)):
        raise DataError(f"{what} must be a list of arrays, one for each sequence; got a list of single values.")
    return list(value)


def _is_single(value: Any) -> bool:
    return isinstance(value, str | bytes) or not hasattr(value, "__len__") or getattr(value, "ndim", 1) == 0


def _table(value: Any, what: str) -> np.ndarray:
    array = convert.as_array(value, ("unit", "feature"), what)
    if array.ndim not in (1, 2):
        raise DataError(f"{what} must have shape (n_steps, n_features) or (n_steps,); got {array.shape}.")
    if not len(array):
        raise DataError(f"{what} has no time steps; leave it out.")
    if not array.size:
        raise DataError(f"{what} has no columns: shape {array.shape}.")
    return convert.numbers(array[:, None] if array.ndim == 1 else array, ("unit", "feature"), {}, what)


def _check_number(values: Any, sequences: Sequence[Any], what: str) -> None:
    if len(values) != len(sequences):
        raise DataError(f"{what} has {len(values)} entries for {len(sequences)} sequences; expected one for each.")


def _times(times: Any, lengths: Sequence[int], where: Sequence[str], name: str) -> np.ndarray:
    if times is None:
        return np.concatenate([np.arange(length) for length in lengths])
    _check_number(times, lengths, f"{name}: `times`")
    found = [_for_each_step(one, length, what, "times") for one, length, what in zip(times, lengths, where, strict=True)]
    kinds = {{"u": "number", "i": "number", "f": "number"}.get(one.dtype.kind, one.dtype.kind) for one in found}
    if len(kinds) > 1:
        raise DataError(f"{name}: `times` have several types; expected only numbers, only text or only dates.")
    return np.concatenate(found)


def _labels(labels: Any, lengths: Sequence[int], where: Sequence[str], name: str) -> np.ndarray | None:
    if labels is None:
        return None
    _check_number(labels, lengths, f"{name}: `labels`")
    if all(map(_is_single, labels)):
        return np.repeat(convert.names(labels, f"{name}: `labels`"), lengths)
    found = [_for_each_step(one, length, what, "labels") for one, length, what in zip(labels, lengths, where, strict=True)]
    return convert.names([value for one in found for value in one.tolist()], f"{name}: `labels`")


def _for_each_step(values: Any, length: int, what: str, noun: str) -> np.ndarray:
    result = convert.names(values, f"{what}: `{noun}`")
    if len(result) != length:
        raise DataError(f"{what}: {len(result)} {noun} for {length} time steps; expected one for each.")
    return result


# -- order and gaps


def _codes(n: int, sequence: np.ndarray | None, time: np.ndarray | None, units: np.ndarray, name: str) -> np.ndarray:
    new = np.zeros(n, bool) if sequence is None else np.r_[False, sequence[1:] != sequence[:-1]]
    codes = np.cumsum(new)
    if sequence is not None:
        starts = np.r_[0, np.flatnonzero(new)]
        previous: set[Any] = set()
        for start, one in zip(starts.tolist(), sequence[starts].tolist(), strict=True):
            if one in previous:
                raise DataError(
                    f"{name}: sequence {one!r} is not contiguous: unit {units[start].item()!r} belongs to it, but follows "
                    "another sequence; sort the units by sequence and time."
                )
            previous.add(one)
    if time is not None:
        late = _first_disorder(codes, time, name)
        if late is not None:
            whose = "" if sequence is None else f" of sequence {sequence[late].item()!r}"
            if time[late] == time[late - 1]:
                raise DataError(
                    f"{name}: the time {str(time[late])!r}{whose} occurs twice, the second time in unit {units[late].item()!r}; "
                    "use one row for each step, and set `sequence` if there are several sequences."
                )
            raise DataError(
                f"{name}: the times{whose} do not increase: unit {units[late].item()!r} has time {str(time[late])!r} after "
                f"{str(time[late - 1])!r}; sort the units by sequence and time."
            )
    return codes


def _first_disorder(codes: np.ndarray, time: np.ndarray, name: str) -> int | None:
    """First unit whose time is not later than the previous one in its sequence; for unordered text, that repeats a time."""
    key = read(time, f"{name}: coordinate 'time'").key
    if key is None:
        pairs = np.stack([codes, np.unique(time, return_inverse=True)[1]], axis=1)
        first = np.unique(pairs, axis=0, return_index=True)[1]
        wrong = np.ones(len(time), bool)
        wrong[first] = False
    else:
        wrong = np.r_[False, (key[1:] <= key[:-1]) & (codes[1:] == codes[:-1])]
    return int(np.argmax(wrong)) if wrong.any() else None


def _numbers(sequence: np.ndarray | None, n: int) -> np.ndarray:
    """Number of each unit's sequence, in order of first appearance."""
    if sequence is None:
        return np.zeros(n, dtype=int)
    _, first, which = np.unique(sequence, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[which]


def _names(sequence: np.ndarray | None, time: np.ndarray) -> np.ndarray:
    if sequence is None:
        return time.astype(str)
    return np.array([f"{one}:{when}" for one, when in zip(sequence, time, strict=True)])


def _spans(codes: np.ndarray, ticks: np.ndarray, step: int) -> list[int]:
    """Number of steps of each sequence, including omitted ones."""
    starts = np.flatnonzero(np.r_[True, np.diff(codes) != 0])
    ends = np.r_[starts[1:], len(codes)] - 1
    return [(int(ticks[end]) - int(ticks[start])) // step + 1 for start, end in zip(starts, ends, strict=True)]


def _steps(
    codes: np.ndarray, ticks: np.ndarray, step: int, spans: Sequence[int], n_features: int, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Row of each unit after gaps are filled, and the tick of each row."""
    what = f"{name}: the series with a row for each of {sum(spans)} time steps, {len(ticks)} of them in the data (`fill_gaps`),"
    Budget.of(None).need(COPIES * 8 * sum(spans) * (n_features + 1), what)
    starts = np.flatnonzero(np.r_[True, np.diff(codes) != 0])
    offsets = np.r_[0, np.cumsum(spans)[:-1]]
    place = (ticks - ticks[starts][codes]) // step + offsets[codes]
    rows = [int(ticks[start]) + step * np.arange(span) for start, span in zip(starts, spans, strict=True)]
    return place, np.concatenate(rows)


def _filled_labels(labels: np.ndarray | None, codes: np.ndarray, source: np.ndarray, name: str) -> np.ndarray | None:
    """Label of each row after gaps are filled; sequences with several labels are refused, since a gap would have no label."""
    if labels is None:
        return None
    starts = np.flatnonzero(np.r_[True, np.diff(codes) != 0])
    if (labels != labels[starts][codes]).any():
        raise DataError(
            f"{name}: rows added for omitted time steps would have no label, because the labels vary within a sequence. Add "
            "labelled rows of missing entries for these steps, or set `fill_gaps: false`."
        )
    return labels[starts][source]
