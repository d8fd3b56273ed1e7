"""Relational data, whose points refer to units by index: cells of a table of ratings, or pairs of nodes of a graph.

A point is an observation, which is a factor of the likelihood. Points are held out, cross-validated and drawn into minibatches. A
unit is an object with a latent position. Points are listed sparsely, each with the numbers of its units.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from latentlab.data import convert
from latentlab.data.memory import Budget, size
from latentlab.errors import DataError

ABSENT = ("unobserved", "zero")


class Index(NamedTuple):
    """Index from points along `dim` to units of `kind`: `values` `(point,)` are the numbers of the units, from 0."""

    dim: str
    values: np.ndarray
    kind: str


def checked_units(name: str, units: Any, index: Any, points: str) -> dict[str, np.ndarray]:
    """Check and return the names of the units by kind; 0, 1, ... if only their number is given.

    Raises:
        DataError: A kind has no units, duplicate names, or no index.
    """
    kinds = dict.fromkeys(_parts(name, key, entry)[2] for key, entry in index.items())
    if not isinstance(units, Mapping):
        example = ", ".join(f'"{kind}": ...' for kind in kinds)
        raise DataError(
            f"{name}: `units` must be a dict of the names, or the number, of the units of each kind, such as {{{example}}}; "
            f"got {type(units).__name__}."
        )
    unused = next((kind for kind in units if kind not in kinds), None)
    if unused is not None:
        raise DataError(f"{name}: no index refers to the kind {unused!r} in `units`; the indices refer to {_joined(kinds)}.")
    names_by_kind = {}
    for kind in kinds:
        if kind not in units:
            raise DataError(f"{name}: an index refers to units of the kind {kind!r}, but `units` has only {_joined(units)}.")
        if kind in (points, "unit", "latent", "chain", "draw"):
            raise DataError(
                f"{name}: {kind!r} is not a valid name of a kind of units, because it is reserved; use a name such as 'user'."
            )
        names_or_number, what = units[kind], f"{name}: units of the kind {kind!r}"
        if isinstance(names_or_number, int | np.integer) and not isinstance(names_or_number, bool):
            if names_or_number < 1:
                raise DataError(f"{what}: their number must be at least 1; got {names_or_number}.")
            names_or_number = np.arange(names_or_number)
        names = convert.names(names_or_number, what)
        if not len(names):
            raise DataError(f"{what}: the list of names is empty; expected at least one.")
        duplicate = convert.first_duplicate(names.astype(str).tolist())
        if duplicate is not None:
            raise DataError(f"{what}: {duplicate!r} occurs more than once; give each unit a unique name.")
        names_by_kind[kind] = names
    return names_by_kind


def checked_index(
    name: str, index: Any, units: Mapping[str, np.ndarray], points: str, n_points: int, *, directed: bool
) -> dict[str, Index]:
    """Check the indices of the points against the units, and return them.

    Raises:
        DataError: A dim or length is wrong, numbers are not integers or are out of range, or a point is listed twice.
    """
    indices = {}
    n_possible = math.prod(len(units[_parts(name, key, entry)[2]]) for key, entry in index.items())
    if n_possible > np.iinfo(np.int64).max:
        raise DataError(f"{name}: the number of possible {points}s is {n_possible:.2g}, which exceeds 2**63; select fewer units.")
    for key, entry in index.items():
        dim, values, kind = _parts(name, key, entry)
        what = f"{name}: index {key!r}"
        if key in units and key != kind:
            raise DataError(f"{what} refers to the kind {kind!r}, but {key!r} is the name of another kind; rename the index.")
        if dim != points:
            raise DataError(f"{what} must have the dim of the points, {points!r}; got {dim!r}.")
        numbers = convert.as_array(values, (dim,), what)
        if numbers.shape != (n_points,):
            raise DataError(f"{what} must have shape ({n_points},), the number of a unit for each {points}; got {numbers.shape}.")
        if numbers.dtype.kind not in "iu":
            raise DataError(
                f"{what} must be integers, the positions of units in `units[{kind!r}]`, from 0; got dtype {numbers.dtype}."
            )
        n = len(units[kind])
        outside = (numbers < 0) | (numbers >= n)
        if outside.any():
            at = convert.first(outside)[0]
            raise DataError(
                f"{what} is {numbers[at]} at {points} {at}, but units of the kind {kind!r} are numbered 0 to {n - 1}."
            )
        indices[key] = Index(dim, convert.sealed(numbers.astype(np.int64)), kind)
    _refuse_duplicates(name, indices, units, directed=directed)
    return indices


def _parts(name: str, key: Any, entry: Any) -> tuple[str, Any, str]:
    """Dim, values and kind of an index; the kind defaults to the name of the index."""
    if not isinstance(entry, tuple | list) or len(entry) not in (2, 3) or not isinstance(entry[0], str):
        raise DataError(
            f'{name}: index {key!r} must be (dim, numbers) or (dim, numbers, kind of units), such as ("cell", [0, 1]) '
            f'or ("pair", [0, 1], "node"); got {str(entry)[:60]}.'
        )
    return entry[0], entry[1], str(entry[2]) if len(entry) == 3 else str(key)


def _refuse_duplicates(name: str, index: Mapping[str, Index], units: Mapping[str, np.ndarray], *, directed: bool) -> None:
    if is_graph(index) and (first := next(iter(index.values()))):
        loops = np.flatnonzero(np.equal(*(one.values for one in index.values())))
        if len(loops):
            which = units[first.kind][first.values[loops[0]]]
            raise DataError(f"{name}: {first.dim} {loops[0]} connects {str(which)!r} with itself; remove such pairs.")
    keys = keys_of(index, {kind: len(names) for kind, names in units.items()}, directed=directed)
    order = np.argsort(keys, kind="stable")
    again = np.flatnonzero(np.diff(keys[order]) == 0)
    if len(again):
        i, j = sorted(order[again[0] : again[0] + 2].tolist())
        point = next(iter(index.values())).dim
        units_of_point = ", ".join(f"{key} {str(units[one.kind][one.values[i]])!r}" for key, one in index.items())
        raise DataError(
            f"{name}: the {point} ({units_of_point}) is listed more than once, at {i} and {j}; list each {point} once."
        )


def is_graph(index: Mapping[str, Index]) -> bool:
    """Whether points are pairs of units of one kind."""
    kinds = [one.kind for one in index.values()]
    return len(kinds) == 2 and kinds[0] == kinds[1]


def keys_of(index: Mapping[str, Index], sizes: Mapping[str, int], *, directed: bool) -> np.ndarray:
    """Integer key of each point; points with the same units have equal keys, in an undirected graph in either order."""
    columns = [one.values for one in index.values()]
    if is_graph(index) and not directed:
        columns = [np.minimum(*columns), np.maximum(*columns)]
    return np.ravel_multi_index(columns, [sizes[one.kind] for one in index.values()])


def every_key(index: Mapping[str, Index], sizes: Mapping[str, int], *, directed: bool) -> np.ndarray:
    """Keys of all possible points, in increasing order."""
    shape = [sizes[one.kind] for one in index.values()]
    if not is_graph(index):
        return np.arange(int(np.prod(shape)))
    if directed:
        return np.flatnonzero(~np.eye(shape[0], dtype=bool))
    return np.ravel_multi_index(np.triu_indices(shape[0], 1), shape)


def completed(dataset: Any) -> tuple[np.ndarray, dict[str, Index]]:
    """Values and indices of all possible points: 0 if a point is not listed; points with a missing value are left out.

    Raises:
        DataError: The points do not fit into memory, or there are other arrays or coordinates.
    """
    if len(dataset.arrays) > 1 or dataset.x.ndim > 1 or len(dataset.coords):
        raise DataError(
            f"{dataset.name}: `complete` requires a single array with one number for each {dataset.points}, and no coordinates."
        )
    sizes = {kind: len(names) for kind, names in dataset.units.items()}
    listed = keys_of(dataset.index, sizes, directed=dataset.directed)
    shape = [sizes[one.kind] for one in dataset.index.values()]
    needed = 8 * (2 + len(shape)) * int(np.prod(shape))
    if needed > Budget.of(None).n_bytes:
        raise DataError(
            f"{dataset.name}: all {dataset.points}s of {' x '.join(map(str, shape))} units need about {size(needed)} of "
            f"memory; half of the free memory is {size(Budget.of(None).n_bytes)}. Select fewer units."
        )
    keys = every_key(dataset.index, sizes, directed=dataset.directed)
    values = np.zeros(len(keys))
    values[np.searchsorted(keys, listed)] = dataset.x
    known = ~np.isnan(values)
    places = np.unravel_index(keys[known], shape)
    return values[known], {
        key: Index(one.dim, place.astype(np.int64), one.kind)
        for (key, one), place in zip(dataset.index.items(), places, strict=True)
    }


def matrix(dataset: Any, rows: str, columns: str) -> Any:
    """Sparse matrix of the observed values, units of the index `rows` by units of the index `columns`.

    Raises:
        DataError: An index does not exist.
    """
    for name in (rows, columns):
        if name not in dataset.index:
            raise DataError(f"{dataset.name}: unknown index {name!r}; the indices are {_joined(dataset.index)}.")
    from scipy.sparse import csr_array  # imported here: slow to import

    known = ~np.isnan(dataset.x)
    (_, i, of_rows), (_, j, of_columns) = dataset.index[rows], dataset.index[columns]
    shape = (len(dataset.units[of_rows]), len(dataset.units[of_columns]))
    return csr_array((dataset.x[known], (i[known], j[known])), shape=shape)


def not_standardised(dataset: Any) -> str:
    """Error message that a graph or counts cannot be standardised, with the remedy."""
    return (
        f"{dataset.name}: a graph or counts cannot be standardised, because {dataset.points}s that are not listed are 0; keep "
        "raw values by `standardize: false`."
    )


def recoded(new: Any, training: Any) -> dict[str, Index]:
    """Indices of the `new` points in the numbering of the units of `training`, matched by name (as text).

    Raises:
        DataError: The indices differ, only one graph is directed, or a unit is not in the training data.
    """
    if set(new.index) != set(training.index):
        raise DataError(f"{new.name}: its points must have the indices {_joined(training.index)}; got {_joined(new.index)}.")
    if new.directed != training.directed:
        words = {True: "directed", False: "undirected"}
        raise DataError(
            f"{new.name}: its {new.points}s are {words[new.directed]}, but those of the fit are {words[training.directed]}; set "
            f"`directed` to {training.directed}."
        )
    indices = {}
    for key in training.index:
        one, kind = new.index[key], training.index[key].kind
        known = {unit: i for i, unit in enumerate(training.units[kind].astype(str).tolist())}
        names = new.units[one.kind].astype(str)
        places = np.array([known.get(unit, -1) for unit in names.tolist()])
        unknown = np.unique(one.values[places[one.values] < 0])
        if len(unknown):
            raise DataError(
                f"{new.name}: {len(unknown)} units of the kind {kind!r} were not in the fit and have no positions: "
                f"{convert.listed(names[unknown].tolist(), 3)}."
            )
        indices[key] = Index(one.dim, places[one.values], kind)
    return indices


def notes(dataset: Any) -> list[str]:
    """Notes on units without points."""
    texts = []
    for kind, names in dataset.units.items():
        used = np.zeros(len(names), dtype=bool)
        for one in dataset.index.values():
            if one.kind == kind:
                used[one.values] = True
        if not used.all():
            examples = convert.listed(names[~used].astype(str).tolist(), 3)
            have = f"{(~used).sum()} of {len(names)} {kind}s {'has' if (~used).sum() == 1 else 'have'}"
            if dataset.absent == "unobserved":
                texts.append(f"{have} no observed {dataset.points}s, so only the prior determines the position ({examples}).")
            else:
                texts.append(f"{have} only {dataset.points}s with the value 0 ({examples}).")
    return texts


def _joined(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(map(repr, names)) or "none"
