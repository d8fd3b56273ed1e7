"""Embeddings of a dataset behind one call, and one's own vectors as the same thing.

An entry of the table is a function of the data, `pca(x, n_latent, *, whiten=False)`, that returns `(unit, n_latent)`. What it
takes says what it needs: `x` (a table without missing entries), `matrix` (a sparse matrix of cells), `adjacency` (that of a
graph) or `dataset`; `n_latent`, `seed` if it starts at random, `notes` (a list) if it has something to tell; all other arguments
are its options. Of data with several kinds of units it returns an array for each kind that it places, by the kind's name. The
types and ranges of options are what they are annotated with, `Annotated[int, Ge(1)]`; only what depends on the data is for the
entry itself to check.
"""

import inspect
import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from annotated_types import Ge

from latentlab.data import convert, labelled
from latentlab.data.dataset import Dataset
from latentlab.data.memory import Budget, size
from latentlab.data.relation import is_graph
from latentlab.errors import ConfigError, DataError, InferenceError, LatentLabError, unknown
from latentlab.registry import EMBEDDINGS
from latentlab.seeds import Seeds
from latentlab.settings import checked

T = TypeVar("T")

N_SEEDS = 3
"""Runs of an algorithm that starts at random, unless said."""
GIVEN = ("x", "matrix", "adjacency", "dataset", "n_latent", "seed", "notes")
"""Arguments of an entry that `embed` fills in; all others are the entry's options."""
RANGE = 400
"""Powers of two, either way, that the spread of the data may have: squares of distances are then inside the range of float64."""
TIED = 1e-8
"""Entries of a column this close to its largest one are as large: rounding must not choose the sign."""
COPIES = 5
"""A table of all pairs of units is in memory so many times while its eigenvectors are found."""


@dataclass(frozen=True, eq=False)
class Embedding:
    """Vectors of units, computed from the data or brought along.

    Args:
        name: What made it: an entry of the table, or a name of one's own.
        values: `(unit, p)`; `(seed, unit, p)` for an algorithm that starts at random. An array for each kind of units that it
            places, where the data have several.
        units: The units' names, in the order of the values; those of a DataFrame's index, or of a DataArray, unless said. By kind
            where the values are.
        label: Its name in tables and plots; `name` unless said.
        options: The options it was made with, defaults included.
        seeds: Seed of each run, if there are several.
        notes: What a reader should know: missing entries filled in, a parameter lowered, a graph in pieces.

    Raises:
        DataError: Values that are not finite numbers, of another shape, or units that are not all different.

    Example:
        >>> mine = Embedding("mine", [[0.0, 1.0], [2.0, 3.0]], units=["a", "b"])
        >>> mine, mine.reindexed(["b"]).values.tolist()
        (Embedding('mine', unit: 2, latent: 2), [[2.0, 3.0]])
        >>> Embedding("svd", {"user": [[1.0], [2.0]], "item": [[3.0]]}, {"user": ["ann", "bob"], "item": ["alien"]})
        Embedding('svd', user: 2, item: 1, latent: 1)
    """

    name: str
    values: Any
    units: Any = None
    label: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for what, text in (("name", self.name), ("label", self.label or self.name)):
            if not isinstance(text, str) or not text.strip():
                raise DataError(f"an embedding's {what} must be text; got {text!r}.")
        label = self.label or self.name
        if isinstance(self.values, Mapping):
            self._take_kinds(label)
            return
        given, units = _named(self.values, self.units, f"embedding {label!r}")
        values = _values(given, f"embedding {label!r}")
        units = convert.names(np.arange(values.shape[-2]) if units is None else units, f"embedding {label!r}: `units`")
        _check_units(values, units, f"embedding {label!r}")
        n_runs = len(values) if values.ndim == 3 else 0
        seeds = tuple(int(seed) for seed in self.seeds) or tuple(range(n_runs))
        if len(seeds) != n_runs:
            raise DataError(f"embedding {label!r}: {len(seeds)} seeds for values of shape {values.shape}.")
        checked = {"values": values, "units": units, "label": label, "options": dict(self.options), "seeds": seeds}
        for attribute, value in {**checked, "notes": tuple(self.notes)}.items():
            object.__setattr__(self, attribute, value)

    def _take_kinds(self, label: str) -> None:
        """Checks the array of each kind as an embedding of its own; all have the same columns and runs."""
        units = {} if self.units is None else self.units
        if not self.values or not isinstance(units, Mapping) or not set(units) <= set(self.values):
            kinds = ", ".join(map(repr, self.values)) or "none"
            raise DataError(
                f"embedding {label!r}: `units` must map the kinds of the values ({kinds}) to names; got {str(units)[:60]}."
            )
        parts = {
            str(kind): Embedding(self.name, array, units.get(kind), label, self.options, self.seeds, self.notes)
            for kind, array in self.values.items()
        }
        first, *others = parts.values()
        for kind, part in zip(list(parts)[1:], others, strict=True):
            ours, theirs = ((*one.values.shape[:-2], one.values.shape[-1]) for one in (first, part))
            if ours != theirs:
                raise DataError(
                    f"embedding {label!r}: all kinds must have the same columns; {next(iter(parts))!r} has {ours[-1]}, {kind!r} "
                    f"{theirs[-1]}."
                )
        found = {"values": {k: part.values for k, part in parts.items()}, "units": {k: part.units for k, part in parts.items()}}
        for attribute, value in {
            **found,
            "label": label,
            **{n: getattr(first, n) for n in ("options", "seeds", "notes")},
        }.items():
            object.__setattr__(self, attribute, value)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of units that it places, by name; none where it has one array, which is of the only kind of the data."""
        return tuple(self.values) if isinstance(self.values, dict) else ()

    def of(self, kind: str) -> "Embedding":
        """The embedding of one kind of units; itself where it has one array."""
        if not self.kinds:
            return self
        return replace(self, values=self.values[kind], units=self.units[kind])

    def __repr__(self) -> str:
        if self.kinds:
            sizes = [f"{kind}: {array.shape[-2]}" for kind, array in self.values.items()]
            return f"Embedding({self.label!r}, {', '.join(sizes)}, latent: {next(iter(self.values.values())).shape[-1]})"
        dims = ("seed", "unit", "latent")[-self.values.ndim :]
        return f"Embedding({self.label!r}, {', '.join(f'{d}: {n}' for d, n in zip(dims, self.values.shape, strict=True))})"

    def reindexed(self, units: Any) -> "Embedding":
        """The embedding of these units in this order (by kind, where it has kinds), joined by name, never by position.

        Raises:
            DataError: Units are missing; names them.
        """
        if self.kinds:
            parts = {kind: self.of(kind).reindexed(units[kind]) for kind in self.kinds}
            values, names = ({kind: getattr(part, n) for kind, part in parts.items()} for n in ("values", "units"))
            return replace(self, values=values, units=names)
        where = {name: i for i, name in enumerate(self.units.astype(str).tolist())}
        wanted = convert.names(units, f"embedding {self.label!r}: the units asked for")
        names = wanted.astype(str).tolist()
        missing = [name for name in names if name not in where]
        if missing:
            raise DataError(
                f"embedding {self.label!r} has no values for {len(missing)} of {len(names)} units: {convert.listed(missing)}; "
                f"its own are called {convert.listed(list(where), 2)}."
            )
        return replace(self, values=self.values[..., [where[name] for name in names], :], units=wanted)


def clustering(entry: T) -> T:
    """Marks an entry of the table that makes a clustering: its `n_latent` is the number of clusters."""
    entry.clustering = True  # type: ignore[attr-defined]
    return entry


def makes_clusters(name: str) -> bool:
    """Whether the entry is marked so.

    Example:
        >>> makes_clusters("kmeans"), makes_clusters("pca")
        (True, False)
    """
    return bool(getattr(EMBEDDINGS.load(name), "clustering", False))


def embed(
    name: str,
    dataset: Dataset,
    *,
    n_latent: Annotated[int, Ge(1)] = 2,
    label: str | None = None,
    n_seeds: Annotated[int, Ge(1)] | None = None,
    seed: int = 0,
    impute: Literal["mean", "error"] = "mean",
    **options: Any,
) -> Embedding:
    """An embedding of the dataset, by an entry of the table.

    What does not start at random is the same in every run, each column with its largest entry positive. What does is run
    several times, each run with a seed that depends on `seed`, the entry and the run's number alone.

    Args:
        name: An entry of `latentlab list embeddings`; `file` reads one's own vectors.
        dataset: The data.
        n_latent: Columns.
        label: Its name in tables and plots; `name` unless said.
        n_seeds: Runs, for algorithms that start at random (t-SNE, UMAP); 3 unless said.
        seed: Root of their seeds.
        impute: What to do about missing entries: put the column's mean (`mean`), or refuse (`error`).
        options: The entry's own.

    Raises:
        ConfigError: No such embedding or option, or one out of its range; names both numbers.
        DataError: Data that it cannot take.
        InferenceError: Its library gave up.
        MissingDependencyError: Its library is not installed; names package and extra.

    Example:
        >>> from latentlab.data.load import load_dataset
        >>> embed("pca", load_dataset("iris"))
        Embedding('pca', unit: 150, latent: 2)
    """
    entry, chosen = EMBEDDINGS.load(name), _options(name, options)
    if not isinstance(dataset, Dataset):
        getattr(dataset, "x", None)  # data that stay on disk refuse by themselves
        raise DataError(
            f'embedding {name!r} takes a Dataset, such as Dataset({{"x": x}}, dims={{"x": ("unit", "feature")}}); '
            f"got {type(dataset).__name__}."
        )
    common = inspect.signature(embed).parameters
    n_latent, n_seeds, label, impute = (
        _typed(name, common[option], value)
        for option, value in (("n_latent", n_latent), ("n_seeds", n_seeds), ("label", label), ("impute", impute))
    )
    seeds, takes = Seeds(seed).child("embedding", name), inspect.signature(entry).parameters
    if n_seeds is not None and "seed" not in takes:
        raise ConfigError(f"embedding {name!r} does not start at random; leave out `n_seeds` = {n_seeds}.")
    notes: list[str] = []
    given: dict[str, Any] = {"dataset": dataset, "n_latent": n_latent, "notes": notes}
    if "x" in takes:
        given["x"] = _table(name, dataset, impute, notes)
    if "matrix" in takes:
        given["matrix"] = _matrix(name, dataset)
    if "adjacency" in takes:
        given["adjacency"] = _adjacency(name, dataset, notes)
    arguments = {key: value for key, value in given.items() if key in takes} | chosen
    if "seed" in takes:
        runs = tuple(seeds.child(i).integer() for i in range(n_seeds or N_SEEDS))
        each = [_oriented(_run(name, entry, arguments | {"seed": run}, notes)) for run in runs]
        values: Any = {k: np.stack([e[k] for e in each]) for k in each[0]} if isinstance(each[0], dict) else np.stack(each)
    else:
        runs, values = (), _run(name, entry, arguments, notes)
    units = _units(name, dataset, values)
    if isinstance(values, Embedding):
        found = values.reindexed(units)
        extra = _extra(values, found)
        if extra:
            rows = f"{len(extra)} of {_n_rows(values)} rows match" if len(extra) > 1 else f"1 of {_n_rows(values)} rows matches"
            notes.append(
                f"{rows} no unit of the data and {'were' if len(extra) > 1 else 'was'} left out: {convert.listed(extra)}"
            )
        return replace(found, label=label or values.label, options=chosen, notes=(*values.notes, *notes))
    values = values if runs else _oriented(values)
    return Embedding(name, values, units, label or name, chosen, runs, tuple(dict.fromkeys(notes)))


def embedding_options(name: str) -> dict[str, inspect.Parameter]:
    """The entry's own options, from its signature.

    Example:
        >>> sorted(embedding_options("isomap"))
        ['n_neighbors']
    """
    return {k: p for k, p in inspect.signature(EMBEDDINGS.load(name)).parameters.items() if k not in GIVEN}


# -- what entries check of the data


def at_most(name: str, option: str, value: float, most: float, because: str) -> None:
    """Refuses an option that is too large for the data; the least that it may be is in the entry's signature.

    Raises:
        ConfigError: Names the embedding, the option, the most that it may be with its reason, and the value.
    """
    if most < 1 and option == "n_latent":
        raise ConfigError(
            f"embedding {name!r} has no column left to give ({because}); leave it out, or take more units or features."
        )
    if value > most:
        raise ConfigError(f"embedding {name!r}: `{option}` must be at most {round(most, 4)} ({because}); got {value}.")


def at_most_by_data(
    name: str, option: str, given: float | None, usual: float, most: float, because: str, notes: list[str]
) -> Any:
    """An option whose usual value is lowered, with a note, where the data are too few for it; a value asked for is refused.

    Raises:
        ConfigError: The value asked for is too large.
    """
    if given is not None:
        at_most(name, option, given, most, because)
        return given
    if most < usual:
        notes.append(f"{option} {usual:g} was lowered to {most:g}, {because}")
    return min(usual, most)


def all_pairs(name: str, n_units: int) -> None:
    """Refuses more units than memory holds a table of all pairs of.

    Raises:
        DataError: Names the units, the memory needed and the memory there is.
    """
    needed, free = 8 * COPIES * n_units**2, Budget.of(None).n_bytes
    if needed > free:
        raise DataError(
            f"embedding {name!r} works on all pairs of {n_units} units, which needs about {size(needed)} of memory; "
            f"half of the free memory is {size(free)}. Take fewer units, or pca, tsne or umap."
        )


# -- steps of `embed`


def _options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The entry's options, defaults included, each of the type that its signature says."""
    valid = embedding_options(name)
    for option in options:
        if option not in valid:
            common = set(inspect.signature(embed).parameters) - {"name", "dataset", "options"}
            raise ConfigError(unknown(f"option of the embedding {name!r}", option, {*valid, *common}))
    for option, parameter in valid.items():
        if parameter.default is inspect.Parameter.empty and option not in options:
            raise ConfigError(f"embedding {name!r} needs the option `{option}`.")
    return {
        option: _typed(name, parameter, options[option]) if option in options else parameter.default
        for option, parameter in valid.items()
    }


def _typed(name: str, parameter: inspect.Parameter, value: Any) -> Any:
    """The value as a config would hold it, if it is of the option's type."""
    plain = os.fspath(value) if isinstance(value, os.PathLike) else value
    kind = Any if isinstance(parameter.annotation, str) or parameter.annotation is parameter.empty else parameter.annotation
    return checked(f"embedding {name!r}", {parameter.name: kind}, {parameter.name: plain})[parameter.name]


def _table(name: str, dataset: Dataset, impute: str, notes: list[str]) -> np.ndarray:
    """The observed table `(unit, feature)`, missing entries filled in."""
    x, dims = dataset.x, dataset.dims[dataset.observed]
    if len(dims) != 2 or dims[0] != "unit":
        raise DataError(f"embedding {name!r} takes a table (unit, feature); {dataset.name} has dims ({', '.join(dims)}).")
    if len(x) < 3:
        raise DataError(f"embedding {name!r} needs at least 3 units; {dataset.name} has {len(x)}.")
    missing = np.isnan(x)
    if missing.any() and impute == "error":
        columns = convert.listed(dataset.features[missing.any(axis=0)])
        raise DataError(f"embedding {name!r}: {missing.sum()} entries are missing, in {columns}; `impute: mean` fills them in.")
    if missing.all(axis=0).any():
        columns = convert.listed(dataset.features[missing.all(axis=0)])
        raise DataError(f"embedding {name!r}: nothing was observed of {columns}; leave it out.")
    if missing.any():
        notes.append(f"{missing.sum()} missing entries ({missing.mean():.1%}) were put at their column's mean")
        x = np.where(missing, np.nanmean(x, axis=0), x)
    if (x == x[0]).all():
        raise DataError(f"embedding {name!r}: all {len(x)} units of {dataset.name} are the same: nothing varies.")
    spread = float(np.ptp(x / 2, axis=0).max())
    if abs(math.frexp(spread)[1]) > RANGE:
        raise DataError(
            f"embedding {name!r}: the largest range of a column of {dataset.name} is {2 * spread:.3g}, whose square float64 does "
            "not hold: measure it in other units, or standardise the data (`standardize: true`)."
        )
    return np.array(x)


def _matrix(name: str, dataset: Dataset) -> Any:
    """The sparse matrix of points that refer to two kinds of units."""
    kinds = {one.kind for one in dataset.index.values()}
    if len(dataset.index) != 2 or len(kinds) != 2 or dataset.x.ndim != 1:
        raise DataError(
            f"embedding {name!r} takes cells of two kinds of units, such as ratings of items by users; {dataset.name} is "
            f"{_called(dataset)}."
        )
    return dataset.matrix(*dataset.index)


def _adjacency(name: str, dataset: Dataset, notes: list[str]) -> Any:
    """The sparse adjacency matrix of a graph; pairs of which nothing is known count as not joined."""
    if not is_graph(dataset.index):
        raise DataError(f"embedding {name!r} takes a graph; {dataset.name} is {_called(dataset)}.")
    n = dataset.sizes[next(iter(dataset.kinds))]
    unknown_pairs = (n * (n - 1) if dataset.directed else n * (n - 1) // 2) - dataset.n_points
    if dataset.absent == "unobserved" and unknown_pairs:
        notes.append(f"{unknown_pairs} pairs of nodes are not known, and were taken as not joined")
    return dataset.adjacency()


def _called(dataset: Dataset) -> str:
    if not dataset.index:
        return "a table"
    what = "a graph" if is_graph(dataset.index) else f"a list of {dataset.points}s"
    return f"{what} with the kinds of units {', '.join(map(repr, dataset.kinds))}"


def _units(name: str, dataset: Dataset, values: Any) -> Any:
    """Names of the units that the values are of: by kind, where they are an array for each kind."""
    kinds = dataset.kinds
    placed = values.kinds if isinstance(values, Embedding) else tuple(values) if isinstance(values, Mapping) else ()
    if placed:
        strange = next((kind for kind in placed if kind not in kinds), None)
        if strange is not None:
            raise DataError(f"embedding {name!r} places units of the kind {strange!r}; {dataset.name} is {_called(dataset)}.")
        return {kind: kinds[kind] for kind in placed}
    if len(kinds) > 1:
        raise DataError(
            f"embedding {name!r} has one array, and {dataset.name} is {_called(dataset)}: give an array for each kind that it "
            "places."
        )
    return next(iter(kinds.values()))


def _extra(given: Embedding, found: Embedding) -> list[Any]:
    """Units of an embedding that were left out when it was joined with the data."""
    pairs = [(given.of(kind), found.of(kind)) for kind in given.kinds or ("",)]
    known = [set(of.units.astype(str).tolist()) for _, of in pairs]
    return [unit for (one, _), names in zip(pairs, known, strict=True) for unit in one.units.tolist() if str(unit) not in names]


def _n_rows(embedding: Embedding) -> int:
    return sum(len(embedding.of(kind).units) for kind in embedding.kinds or ("",))


def _run(name: str, entry: Any, arguments: dict[str, Any], notes: list[str]) -> Any:
    """The entry's result, the random state and the warnings' filters left as they were."""
    state = np.random.get_state()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = entry(**arguments)
    except LatentLabError:
        raise
    except MemoryError as error:
        raise DataError(f"embedding {name!r} does not fit into memory; take fewer units.") from error
    except Exception as error:
        said, known = " ".join(str(error).split()), isinstance(error, ValueError | ArithmeticError | RuntimeError)
        why = said if said and known else ": ".join(filter(None, [type(error).__name__, said]))
        raise InferenceError(f"embedding {name!r} failed: {why}") from error
    finally:
        np.random.set_state(state)
    # What else libraries warn of is how they were called, not what they found.
    notes += [" ".join(str(one.message).split()) for one in caught if one.category.__name__ == "ConvergenceWarning"]
    arrays = [] if isinstance(result, Embedding) else list(result.values()) if isinstance(result, Mapping) else [result]
    odd = next((one for one in arrays if np.ndim(one) != 2), None)
    if odd is not None:
        raise InferenceError(f"embedding {name!r} must give an array (unit, latent); got one of shape {np.shape(odd)}.")
    return result


def _oriented(values: Any) -> Any:
    """Each column, over all kinds of units, with its largest entry positive: eigenvectors have no sign of their own."""
    if isinstance(values, Mapping):
        turned = _oriented(np.concatenate(list(values.values())))
        ends = np.cumsum([len(one) for one in values.values()])
        return dict(zip(values, np.split(turned, ends[:-1]), strict=True))
    values = np.asarray(values, dtype=np.float64)
    sizes = np.abs(values)
    first = (sizes >= (1 - TIED) * sizes.max(axis=0)).argmax(axis=0)
    return values * np.where(values[first, np.arange(values.shape[1])] < 0, -1.0, 1.0)


# -- checks of an embedding


def _named(given: Any, units: Any, what: str) -> tuple[Any, Any]:
    """Values without names of their own, and the units' names, theirs unless said."""
    dims = ("seed", "unit", "latent") if getattr(given, "ndim", 2) == 3 else ("unit", "latent")
    values, own, _ = labelled.opened(given, dims, what)
    if "unit" not in own:
        if units is None and values is given:
            raise DataError(f"{what}: `units` must name the units, in the order of the values.")
        return values, units
    if units is None:
        return values, own["unit"]
    theirs = convert.names(units, f"{what}: `units`").astype(str).tolist()
    if theirs != own["unit"].astype(str).tolist():
        raise DataError(
            f"{what}: its values have units of their own, and `units` names others, or in another order: leave it out."
        )
    return values, units


def _values(given: Any, what: str) -> np.ndarray:
    """Values as a read-only float64 array of two or three dims."""
    array = convert.as_array(given, ("unit", "latent"), what)
    if array.ndim not in (2, 3) or not array.size:
        raise DataError(f"{what}: its values must have shape (unit, p) or (seed, unit, p); got {array.shape}.")
    return convert.sealed(convert.numbers(array, ("seed", "unit", "latent")[-array.ndim :], {}, what))


def _check_units(values: np.ndarray, units: np.ndarray, what: str) -> None:
    if len(units) != values.shape[-2]:
        raise DataError(f"{what}: values of {values.shape[-2]} units, and names of {len(units)}.")
    twice = convert.repeated(units.astype(str).tolist())
    if twice is not None:
        raise DataError(f"{what}: unit {twice!r} is there more than once.")
    bad = ~np.isfinite(values).all(axis=-1).reshape(-1, len(units)).all(axis=0)
    if bad.any():
        raise DataError(f"{what}: {bad.sum()} units have values that are not finite: {convert.listed(units[bad])}.")
