"""The result of a fit as one `xarray.DataTree` in ArviZ's schema: draws, data and statistics by group, every shape checked."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from latentlab.data.dataset import Dataset
from latentlab.data.memory import blocks, by_quantity
from latentlab.errors import ModelError

SAMPLE_DIMS = ("chain", "draw")
"""First dims of arrays of draws."""
LEFT_OUT = "log_p_left_out"
"""Array of the group `leave_one_out`: log p(unit | all others) in a series, or log p(sequence | all others) if several."""
GUIDE_PARAMETERS = "guide_parameters"
"""Group of parameters that only the guide has."""
WITHOUT_DRAWS = ("observed_data", "constant_data", "parameters", GUIDE_PARAMETERS)
"""Groups whose arrays have no draws."""
RESTARTS = "restarts"
"""Group of the sites' values at the end of each restart of an optimiser."""
SCALARS = ("sample_stats", "log_prior")
"""Groups with one number per draw, independent of the site's dims."""
OPTIMIZATION = {
    "loss": ("restart", "step"),
    "elbo": ("restart",),
    "log_joint": ("restart",),
    "gradient": ("restart",),
    "log_likelihood": ("step",),
    "maxima": ("restart",),
}
"""Dims of the arrays of the group `optimization`."""


def build(
    groups: Mapping[str, Mapping[str, Any]],
    *,
    dims: Mapping[str, Sequence[str]],
    coords: Mapping[str, Any] | None = None,
    along: Mapping[str, Mapping[str, Any]] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> xr.DataTree:
    """Build a DataTree of draws, data and statistics by group, and check every shape against its dims.

    Arrays are `(chain, draw, *site)`; in `sample_stats` and `log_prior` `(chain, draw)`; in `observed_data`, `constant_data` and
    `parameters` without chain and draw; in `restarts` `(restart, *site)`; in `optimization` as in `OPTIMIZATION`. Every dim of
    every group gets explicit coordinates, counting from 0 where `coords` has none.

    Args:
        groups: Group -> name -> array.
        dims: Dims of each name, without chain, draw and restart.
        coords: Dim, or name of a further coordinate along `unit` (`time`) -> labels.
        along: Dim -> name -> labels of further coordinates along it; left out where the name is a dim of the group.
        attrs: Text, numbers and arrays; stored at the root and in `posterior`.

    Raises:
        ModelError: A shape contradicts its dims, a name has no dims or is the name of a dim, or netCDF has no such type;
            names group, site and shape.

    Example:
        >>> tree = build({"posterior": {"W": np.zeros((4, 10, 3, 2))}}, dims={"W": ("feature", "latent")},
        ...              coords={"feature": ["a", "b", "c"]}, attrs={"method": "nuts"})
        >>> tree["posterior"]["W"].dims, tree["posterior"]["feature"].values.tolist()
        (('chain', 'draw', 'feature', 'latent'), ['a', 'b', 'c'])
    """
    plain = {name: _attribute(name, value) for name, value in (attrs or {}).items()}
    nodes = {"/": xr.Dataset(attrs=plain)}
    for group, arrays in groups.items():
        if arrays:
            nodes[group] = _group(group, arrays, dims, coords or {}, along or {})
    if "posterior" in nodes:
        nodes["posterior"] = nodes["posterior"].assign_attrs(plain)
    return xr.DataTree.from_dict(nodes)


def _group(
    group: str,
    arrays: Mapping[str, Any],
    dims: Mapping[str, Sequence[str]],
    coords: Mapping[str, Any],
    along: Mapping[str, Mapping[str, Any]],
) -> xr.Dataset:
    variables: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
    sizes: dict[str, tuple[int, str]] = {}
    for site, values in arrays.items():
        where = f"group {group!r}, site {site!r}"
        array, named = _plain(values, where), _site_dims(group, site, dims, where)
        if array.ndim != len(named):
            raise ModelError(f"{where}: expected the dims ({', '.join(named)}); got shape {array.shape}.")
        for dim, n in zip(named, array.shape, strict=True):
            if sizes.setdefault(dim, (n, site))[0] != n:
                raise ModelError(f"{where}: shape {array.shape} has size {n} of {dim!r}; {sizes[dim][1]!r} has {sizes[dim][0]}.")
        variables[site] = (named, array)
    known_dims = {dim for named in dims.values() for dim in named} | set(sizes) | set(SAMPLE_DIMS)
    labels: dict[str, tuple[tuple[str, ...], np.ndarray]] = {dim: ((dim,), np.arange(n)) for dim, (n, _) in sizes.items()}
    placed = [(key if key in known_dims else "unit", key, values) for key, values in coords.items()]
    placed += [(dim, key, values) for dim, named in along.items() for key, values in named.items() if key not in sizes]
    for dim, key, values in placed:
        if dim in sizes:
            labels[key] = ((dim,), _plain(values, f"coordinate {key!r}"))
            if labels[key][1].shape != (sizes[dim][0],):
                raise ModelError(
                    f"group {group!r}, coordinate {key!r}: expected {sizes[dim][0]} labels along {dim!r}, as in "
                    f"{sizes[dim][1]!r}; got shape {labels[key][1].shape}."
                )
    clash = next((name for name in variables if name in known_dims or name in labels), None)
    if clash is not None:
        raise ModelError(f"group {group!r}: a site must not have the name of a dim or a coordinate; got {clash!r}.")
    return xr.Dataset(variables, coords=labels)


def _site_dims(group: str, site: str, dims: Mapping[str, Sequence[str]], where: str) -> tuple[str, ...]:
    if group == "optimization":
        if site not in OPTIMIZATION:
            raise ModelError(f"{where}: unknown array; valid: {', '.join(OPTIMIZATION)}.")
        return OPTIMIZATION[site]
    if group in SCALARS:
        return SAMPLE_DIMS
    if site not in dims:
        raise ModelError(f"{where}: no dims are declared; sites with dims: {', '.join(sorted(dims)) or 'none'}.")
    if group == RESTARTS:
        return ("restart", *dims[site])
    return tuple(dims[site]) if group in WITHOUT_DRAWS else (*SAMPLE_DIMS, *dims[site])


def _plain(value: Any, where: str) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind == "O" and all(isinstance(item, str) for item in array.flat):
        array = array.astype(str)
    if array.dtype.kind not in "biufU":
        raise ModelError(f"{where}: expected numbers, booleans or text; got {array.dtype}.")
    return array


def _attribute(name: str, value: Any) -> Any:
    if isinstance(value, bool | np.bool_):
        return int(value)
    if isinstance(value, str | int | float | np.integer | np.floating):
        return value
    if isinstance(value, list | tuple | np.ndarray) and np.asarray(value).dtype.kind in "iuf":
        return np.asarray(value)
    raise ModelError(f"attribute {name!r} must be text, a number or an array of numbers; got {type(value).__name__}.")


def kinds(tree: xr.DataTree) -> tuple[str, ...]:
    """Kinds of units in the result."""
    return tuple(str(tree.attrs.get("units", "unit")).split(", "))


def arrays(tree: xr.DataTree, group: str) -> dict[str, np.ndarray]:
    """Arrays of a group by name; empty if there is no such group."""
    return {str(name): array.values for name, array in tree[group].data_vars.items()} if group in tree.children else {}


def parameters_of(tree: xr.DataTree) -> dict[str, np.ndarray]:
    """Parameters of the program and of the guide by name; empty if there are none."""
    return {**arrays(tree, "parameters"), **arrays(tree, GUIDE_PARAMETERS)}


def unit_coords(array: np.ndarray, dataset: Dataset) -> dict[str, np.ndarray]:
    """Coordinates of an array `(chain, draw, unit, ...)`."""
    return {"chain": np.arange(array.shape[0]), "draw": np.arange(array.shape[1]), "unit": dataset.units}


def point_coords(array: np.ndarray, dataset: Dataset) -> dict[str, Any]:
    """Coordinates of an array `(chain, draw, point)`: the names of a table's units, or of the units of each point."""
    if not dataset.index:
        return unit_coords(array, dataset)
    draws = {"chain": np.arange(array.shape[0]), "draw": np.arange(array.shape[1])}
    return draws | {name: (dataset.points, names) for name, names in dataset.point_names().items()}


def mean_of_draws(array: xr.DataArray) -> np.ndarray:
    """Mean of draws `(chain, draw, ...)` over chains and draws, computed by blocks of the other entries."""
    values = array.values
    flat = values.reshape(*values.shape[:2], -1)
    return by_quantity(lambda part: part.mean(axis=(0, 1)), flat).reshape(values.shape[2:])


def covariance_of_draws(array: xr.DataArray, mean: np.ndarray) -> np.ndarray:
    """Covariance `(unit, latent, latent)` of draws `(chain, draw, unit, latent)` with this mean, computed by blocks of units."""
    z, parts = array.values, []
    flat = z.reshape(-1, *z.shape[2:])
    for part in blocks(z.shape[2], len(flat) * z.shape[3]):
        error = flat[:, part] - mean[part]
        parts.append(np.einsum("snk,snl->nkl", error, error))
    return np.concatenate(parts) / max(1, len(flat) - 1)
