"""Values as given, turned into numpy arrays that nobody can change, or refused by name."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from latentlab.errors import DataError

EXACT = 2**53
"""The largest whole number up to which float64 holds every whole number."""


def frozen(array: np.ndarray) -> np.ndarray:
    """A read-only copy (the array itself where it is already read-only and owns its memory)."""
    if not array.flags.writeable and array.base is None:
        return array
    return sealed(np.array(array, order="C", copy=True))


def sealed(array: np.ndarray) -> np.ndarray:
    """The array itself, made read-only."""
    array.flags.writeable = False
    return array


def shaped(value: Any, dims: Sequence[str], what: str) -> np.ndarray:
    """`value` as an array with one axis per dim; `what` names it in messages."""
    if isinstance(value, np.ma.MaskedArray):
        value = np.ma.filled(value.astype(np.float64), np.nan)
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise DataError(f"{what} is ragged: its rows differ in length.") from error
    if array.ndim != len(dims):
        expected = ", ".join(f"n_{dim}s" for dim in dims) + ("," if len(dims) == 1 else "")
        found = f"{array.ndim}-d shape {array.shape}" if array.ndim else f"a single {type(value).__name__}"
        raise DataError(f"{what} has dims ({', '.join(dims)}): expected shape ({expected}); got {found}.")
    if 0 in array.shape:
        empty = dims[array.shape.index(0)]
        raise DataError(f"{what} has no {empty}s: shape {array.shape}; at least one is needed.")
    return array


def numbers(array: np.ndarray, dims: Sequence[str], coords: Mapping[str, np.ndarray], what: str) -> np.ndarray:
    """A new float64 array with the numbers of `array`, none of them changed by the cast but for their last digits."""
    if array.dtype.kind not in "biuf":
        raise DataError(f"{what} {_not_numbers(array, dims, coords)}; expected real numbers.")
    if array.dtype.kind in "iu" and array.dtype.itemsize > 4:
        large = (array > EXACT) | (array < -EXACT) if array.dtype.kind == "i" else array > EXACT
        if large.any():
            position = first(large)
            raise DataError(
                f"{what}{column(position, dims, coords)} holds the whole number {array[position]}, which is beyond "
                f"2**53 and would lose digits; leave the column out if it is an identifier."
            )
    with np.errstate(over="ignore"):
        return np.array(array, dtype=np.float64, order="C", copy=True)


def names(value: Any, what: str) -> np.ndarray:
    """`value` as a read-only 1-d array of text, finite numbers, truth values or dates, all of one type."""
    array = np.asarray(value)
    if array.ndim != 1:
        raise DataError(f"{what} must be one-dimensional; got shape {array.shape}.")
    if array.dtype.kind in "OT" or (array.dtype.kind == "U" and not isinstance(value, np.ndarray)):
        array = _uniform(list(value), what)
    if array.dtype.kind not in "UbiufM":
        raise DataError(f"{what} must be text, numbers or dates; got dtype {array.dtype}.")
    missing = ~np.isfinite(array) if array.dtype.kind in "fM" else np.zeros(len(array), bool)
    if missing.any():
        raise DataError(f"{what} has {missing.sum()} missing or infinite values, the first at position {first(missing)[0]}.")
    return frozen(array)


def first(flags: np.ndarray) -> tuple[int, ...]:
    """Position of the first True."""
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(flags)), flags.shape))


def column(position: Sequence[int], dims: Sequence[str], coords: Mapping[str, np.ndarray]) -> str:
    """How a message calls the column that `position` is in; empty where the array has no dim but `unit`."""
    parts = [
        f"{'column' if dim == 'feature' else dim} {_plain(coords[dim][i] if dim in coords else i)!r}"
        for i, dim in zip(position, dims, strict=True)
        if dim != "unit"
    ]
    return "".join(f", {part}" for part in parts)


def listed(values: Sequence[Any] | np.ndarray, most: int = 5) -> str:
    """The first few values, as a message shows them.

    Example:
        >>> listed(["a", "b", "c"], most=2)
        "'a', 'b' and 1 more"
    """
    shown = ", ".join(repr(_plain(value)) for value in values[:most])
    return shown if len(values) <= most else f"{shown} and {len(values) - most} more"


def repeated(values: Iterable[Any]) -> Any:
    """The first value that is there more than once, or None.

    Example:
        >>> repeated(["a", "b", "a"])
        'a'
    """
    return next((value for value, count in Counter(values).items() if count > 1), None)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _uniform(values: list[Any], what: str) -> np.ndarray:
    kinds = {"text" if isinstance(v, str) else type(v).__name__ for v in values}
    if kinds == {"text"}:
        return np.array([str(v) for v in values])
    array = np.array(values)
    if len(kinds) > 1 and (array.dtype.kind in "OU" or "bool" in kinds):
        raise DataError(f"{what} mixes {' and '.join(sorted(kinds))}; expected values of one type.")
    return array


def _not_numbers(array: np.ndarray, dims: Sequence[str], coords: Mapping[str, np.ndarray]) -> str:
    if array.dtype.kind != "O":
        return f"has dtype {array.dtype}"
    odd = np.array([not isinstance(v, int | float | np.number) for v in array.flat]).reshape(array.shape)
    if not odd.any():
        return "has dtype object"
    position = first(odd)
    return f"has dtype object{column(position, dims, coords)}: {array[position]!r} is {type(array[position]).__name__}"
