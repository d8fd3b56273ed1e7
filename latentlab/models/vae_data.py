"""Checks of data for autoencoders, and parameters of simulated data."""

import math
from collections.abc import Mapping

import numpy as np

from latentlab.data.dataset import Dataset
from latentlab.errors import ConfigError, DataError
from latentlab.models.architectures.pair import Network
from latentlab.models.base import require_table
from latentlab.models.emissions.base import check_entries
from latentlab.models.likelihoods import Gaussian, Likelihood
from latentlab.seeds import forked, reseed


def checked_grid(likelihood: str, grid: list[float] | None, bin_width: float) -> tuple[float, float]:
    """Return the ends of the grid of `discretised_logistic`; (0, 1) for other likelihoods.

    Raises:
        ConfigError: The grid is missing, has no whole number of steps, or is for another likelihood.
    """
    if likelihood != "discretised_logistic":
        if grid is not None:
            raise ConfigError(f"VAE: `grid` is for the likelihood 'discretised_logistic' only; got {likelihood!r}.")
        return 0.0, 1.0
    steps = (grid[1] - grid[0]) / bin_width if grid is not None and len(grid) == 2 else 0.0
    if grid is None or not steps > 0.5 or abs(steps - round(steps)) > 1e-6:
        raise ConfigError(
            "VAE: `grid` must be the first and the last value of the data, with a whole number of steps `bin_width` between "
            f"them, for the likelihood 'discretised_logistic'; got {grid} and bin_width={bin_width:g}."
        )
    return grid[0], grid[1]


def check_values(dataset: Dataset, name: str, likelihood: Likelihood) -> None:
    """Reject data that are not a table, and values outside the support of the likelihood called `name`.

    Raises:
        DataError: Names the entry.
    """
    what = f"VAE: {dataset.name}"
    require_table(what, dataset, hint=", an image as one row")
    requirement = f"must be {likelihood.support} for the likelihood {name!r}"
    check_entries(what, dataset, likelihood.invalid(dataset.x), requirement)


def check_columns(dataset: Dataset, likelihood: Likelihood, *, conditional: bool) -> None:
    """Reject columns without an observed entry, columns whose noise would be 0, and data without the labels that are inputs.

    Raises:
        DataError: Names the column, or what is needed instead.
    """
    what, x = f"VAE: {dataset.name}", dataset.x
    is_gaussian, observed = isinstance(likelihood, Gaussian), ~np.isnan(x)
    if not observed.any(0).all():
        raise DataError(f"{what}: column {str(dataset.features[~observed.any(0)][0])!r} has no observed entry; remove it.")
    if conditional and dataset.labels is None:
        raise DataError(f"{what}: `conditional` needs a label for each unit; the data have no labels.")
    constant = (np.nanmin(x, 0) == np.nanmax(x, 0)) & (is_gaussian and dataset.n_units > 1)
    if constant.all() or (likelihood.noise == "feature" and constant.any()):
        name = str(dataset.features[constant][0])
        raise DataError(
            f"{what}: column {name!r} is constant, so its noise variance cannot be estimated; "
            "drop constant columns by `drop_constant: true`."
        )
    if is_gaussian and likelihood.noise == "entry" and not likelihood.noise_floor < (spread := np.nanstd(x, 0).max()):
        raise DataError(
            f"{what}: `noise_floor` must be below the largest standard deviation of a column, {spread:.3g}; got "
            f"{likelihood.noise_floor:g}."
        )


def simulated_parameters(
    rng: np.random.Generator,
    dims: Mapping[str, tuple[str, ...]],
    sizes: Mapping[str, int],
    modules: Mapping[str, Network],
    flows: Mapping[str, Network],
    noise: str | None,
) -> dict[str, np.ndarray]:
    """Draw parameters of a program: the start of a module, noise from 0.2 to 0.6, and normal numbers otherwise.

    Args:
        rng: Random numbers.
        dims: Dims of each parameter.
        sizes: Sizes of the dims, except those of modules and flows.
        modules: Networks that are torch modules, by the prefix of their parameters.
        flows: Flows, which would be the identity at their start.
        noise: Name of the parameter of scale.
    """
    with forked():
        reseed(int(rng.integers(2**31))) if modules or flows else None
        starts = {name: n.starts(sizes)(name).numpy() for n in (*modules.values(), *flows.values()) for name in n.dims}
    kept = {name for network in modules.values() for name in network.dims}
    values = {}
    for name, names in dims.items():
        shape = starts[name].shape if name in starts else tuple(sizes[dim] for dim in names)
        inputs = shape[-1:] if name in starts else shape[:1]  # torch has outputs first
        fan_in = inputs[0] if len(shape) == 2 and not name.endswith(("_z", "_labels")) else 1
        if name in kept:
            values[name] = starts[name]
        elif name == noise:
            values[name] = rng.uniform(0.2, 0.6, shape)
        else:
            scale = 0.5 if name in starts else 1.0  # of flows: affine ones are exponential in their parameters
            values[name] = scale * rng.standard_normal(shape) / math.sqrt(fan_in)
    return values
