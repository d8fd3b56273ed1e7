"""Data drawn from mixtures, each unit from one component, with the components and what they are."""

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
"""Short and long eruptions of `geyser`: shares, means and sds of minutes of eruption and waiting, and their correlation."""


def gaussian_mixture(
    n_units: int = 300, n_components: int = 3, n_features: int = 2, separation: float = 4.0, seed: int = 0
) -> Dataset:
    r"""Spherical Gaussian clusters of unequal size, as far apart as `separation` says.

    $$z_n \sim \mathrm{Categorical}(\pi), \; x_n \sim N(\mu_{z_n}, \sigma^2 I), \; \pi_k \propto K - k \; (k = 0, ..., K - 1)$$

    The means lie on a square grid, turned and moved at random. Its spacing is `separation` times sigma = 0.5: the nearest other
    mean of every component is exactly so many standard deviations away. Two components of equal size would be told apart with
    an error of $\Phi(-\mathrm{separation} / 2)$: 31 % at 1, 16 % at 2, 2.3 % at 4.

    `truth` holds `z` (unit,), `weights` (component,), `mu` (component, feature) and `sigma` (component, feature), on the scale
    of the raw values; `labels` the components as text.

    Args:
        n_units: Number of units.
        n_components: Number of components K; 3 have weights 1/2, 1/3 and 1/6.
        n_features: Number of columns.
        separation: Distance of neighbouring means in standard deviations within a component, at least 0.
        seed: Seed of everything that is drawn.

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
    r"""Simulated eruptions of a geyser, much like Old Faithful's: minutes of an eruption, and of waiting for the next one.

    These are not the data of Azzalini and Bowman, but draws from a mixture of two correlated Gaussians, short and long eruptions,
    whose parameters have about the size of those that such a mixture has when it is fitted to the 272 eruptions of that name.

    `truth` holds `z` (unit,), `weights` (component,), `mu` and `sigma` (component, feature), `correlation` (component,) of the
    two columns; `labels` the components as text. Raw values are minutes.

    Args:
        n_units: Number of eruptions.
        seed: Seed of everything that is drawn.

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
    r"""Counts whose rates depend on the component that a unit belongs to.

    $$z_n \sim \mathrm{Categorical}(\pi), \; x_{nd} \sim \mathrm{Poisson}(\lambda_{z_n d}), \; \pi_k \propto K - k$$

    In each column the rates are 2 times 1, `ratio`, `ratio` squared, ... in an order of its own, the first column's increasing.

    `truth` holds `z` (unit,), `weights` (component,) and `rate` (component, feature), of the raw values; `labels` the components
    as text.

    Args:
        n_units: Number of units.
        n_components: Number of components K.
        n_features: Number of columns.
        ratio: Of a rate to the next smaller one of its column, at least 1.
        seed: Seed of everything that is drawn.

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
    r"""Yes-or-no answers that are independent given the class that a unit belongs to.

    $$z_n \sim \mathrm{Categorical}(\pi), \; x_{nd} \sim \mathrm{Bernoulli}(p_{z_n d}), \; \pi_k \propto K - k$$

    In each column one class, the columns taking turns, says yes with probability `certainty`, all others with 1 - `certainty`.

    `truth` holds `z` (unit,), `weights` (component,) and `probability` (component, feature); `labels` the classes as text.

    Args:
        n_units: Number of units.
        n_components: Number of classes K.
        n_features: Number of columns.
        certainty: Probability of a class's own answer, from 0.5 (the classes are alike) to 1.
        seed: Seed of everything that is drawn.

    References:
        Lazarsfeld & Henry (1968), Latent Structure Analysis, Houghton Mifflin.

    Example:
        >>> latent_classes(n_components=2, n_features=3).truth["probability"].round(2).tolist()
        [[0.85, 0.15, 0.85], [0.15, 0.85, 0.15]]
    """
    counts("latent_classes", n_units=n_units, n_components=n_components, n_features=n_features)
    number("latent_classes", "certainty", certainty, 0.5, 1)
    rng = Seeds(seed).child("latent_classes").numpy()
    own = np.arange(n_features) % n_components == np.arange(n_components)[:, None]
    probability = np.where(own, float(certainty), 1 - float(certainty))
    weights = unequal(n_components)
    z = rng.choice(n_components, n_units, p=weights)
    x = rng.random((n_units, n_features)) < probability[z]
    return _dataset("latent_classes", x, z, weights=weights, probability=probability)


# -- what these simulators share


def unequal(n_components: int) -> np.ndarray:
    """Weights in the ratio K, K - 1, ..., 1."""
    sizes = np.arange(n_components, 0.0, -1)
    return sizes / sizes.sum()


def means(n_components: int, n_features: int, spacing: float, rng: np.random.Generator) -> np.ndarray:
    """Points of a square grid `(component, feature)`, turned and moved at random, the nearest one of each at that distance."""
    n_dims = min(n_features, max(1, math.ceil(math.log2(n_components))))
    side = next(side for side in itertools.count(1) if side**n_dims >= n_components)
    # Points nearest to the corner first: each but the corner then has a neighbour among those before it.
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
