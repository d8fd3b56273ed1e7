"""Validation of the parts of a dataset and of their consistency."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from latentlab.data import convert, labelled, relation
from latentlab.errors import DataError

RESERVED = ("chain", "draw", "sample", "mask")
"""Names that are reserved for results and models."""

NAME = re.compile(r"\w[^/\x00-\x1f]*")
"""Names of arrays, dims and coordinates that are valid in a netCDF file."""

Dims = dict[str, tuple[str, ...]]


def checked(  # one keyword for each part of a dataset
    *,
    name: str,
    arrays: Mapping[str, Any],
    dims: Mapping[str, Sequence[str]],
    units: Any,
    index: Mapping[str, Any],
    coords: Mapping[str, Any],
    mask: Any,
    labels: Any,
    truth: Mapping[str, Any],
    truth_dims: Mapping[str, Sequence[str]],
    dropped: Sequence[str],
    absent: str,
    directed: bool,
) -> dict[str, Any]:
    """Check the parts of a dataset against each other, and return them as read-only NumPy arrays.

    Raises:
        DataError: A shape, a type or a value is invalid; names the array and the column.
    """
    if not isinstance(name, str) or not name:
        raise DataError(f"`name` of a dataset must be nonempty text; got {name!r}.")
    _check_options(name, index, absent, directed)
    named = _dims(name, arrays, dims, index)
    observed = next(iter(arrays))
    points = named[observed][0] if index else "unit"
    if not index:
        coords = _named_units(name, units, coords)
    plain_arrays, coords, mask, unit_labels = labelled.plain(name, arrays, named, coords, mask, None if index else labels)
    sizes = _sizes(name, plain_arrays, named, {})
    truths, truths_named = _truth(name, truth, truth_dims, named)
    kinds = relation.checked_units(name, units, index, points) if index else {}
    known_sizes = {**sizes, **{kind: len(names) for kind, names in kinds.items()}}
    known = _coords(name, coords, _sizes(name, truths, truths_named, known_sizes), points, kinds)
    places = relation.checked_index(name, index, kinds, points, sizes[points], directed=directed) if index else {}
    is_observed = _mask(name, mask, plain_arrays[observed].shape)
    values = {
        key: _values(array, named[key], known, f"{name}: array {key!r}", is_observed if key == observed else None)
        for key, array in plain_arrays.items()
    }
    missing = np.isnan(values[observed])
    if missing.all():
        raise DataError(f"{name}: array {observed!r} has no observed entries.")
    if index and missing.any() and absent == "unobserved":
        at = convert.first(missing)[0]
        raise DataError(f"{name}: {points} {at} has no value; list only observed {points}s.")
    for key in list(values)[1:]:
        _refuse_nan(
            np.isnan(values[key]), named[key], known, f"{name}: array {key!r}", "only the first array may have missing entries"
        )
    return {
        "arrays": values,
        "dims": named,
        "units": kinds if index else known.get("unit", np.arange(sizes["unit"])),
        "index": places,
        "coords": known,
        "mask": convert.sealed(~missing) if missing.any() else None,
        "labels": _labels_by_kind(name, labels, kinds) if index else _labels(name, unit_labels, sizes["unit"]),
        "truth": truths,
        "truth_dims": truths_named,
        "dropped": tuple(dropped),
    }


def _check_options(name: str, index: Any, absent: Any, directed: Any) -> None:
    if not isinstance(index, Mapping):
        raise DataError(f'{name}: `index` must be a dict such as {{"user": ("cell", [0, 1])}}; got {index!r:.60}.')
    if absent not in relation.ABSENT:
        raise DataError(f"{name}: `absent` must be {' or '.join(map(repr, relation.ABSENT))}; got {absent!r}.")
    if not isinstance(directed, bool):
        raise DataError(f"{name}: `directed` must be true or false; got {directed!r}.")
    if (absent != "unobserved" or directed) and not index:
        raise DataError(f"{name}: `absent` and `directed` require an `index`, but a table has no index; leave them out.")


def _named_units(name: str, units: Any, coords: Mapping[str, Any]) -> Mapping[str, Any]:
    """Add the names of a table's units to the coordinates; units numbered 0, 1, ... stay unnamed."""
    if isinstance(units, Mapping):
        other = next((kind for kind in units if kind != "unit"), None)
        if other is not None:
            raise DataError(f"{name}: no index refers to the kind {other!r} in `units`; add an `index` for it.")
        units = units.get("unit")
    if units is None:
        return coords
    names = convert.names(units, f"{name}: `units`")
    if names.dtype.kind in "iu" and np.array_equal(names, np.arange(len(names))):
        return coords
    unit_names = convert.names(coords["unit"], f"{name}: coordinate 'unit'") if "unit" in coords else names
    if not np.array_equal(unit_names.astype(str), names.astype(str)):
        raise DataError(f"{name}: `units` and the coordinate 'unit' have different names; give only one of them.")
    return {**coords, "unit": unit_names}


def _dims(name: str, arrays: Mapping[str, Any], dims: Mapping[str, Sequence[str]], index: Mapping[str, Any]) -> Dims:
    if not isinstance(arrays, Mapping) or not arrays:
        raise DataError(f'{name}: `arrays` must be a nonempty dict such as {{"x": x}}; got {type(arrays).__name__}.')
    if isinstance(dims, Mapping):
        implied = {key: labelled.own_dims(value) for key, value in arrays.items() if key not in dims}
        dims = {**dims, **{key: one for key, one in implied.items() if one}}
    if not isinstance(dims, Mapping) or set(dims) != set(arrays):
        raise DataError(
            f"{name}: `dims` must list the dims of each array ({', '.join(arrays)}), "
            f'such as {{"x": ("unit", "feature")}}; got {dims!r}.'
        )
    result: Dims = {}
    for key in arrays:
        names = dims[key]
        result[key] = (names,) if isinstance(names, str) else tuple(names)
    for what in (*result, *(dim for named in result.values() for dim in named if isinstance(dim, str))):
        if not isinstance(what, str) or not NAME.fullmatch(what) or what != what.strip():
            raise DataError(
                f"{name}: {what!r} is not a valid name of an array or dim; it must begin with a letter, digit or '_' and contain "
                "no '/'."
            )
    used = {dim for named in result.values() for dim in named}
    for key, named in result.items():
        if len(set(named)) != len(named) or any(not isinstance(d, str) or not d or d in RESERVED for d in named):
            raise DataError(
                f"{name}: array {key!r} has dims {named}; expected distinct names other than the reserved {', '.join(RESERVED)}."
            )
        if key in used or key in RESERVED:
            raise DataError(f"{name}: {key!r} is not a valid name of an array, because it is the name of a dim or reserved.")
    observed = next(iter(arrays))
    if index:
        if not result[observed] or "unit" in used:
            raise DataError(
                f"{name}: with an `index`, the first dim of array {observed!r} must be the dim of the points, such as 'cell' or "
                f"'pair', and no dim may have the name 'unit'; got {result[observed]}."
            )
        for key in index:
            if not isinstance(key, str) or not NAME.fullmatch(key) or key in used or key in result or key in RESERVED:
                raise DataError(
                    f"{name}: {key!r} is not a valid name of an index, because it is the name of an array or dim, or reserved."
                )
    elif "unit" not in result[observed]:
        raise DataError(
            f"{name}: the dims of array {observed!r} must include 'unit', the dim of the rows; got {result[observed]}."
        )
    return result


def _sizes(
    name: str, arrays: Mapping[str, np.ndarray], dims: Mapping[str, Sequence[str]], known: Mapping[str, int]
) -> dict[str, int]:
    sizes = dict(known)
    for key, named in dims.items():
        for dim, size in zip(named, arrays[key].shape, strict=True):
            if sizes.setdefault(dim, size) != size:
                raise DataError(f"{name}: {key!r} has {size} {dim}s, but the arrays before it have {sizes[dim]}.")
    return sizes


def _truth(
    name: str, truth: Mapping[str, Any], truth_dims: Mapping[str, Sequence[str]], dims: Dims
) -> tuple[dict[str, np.ndarray], Dims]:
    named = {key: tuple(value) for key, value in truth_dims.items()}
    absent = sorted(set(named) - set(truth))
    if absent:
        raise DataError(f"{name}: {absent[0]!r} is in `truth_dims`, but not in `truth`.")
    result = {}
    for key, value in truth.items():
        if not isinstance(key, str) or not NAME.fullmatch(key):
            raise DataError(
                f"{name}: {key!r} is not a valid name in `truth`; it must begin with a letter, digit or '_' and contain no '/'."
            )
        array, what = np.asarray(value), f"{name}: truth {key!r}"
        if key in dims:
            named.setdefault(key, dims[key])
        elif key == "z" and array.ndim == 2:
            named.setdefault(key, ("unit", "latent"))
        axes = named.get(key, tuple(f"axis_{i}" for i in range(array.ndim)))
        result[key] = convert.sealed(convert.numbers(convert.shaped(array, axes, what), axes, {}, what))
    return result, named


def _coords(
    name: str, coords: Mapping[str, Any], sizes: Mapping[str, int], points: str, kinds: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    result = {}
    for key, value in coords.items():
        what = f"{name}: coordinate {key!r}"
        if key in kinds:
            raise DataError(f"{what}: {key!r} is a kind of units; pass the names of its units as `units`.")
        similar = [dim for dim in sizes if str(key).lower() in (dim.lower(), f"{dim.lower()}s") and key not in sizes]
        if similar:
            raise DataError(f"{what}: no array has this dim; did you mean {similar[0]!r}? The dims are {', '.join(sizes)}.")
        if not isinstance(key, str) or not NAME.fullmatch(key) or (key not in sizes and " " in key):
            raise DataError(f"{what}: its name must begin with a letter, digit or '_' and contain no spaces or '/'; got {key!r}.")
        result[key] = labels = convert.names(value, what)
        size = sizes.get(key, sizes[points])
        if len(labels) != size:
            expected = f"{size} {key}s" if key in sizes else f"{size} {points}s (the dims are {', '.join(sizes)})"
            raise DataError(f"{what} has {len(labels)} values for {expected}.")
        if key in sizes:
            _refuse_duplicates(labels, what, "column" if key == "feature" else key)
    return result


def _refuse_duplicates(labels: np.ndarray, what: str, noun: str) -> None:
    unique, counts = np.unique(labels, return_counts=True)
    if counts.max() > 1:
        duplicate = unique[np.argmax(counts > 1)]
        where = convert.listed(np.flatnonzero(labels == duplicate))
        remedy = "give each column a unique name" if noun == "column" else f"give each {noun} a unique name"
        if noun == "unit":
            remedy += ", or number the rows, as by `.reset_index(drop=True)`"
        raise DataError(f"{what}: {noun} {duplicate.item()!r} occurs {counts.max()} times, at positions {where}; {remedy}.")


def _mask(name: str, mask: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    if mask is None:
        return None
    flags = np.asarray(mask)
    if flags.shape != shape:
        raise DataError(f"{name}: `mask` must have the observed array's shape {shape}; got {flags.shape}.")
    if flags.dtype.kind != "b" and not (flags.dtype.kind in "iuf" and np.isin(flags, (0, 1)).all()):
        raise DataError(f"{name}: `mask` must be an array of booleans, True for observed entries; got dtype {flags.dtype}.")
    return flags.astype(bool)


def _values(
    array: np.ndarray, dims: Sequence[str], coords: Mapping[str, np.ndarray], what: str, mask: np.ndarray | None
) -> np.ndarray:
    """Convert the array to float64, with NaN for the entries that the mask marks as missing."""
    values = convert.numbers(array, dims, coords, what)
    if mask is not None:
        values[~mask] = np.nan
        _refuse_nan(np.isnan(values) & mask, dims, coords, what, "entries that the mask marks as observed must not be missing")
    infinite = np.isinf(values)
    if infinite.any():
        column = convert.column(convert.first(infinite), dims, coords)
        raise DataError(f"{what}{column} has infinite values ({infinite.sum()} in the array); code missing entries as NaN.")
    return convert.sealed(values)


def _refuse_nan(nan: np.ndarray, dims: Sequence[str], coords: Mapping[str, np.ndarray], what: str, rule: str) -> None:
    if nan.any():
        column = convert.column(convert.first(nan), dims, coords)
        raise DataError(f"{what}{column}: {rule}; {nan.sum()} are NaN.")


def _labels(name: str, labels: Any, n_units: int) -> np.ndarray | None:
    if labels is None:
        return None
    if isinstance(labels, Mapping | str):
        raise DataError(f"{name}: `labels` must be a sequence of one label for each unit; got {type(labels).__name__}.")
    result = convert.names(labels, f"{name}: `labels`")
    if len(result) != n_units:
        raise DataError(f"{name}: {len(result)} labels for {n_units} units; expected one label for each unit.")
    return result


def _labels_by_kind(name: str, labels: Any, kinds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray] | None:
    """Labels by kind of units; a plain sequence labels the only kind."""
    if labels is None:
        return None
    if not isinstance(labels, Mapping):
        if len(kinds) > 1:
            raise DataError(
                f"{name}: `labels` must be a dict with a label for each unit, by kind ({', '.join(kinds)}); "
                f"got a {type(labels).__name__}."
            )
        labels = dict.fromkeys(kinds, labels)
    unknown = next((kind for kind in labels if kind not in kinds), None)
    if unknown is not None:
        raise DataError(f"{name}: `labels` has the unknown kind {unknown!r}; the kinds of units are {', '.join(kinds)}.")
    found = {kind: _labels(f"{name}, {kind}", one, len(kinds[kind])) for kind, one in labels.items()}
    return {kind: one for kind, one in found.items() if one is not None}


def like(dataset: Any, data: Any) -> dict[str, Any]:
    """Return new raw values with the dims of `dataset` as a dict, under the name of its observed array.

    Raises:
        DataError: The data are not an array, or `dataset` has further arrays or an index.
    """
    dims = dataset.dims[dataset.observed]
    is_array = any(hasattr(data, one) for one in ("__array__", "toarray", "to_pandas")) or isinstance(data, list | tuple)
    if not is_array:
        getattr(data, "raw", None)  # a `StoredDataset` raises an error here
        shape = ", ".join(f"n_{dim}s" for dim in dims)
        raise DataError(
            f"new data must be a `Dataset`, a DataFrame, a DataArray or an array ({shape}) of raw values; "
            f"got {type(data).__name__}."
        )
    if len(dataset.arrays) > 1 or dataset.index:
        others = ", ".join([*dataset.arrays, *(f"{name} (an index)" for name in dataset.index)])
        raise DataError(f"new data must be a `Dataset` with the arrays {others}; got {type(data).__name__}.")
    if len(dims) == 2 and getattr(data, "ndim", 2) == 1 and hasattr(data, "to_frame"):
        data = data.to_frame().T  # a row of a DataFrame is one unit
    return {dataset.observed: data}
