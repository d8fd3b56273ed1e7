"""Simulated data from mixtures, with the components of the units and their parameters."""

import itertools
import math

import numpy as np

from latentlab.data.dataset import Dataset
from latentlab.data.simulators import counts, number
from latentlab.errors import DataError
from latentlab.seeds import Seeds

SIGMA = 0.5
"""Standard deviation of every feature within a component of `gaussian_mixture`."""

ERUPTIONS = {
    "weights": (0.36, 0.64),
    "mu": ((2.04, 54.5), (4.29, 80.0)),
    "sigma": ((0.26, 5.8), (0.41, 6.0)),
    "correlation": (0.28, 0.38),
}
"""Parameters of short and long eruptions of `geyser`: weights; means and standard deviations in minutes; correlations."""


def gaussian_mixture(
    n_units: int = 300, n_components: int = 3, n_features: int = 2, separation: float = 4.0, seed: int = 0
) -> Dataset:
    r"""Simulated spherical Gaussian clusters of unequal size, with a given separation.

    $$z_n \sim \mathrm{Categorical}(\pi), \; x_n \sim N(\mu_{z_n}, \sigma^2 I), \; \pi_k \propto K - k \; (k = 0, ..., K - 1)$$

    The means lie on a square grid, rotated and shifted at random. Its spacing is `separation` times sigma = 0.5, so that the
    distance of every mean to the nearest other mean is exactly `separation` standard deviations. The error of the optimal
    classification of two components of equal size is $\Phi(-\mathrm{separation} / 2)$: 31% at 1, 16% at 2, 2.3% at 4.

    `truth` contains `z` (unit,), `weights` (component,), `mu` (component, feature) and `sigma` (component, feature), on the scale
    of the raw values. `labels` are the components as text.

    Args:
        n_units: Number of units.
        n_components: Number of components K; 3 have weights 1/2, 1/3 and 1/6.
        n_features: Number of columns.
        separation: Distance of neighbouring means in standard deviations within a component, at least 0.
        seed: Random seed.

    Example:
        >>> dataset = gaussian_mixture(n_units=60)
        >>> mu, sigma = dataset.truth["mu"], dataset.truth["sigma"]
        >>> float((np.linalg.norm(mu[0] - mu[1]) / sigma[0, 0]).round(9)), dataset.truth["weights"].round(3).tolist()
        (4.0, [0.5, 0.333, 0.167])
    """
    counts("gaussian_mixture", n_units=n_units, n_components=n_components, n_features=n_features)
    number("gaussian_mixture", "separation", separation, 0, np.inf)
    rng = Seeds(seed).child("gaussian_mixture").numpy()
    weights = unequal(n_components)
    mu = means(n_components, n_features, separation * SIGMA, rng)
    z = rng.choice(n_components, n_units, p=weights)
    x = mu[z] + SIGMA * rng.standard_normal((n_units, n_features))
    return _dataset("gaussian_mixture", x, z, weights=weights, mu=mu, sigma=np.full((n_components, n_features), SIGMA))


def geyser(n_units: int = 272, seed: int = 0) -> Dataset:
    r"""Simulated eruptions of a geyser similar to Old Faithful: durations of eruptions and waiting times, in minutes.

    These are not the data of Azzalini and Bowman, but draws from a mixture of two correlated Gaussians, for short and long
    eruptions. The parameters are close to those of such a mixture fitted to the 272 eruptions of Old Faithful.

    `truth` contains `z` (unit,), `weights` (component,), `mu` and `sigma` (component, feature), and `correlation` (component,) of
    the two columns. `labels` are the components as text. Raw values are minutes.

    Args:
        n_units: Number of eruptions.
        seed: Random seed.

    References:
        Azzalini & Bowman (1990), A look at some data on the Old Faithful geyser, Applied Statistics 39:357.

    Example:
        >>> geyser().features.tolist(), geyser().truth["mu"].tolist()
        (['eruption', 'waiting'], [[2.04, 54.5], [4.29, 80.0]])
    """
    counts("geyser", n_units=n_units)
    rng = Seeds(seed).child("geyser").numpy()
    weights, mu, sigma, correlation = (np.array(ERUPTIONS[key]) for key in ("weights", "mu", "sigma", "correlation"))
    z = rng.choice(2, n_units, p=weights)
    noise = rng.standard_normal((n_units, 2))
    rho = correlation[z]
    waiting = rho * noise[:, 0] + np.sqrt(1 - rho**2) * noise[:, 1]
    x = mu[z] + sigma[z] * np.column_stack([noise[:, 0], waiting])
    truth = {"weights": weights, "mu": mu, "sigma": sigma, "correlation": correlation}
    return _dataset("geyser", x, z, features=["eruption", "waiting"], **truth)


def poisson_mixture(n_units: int = 300, n_components: int = 3, n_features: int = 2, ratio: float = 3.0, seed: int = 0) -> Dataset:
    r"""Simulated counts from a mixture of independent Poisson distributions.

    $$z_n \sim \mathrm{Categorical}(\pi), \; x_{nd} \sim \mathrm{Poisson}(\lambda_{z_n d}), \; \pi_k \propto K - k$$

    In each column the rates are 2 times 1, `ratio`, `ratio` squared, ...; their order is increasing in the first column and
    random in the others.

    `truth` contains `z` (unit,), `weights` (component,) and `rate` (component, feature) of the raw values. `labels` are the
    components as text.

    Args:
        n_units: Number of units.
        n_components: Number of components K.
        n_features: Number of columns.
        ratio: Ratio of each rate to the next smaller rate of its column, at least 1.
        seed: Random seed.

    Example:
        >>> poisson_mixture(n_features=1).truth["rate"].tolist()
        [[2.0], [6.0], [18.0]]
    """
    counts("poisson_mixture", n_units=n_units, n_components=n_components, n_features=n_features)
    number("poisson_mixture", "ratio", ratio, 1, np.inf)
    rng = Seeds(seed).child("poisson_mixture").numpy()
    rates = 2.0 * float(ratio) ** np.arange(n_components)
    if rates[-1] > 2**50:
        raise DataError(f"poisson_mixture: rates up to {rates[-1]:.3g} are beyond 2**50; take a smaller `ratio`.")
    rate = np.column_stack([rates, *(rng.permutation(rates) for _ in range(n_features - 1))])
    weights = unequal(n_components)
    z = rng.choice(n_components, n_units, p=weights)
    return _dataset("poisson_mixture", rng.poisson(rate[z]), z, weights=weights, rate=rate)


def latent_classes(
    n_units: int = 300, n_components: int = 3, n_features: int = 12, certainty: float = 0.85, seed: int = 0
) -> Dataset:
    r"""Simulated binary answers from a latent class model: answers are independent given the class.

    $$z_n \sim \mathrm{Categorical}(\pi), \; x_{nd} \sim \mathrm{Bernoulli}(p_{z_n d}), \; \pi_k \propto K - k$$

    In column d, class d modulo K answers 1 with probability `certainty`, and all others with probability 1 - `certainty`.

    `truth` contains `z` (unit,), `weights` (component,) and `probability` (component, feature). `labels` are the classes as text.

    Args:
        n_units: Number of units.
        n_components: Number of classes K.
        n_features: Number of columns.
        certainty: Probability of the typical answer of a class, from 0.5 (identical classes) to 1.
        seed: Random seed.

    References:
        Lazarsfeld & Henry (1968), Latent Structure Analysis, Houghton Mifflin.

    Example:
        >>> latent_classes(n_components=2, n_features=3).truth["probability"].round(2).tolist()
        [[0.85, 0.15, 0.85], [0.15, 0.85, 0.15]]
    """
    counts("latent_classes", n_units=n_units, n_components=n_components, n_features=n_features)
    number("latent_classes", "certainty", certainty, 0.5, 1)
    rng = Seeds(seed).child("latent_classes").numpy()
    is_typical = np.arange(n_features) % n_components == np.arange(n_components)[:, None]
    probability = np.where(is_typical, float(certainty), 1 - float(certainty))
    weights = unequal(n_components)
    z = rng.choice(n_components, n_units, p=weights)
    x = rng.random((n_units, n_features)) < probability[z]
    return _dataset("latent_classes", x, z, weights=weights, probability=probability)


# -- functions of these simulators


def unequal(n_components: int) -> np.ndarray:
    """Weights in the ratio K, K - 1, ..., 1."""
    sizes = np.arange(n_components, 0.0, -1)
    return sizes / sizes.sum()


def means(n_components: int, n_features: int, spacing: float, rng: np.random.Generator) -> np.ndarray:
    """Points `(component, feature)` of a randomly rotated and shifted square grid; nearest neighbours are `spacing` apart."""
    n_dims = min(n_features, max(1, math.ceil(math.log2(n_components))))
    side = next(side for side in itertools.count(1) if side**n_dims >= n_components)
    # Points nearest to the corner come first, so that each has a neighbour among the earlier ones.
    points = sorted(itertools.product(range(side), repeat=n_dims), key=lambda point: (sum(point), point))[:n_components]
    grid = np.zeros((n_components, n_features))
    grid[:, :n_dims] = points
    turn = np.linalg.qr(rng.standard_normal((n_features, n_features)))[0]
    return spacing * grid @ turn.T + rng.standard_normal(n_features)


def _dataset(name: str, x: np.ndarray, z: np.ndarray, features: list[str] | None = None, **truth: np.ndarray) -> Dataset:
    dims = ("component", "feature")
    return Dataset(
        {"x": x},
        dims={"x": ("unit", "feature")},
        coords={} if features is None else {"feature": features},
        labels=z.astype(str),
        truth={"z": z, **truth},
        truth_dims={"z": ("unit",), **{key: dims[: value.ndim] for key, value in truth.items()}},
        name=name,
    )
