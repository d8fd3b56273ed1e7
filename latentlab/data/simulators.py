"""Data drawn from a known process, with the values it was drawn from."""

import numpy as np

from latentlab.data.dataset import Dataset
from latentlab.errors import DataError
from latentlab.seeds import Seeds


def linear_gaussian(n_units: int = 200, n_features: int = 10, n_latent: int = 2, noise: float = 0.5, seed: int = 0) -> Dataset:
    r"""Units on a plane through the feature space, with noise of the same size in every column.

    $$z_n \sim N(0, I_q), \; W_{dk}, \mu_d, \varepsilon_{nd} \sim N(0, 1), \; x_n = W z_n + \mu + \sigma \varepsilon_n$$

    `truth` holds `z` (unit, latent), `W` (feature, latent), `mu` (feature,) and `sigma`; the latter three are on the
    scale of the raw values, so compare them with a fit to raw values (`standardize: false`).

    Args:
        n_units: Number of units.
        n_features: Number of columns.
        n_latent: Number of latent dimensions `q`.
        noise: Standard deviation `sigma` of the noise, at least 0.
        seed: Seed of everything that is drawn.

    Example:
        >>> dataset = linear_gaussian(n_units=50, n_features=4, noise=0.0)
        >>> bool(np.allclose(dataset.x, dataset.truth["z"] @ dataset.truth["W"].T + dataset.truth["mu"]))
        True
    """
    for option, value in (("n_units", n_units), ("n_features", n_features), ("n_latent", n_latent)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise DataError(f"linear_gaussian: `{option}` must be a whole number from 1; got {value!r}.")
    if isinstance(noise, bool) or not isinstance(noise, int | float) or not 0 <= noise < np.inf:
        raise DataError(f"linear_gaussian: `noise` must be a finite number from 0; got {noise!r}.")
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
