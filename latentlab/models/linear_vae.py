r"""The linear variational autoencoder; its bound has a closed form, and its optimum is that of PPCA."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import scipy.optimize
import torch
from torch.distributions import constraints

from latentlab.data.dataset import Dataset
from latentlab.distributions.low_rank_gaussian import LowRankGaussian
from latentlab.errors import DataError, InferenceError
from latentlab.models.base import Arrays, Caution, LatentModel, MaximumLikelihood, Position, outliers, require_table
from latentlab.settings import Count, Positive, settings
from latentlab.symmetry.groups import Orthogonal

TOLERANCE = 1e-5
"""Convergence threshold: largest derivative of the mean bound per unit, for data scaled to a root mean square of 1."""


@settings
class LinearVAE(LatentModel):
    r"""Linear variational autoencoder: PPCA with a linear encoder instead of the exact conditional of the positions.

    $$ z_n \sim N(0, I_q), \quad x_n \mid z_n \sim N(W z_n + \mu, \sigma^2 I_D), \qquad
       q(z_n \mid x_n) = N(V (x_n - \mu), \text{diag}\, D) $$

    W (feature, latent), mu (feature,) and sigma belong to the decoder, V (latent, feature) and the variances D (axis,) to the
    encoder. All are parameters with point estimates. z (unit, latent) are the positions. With S the data's covariance about mu
    and D_x the number of features, the evidence lower bound of N units is N times

    $$ -\tfrac1{2\sigma^2} \left[ \text{tr}\, D\, \text{diag}(W^T W) + \text{tr}\, (I - WV) S (I - WV)^T \right]
       - \tfrac{D_x}{2} \log 2\pi\sigma^2
       - \tfrac12 \left[ \text{tr}\, V S V^T + \text{tr}\, D - q - \log |D| \right]. $$

    Its maximum is PPCA's log likelihood. The data identify only W W^T and W z_n, since the joint density is invariant under O(q).
    A diagonal D equals the exact conditional covariance only if the columns of W are orthogonal. The maximum of the bound is
    therefore identified up to the order and signs of the axes. With sigma fixed, a dimension is used only if its eigenvalue of S
    exceeds sigma^2. This collapse is a property of the likelihood, not of the bound.

    Args:
        n_latent: Latent dimensions q, fewer than features.
        sigma: Fixed standard deviation of the noise; estimated if None.

    Raises:
        ConfigError: A setting is out of its range.

    References:
        Lucas, Tucker, Grosse & Norouzi (2019), Don't Blame the ELBO! A Linear VAE Perspective on Posterior Collapse, NeurIPS.
        Tipping & Bishop (1999), Probabilistic Principal Component Analysis, JRSS B 61:611.

    Example:
        >>> LinearVAE(n_latent=2).parameters["V"]
        ('latent', 'feature')
    """

    name = "linear_vae"
    dims = {"z": ("unit", "latent")}
    positions = (Position("z"),)
    symmetry = Orthogonal()
    methods = ("exact", "svi")

    n_latent: Count
    sigma: Positive | None = None

    def __post_init__(self) -> None:
        self.parameters = {
            "W": ("feature", "latent"),
            "mu": ("feature",),
            **({} if self.sigma is not None else {"sigma": ()}),
            "V": ("latent", "feature"),
            "D": ("axis",),
        }

    # -- the program

    def model(self, x: torch.Tensor) -> None:
        W, mu, sigma = self._decoder(x)
        with pyro.plate("unit", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(self.n_latent), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ W.mT + mu, sigma).to_event(1), obs=x)

    def guide(self, x: torch.Tensor) -> None:
        """Sample the positions from the encoder."""
        q, d = self.n_latent, x.shape[1]
        V = pyro.param("V", lambda: torch.randn(q, d) / math.sqrt(d))
        D = pyro.param("D", lambda: torch.ones(q), constraints.positive)
        _, mu, _ = self._decoder(x)
        with pyro.plate("unit", len(x)):
            pyro.sample("z", self.latents({"x": x}, V=V, D=D, mu=mu))

    def _decoder(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Register W, mu and sigma as Pyro parameters, starting at random, at the mean and at the spread of the data."""
        spread = x.var(0).mean().sqrt() if len(x) > 1 else torch.ones(())
        W = pyro.param("W", lambda: spread * torch.randn(x.shape[1], self.n_latent) / math.sqrt(self.n_latent))
        mu = pyro.param("mu", lambda: x.mean(0))
        if self.sigma is not None:
            return W, mu, torch.tensor(float(self.sigma))
        return W, mu, pyro.param("sigma", lambda: spread.clone(), constraints.positive)

    # -- exact distributions and bounds

    def latents(self, arrays: Arrays, **values: torch.Tensor) -> dist.TorchDistribution:
        """Encoder distribution N(V (x - mu), diag D) of each unit, of the training data or new."""
        return dist.Normal((arrays["x"] - values["mu"]) @ values["V"].mT, torch.sqrt(values["D"])).to_event(1)

    def elbo(self, arrays: Arrays, **values: torch.Tensor) -> torch.Tensor:
        """Exact evidence lower bound, summed over all units."""
        x = arrays["x"]
        centred = x - values["mu"]
        S = centred.mT @ centred / len(x)
        return len(x) * _bound(S, values["W"], values["V"], values["D"], self._noise(values) ** 2)

    def marginal(self) -> LatentModel:
        return _Integrated(self.n_latent, self.sigma)

    def maximum_likelihood(self, arrays: Arrays, rng: np.random.Generator) -> MaximumLikelihood:
        """Maximise the bound, whose maximum equals that of the likelihood, by L-BFGS from a random start.

        mu is the mean of the data, which maximises the bound for any values of the others. The others are estimated on data
        scaled to a root mean square of 1.
        """
        x = arrays["x"]
        q, (n, d) = self.n_latent, x.shape
        mu = x.mean(0)
        scale = torch.sqrt(((x - mu) ** 2).mean())
        centred = (x - mu) / scale
        S = centred.mT @ centred / n
        fixed = None if self.sigma is None else torch.as_tensor(self.sigma, dtype=x.dtype) / scale
        eigenvalues = torch.linalg.eigvalsh(S)
        if fixed is None and not eigenvalues[: d - q].mean() > 1e-14 * eigenvalues[-1]:
            raise InferenceError(
                f"the data lie exactly in {q} dimensions, so the noise variance is 0 and the likelihood is unbounded; use an "
                f"n_latent below {q}, or fix `sigma`."
            )

        def unpack(v: torch.Tensor) -> tuple[torch.Tensor, ...]:
            W, V = v[: d * q].reshape(d, q), v[d * q : 2 * d * q].reshape(q, d)
            variance = torch.exp(2.0 * v[-1]) if fixed is None else fixed**2
            return W, V, torch.exp(v[2 * d * q : 2 * d * q + q]), variance

        slope = torch.func.grad_and_value(lambda v: -_bound(S, *unpack(v)))

        def objective(v: np.ndarray) -> tuple[float, np.ndarray]:
            gradient, value = slope(torch.from_numpy(v))
            return float(value), gradient.numpy()

        trace: list[float] = []
        start = np.concatenate([rng.standard_normal(2 * d * q) / math.sqrt(d), np.zeros(q + (fixed is None))])
        optimum = scipy.optimize.minimize(
            objective, start, jac=True, method="L-BFGS-B", callback=lambda v: trace.append(-objective(v)[0]),
            options={"maxiter": 50_000, "maxfun": 100_000, "ftol": 0.0, "gtol": 1e-9, "maxcor": 50},
        )  # fmt: skip
        gradient = float(np.abs(objective(optimum.x)[1]).max())
        if not gradient < TOLERANCE:
            raise InferenceError(
                f"L-BFGS did not converge in {optimum.nit} steps: the largest derivative of the mean bound per unit is "
                f"{gradient:.2g} (limit {TOLERANCE:g})."
            )
        W, V, D, variance = unpack(torch.from_numpy(optimum.x))
        values = {"W": W * scale, "mu": mu, "V": V / scale, "D": D, "sigma": torch.sqrt(variance) * scale}
        return MaximumLikelihood(
            {name: value.numpy() for name, value in values.items() if name in self.parameters},
            f"L-BFGS on the exact bound, {optimum.nit} steps",
            gradient,
            n * (np.asarray(trace or [-float(optimum.fun)]) - d * math.log(float(scale))),
        )

    def _noise(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return values["sigma"] if self.sigma is None else torch.as_tensor(float(self.sigma), dtype=values["W"].dtype)

    # -- data

    def cautions(self, dataset: Dataset) -> list[Caution]:
        return outliers(dataset)

    def check(self, dataset: Dataset) -> None:
        """Reject data that are not a table, have at most `n_latent` features, or have several identical rows only.

        Raises:
            DataError: Names both numbers.
        """
        what = f"LinearVAE: {dataset.name}"
        require_table(what, dataset)
        n_units, n_features = dataset.x.shape
        if self.n_latent >= n_features:
            raise DataError(f"{what}: n_latent must be below the number of features, {n_features}; got {self.n_latent}.")
        if n_units > 1 and (np.nanmin(dataset.x, 0) == np.nanmax(dataset.x, 0)).all():
            raise DataError(f"{what}: all {n_units} rows are identical, so positions cannot be estimated.")

    def check_new(self, dataset: Dataset) -> None:
        """Reject data that are not a table.

        Raises:
            DataError: Names the array.
        """
        require_table(f"LinearVAE: {dataset.name}", dataset)

    def simulate(self, rng: np.random.Generator, n_units: int, n_features: int = 10) -> Dataset:
        """Draw data from a random decoder; the encoder in the truth is optimal for this decoder."""
        W, mu = rng.standard_normal((n_features, self.n_latent)), rng.standard_normal(n_features)
        sigma = float(rng.uniform(0.3, 1.0)) if self.sigma is None else float(self.sigma)
        z = rng.standard_normal((n_units, self.n_latent))
        x = z @ W.T + mu + sigma * rng.standard_normal((n_units, n_features))
        M = W.T @ W + sigma**2 * np.eye(self.n_latent)
        truth: dict[str, Any] = {"z": z, "W": W, "mu": mu, "V": np.linalg.solve(M, W.T), "D": sigma**2 / np.diag(M)}
        if self.sigma is None:
            truth["sigma"] = np.array(sigma)
        dataset = Dataset({"x": x}, dims={"x": ("unit", "feature")}, name="simulated linear_vae")
        return replace(dataset, truth=truth, truth_dims={**self.dims, **self.parameters})


class _Integrated(LinearVAE):
    """Decoder of the linear VAE with the positions marginalised; the encoder is not used."""

    def model(self, x: torch.Tensor) -> None:
        W, mu, sigma = self._decoder(x)
        with pyro.plate("unit", len(x)):
            pyro.sample("x", LowRankGaussian(mu, W, sigma), obs=x)

    def latents(self, arrays: Arrays, **values: torch.Tensor) -> dist.TorchDistribution:
        """Exact conditional distribution of z given x."""
        return LowRankGaussian(values["mu"], values["W"], self._noise(values)).conditional(arrays["x"])

    def marginal(self) -> LatentModel:
        return self


def _bound(S: torch.Tensor, W: torch.Tensor, V: torch.Tensor, D: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    """Mean bound per unit, for data of covariance S about mu."""
    d, q = W.shape
    residual_map = torch.eye(d, dtype=W.dtype) - W @ V
    misfit = (D * (W**2).sum(0)).sum() + ((residual_map @ S) * residual_map).sum()
    kl = ((V @ S) * V).sum() + D.sum() - q - torch.log(D).sum()
    return -misfit / (2 * variance) - d / 2 * torch.log(2 * math.pi * variance) - kl / 2
