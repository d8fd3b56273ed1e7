"""Data sets drawn from a model, and the quantities that the calibration checks test."""

import inspect
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from latentlab.data.dataset import Dataset
from latentlab.errors import DataError, ModelError
from latentlab.inference.draws import Method
from latentlab.models.base import LatentModel
from latentlab.models.networks import weights
from latentlab.results.convergence import is_constant
from latentlab.results.quantities import entry
from latentlab.seeds import Seeds

LEVEL = 0.001
"""False-alarm rate of a table: the probability that a correct model and method fail it."""
N_FEATURES = 4
"""Number of features, if `simulate` has the argument `n_features`."""
N_ENTRIES = 6
"""Number of tested entries of the invariants; `select_entries` selects them."""
N_JOINT = 2
"""Number of entries that are also tested jointly with the moments of the data."""
MOMENTS = ("mean of x", "mean of x^2", "mean of steps^2")
"""Moments of the data: mean of the first column, mean square of all entries, mean squared difference of successive units."""


def check_simulated(model: LatentModel, method: Method) -> None:
    if without_prior := {**model.parameters, **weights(model)}:
        names = ", ".join(without_prior)
        raise ModelError(f"calibration requires a prior on every unknown; parameters of {model.name!r} without a prior: {names}.")
    if method.kind == "point":
        raise ModelError(f"`method` must give posterior draws; got {method.name!r}, which gives a point estimate.")
    if method.name not in model.methods:
        supported = ", ".join(model.methods)
        raise ModelError(f"model {model.name!r} does not support the method {method.name!r}; supported: {supported}.")


def simulated(model: LatentModel, n_datasets: int, n_units: int, seeds: Seeds) -> list[Dataset]:
    """Draws data sets from `simulate`, each with its own branch of the seeds; `n_features` is `N_FEATURES`.

    Raises:
        ModelError: The model cannot simulate.
        DataError: The data sets differ in shape.
    """
    options = {"n_features": N_FEATURES} if "n_features" in inspect.signature(model.simulate).parameters else {}
    try:
        datasets = [model.simulate(seeds.child("data", i).numpy(), n_units, **options) for i in range(n_datasets)]
    except NotImplementedError as error:
        raise ModelError(f"{model.name!r} cannot be calibrated: it has no `simulate`.") from error
    first, *others = ({name: array.shape for name, array in {**one.arrays, **one.truth}.items()} for one in datasets)
    other = next((shapes for shapes in others if shapes != first), None)
    if other is not None:
        raise DataError(f"`simulate` of {model.name!r} must return data sets of the same shape; got {first} and {other}.")
    return datasets


def stacked_truth(model: LatentModel, datasets: Sequence[Dataset]) -> dict[str, np.ndarray]:
    """Stacks the true values of all sites, `(data set, *site)`.

    Raises:
        ModelError: `simulate` does not return the true value of a site.
    """
    missing = [name for name in model.dims if name not in datasets[0].truth]
    if missing:
        raise ModelError(f"`simulate` of {model.name!r} must return true values of all sites; missing: {', '.join(missing)}.")
    return {name: np.stack([np.asarray(dataset.truth[name]) for dataset in datasets]) for name in model.dims}


def select_entries(quantities: Mapping[str, np.ndarray], sites: Iterable[str]) -> tuple[list[str], list[np.ndarray]]:
    """Selects `N_ENTRIES` entries that are not constant, or all if there are fewer; returns names and values `(chain, draw)`.

    Entries are taken in rounds: one from each site, then one from each pair of sites. Within a site, the first entry of each of
    its quantities comes before the second of any.
    """
    by_sites: dict[tuple[str, ...], list[tuple[int, int, str, tuple[int, ...]]]] = {}
    for order, (name, array) in enumerate(quantities.items()):
        sites_in_name = tuple(site for site in sites if site in re.findall(r"\w+", name))
        indices = np.argwhere(~is_constant(array)).tolist()  # a scalar has one index, the empty tuple
        by_sites.setdefault(sites_in_name, []).extend((k, order, name, tuple(index)) for k, index in enumerate(indices))
    queues = [sorted(by_sites[sites_in_name]) for sites_in_name in sorted(by_sites, key=len)]
    rounds = itertools.chain.from_iterable(itertools.zip_longest(*queues))
    selected = [candidate for candidate in rounds if candidate is not None][:N_ENTRIES]
    names = [entry(name, index, {}) for _, _, name, index in selected]
    return names, [quantities[name].astype(np.float64)[:, :, *index] for _, _, name, index in selected]


def moments(datasets: Sequence[Dataset]) -> np.ndarray:
    """Computes the `MOMENTS` of each data set over its observed entries, `(data set, moment)`."""
    return data_moments(np.stack([dataset.x for dataset in datasets]))


def data_moments(x: np.ndarray) -> np.ndarray:
    table = x.reshape(*x.shape[:2], -1)
    return np.stack([_mean(table[..., 0]), _mean(table**2), _mean(np.diff(table, axis=1) ** 2)], axis=-1)


def _mean(x: np.ndarray) -> np.ndarray:
    """Mean over each data set's entries, ignoring NaN; 0 if all are NaN."""
    flat = x.reshape(len(x), -1)
    return np.asarray(np.nansum(flat, axis=1) / np.maximum((~np.isnan(flat)).sum(axis=1), 1))
