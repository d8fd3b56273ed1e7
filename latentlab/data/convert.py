"""Conversion of input values to read-only NumPy arrays, with checks."""

import datetime
import decimal
import difflib
import numbers as abstract
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from latentlab.errors import DataError, unknown

SHOWN = 40
"""Largest number of names that a message lists."""
EXACT = 2**53
"""Largest integer up to which every integer is exact in float64."""


def frozen(array: np.ndarray) -> np.ndarray:
    """Return a read-only copy, or the array itself if it is read-only and owns its memory."""
    if not array.flags.writeable and array.base is None:
        return array
    return sealed(np.array(array, order="C", copy=True))


def sealed(array: np.ndarray) -> np.ndarray:
    """Make the array itself read-only and return it."""
    array.flags.writeable = False
    return array


def shaped(value: Any, dims: Sequence[str], what: str) -> np.ndarray:
    """Convert `value` to an array with one axis per dim; `what` names it in messages."""
    array = as_array(value, dims, what)
    if array.ndim != len(dims):
        expected = ", ".join(f"n_{dim}s" for dim in dims) + ("," if len(dims) == 1 else "")
        actual = f"{array.ndim}-d shape {array.shape}" if array.ndim else f"a single {type(value).__name__}"
        raise DataError(f"{what} has dims ({', '.join(dims)}): expected shape ({expected}); got {actual}.")
    if 0 in array.shape:
        empty = dims[array.shape.index(0)]
        raise DataError(f"{what} has no {empty}s (shape {array.shape}); expected at least one.")
    return array


def as_array(value: Any, dims: Sequence[str], what: str) -> np.ndarray:
    """Convert `value` to an array with unchanged whole numbers, and NaN for masked entries.

    Raises:
        DataError: Its rows differ in length, or it cannot be converted to an array.
    """
    if isinstance(value, np.ma.MaskedArray):
        hidden = np.ma.getmaskarray(value)
        filled = numbers(np.ma.filled(value, 0), dims if len(dims) == value.ndim else ("unit",) * value.ndim, {}, what)
        return np.where(hidden, np.nan, filled)
    try:
        array = np.asarray(value)
        if array.dtype.kind == "f" and isinstance(value, list | tuple) and (np.abs(array) >= EXACT).any():
            return np.asarray(value, dtype=object)  # a large integer among floats is already rounded
    except ValueError as error:
        raise DataError(f"{what} is ragged; all rows must have the same length.") from error
    except (TypeError, RuntimeError) as error:
        raise DataError(f"{what} cannot be converted to an array: {' '.join(str(error).split())[:200]}") from error
    return array


def numbers(array: np.ndarray, dims: Sequence[str], coords: Mapping[str, np.ndarray], what: str) -> np.ndarray:
    """Convert to a new float64 array; integers that float64 cannot represent are refused.

    Objects must be numbers or booleans; None, NaN and pandas' NA are missing.
    """
    if array.dtype.kind == "O":
        return _from_objects(array, dims, coords, what)
    if array.dtype.kind not in "biuf":
        raise DataError(f"{what} has dtype {array.dtype}; expected real numbers.")
    if array.dtype.kind in "iu" and array.dtype.itemsize > 4:
        large = (array > EXACT) | (array < -EXACT) if array.dtype.kind == "i" else array > EXACT
        if large.any():
            position = first(large)
            raise DataError(_lossy(array[position], f"{what}{column(position, dims, coords)}"))
    with np.errstate(over="ignore"):
        return np.array(array, dtype=np.float64, order="C", copy=True)


def column_numbers(series: Any, what: str) -> np.ndarray:
    """Convert a pandas Series of numbers or booleans of any dtype to float64, with NaN for missing entries.

    Raises:
        DataError: The Series has values of another type; names the type and a remedy.
    """
    import pandas as pd

    dtype = series.dtype
    if isinstance(dtype, np.dtype) and dtype.kind in "biuf":
        return numbers(series.to_numpy(), ("unit",), {}, what)
    missing = series.isna().to_numpy()
    if isinstance(dtype, pd.CategoricalDtype):
        table = column_numbers(dtype.categories.to_series(), f"{what} (its categories)")
        return np.where(missing, np.nan, table[series.cat.codes.to_numpy()]) if len(table) else np.full(len(series), np.nan)
    if isinstance(dtype, pd.SparseDtype):
        return column_numbers(series.sparse.to_dense(), what)
    kind = getattr(dtype, "kind", "O")
    # Among extension dtypes of kind O, only Arrow's decimals and nulls can be numbers.
    if kind not in "biufO" or (kind == "O" and not (isinstance(dtype, np.dtype) or str(dtype).startswith(("decimal", "null")))):
        raise DataError(f"{what} has dtype {dtype}; expected numbers. {_REMEDY}")
    if kind == "f":
        return numbers(series.to_numpy(np.float64, na_value=np.nan), ("unit",), {}, what)
    if kind in "biu":
        whole = series.to_numpy({"b": np.bool_, "i": np.int64, "u": np.uint64}[kind], na_value=kind != "b" and 0)
        return np.where(missing, np.nan, numbers(whole, ("unit",), {}, what))
    return numbers(series.to_numpy(object), ("unit",), {}, what)


def names(value: Any, what: str) -> np.ndarray:
    """Convert to a read-only 1-d array of text, finite numbers or booleans, all of one type; dates become ISO text.

    Example:
        >>> names(np.array(["2024-02-01", "2024-03-01"], dtype="M8[ns]"), "times").tolist()
        ['2024-02-01', '2024-03-01']
    """
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise DataError(f"{what} must be one-dimensional; got {value!r:.60}.") from error
    if array.ndim != 1:
        raise DataError(f"{what} must be one-dimensional; got shape {array.shape}.")
    if array.dtype.kind in "OT" or (array.dtype.kind == "U" and not isinstance(value, np.ndarray)):
        array = _uniform(list(value), what)
    if array.dtype.kind == "M":
        _refuse_missing(np.isnat(array), what)
        array = iso(array)
    if array.dtype.kind not in "Ubiuf":
        remedy = "; convert it to a number of seconds or days" if array.dtype.kind == "m" else ""
        raise DataError(f"{what} must be text, numbers or dates; got dtype {array.dtype}{remedy}.")
    if array.dtype.kind == "f":
        _refuse_missing(~np.isfinite(array), what)
        array = array.astype(np.float64)
    if array.dtype.kind == "U":
        try:
            "".join(array.tolist()).encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{what} has text that is not valid Unicode and cannot be saved: {error}.") from error
    return frozen(array)


def iso(dates: np.ndarray) -> np.ndarray:
    """Convert `datetime64` values to ISO text in the coarsest common form that is exact.

    Example:
        >>> iso(np.array(["2024-02-01", "2024-03-01T06:30"], dtype="M8[ns]")).tolist()
        ['2024-02-01T00:00:00', '2024-03-01T06:30:00']
    """
    unit = np.datetime_data(dates.dtype)[0]
    units = [unit] if unit in ("Y", "M", "D", "h", "m") else ["D", "s", "ms", "us", unit]
    forms = (dates.astype(f"M8[{one}]") for one in units)
    return np.array(next(form for form in forms if (form == dates).all()).astype(str).tolist())


def first(flags: np.ndarray) -> tuple[int, ...]:
    """Position of the first True."""
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(flags)), flags.shape))


def column(position: Sequence[int], dims: Sequence[str], coords: Mapping[str, np.ndarray]) -> str:
    """Text that names the column at `position` in a message; empty if `unit` is the only dim."""
    parts = [
        f"{'column' if dim == 'feature' else dim} {_plain(coords[dim][i] if dim in coords else i)!r}"
        for i, dim in zip(position, dims, strict=True)
        if dim != "unit"
    ]
    return "".join(f", {part}" for part in parts)


def listed(values: Sequence[Any] | np.ndarray, most: int = 5) -> str:
    """Text of the first few values for messages.

    Example:
        >>> listed(["a", "b", "c"], most=2)
        "'a', 'b' and 1 more"
    """
    shown = ", ".join(repr(_plain(value)) for value in values[:most])
    return shown if len(values) <= most else f"{shown} and {len(values) - most} more"


def first_duplicate(values: Iterable[Any]) -> Any:
    """First value that occurs more than once, or None.

    Example:
        >>> first_duplicate(["a", "b", "a"])
        'a'
    """
    return next((value for value, count in Counter(values).items() if count > 1), None)


def positions(requested: Sequence[Any] | np.ndarray, names: Sequence[Any], what: str) -> list[int]:
    """Indices in `names` of the requested columns, compared as text.

    Raises:
        DataError: A column does not exist (names the closest one), a column is requested twice, or none is requested.

    Example:
        >>> positions(["b", "a"], ["a", "b", "c"], "toy")
        [1, 0]
    """
    if isinstance(requested, str) or not isinstance(requested, Sequence | np.ndarray) or not len(requested):
        raise DataError(f"{what}: `columns` must be a nonempty list of column names; got {requested!r}.")
    where = {str(name): i for i, name in enumerate(names)}
    wanted = [str(name) for name in requested]
    for name in wanted:
        if name not in where:
            valid = where if len(where) <= SHOWN else difflib.get_close_matches(name, where, n=SHOWN)
            raise DataError(f"{what}: {unknown('column', name, valid)}")
    duplicate = first_duplicate(wanted)
    if duplicate is not None:
        raise DataError(f"{what}: column {duplicate!r} is listed twice in `columns`.")
    return [where[name] for name in wanted]


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


_REMEDY = "Convert it to numbers (by pd.to_numeric, or to one 0/1 column for each category), leave it out, or use it as `labels`."


def _lossy(value: Any, what: str) -> str:
    return (
        f"{what} has the whole number {value}, whose magnitude exceeds 2**53, so float64 cannot represent it exactly. If the "
        "column is an identifier, leave it out."
    )


def _from_objects(array: np.ndarray, dims: Sequence[str], coords: Mapping[str, np.ndarray], what: str) -> np.ndarray:
    result = np.empty(array.shape)
    for position, value in np.ndenumerate(array):
        if is_missing(value):
            result[position] = np.nan
            continue
        real = isinstance(value, abstract.Real | np.bool_ | decimal.Decimal)
        where = f"{what}{column(position, dims, coords)}"
        if not real:
            raise DataError(f"{where}: {str(value)[:40]!r} is of type {type(value).__name__}; expected a number. {_REMEDY}")
        try:
            result[position] = float(value)
        except OverflowError as error:
            raise DataError(_lossy(f"of {len(str(value))} digits", where)) from error
        if abs(result[position]) >= EXACT and _is_whole(value) and abs(int(value)) > EXACT:
            raise DataError(_lossy(value, where))
    return result


def is_missing(value: Any) -> bool:
    """Whether an object is a missing value: None, NaN, pandas' NA or NaT.

    Example:
        >>> is_missing(None), is_missing(float("nan")), is_missing(0)
        (True, True, False)
    """
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    if isinstance(value, float | np.floating | decimal.Decimal):
        return bool(value != value)
    return isinstance(value, np.datetime64) and bool(np.isnat(value))


def _is_whole(value: Any) -> bool:
    """Whether the value is an exact integer; a float is not, since it may be rounded."""
    return isinstance(value, abstract.Integral) or (isinstance(value, decimal.Decimal) and value == value.to_integral_value())


def _refuse_missing(missing: np.ndarray, what: str) -> None:
    if missing.any():
        raise DataError(f"{what} has {missing.sum()} missing or infinite values; the first is at position {first(missing)[0]}.")


def _uniform(values: list[Any], what: str) -> np.ndarray:
    """Convert objects of one kind to an array of text, numbers, booleans or `datetime64`."""
    _refuse_missing(np.array([is_missing(value) for value in values]), what)
    kinds = {_kind(value) for value in values}
    if kinds <= {"text"}:
        return np.array([str(value) for value in values])
    if kinds == {"date"}:
        return np.array([one.to_datetime64() if hasattr(one, "to_datetime64") else np.datetime64(one) for one in values])
    if kinds == {"date with a time zone"}:
        return _zoned(values)
    if len(kinds) > 1:
        raise DataError(f"{what} has values of several types ({', '.join(sorted(kinds))}); expected one type.")
    if kinds <= {"number", "boolean"}:
        return np.array(values)
    raise DataError(f"{what} must be text, numbers or dates; got {kinds.pop()}.")


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return "text"
    if isinstance(value, bool | np.bool_):
        return "boolean"
    if isinstance(value, int | float | np.integer | np.floating):
        return "number"
    if isinstance(value, datetime.date | np.datetime64):
        return "date" if getattr(value, "tzinfo", None) is None else "date with a time zone"
    # Periods and intervals of pandas are converted to text.
    return "text" if type(value).__name__ in ("Period", "Interval") else type(value).__name__


def _zoned(values: list[Any]) -> np.ndarray:
    """Convert times with a time zone to days if all are at midnight, or else to ISO text in UTC with the suffix Z."""
    if all((value.hour, value.minute, value.second, value.microsecond) == (0, 0, 0, 0) for value in values):
        return np.array([np.datetime64(value.date()) for value in values])
    utc = iso(_uniform([value.astimezone(datetime.UTC).replace(tzinfo=None) for value in values], ""))
    return np.array([f"{one}Z" for one in utc])
