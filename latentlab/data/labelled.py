"""Conversion of labelled arrays (pandas, xarray, Arrow) and sparse arrays (SciPy) to plain arrays and names.

The first array with names along a dim determines their order; every other array is reordered. A library is imported only if
one of its values is given.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from latentlab.data import convert
from latentlab.data.memory import COPIES, Budget, size
from latentlab.errors import DataError

Names = dict[str, np.ndarray]

UNNAMED = re.compile(r"Unnamed: \d+")
"""Name that pandas assigns to an unnamed column, such as the index in a file."""


def plain(
    name: str,
    arrays: Mapping[str, Any],
    dims: Mapping[str, tuple[str, ...]],
    coords: Mapping[str, Any],
    mask: Any,
    labels: Any,
) -> tuple[dict[str, Any], dict[str, Any], Any, Any]:
    """Convert arrays, coordinates, mask and labels to plain values in a common order along each dim.

    Raises:
        DataError: Names contradict each other or `coords`, dims differ from those declared, or a column is not numeric.
    """
    common: dict[str, Any] = {key: convert.names(value, f"{name}: coordinate {key!r}") for key, value in coords.items()}
    sizes: dict[str, int] = {}
    result = {}
    for key, value_of_array in arrays.items():
        what = f"{name}: array {key!r}"
        values, own_names, further = opened(value_of_array, dims[key], what)
        values = convert.shaped(values, dims[key], what)
        result[key] = _placed(values, dims[key], own_names, common, sizes, what, fixed=coords)
        for other, value in further.items():
            implied = value is own_names.get("unit")  # dates of an index, which `coords` may replace
            if other in coords and not implied and common[other].astype(str).tolist() != value.astype(str).tolist():
                raise DataError(f"{what}: its coordinate {other!r} differs from the one in `coords`; leave one of them out.")
        common = {**further, **common}
        sizes.update(zip(dims[key], values.shape, strict=True))
    observed = next(iter(arrays))
    if mask is not None:
        values, own_names, _ = opened(mask, dims[observed], f"{name}: `mask`")
        mask = _placed(values, dims[observed], own_names, common, sizes, f"{name}: `mask`")
    if labels is not None:
        values, own_names, _ = opened(labels, ("unit",), f"{name}: `labels`", numbers=False)
        labels = _placed(values, ("unit",), own_names, common, sizes, f"{name}: `labels`") if own_names else values
    return result, common, mask, labels


def own_dims(value: Any) -> tuple[str, ...] | None:
    """Dims of an xarray object or a DataFrame; None for other values."""
    library = _library(value)
    if library == "xarray":
        return tuple(map(str, getattr(value, "dims", ())))
    return ("unit", "feature") if library == "pandas" and getattr(value, "ndim", 0) == 2 else None


def opened(value: Any, dims: Sequence[str], what: str, *, numbers: bool = True) -> tuple[Any, Names, Names]:
    """Values in the order of `dims`, their names by dim, and their further coordinates along `unit`.

    Args:
        value: An object of pandas, xarray, SciPy or Arrow; others are returned unchanged.
        dims: Expected dims.
        what: Name of the value in messages.
        numbers: Whether the columns of a DataFrame are converted to float64, each separately.
    """
    library = _library(value)
    if library is None and hasattr(value, "to_pandas"):
        value = value.to_pandas()
        library = _library(value)
    if library == "scipy":
        return _dense(value, what), {}, {}
    if library == "xarray":
        return _from_xarray(value, dims, what)
    if library != "pandas":
        return value, {}, {}
    import pandas as pd

    if isinstance(value, pd.DataFrame) and len(dims) == 2:
        if (value.columns.name, value.index.name) == tuple(dims):
            value = value.T
        row_names, further = _axis(value.index, f"{what}: its index")
        columns, _ = _axis(value.columns, f"{what}: the row of column names")
        names = {dim: one for dim, one in zip(dims, (row_names, columns), strict=True) if one is not None}
        counter = next((name for name in value.columns if UNNAMED.fullmatch(str(name)) and _counts(value[name])), None)
        if counter is not None:
            raise DataError(
                f"{what}, column {counter!r} has the row numbers, so it is probably an index that was read as data. Leave the "
                "column out, or read the file with `index_col=0`."
            )
        kinds = {dtype if isinstance(dtype, np.dtype) else None for dtype in value.dtypes}
        if not numbers or (len(kinds) == 1 and None not in kinds and value.dtypes.iloc[0].kind in "biuf"):
            return value.to_numpy(), names, further
        shown = (value.columns if columns is None else columns).tolist()
        table = [convert.column_numbers(value.iloc[:, i], f"{what}, column {shown[i]!r}") for i in range(len(shown))]
        return np.column_stack(table) if table else value.to_numpy(), names, further
    if isinstance(value, pd.Series):
        row_names, further = _axis(value.index, f"{what}: its index")
        names = {} if row_names is None or not dims else {dims[0]: row_names}
        return convert.column_numbers(value, what) if numbers else value.array, names, further
    if isinstance(value, pd.Index | pd.api.extensions.ExtensionArray) and numbers:
        return convert.column_numbers(pd.Series(value), what), {}, {}
    return value, {}, {}


def _counts(column: Any) -> bool:
    """Whether a column of a DataFrame is 0, 1, 2, ..."""
    return getattr(column, "ndim", 1) == 1 and column.tolist() == list(range(len(column)))


def _placed(
    values: Any,
    dims: Sequence[str],
    own_names: Names,
    common: dict[str, Any],
    sizes: Mapping[str, int],
    what: str,
    *,
    fixed: Mapping[str, Any] | None = None,
) -> Any:
    """Reorder values by the common names along each dim; for a dim without names, those of the values are adopted."""
    for axis, dim in enumerate(dims):
        if dim not in own_names:
            continue
        names = own_names[dim].astype(str).tolist()
        if dim not in common and dim not in sizes:
            common[dim] = own_names[dim]
            continue
        expected = common[dim].astype(str).tolist() if dim in common else [str(i) for i in range(sizes[dim])]
        if names == expected:
            continue
        if fixed is not None and dim in fixed:
            raise DataError(
                f"{what}: its {dim}s ({convert.listed(names, 3)}) differ from those in `coords` ({convert.listed(expected, 3)}); "
                f"leave {dim!r} out of `coords`, or rename the {dim}s of the array."
            )
        if sorted(names) != sorted(expected):
            if dim not in common and len(names) == len(expected):
                common[dim] = own_names[dim]
                continue
            raise DataError(
                f"{what}: its {dim}s ({convert.listed(names, 3)}) differ from those of the arrays before it "
                f"({convert.listed(expected, 3)}); use the same {dim}s, in any order."
            )
        where = {one: i for i, one in enumerate(names)}
        if len(where) == len(names):
            values = np.take(np.asarray(values), [where[one] for one in expected], axis=axis)
    return values


def _library(value: Any) -> str | None:
    """Name of the library (pandas, xarray or scipy) that defines the value's type or one of its base classes; None otherwise."""
    roots = {base.__module__.split(".")[0] for base in type(value).__mro__}
    if "scipy" in roots and not hasattr(value, "toarray"):
        return None
    return next((root for root in ("pandas", "xarray", "scipy") if root in roots), None)


def _axis(index: Any, what: str) -> tuple[np.ndarray | None, Names]:
    """Names of an index, or None if it counts from 0; and its sequence and time, from its levels or its dates."""
    import pandas as pd

    if isinstance(index, pd.MultiIndex):
        levels = [convert.names(index.get_level_values(i), what) for i in range(index.nlevels)]
        names = np.array([":".join(map(str, row)) for row in zip(*levels, strict=True)])
        return names, {str(n): v for n, v in zip(index.names, levels, strict=True) if n in ("sequence", "time")}
    if index.dtype.kind in "iu" and bool((index == np.arange(len(index))).all()):
        return None, {}
    kinds = {isinstance(one, str) for one in index}
    if len(kinds) == 2 and not index.isna().any():
        index = index.map(str)
    names = convert.names(index, what)
    return names, {"time": names} if isinstance(index, pd.DatetimeIndex | pd.PeriodIndex) else {}


def _from_xarray(value: Any, dims: Sequence[str], what: str) -> tuple[Any, Names, Names]:
    import xarray as xr

    if isinstance(value, xr.Variable):
        value = xr.DataArray(value)
    if not isinstance(value, xr.DataArray):
        raise DataError(
            f"{what} must be a DataArray; got an xarray {type(value).__name__}. Select one of its arrays, "
            "or call `.to_dataarray()`."
        )
    actual = [str(dim) for dim in value.dims]
    if actual == [f"dim_{i}" for i in range(len(dims))]:
        value = value.rename(dict(zip(value.dims, dims, strict=True)))
    elif sorted(actual) != sorted(dims):
        raise DataError(
            f"{what} has dims ({', '.join(actual)}); expected ({', '.join(dims)}), in any order; rename them by `.rename`."
        )
    value = value.transpose(*dims)
    names: Names = {}
    further: Names = {}
    for dim in dims:
        if dim in value.indexes:
            found, levels = _axis(value.indexes[dim], f"{what}: coordinate {dim!r}")
            names |= {} if found is None else {dim: found}
            further |= levels if dim == "unit" else {}
    for key, coord in value.coords.items():
        if coord.dims == ("unit",) and str(key) != "unit" and str(key) not in further and not _is_level(value, key):
            further[str(key)] = convert.names(coord.values, f"{what}: coordinate {str(key)!r}")
    return value.values, names, further


def _is_level(value: Any, key: Any) -> bool:
    index = value.indexes.get("unit")
    return index is not None and key in getattr(index, "names", ())


def _dense(value: Any, what: str) -> np.ndarray:
    """Convert a sparse array to a dense one, if it fits into half of the free memory."""
    needed, free = COPIES * 8 * int(np.prod([int(n) for n in value.shape])), Budget.of(None).n_bytes
    if needed > free:
        raise DataError(
            f"{what} is a sparse array of shape {tuple(value.shape)}. As a dense array it needs about {size(needed)}, but half "
            f"of the free memory is {size(free)}. Select fewer columns, or reduce their number, as by sklearn's TruncatedSVD."
        )
    return np.asarray(value.toarray())
