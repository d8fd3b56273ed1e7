"""What makes the parts of a dataset fit together; what does not is refused by name before anything is computed."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from latentlab.data import convert, labelled
from latentlab.errors import DataError

RESERVED = ("chain", "draw", "sample", "mask")
"""Names that results and models use themselves."""

NAME = re.compile(r"\w[^/\x00-\x1f]*")
"""Names of arrays, dims and coordinates that a netCDF file can hold."""

Dims = dict[str, tuple[str, ...]]


def checked(
    *,
    name: str,
    arrays: Mapping[str, Any],
    dims: Mapping[str, Sequence[str]],
    coords: Mapping[str, Any],
    mask: Any,
    labels: Any,
    truth: Mapping[str, Any],
    truth_dims: Mapping[str, Sequence[str]],
    dropped: Sequence[str],
) -> dict[str, Any]:
    """The parts of a dataset as read-only numpy arrays, each checked against the others.

    Raises:
        DataError: A shape, a type or a value that cannot be used; names the array and the column.
    """
    if not isinstance(name, str) or not name:
        raise DataError(f"a dataset's `name` must be text; got {name!r}.")
    named = _dims(name, arrays, dims)
    given, coords, mask, labels = labelled.plain(name, arrays, named, coords, mask, labels)
    sizes = _sizes(name, given, named, {})
    truths, truths_named = _truth(name, truth, truth_dims, named)
    known = _coords(name, coords, _sizes(name, truths, truths_named, sizes))
    observed = next(iter(given))
    seen = _mask(name, mask, given[observed].shape)
    values = {
        key: _values(array, named[key], known, f"{name}: array {key!r}", seen if key == observed else None)
        for key, array in given.items()
    }
    missing = np.isnan(values[observed])
    if missing.all():
        raise DataError(f"{name}: array {observed!r} has no observed entry.")
    for key in list(values)[1:]:
        _refuse_nan(np.isnan(values[key]), named[key], known, f"{name}: array {key!r}", "only the first array may have")
    return {
        "arrays": values,
        "dims": named,
        "coords": known,
        "mask": convert.sealed(~missing) if missing.any() else None,
        "labels": _labels(name, labels, sizes["unit"]),
        "truth": truths,
        "truth_dims": truths_named,
        "dropped": tuple(dropped),
    }


def _dims(name: str, arrays: Mapping[str, Any], dims: Mapping[str, Sequence[str]]) -> Dims:
    if not isinstance(arrays, Mapping) or not arrays:
        raise DataError(f'{name}: `arrays` must map names to arrays, as {{"x": x}}; got {type(arrays).__name__}.')
    if isinstance(dims, Mapping):
        own = {key: labelled.own_dims(value) for key, value in arrays.items() if key not in dims}
        dims = {**dims, **{key: one for key, one in own.items() if one}}
    if not isinstance(dims, Mapping) or set(dims) != set(arrays):
        raise DataError(
            f'{name}: `dims` must name the dims of each of {sorted(arrays)}, as {{"x": ("unit", "feature")}}; got {dims!r}.'
        )
    result: Dims = {}
    for key in arrays:
        given = dims[key]
        result[key] = (given,) if isinstance(given, str) else tuple(given)
    for what in (*result, *(dim for named in result.values() for dim in named if isinstance(dim, str))):
        if not isinstance(what, str) or not NAME.fullmatch(what) or what != what.strip():
            raise DataError(f"{name}: {what!r} cannot be the name of an array or a dim: begin with a letter, and leave out '/'.")
    used = {dim for named in result.values() for dim in named}
    for key, named in result.items():
        if len(set(named)) != len(named) or any(not isinstance(d, str) or not d or d in RESERVED for d in named):
            raise DataError(f"{name}: array {key!r} has dims {named}; expected distinct names, none of {RESERVED}.")
        if key in used or key in RESERVED:
            raise DataError(f"{name}: an array cannot be called {key!r}: that is the name of a dim, or reserved.")
    observed = next(iter(arrays))
    if "unit" not in result[observed]:
        raise DataError(f"{name}: array {observed!r} has dims {result[observed]}; `unit`, of the rows, must be one of them.")
    return result


def _sizes(
    name: str, arrays: Mapping[str, np.ndarray], dims: Mapping[str, Sequence[str]], known: Mapping[str, int]
) -> dict[str, int]:
    sizes = dict(known)
    for key, named in dims.items():
        for dim, size in zip(named, arrays[key].shape, strict=True):
            if sizes.setdefault(dim, size) != size:
                raise DataError(f"{name}: {key!r} has {size} {dim}s where the arrays before it have {sizes[dim]}.")
    return sizes


def _truth(
    name: str, truth: Mapping[str, Any], truth_dims: Mapping[str, Sequence[str]], dims: Dims
) -> tuple[dict[str, np.ndarray], Dims]:
    named = {key: tuple(value) for key, value in truth_dims.items()}
    absent = sorted(set(named) - set(truth))
    if absent:
        raise DataError(f"{name}: `truth_dims` names {absent[0]!r}, which is not in `truth`.")
    result = {}
    for key, value in truth.items():
        array, what = np.asarray(value), f"{name}: truth {key!r}"
        if key in dims:
            named.setdefault(key, dims[key])
        elif key == "z" and array.ndim == 2:
            named.setdefault(key, ("unit", "latent"))
        axes = named.get(key, tuple(f"axis_{i}" for i in range(array.ndim)))
        result[key] = convert.sealed(convert.numbers(convert.shaped(array, axes, what), axes, {}, what))
    return result, named


def _coords(name: str, coords: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    result = {}
    for key, value in coords.items():
        what = f"{name}: coordinate {key!r}"
        meant = [dim for dim in sizes if str(key).lower() in (dim.lower(), f"{dim.lower()}s") and key not in sizes]
        if meant:
            raise DataError(f"{what}: no array has this dim; did you mean {meant[0]!r}? The dims are {', '.join(sizes)}.")
        if not isinstance(key, str) or not NAME.fullmatch(key) or (key not in sizes and " " in key):
            raise DataError(f"{what}: its name must begin with a letter, without spaces and '/'.")
        result[key] = labels = convert.names(value, what)
        size = sizes.get(key, sizes["unit"])
        if len(labels) != size:
            along = f"{size} {key}s" if key in sizes else f"{size} units (the dims are {', '.join(sizes)})"
            raise DataError(f"{what} has {len(labels)} values for {along}.")
        if key in sizes:
            _refuse_twins(labels, what, "column" if key == "feature" else key)
    return result


def _refuse_twins(labels: np.ndarray, what: str, called: str) -> None:
    unique, counts = np.unique(labels, return_counts=True)
    if counts.max() > 1:
        twice = unique[np.argmax(counts > 1)]
        where = convert.listed(np.flatnonzero(labels == twice))
        remedy = "give each a name of its own"
        if called == "unit":
            remedy = "number the rows, as by `.reset_index(drop=True)`, if they have no names"
        raise DataError(f"{what}: {called} {twice.item()!r} is there {counts.max()} times, at positions {where}; {remedy}.")


def _mask(name: str, mask: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    if mask is None:
        return None
    seen = np.asarray(mask)
    if seen.shape != shape:
        raise DataError(f"{name}: `mask` must have the observed array's shape {shape}; got {seen.shape}.")
    if seen.dtype.kind != "b" and not (seen.dtype.kind in "iuf" and np.isin(seen, (0, 1)).all()):
        raise DataError(f"{name}: `mask` must hold truth values, True where observed; got dtype {seen.dtype}.")
    return seen.astype(bool)


def _values(
    given: np.ndarray, dims: Sequence[str], coords: Mapping[str, np.ndarray], what: str, mask: np.ndarray | None
) -> np.ndarray:
    """The array in float64, NaN where the mask says that nothing was observed."""
    values = convert.numbers(given, dims, coords, what)
    if mask is not None:
        values[~mask] = np.nan
        _refuse_nan(np.isnan(values) & mask, dims, coords, what, "the mask calls observed, but there are")
    infinite = np.isinf(values)
    if infinite.any():
        column = convert.column(convert.first(infinite), dims, coords)
        raise DataError(f"{what}{column} has infinite values ({infinite.sum()} in all); mark missing entries as NaN.")
    return convert.sealed(values)


def _refuse_nan(nan: np.ndarray, dims: Sequence[str], coords: Mapping[str, np.ndarray], what: str, why: str) -> None:
    if nan.any():
        column = convert.column(convert.first(nan), dims, coords)
        raise DataError(f"{what}{column}: {why} missing entries; {nan.sum()} are NaN.")


def _labels(name: str, labels: Any, n_units: int) -> np.ndarray | None:
    if labels is None:
        return None
    if isinstance(labels, Mapping | str):
        raise DataError(f"{name}: `labels` must be a sequence of one label for each unit; got {type(labels).__name__}.")
    result = convert.names(labels, f"{name}: `labels`")
    if len(result) != n_units:
        raise DataError(f"{name}: {len(result)} labels for {n_units} units; expected one for each.")
    return result
