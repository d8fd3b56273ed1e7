"""Embeddings of a dataset behind one call, and one's own vectors as the same thing."""

import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from latentlab.data.dataset import Dataset
from latentlab.errors import ConfigError, DataError, InferenceError, LatentLabError, unknown
from latentlab.registry import EMBEDDINGS
from latentlab.seeds import Seeds

SHOWN = 5
N_SEEDS = 3
"""Runs of an algorithm that starts at random, unless said."""
GIVEN = ("x", "dataset", "n_latent", "seed", "notes")
"""Arguments of an entry that `embed` fills in; all others are the entry's options."""


@dataclass(frozen=True, eq=False)
class Embedding:
    """Vectors of units, computed from the data or brought along.

    Args:
        name: What made it: an entry of the table, or a name of one's own.
        values: `(unit, p)`; `(seed, unit, p)` for an algorithm that starts at random.
        units: The units' names, in the order of the values.
        label: Its name in tables and plots; `name` unless said.
        options: The options it was made with, defaults included.
        seeds: Seed of each run, if there are several.
        notes: What a reader should know: missing entries filled in, a parameter lowered, a graph in pieces.

    Raises:
        DataError: Values that are not finite numbers, of another shape, or units that are not all different.

    Example:
        >>> mine = Embedding("mine", [[0.0, 1.0], [2.0, 3.0]], units=["a", "b"])
        >>> mine.reindexed(["b"]).values.tolist()
        [[2.0, 3.0]]
    """

    name: str
    values: Any
    units: Any
    label: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise DataError(f"an embedding's name must be text; got {self.name!r}.")
        what = f"embedding {self.label or self.name!r}"
        try:
            values = np.array(self.values, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise DataError(f"{what}: its values are no numbers: {error}") from error
        if values.ndim not in (2, 3) or not values.size:
            raise DataError(f"{what}: its values must have shape (unit, p) or (seed, unit, p); got {values.shape}.")
        units = np.asarray(self.units)
        if units.shape != (values.shape[-2],):
            raise DataError(f"{what}: {values.shape[-2]} rows and units of shape {units.shape}.")
        names, counts = np.unique(units.astype(str), return_counts=True)
        if (counts > 1).any():
            raise DataError(f"{what}: unit {str(names[counts > 1][0])!r} is there {counts.max()} times.")
        finite = np.isfinite(values).all(axis=-1)
        bad = ~(finite if values.ndim == 2 else finite.all(axis=0))
        if bad.any():
            raise DataError(f"{what}: {int(bad.sum())} units have values that are not finite: {_listed(units[bad])}.")
        seeds = tuple(self.seeds) or (tuple(range(len(values))) if values.ndim == 3 else ())
        if len(seeds) != (len(values) if values.ndim == 3 else 0):
            raise DataError(f"{what}: {len(seeds)} seeds for values of shape {values.shape}.")
        values.flags.writeable = False
        for attribute, value in (("values", values), ("units", units), ("seeds", seeds), ("label", self.label or self.name)):
            object.__setattr__(self, attribute, value)

    def reindexed(self, units: Sequence[Any] | np.ndarray) -> "Embedding":
        """The embedding of these units in this order, joined by name (compared as text), never by position.

        Raises:
            DataError: Units are missing; names them.
        """
        where = {name: i for i, name in enumerate(self.units.astype(str).tolist())}
        wanted = np.asarray(units)
        names = wanted.astype(str).tolist()
        missing = [name for name in names if name not in where]
        if missing:
            raise DataError(
                f"embedding {self.label!r} has no values for {len(missing)} of {len(names)} units: {_listed(missing)}."
            )
        index = [where[name] for name in names]
        return replace(self, values=self.values[..., index, :], units=wanted)


def embed(
    name: str,
    dataset: Dataset,
    *,
    n_latent: int = 2,
    label: str | None = None,
    n_seeds: int | None = None,
    seed: int = 0,
    impute: Literal["mean", "error"] = "mean",
    **options: Any,
) -> Embedding:
    """An embedding of the dataset, by an entry of the table.

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
        MissingDependencyError: Its library is not installed; names package and extra.

    Example:
        >>> from latentlab.data.load import load_dataset
        >>> embed("pca", load_dataset("iris")).values.shape
        (150, 2)
    """
    entry = EMBEDDINGS.load(name)
    valid = embedding_options(name)
    for option in options:
        if option not in valid:
            common = {"label", "n_latent", "n_seeds", "seed", "impute"}
            raise ConfigError(unknown(f"option of the embedding {name!r}", option, {*valid, *common}))
    _check_common(name, n_latent=n_latent, n_seeds=n_seeds, impute=impute)
    parameters = inspect.signature(entry).parameters
    seeded = "seed" in parameters
    if n_seeds is not None and not seeded:
        raise ConfigError(f"embedding {name!r} does not start at random; leave out n_seeds = {n_seeds}.")
    notes: list[str] = []
    given: dict[str, Any] = {"dataset": dataset} if "dataset" in parameters else {"x": _table(name, dataset, impute, notes)}
    given |= {key: value for key, value in {"n_latent": n_latent, "notes": notes}.items() if key in parameters}
    runs = [Seeds(seed).child("embedding", name, i).integer() for i in range(n_seeds or N_SEEDS)] if seeded else [None]
    found = [_run(name, entry, {**given, **options, **({} if run is None else {"seed": run})}) for run in runs]
    made = {key: options.get(key, parameter.default) for key, parameter in valid.items()}
    if isinstance(found[0], Embedding):
        return replace(found[0], label=label or found[0].label, options=made)
    values = np.stack([_oriented(v) for v in found]) if seeded else _oriented(found[0])
    own_seeds = tuple(int(run) for run in runs if run is not None)
    return Embedding(name, values, dataset.units, label or name, made, own_seeds, tuple(dict.fromkeys(notes)))


def embedding_options(name: str) -> dict[str, inspect.Parameter]:
    """The entry's own options, from its signature.

    Example:
        >>> sorted(embedding_options("isomap"))
        ['n_neighbors']
    """
    return {k: p for k, p in inspect.signature(EMBEDDINGS.load(name)).parameters.items() if k not in GIVEN}


def whole(name: str, option: str, value: object, low: int, high: float = np.inf, because: str = "") -> None:
    """Refuses what is not a whole number from `low` to `high`.

    Raises:
        ConfigError: Names the embedding, the option, the range with its reason, and the value.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value <= high:
        span = f"from {low}" + (f" to {int(high)}" if np.isfinite(high) else "")
        raise ConfigError(f"embedding {name!r}: `{option}` must be a whole number {span}{because}; got {value!r}.")


def positive(name: str, option: str, value: object) -> None:
    """Refuses what is not a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < np.inf:
        raise ConfigError(f"embedding {name!r}: `{option}` must be a finite number above 0; got {value!r}.")


def _check_common(name: str, *, n_latent: int, n_seeds: int | None, impute: str) -> None:
    whole(name, "n_latent", n_latent, 1)
    if n_seeds is not None:
        whole(name, "n_seeds", n_seeds, 1)
    if impute not in ("mean", "error"):
        raise ConfigError(f"embedding {name!r}: `impute` must be 'mean' or 'error'; got {impute!r}.")


def _table(name: str, dataset: Dataset, impute: str, notes: list[str]) -> np.ndarray:
    """The observed table `(unit, feature)`, missing entries filled in."""
    x = dataset.x
    if x.ndim != 2 or dataset.dims[dataset.observed][0] != "unit":
        raise DataError(f"embedding {name!r} takes a table (unit, feature); {dataset.name} has shape {x.shape}.")
    if len(x) < 3:
        raise DataError(f"embedding {name!r} needs at least 3 units; {dataset.name} has {len(x)}.")
    missing = np.isnan(x)
    if not missing.any():
        return x.copy()
    if impute == "error":
        columns = dataset.features[missing.any(axis=0)]
        raise DataError(
            f"embedding {name!r}: {int(missing.sum())} entries are missing, in {_listed(columns)}; impute: mean fills them."
        )
    notes.append(f"{int(missing.sum())} missing entries were put at their column's mean")
    return np.where(missing, np.nanmean(x, axis=0), x)


def _run(name: str, entry: Any, arguments: dict[str, Any]) -> Any:
    """The entry's result, the random state and the warnings' filters left as they were."""
    state = np.random.get_state()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return entry(**arguments)
    except LatentLabError:
        raise
    except (ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
        raise InferenceError(f"embedding {name!r} failed: {str(error).strip().splitlines()[0]}") from error
    finally:
        np.random.set_state(state)


def _oriented(values: np.ndarray) -> np.ndarray:
    """Each column with its largest entry positive: eigenvectors have no sign of their own."""
    values = np.asarray(values, dtype=np.float64)
    largest = np.take_along_axis(values, np.abs(values).argmax(axis=0)[None], axis=0)
    return values * np.where(largest < 0, -1.0, 1.0)


def _listed(names: Any) -> str:
    shown = ", ".join(str(name) for name in list(names)[:SHOWN])
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
