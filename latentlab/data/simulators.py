"""Simulated data from a linear-Gaussian model, with the true values of its sites."""

import math
from typing import Any

import numpy as np

from latentlab.data.dataset import Dataset
from latentlab.errors import DataError
from latentlab.seeds import Seeds


def linear_gaussian(n_units: int = 200, n_features: int = 10, n_latent: int = 2, noise: float = 0.5, seed: int = 0) -> Dataset:
    r"""Simulated data from a linear-Gaussian latent-variable model with equal noise in every column.

    $$z_n \sim N(0, I_q), \; W_{dk}, \mu_d, \varepsilon_{nd} \sim N(0, 1), \; x_n = W z_n + \mu + \sigma \varepsilon_n$$

    `truth` contains `z` (unit, latent), `W` (feature, latent), `mu` (feature,) and `sigma`. The latter three are on the
    scale of the raw values, so compare them with a fit to raw values (`standardize: false`).

    Args:
        n_units: Number of units.
        n_features: Number of columns.
        n_latent: Number of latent dimensions `q`.
        noise: Standard deviation `sigma` of the noise, at least 0.
        seed: Random seed.

    Example:
        >>> dataset = linear_gaussian(n_units=50, n_features=4, noise=0.0)
        >>> bool(np.allclose(dataset.x, dataset.truth["z"] @ dataset.truth["W"].T + dataset.truth["mu"]))
        True
    """
    counts("linear_gaussian", n_units=n_units, n_features=n_features, n_latent=n_latent)
    number("linear_gaussian", "noise", noise, 0, np.inf)
    rng = Seeds(seed).child("linear_gaussian").numpy()
    W = rng.standard_normal((n_features, n_latent))
    mu = rng.standard_normal(n_features)
    z = rng.standard_normal((n_units, n_latent))
    x = z @ W.T + mu + noise * rng.standard_normal((n_units, n_features))
    return Dataset(
        {"x": x},
        dims={"x": ("unit", "feature")},
        truth={"z": z, "W": W, "mu": mu, "sigma": np.array(float(noise))},
        truth_dims={"z": ("unit", "latent"), "W": ("feature", "latent"), "mu": ("feature",), "sigma": ()},
        name="linear_gaussian",
    )


# -- checks of options for all simulators


def counts(name: str, **options: Any) -> None:
    """Refuse options that are not whole numbers of at least 1."""
    for option, value in options.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise DataError(f"{name}: `{option}` must be a whole number of at least 1; got {value!r}.")


def number(name: str, option: str, value: Any, least: float, most: float) -> None:
    """Refuse an option that is not a finite number in the range, including its ends."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not (least <= value <= most and math.isfinite(value)):
        bounds = f"from {least}" if most == np.inf else f"from {least} to {most}"
        raise DataError(f"{name}: `{option}` must be a finite number {bounds}; got {value!r}.")
