"""Standardisation of columns: `(x - loc) / scale`."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from latentlab.data import convert
from latentlab.errors import DataError

NOISE = 16 * np.finfo(np.float64).eps
"""Ratio of a column's standard deviation to its largest magnitude, up to which it counts as constant."""


@dataclass(frozen=True)
class Transform:
    """Column-wise `(x - loc) / scale`, fitted to the training data (`scale` with ddof 0 by default)."""

    loc: np.ndarray
    scale: np.ndarray
    ddof: int = 0

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return (x - self.loc) / self.scale

    def inverse(self, x: np.ndarray) -> np.ndarray:
        return x * self.scale + self.loc


def moments(x: np.ndarray, axis: int, ddof: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and standard deviation along `axis`, and the standard deviation relative to the largest magnitude.

    The values are scaled by a power of two first, which is exact, so that squares neither overflow nor underflow.
    """
    keep = axis != 0
    largest = np.nanmax(np.abs(x), axis=axis, keepdims=True)
    exponent = np.frexp(largest)[1]
    scaled = np.ldexp(x, -exponent)
    loc = np.ldexp(np.nanmean(scaled, axis=axis, keepdims=True), exponent)
    sd = np.nanstd(scaled, axis=axis, ddof=ddof, keepdims=True)
    relative = sd / np.where(largest > 0, np.ldexp(largest, -exponent), 1.0)
    parts = (loc, np.ldexp(sd, exponent), relative)
    return tuple(part if keep else part[0] for part in parts)


def need_entries(dataset: Any, ddof: int) -> None:
    """Refuse a dataset whose columns have too few observed entries to be standardised.

    Raises:
        DataError: Names the column.
    """
    if isinstance(ddof, bool) or not isinstance(ddof, int) or ddof < 0:
        raise DataError(f"`ddof` must be a whole number of at least 0; got {ddof!r}.")
    if dataset.n_points < 2:
        raise DataError(f"{dataset.name}: standardising needs at least 2 {dataset.points}s; got {dataset.n_points}.")
    counts = np.atleast_1d((~np.isnan(dataset.x)).sum(dataset.point_axis))
    if counts.min() == 0:
        empty = _column(dataset, counts == 0).removeprefix(", ") or "the array"
        raise DataError(f"{dataset.name}: {empty} has no observed entries; leave it out.")
    if counts.min() <= ddof:
        few = _column(dataset, counts <= ddof)
        raise DataError(f"{dataset.name}{few}: {counts.min()} observed entries are too few for ddof = {ddof}.")


def constant_columns(dataset: Any) -> np.ndarray:
    """Mask `(column,)` of the columns of a dataset that are constant up to rounding."""
    _, scale, relative = moments(dataset.x, dataset.point_axis, 0)
    flags = (relative <= NOISE) | (scale == 0)
    return np.atleast_1d(flags.squeeze(dataset.point_axis) if dataset.point_axis else flags)


def constant_message(dataset: Any, constant: np.ndarray) -> str:
    """Error message that a dataset with constant columns cannot be standardised, with the remedy."""
    column, n_constant = _column(dataset, constant).removeprefix(", ") or "the array", int(constant.sum())
    low, high = (np.atleast_1d(of(dataset.x, dataset.point_axis)) for of in (np.nanmin, np.nanmax))
    others, rounding = "", " up to rounding" if bool((low < high)[constant].any()) else ""
    if dataset.x.ndim == 1:
        remedy = "keep raw values by `standardize: false`."
    else:
        remedy = "remove constant columns by `drop_constant: true`, or keep raw values by `standardize: false`."
    if n_constant > 1 and constant.ndim == 1:
        others = f" (also constant: {convert.listed([str(name) for name in dataset.features[constant][1:]])})"
    over = f"over the observed {dataset.points}s{rounding}"
    return f"{dataset.name}: {column} is constant {over}, so it cannot be standardised{others}; {remedy}"


def _column(dataset: Any, flags: np.ndarray) -> str:
    dims = [dim for dim in dataset.dims[dataset.observed] if dim != dataset.points]
    return convert.column(convert.first(flags.reshape(flags.shape[: len(dims)])), dims, dataset.coords) if dims else ""
