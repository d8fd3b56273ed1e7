"""Data sets drawn from a model, and what of them is looked at."""

import inspect
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from latentlab.data.dataset import Dataset
from latentlab.errors import ModelError
from latentlab.inference.draws import Method
from latentlab.models.base import LatentModel
from latentlab.results.convergence import is_constant
from latentlab.results.quantities import entry
from latentlab.seeds import Seeds

LEVEL = 0.001
"""False-alarm rate of a table: 1 sound model and method in 1000 fails it."""
N_FEATURES = 4
"""Of data sets, where `simulate` asks how many."""
N_ENTRIES = 6
"""Entries of the invariants that are looked at; `chosen` says which."""
N_JOINT = 2
"""Entries that are also looked at together with the data."""
MOMENTS = ("mean of x", "mean of x^2", "mean of steps^2")
"""Moments of the data: the mean of the first column; mean squares of all entries, and of the steps from a unit to the next."""


def check_simulated(model: LatentModel, method: Method) -> None:
    if model.parameters:
        raise ModelError(f"calibration is of a posterior under a prior, and the parameters of {model.name!r} have neither.")
    if method.kind == "point":
        raise ModelError(f"calibration is of draws from a posterior; {method.name!r} gives a point, which has no spread.")
    if method.name not in model.methods:
        raise ModelError(f"method {method.name!r} does not go with model {model.name!r}; methods: {', '.join(model.methods)}.")


def simulated(model: LatentModel, n_datasets: int, n_units: int, seeds: Seeds) -> list[Dataset]:
    """Data sets from `simulate`, each by its own branch of the seeds; with `N_FEATURES` features where it asks how many.

    Raises:
        ModelError: The model cannot simulate.
    """
    options = {"n_features": N_FEATURES} if "n_features" in inspect.signature(model.simulate).parameters else {}
    try:
        return [model.simulate(seeds.child("data", i).numpy(), n_units, **options) for i in range(n_datasets)]
    except NotImplementedError as error:
        raise ModelError(f"{model.name!r} cannot be checked against itself: it has no `simulate`.") from error


def stacked_truth(model: LatentModel, datasets: Sequence[Dataset]) -> dict[str, np.ndarray]:
    """The true values of all sites, `(data set, *site)`.

    Raises:
        ModelError: `simulate` gives none for a site.
    """
    lacking = [name for name in model.dims if name not in datasets[0].truth]
    if lacking:
        raise ModelError(f"`simulate` of {model.name!r} gives no true value of {', '.join(lacking)}.")
    return {name: np.stack([np.asarray(dataset.truth[name]) for dataset in datasets]) for name in model.dims}


def chosen(quantities: Mapping[str, np.ndarray], sites: Iterable[str]) -> tuple[list[str], list[np.ndarray]]:
    """Names and values `(chain, draw)` of `N_ENTRIES` entries that vary.

    The sites take turns, and after them the pairs of sites; a site gives the first entry of each of its quantities, then the
    second of each, and so on.
    """
    turns: dict[tuple[str, ...], list[tuple[int, int, str, tuple[int, ...]]]] = {}
    for order, (name, array) in enumerate(quantities.items()):
        about = tuple(site for site in sites if site in re.findall(r"\w+", name))
        indices = np.argwhere(~is_constant(array)).tolist()  # of a number, one empty index
        turns.setdefault(about, []).extend((k, order, name, tuple(index)) for k, index in enumerate(indices))
    queues = [sorted(turns[about]) for about in sorted(turns, key=len)]
    rounds = itertools.chain.from_iterable(itertools.zip_longest(*queues))
    taken = [one for one in rounds if one is not None][:N_ENTRIES]
    names = [entry(name, index, {}) for _, _, name, index in taken]
    return names, [quantities[name].astype(np.float64)[:, :, *index] for _, _, name, index in taken]


def moments(datasets: Sequence[Dataset]) -> np.ndarray:
    """The `MOMENTS` of each data set, over what was observed, `(data set, moment)`."""
    return data_moments(np.stack([dataset.x for dataset in datasets]))


def data_moments(x: np.ndarray) -> np.ndarray:
    table = x.reshape(*x.shape[:2], -1)
    found = [_mean(table[..., 0]), _mean(table**2), _mean(np.diff(table, axis=1) ** 2)]
    return np.stack(found, axis=-1)


def _mean(x: np.ndarray) -> np.ndarray:
    """Of each data set's entries that are no NaN; 0 where there are none."""
    flat = x.reshape(len(x), -1)
    return np.asarray(np.nansum(flat, axis=1) / np.maximum((~np.isnan(flat)).sum(axis=1), 1))
