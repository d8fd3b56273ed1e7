"""Whether two fits have the same data on the same scale, so that their densities may be compared."""

import json
from collections.abc import Collection, Mapping

import numpy as np
import xarray as xr

from latentlab.errors import DataError
from latentlab.results.tree import arrays

SAME = 1e-9
"""Relative difference up to which two values of the data are equal."""


def check_same_data(trees: Mapping[str, xr.DataTree]) -> None:
    """Checks that all fits have the same data on the same scale.

    Raises:
        DataError: Two fits differ; the message names them and the difference.
    """
    (first, one), *others = trees.items()
    for name, other in others:
        differs = data_difference(one, other)
        if differs:
            raise DataError(f"{first!r} and {name!r} cannot be compared: {differs}.")


def _point_names(observed: xr.DataArray, points: str, index: Collection[str]) -> np.ndarray:
    """Returns the names of the points: the units of a table, or the units that each point refers to by `index`."""
    indexed = [observed[name].values.astype(str).tolist() for name in index]
    if not indexed:
        return observed[points].values.astype(str)
    return np.array([" – ".join(names) for names in zip(*indexed, strict=True)])


def data_difference(a: xr.DataTree, b: xr.DataTree) -> str:
    """Returns the reason why the data of two fits differ; empty if they are the same."""
    x, y = (next(iter(one["observed_data"].data_vars.values())) for one in (a, b))
    if x.name != y.name or x.dims != y.dims:
        return f"different data: {x.name} {tuple(map(str, x.dims))} and {y.name} {tuple(map(str, y.dims))}"
    if x.shape != y.shape:
        return f"different data: shapes {x.shape} and {y.shape}"
    points = str(a.attrs.get("points", "unit"))
    index, other = (list(json.loads(str(one.attrs.get("index", "{}")))) for one in (a, b))
    if sorted(index) != sorted(other) or points != str(b.attrs.get("points", "unit")):
        return f"different data: {points}s with the indices {', '.join(index) or 'none'} and {', '.join(other) or 'none'}"
    units = [_point_names(one, points, index) for one in (x, y)]
    if (units[0] != units[1]).any():
        i = int((units[0] != units[1]).argmax())
        return f"different data: {points} {i} is {str(units[0][i])!r} in the first fit and {str(units[1][i])!r} in the second"
    if not np.allclose(x.values, y.values, rtol=SAME, atol=0, equal_nan=True):
        if (np.isnan(x.values) != np.isnan(y.values)).any():
            return "different data: entries that are missing in one fit are observed in the other"
        columns = [np.moveaxis(v.values, v.dims.index(points), 0).reshape(v.sizes[points], -1) for v in (x, y)]
        if _rescaled(*columns):
            return (
                "the data are on different scales (for example standardised and raw), and their densities are not comparable; "
                "use the same `standardize` in all fits"
            )
        same = np.isclose(x.values, y.values, rtol=SAME, atol=0, equal_nan=True)
        return f"different data: {int((~same).sum())} of {x.size} values differ"
    fixed = [arrays(one, "constant_data") for one in (a, b)]
    for name in sorted(set(fixed[0]) & set(fixed[1])):
        if not _same(fixed[0][name], fixed[1][name]):
            return f"different data: {name!r} differs"
    return ""


def _same(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether two arrays are equal, numbers up to rounding."""
    if x.shape != y.shape or x.dtype.kind != "f" or y.dtype.kind != "f":
        return np.array_equal(x, y)
    return np.allclose(x, y, rtol=SAME, atol=0, equal_nan=True)


def _rescaled(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether each column of y is a + b x for the same column x, up to rounding."""
    for u, v in zip(x.T, y.T, strict=True):
        observed = ~np.isnan(u)
        u, v = (w[observed] - w[observed].mean() if observed.any() else w[observed] for w in (u, v))
        size = float(u @ u)
        residual = v - (float(u @ v) / size) * u if size else v
        if np.abs(residual).max(initial=0.0) > 1e-6 * np.abs(v).max(initial=0.0) + 1e-12:
            return False
    return True
