r"""Probabilistic matrix factorisation: ratings are inner products of user and item positions, plus a mean and noise."""

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch

from latentlab.data.dataset import Dataset
from latentlab.errors import DataError
from latentlab.models.base import Arrays, Caution, LatentModel, Position
from latentlab.models.fixed import normal
from latentlab.settings import Count, NonNegative, Positive, settings
from latentlab.symmetry.groups import Orthogonal


@settings
class MatrixFactorization(LatentModel):
    r"""Probabilistic matrix factorisation with Gaussian noise.

    $$ \mu \sim N(0, \text{mu\_scale}^2), \quad \sigma \sim \text{HalfNormal}(\text{sigma\_scale}) $$
    $$ U_i \sim N(0, \text{U\_scale}^2 I_K), \quad V_j \sim N(0, \text{V\_scale}^2 I_K), \quad
       r_{ij} \mid U, V \sim N(\mu + U_i^T V_j, \sigma^2) $$

    U (user, latent), V (item, latent), mu and sigma (); r_ij is the rating of item j by user i. The likelihood is a product over
    the observed cells (i, j). Scales are standard deviations. The products U V^T, mu and sigma are identified. U and V are
    identified up to a common orthogonal transformation, since their priors are spherical. The priors alone determine the scale
    of U relative to that of V.

    Args:
        n_latent: Latent dimensions K.
        U_scale: Prior standard deviation of the users' positions.
        V_scale: Prior standard deviation of the items' positions.
        mu_scale: Prior standard deviation of the mean rating; 0 fixes it at 0.
        sigma_scale: Scale of the half-normal prior of the noise's standard deviation.

    Raises:
        ConfigError: A setting is out of its range.

    References:
        Salakhutdinov & Mnih (2007), Probabilistic matrix factorization, NIPS. Salakhutdinov & Mnih (2008), Bayesian
        probabilistic matrix factorization using Markov chain Monte Carlo, ICML.
    """

    name = "matrix_factorization"
    dims = {"mu": (), "sigma": (), "U": ("user", "latent"), "V": ("item", "latent")}
    positions = (Position("U"), Position("V"))
    symmetry = Orthogonal(units=("user", "item"))
    methods = ("nuts", "chees", "svi", "map")

    n_latent: Count
    U_scale: Positive = 1.0
    V_scale: Positive = 1.0
    mu_scale: NonNegative = 1.0
    sigma_scale: Positive = 1.0

    def model(self, rating: torch.Tensor, user: torch.Tensor, item: torch.Tensor, n_user: int, n_item: int) -> None:
        K = self.n_latent
        mu = normal("mu", self.mu_scale, ())
        sigma = pyro.sample("sigma", dist.HalfNormal(torch.tensor(self.sigma_scale)))
        with pyro.plate("user", n_user):
            U = pyro.sample("U", dist.Normal(torch.zeros(K), self.U_scale).to_event(1))
        with pyro.plate("item", n_item):
            V = pyro.sample("V", dist.Normal(torch.zeros(K), self.V_scale).to_event(1))
        with pyro.plate("cell", len(rating)):
            pyro.sample("rating", dist.Normal(mu + (U[user] * V[item]).sum(-1), sigma), obs=rating)

    def check(self, dataset: Dataset) -> None:
        """Reject data that are not ratings of items by users.

        Raises:
            DataError: Names the arrays and indices of the data.
        """
        if list(dataset.arrays) != ["rating"] or dataset.x.ndim != 1 or set(dataset.index) != {"user", "item"}:
            raise DataError(
                f"{type(self).__name__}: {dataset.name} must have one array 'rating' with dims ('cell',) and the indices 'user' "
                f"and 'item'; got {', '.join(map(repr, [*dataset.arrays, *dataset.index]))}; build such data by `ratings`."
            )

    def cautions(self, dataset: Dataset) -> list[Caution]:
        """Warn if the parameters can fit all ratings exactly: the density is then unbounded as sigma tends to 0."""
        n, m = (len(dataset.units[kind]) for kind in ("user", "item"))
        k = min(self.n_latent, n, m)
        free = k * (n + m - k) + (self.mu_scale > 0)
        if dataset.n_points > free:
            return []
        text = (
            f"{dataset.n_points} ratings can be fitted exactly by {free} free parameters, so the density is unbounded as sigma "
            "tends to 0: point estimates and SVI are unreliable; sample by ChEES or NUTS, or reduce n_latent"
        )
        formula = f"K (n_user + n_item - K){' + 1' if self.mu_scale else ''}"
        return [Caution("identification", text, float(dataset.n_points), f"> {free} ({formula})")]

    def initialize(self, arrays: Arrays, rng: np.random.Generator) -> dict[str, Any]:
        """Truncated SVD of the centred ratings, 0 in unobserved cells, after a random orthogonal transformation."""
        r, i, j = (arrays[name].numpy() for name in ("rating", "user", "item"))
        n, m, K = arrays["n_user"], arrays["n_item"], self.n_latent
        mu = float(r.mean()) if self.mu_scale else 0.0
        table = np.zeros((n, m))
        table[i, j] = r - mu
        u, s, vt = np.linalg.svd(table, full_matrices=False)
        k = min(K, len(s))
        turn, _ = np.linalg.qr(rng.standard_normal((K, K)))
        U, V = np.zeros((n, K)), np.zeros((m, K))
        U[:, :k], V[:, :k] = u[:, :k] * np.sqrt(s[:k]), vt[:k].T * np.sqrt(s[:k])
        residual = r - mu - (U[i] * V[j]).sum(axis=1)
        sigma = max(float(residual.std()), 0.1 * float(r.std()), 1e-6)
        return {"mu": torch.tensor(mu), "sigma": torch.tensor(sigma), "U": torch.tensor(U @ turn), "V": torch.tensor(V @ turn)}

    def simulate(self, rng: np.random.Generator, n_units: int, n_items: int = 5, share: float = 0.8) -> Dataset:
        """Draw the sites from their priors, and ratings of `n_items` items by `n_units` users in a `share` of the cells."""
        mu = self.mu_scale * rng.standard_normal()
        sigma = np.abs(self.sigma_scale * rng.standard_normal())
        U = self.U_scale * rng.standard_normal((n_units, self.n_latent))
        V = self.V_scale * rng.standard_normal((n_items, self.n_latent))
        cells = np.sort(rng.permutation(n_units * n_items)[: max(1, round(share * n_units * n_items))])
        i, j = np.unravel_index(cells, (n_units, n_items))
        rating = mu + (U[i] * V[j]).sum(axis=1) + sigma * rng.standard_normal(len(cells))
        return Dataset(
            {"rating": rating},
            dims={"rating": ("cell",)},
            units={"user": n_units, "item": n_items},
            index={"user": ("cell", i), "item": ("cell", j)},
            truth={"mu": np.asarray(mu), "sigma": np.asarray(sigma), "U": U, "V": V},
            truth_dims=dict(self.dims),
            name=f"simulated {self.name}",
        )
