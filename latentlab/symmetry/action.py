"""Action of matrices on named arrays: along every axis of a site that is the group's dim."""

import math
from collections.abc import Callable

import numpy as np

from latentlab.errors import InferenceError, ModelError
from latentlab.symmetry.group import NEXT, Dims, Values

Transform = Callable[[np.ndarray], np.ndarray]
"""Function from rows `(..., m, q)` to rows; may add leading axes."""


def site_dims(site: str, value: np.ndarray, dims: Dims) -> tuple[str, ...]:
    """Return the dims of a site, which are the last axes of its array; `next_state` counts as `state`.

    Raises:
        ModelError: The site has no dims, or its array has fewer axes than dims.
    """
    if site not in dims:
        raise ModelError(f"site '{site}' has no dims; `dims` names {', '.join(sorted(dims)) or 'nothing'}.")
    if value.ndim < len(dims[site]):
        raise ModelError(f"site '{site}' has dims {tuple(dims[site])}, its array only {value.ndim} axes.")
    return tuple(dim.removeprefix(NEXT) for dim in dims[site])


def acted(values: Values, dims: Dims, dim: str) -> list[str]:
    """Return the sites that have `dim`, in the order of `values`."""
    return [site for site, value in values.items() if dim in site_dims(site, np.asarray(value), dims)]


def through_axes(site: str, value: np.ndarray, dims: Dims, dim: str, size: int, transform: Transform) -> np.ndarray:
    """Apply `transform` along every axis of the site that is `dim`, to rows `(*lead, m, q)`.

    Raises:
        ModelError: The sizes of the axis and of the element differ.
    """
    names = site_dims(site, value, dims)
    for axis, name in enumerate(names):
        if name != dim:
            continue
        n_lead = value.ndim - len(names)
        moved = np.moveaxis(value, n_lead + axis, -1)
        if moved.shape[-1] != size:
            raise ModelError(f"site '{site}' has {moved.shape[-1]} along '{dim}', the group's element {size}.")
        rest = moved.shape[n_lead:-1]
        turned = transform(moved.reshape(*moved.shape[:n_lead], math.prod(rest), size))
        turned = turned.reshape(*turned.shape[:-2], *rest, size)
        value = np.moveaxis(turned, -1, turned.ndim - len(names) + axis)
    return value


def rows(site: str, values: Values, dims: Dims, dim: str) -> np.ndarray:
    """Return a site as float64 rows `(*lead, m, q)`: the axis `dim` last, the other dims flattened.

    Raises:
        ModelError: The site does not exist, or does not have exactly one axis `dim`.
    """
    if site not in values:
        raise ModelError(f"there is no site '{site}' to align on; there are {', '.join(sorted(values)) or 'none'}.")
    value = np.asarray(values[site], dtype=np.float64)
    names = site_dims(site, value, dims)
    if names.count(dim) != 1:
        raise ModelError(f"site '{site}' must have one axis '{dim}'; its dims are {names}.")
    n_lead = value.ndim - len(names)
    moved = np.moveaxis(value, n_lead + names.index(dim), -1)
    return moved.reshape(*moved.shape[:n_lead], math.prod(moved.shape[n_lead:-1]), moved.shape[-1])


def finite_rows(site: str, values: Values, dims: Dims, dim: str) -> np.ndarray:
    """Return a site as `rows` does, and refuse values that are not finite.

    Raises:
        InferenceError: The site contains NaN or inf.
    """
    x = rows(site, values, dims, dim)
    if not np.isfinite(x).all():
        raise InferenceError(f"site '{site}' has values that are not finite; draws cannot be aligned on it.")
    return x


def site_shape(x: np.ndarray, site: str, values: Values, dims: Dims, dim: str) -> np.ndarray:
    """Reshape rows `(m, q)` to the shape of the site."""
    names = site_dims(site, np.asarray(values[site]), dims)
    own = np.asarray(values[site]).shape[-len(names) :]
    rest = [n for n, name in zip(own, names, strict=True) if name != dim]
    return np.moveaxis(x.reshape(*rest, x.shape[-1]), -1, names.index(dim))
