"""Embeddings of a dataset by one function, which also reads a user's own vectors.

An entry of the registry is a function of the data, such as `pca(x, n_latent, *, whiten=False)`, that returns `(unit, n_latent)`.
The form of the data is chosen by an argument's name: `x` (a table without missing entries), `matrix` (a sparse matrix of cells),
`adjacency` (the sparse matrix of a graph) or `dataset`. Other arguments that `embed` supplies are `n_latent`, `seed` (for random
starts) and `notes` (a list to append to). All further arguments are options; annotations such as `Annotated[int, Ge(1)]` declare
their types and ranges. An entry itself checks only requirements that depend on the data. For data with several kinds of units it
returns a dict with an array for each kind that it embeds; an entry that takes `matrix` returns the pair of arrays of its rows and
of its columns.
"""

import inspect
import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge

from latentlab.data import convert
from latentlab.data.dataset import Dataset
from latentlab.data.relation import is_graph
from latentlab.embeddings.embedding import Embedding
from latentlab.embeddings.entry import RANGE
from latentlab.errors import ConfigError, DataError, InferenceError, LatentLabError, unknown
from latentlab.registry import EMBEDDINGS
from latentlab.seeds import Seeds
from latentlab.settings import checked

N_SEEDS = 3
"""Default number of runs of an algorithm with random starts."""
SUPPLIED = ("x", "matrix", "adjacency", "dataset", "n_latent", "seed", "notes")
"""Arguments of an entry that `embed` supplies; all others are the entry's options."""
TIE_TOLERANCE = 1e-8
"""Relative tolerance within which magnitudes tie with a column's largest, so that rounding does not choose the sign."""


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
    """Compute an embedding of the dataset by an entry of the registry.

    The sign of each computed column makes its entry of largest magnitude positive. An algorithm with random starts runs `n_seeds`
    times; the seed of a run depends only on `seed`, the entry and the number of the run.

    Args:
        name: An entry of `latentlab list embeddings`; `file` reads a user's own vectors.
        dataset: The data.
        n_latent: Number of columns.
        label: Name in tables and plots; `name` by default.
        n_seeds: Number of runs of an algorithm with random starts, such as t-SNE or k-means; 3 by default.
        seed: Root seed of the runs.
        impute: Treatment of missing entries: `mean` imputes the column's mean, `error` raises an error.
        options: Options of the entry.

    Raises:
        ConfigError: The embedding or an option does not exist, or an option is out of its range.
        DataError: The embedding does not accept these data.
        InferenceError: The embedding's algorithm or library failed.
        MissingDependencyError: A library is not installed; the message names package and extra.

    Example:
        >>> from latentlab.data.load import load_dataset
        >>> embed("pca", load_dataset("iris"))
        Embedding('pca', unit: 150, latent: 2)
    """
    entry, chosen = EMBEDDINGS.load(name), _options(name, options)
    if not isinstance(dataset, Dataset):
        getattr(dataset, "x", None)  # a `StoredDataset` raises its own error here
        raise DataError(
            f'embedding {name!r}: `dataset` must be a Dataset, such as Dataset({{"x": x}}, dims={{"x": ("unit", "feature")}}); '
            f"got {type(dataset).__name__}."
        )
    common = inspect.signature(embed).parameters
    n_latent, n_seeds, label, impute = (
        _typed(name, common[option], value)
        for option, value in (("n_latent", n_latent), ("n_seeds", n_seeds), ("label", label), ("impute", impute))
    )
    seeds, parameters = Seeds(seed).child("embedding", name), inspect.signature(entry).parameters
    if n_seeds is not None and "seed" not in parameters:
        raise ConfigError(f"embedding {name!r} has no random starts; leave out `n_seeds` = {n_seeds}.")
    notes: list[str] = []
    supplied: dict[str, Any] = {"dataset": dataset, "n_latent": n_latent, "notes": notes}
    if "x" in parameters:
        supplied["x"] = _table(name, dataset, impute, notes)
    if "matrix" in parameters:
        supplied["matrix"] = _matrix(name, dataset)
    pair = [index.kind for index in dataset.index.values()] if "matrix" in parameters else []
    if "adjacency" in parameters:
        supplied["adjacency"] = _adjacency(name, dataset, notes)
    arguments = {key: value for key, value in supplied.items() if key in parameters} | chosen
    if "seed" in parameters:
        runs = tuple(seeds.child(i).integer() for i in range(n_seeds or N_SEEDS))
        each = [_oriented(_run(name, entry, arguments | {"seed": run}, notes, pair)) for run in runs]
        values: Any = {k: np.stack([e[k] for e in each]) for k in each[0]} if isinstance(each[0], dict) else np.stack(each)
    else:
        runs, values = (), _run(name, entry, arguments, notes, pair)
    units = _units(name, dataset, values)
    if isinstance(values, Embedding):
        found = values.reindexed(units)
        extra = _extra(values, found)
        if extra:
            rows, do = f"{len(extra)} of {_n_rows(values)} rows", "do" if len(extra) > 1 else "does"
            notes.append(
                f"{rows} {do} not match any unit of the data, and "
                f"{'were' if len(extra) > 1 else 'was'} removed: {convert.listed(extra)}"
            )
        return replace(found, label=label or values.label, options=chosen, notes=(*values.notes, *notes))
    values = values if runs else _oriented(values)
    return Embedding(name, values, units, label or name, chosen, runs, tuple(dict.fromkeys(notes)))


def embedding_options(name: str) -> dict[str, inspect.Parameter]:
    """Return the options of an entry, from its signature.

    Example:
        >>> sorted(embedding_options("isomap"))
        ['n_neighbors']
    """
    return {k: p for k, p in inspect.signature(EMBEDDINGS.load(name)).parameters.items() if k not in SUPPLIED}


def _options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the entry, defaults included; given values are checked against the types in its signature."""
    valid = embedding_options(name)
    for option in options:
        if option not in valid:
            common = set(inspect.signature(embed).parameters) - {"name", "dataset", "options"}
            raise ConfigError(unknown(f"option of the embedding {name!r}", option, {*valid, *common}))
    for option, parameter in valid.items():
        if parameter.default is inspect.Parameter.empty and option not in options:
            raise ConfigError(f"embedding {name!r} requires the option `{option}`.")
    return {
        option: _typed(name, parameter, options[option]) if option in options else parameter.default
        for option, parameter in valid.items()
    }


def _typed(name: str, parameter: inspect.Parameter, value: Any) -> Any:
    """Check a value against the option's type; paths are first converted to text, as in a config."""
    plain = os.fspath(value) if isinstance(value, os.PathLike) else value
    kind = Any if isinstance(parameter.annotation, str) or parameter.annotation is parameter.empty else parameter.annotation
    return checked(f"embedding {name!r}", {parameter.name: kind}, {parameter.name: plain})[parameter.name]


def _table(name: str, dataset: Dataset, impute: str, notes: list[str]) -> np.ndarray:
    """Return the observed table `(unit, feature)`, with missing entries imputed."""
    x, dims = dataset.x, dataset.dims[dataset.observed]
    if len(dims) != 2 or dims[0] != "unit":
        raise DataError(f"embedding {name!r} requires a table (unit, feature); {dataset.name} has dims ({', '.join(dims)}).")
    if len(x) < 3:
        raise DataError(f"embedding {name!r} needs at least 3 units; {dataset.name} has {len(x)}.")
    missing = np.isnan(x)
    if missing.any() and impute == "error":
        columns = convert.listed(dataset.features[missing.any(axis=0)])
        raise DataError(f"embedding {name!r}: {missing.sum()} entries are missing, in {columns}; set `impute: mean`.")
    if missing.all(axis=0).any():
        columns = convert.listed(dataset.features[missing.all(axis=0)])
        raise DataError(f"embedding {name!r}: no entries of {columns} were observed; leave out such columns.")
    if missing.any():
        notes.append(f"{missing.sum()} missing entries ({missing.mean():.1%}) were imputed by the column mean")
        x = np.where(missing, np.nanmean(x, axis=0), x)
    if (x == x[0]).all():
        raise DataError(f"embedding {name!r}: all {len(x)} units of {dataset.name} are identical.")
    spread = float(np.ptp(x / 2, axis=0).max())
    if abs(math.frexp(spread)[1]) > RANGE:
        raise DataError(
            f"embedding {name!r}: the largest range of a column of {dataset.name} is {2 * spread:.3g}, and its square is "
            "outside the range of float64. Use other units of measurement, or standardise the data (`standardize: true`)."
        )
    return np.array(x)


def _matrix(name: str, dataset: Dataset) -> Any:
    """Return the sparse matrix of points that refer to two kinds of units."""
    kinds = {one.kind for one in dataset.index.values()}
    if len(dataset.index) != 2 or len(kinds) != 2 or dataset.x.ndim != 1:
        raise DataError(
            f"embedding {name!r} requires two kinds of units, such as ratings of items by users; {dataset.name} is "
            f"{_described(dataset)}."
        )
    return dataset.matrix(*dataset.index)


def _adjacency(name: str, dataset: Dataset, notes: list[str]) -> Any:
    """Return the sparse adjacency matrix of a graph; unobserved pairs count as unconnected."""
    if not is_graph(dataset.index):
        raise DataError(f"embedding {name!r} requires a graph; {dataset.name} is {_described(dataset)}.")
    n = dataset.sizes[next(iter(dataset.kinds))]
    unknown_pairs = (n * (n - 1) if dataset.directed else n * (n - 1) // 2) - dataset.n_points
    if dataset.absent == "zero":
        unknown_pairs = int(np.isnan(dataset.x).sum())
    if unknown_pairs:
        notes.append(f"{unknown_pairs} unobserved pairs of nodes were treated as unconnected")
    return dataset.adjacency()


def _described(dataset: Dataset) -> str:
    if not dataset.index:
        return "a table"
    what = "a graph" if is_graph(dataset.index) else f"a list of {dataset.points}s"
    return f"{what} with the kinds of units {', '.join(map(repr, dataset.kinds))}"


def _units(name: str, dataset: Dataset, values: Any) -> Any:
    """Names of the embedded units; a dict by kind if there is an array for each kind."""
    kinds = dataset.kinds
    embedded = values.kinds if isinstance(values, Embedding) else tuple(values) if isinstance(values, Mapping) else ()
    if embedded:
        other = next((kind for kind in embedded if kind not in kinds), None)
        if other is not None:
            raise DataError(f"embedding {name!r} has units of the kind {other!r}, but {dataset.name} is {_described(dataset)}.")
        return {kind: kinds[kind] for kind in embedded}
    if len(kinds) > 1:
        raise DataError(
            f"embedding {name!r} has a single array, but {dataset.name} is {_described(dataset)}; return a dict with an array "
            "for each embedded kind."
        )
    return next(iter(kinds.values()))


def _extra(original: Embedding, matched: Embedding) -> list[Any]:
    """Units of an embedding that were left out when it was matched with the units of the data."""
    pairs = [(original.of(kind), matched.of(kind)) for kind in original.kinds or ("",)]
    known = [set(part.units.astype(str).tolist()) for _, part in pairs]
    return [unit for (one, _), names in zip(pairs, known, strict=True) for unit in one.units.tolist() if str(unit) not in names]


def _n_rows(embedding: Embedding) -> int:
    return sum(len(embedding.of(kind).units) for kind in embedding.kinds or ("",))


def _run(name: str, entry: Any, arguments: dict[str, Any], notes: list[str], pair: list[str]) -> Any:
    """Run the entry, then restore NumPy's random state and the warning filters.

    A pair of arrays, of the rows and the columns of a matrix, becomes a dict by the kinds `pair` of their units.
    """
    state = np.random.get_state()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = entry(**arguments)
    except LatentLabError:
        raise
    except MemoryError as error:
        raise DataError(f"embedding {name!r} does not fit into memory; select fewer units.") from error
    except Exception as error:
        text, is_common = " ".join(str(error).split()), isinstance(error, ValueError | ArithmeticError | RuntimeError)
        reason = text if text and is_common else ": ".join(filter(None, [type(error).__name__, text]))
        raise InferenceError(f"embedding {name!r} failed: {reason}") from error
    finally:
        np.random.set_state(state)
    # Warnings of other categories concern how a library was called, not its result.
    notes += [" ".join(str(one.message).split()) for one in caught if one.category.__name__ == "ConvergenceWarning"]
    if pair and isinstance(result, tuple | list):
        if len(result) != 2:
            raise InferenceError(
                f"embedding {name!r} must return a pair of arrays, of rows and of columns; got {len(result)} arrays."
            )
        result = dict(zip(pair, result, strict=True))
    arrays = [] if isinstance(result, Embedding) else list(result.values()) if isinstance(result, Mapping) else [result]
    invalid = next((one for one in arrays if np.ndim(one) != 2), None)
    if invalid is not None:
        raise InferenceError(f"embedding {name!r} must return an array (unit, latent); got shape {np.shape(invalid)}.")
    return result


def _oriented(values: Any) -> Any:
    """Flip signs so that each column's entry of largest magnitude, over all kinds of units, is positive."""
    if isinstance(values, Mapping):
        oriented = _oriented(np.concatenate(list(values.values())))
        ends = np.cumsum([len(one) for one in values.values()])
        return dict(zip(values, np.split(oriented, ends[:-1]), strict=True))
    values = np.asarray(values, dtype=np.float64)
    sizes = np.abs(values)
    first = (sizes >= (1 - TIE_TOLERANCE) * sizes.max(axis=0)).argmax(axis=0)
    return values * np.where(values[first, np.arange(values.shape[1])] < 0, -1.0, 1.0)
