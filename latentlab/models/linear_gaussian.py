r"""Base class of PPCA and factor analysis: $x_n = W z_n + \mu + \text{noise}$ with Gaussian positions.

Positions are marginalised exactly; rows of W for missing entries are left out (`distributions/low_rank_gaussian.py`). With
`marginalize=False` they are a site of the program, with an amortised linear-Gaussian encoder as the guide.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

from latentlab.data.dataset import Dataset
from latentlab.distributions.low_rank_gaussian import LowRankGaussian
from latentlab.errors import DataError
from latentlab.models.base import Arrays, Caution, LatentModel, MaximumLikelihood, Position, outliers, require_table
from latentlab.models.linear_gaussian_optimum import best_optimum, principal_axes
from latentlab.symmetry.groups import Orthogonal

GUIDE_SCALE = 0.05
"""Standard deviation of the guide at the start, on the unconstrained scale."""


LEAST_SHARE = 1e-4
"""Least noise variance at the start, as a share of the mean variance."""


class LinearGaussian(LatentModel):
    """Base class of PPCA and factor analysis; a subclass defines the program with the sites W, mu, z and its noise."""

    noise: str
    """Name of the noise site; its shape is `(feature,)` if each feature has a separate noise variance."""
    n_latent: int
    W_scale: float
    mu_scale: float
    marginalize: bool

    methods = ("nuts", "chees", "svi", "map", "exact")
    positions = (Position("z"),)
    symmetry = Orthogonal()

    @property
    def noise_dims(self) -> tuple[str, ...]:
        return self.dims[self.noise]

    def guide(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> None:
        """Guide with independent normals for W, mu and the log noise, and a linear-Gaussian encoder for z if it is a site.

        The encoder is $z_n \\sim N(A x_n + B m_n + c, L L^T)$ with m the mask and missing entries 0. All units share it.
        """
        arrays = {"x": x, "mask": mask}
        start = cache(lambda: _principal_start(arrays, self.n_latent, self.noise_dims))
        for site, scale in (("W", self.W_scale), ("mu", self.mu_scale)):
            if scale:
                loc = _parameter(f"{site}_loc", partial(lambda name: start()[name], site))
                pyro.sample(site, dist.Normal(loc, _spread(site, loc)).to_event(loc.dim()))
        loc = _parameter(f"{self.noise}_loc", lambda: torch.log(start()["noise"]))
        pyro.sample(self.noise, dist.LogNormal(loc, _spread(self.noise, loc)).to_event(loc.dim()))
        if self.marginalize:
            return
        encoder = cache(lambda: _encoder(**start()))
        A = _parameter("encoder_x", lambda: encoder()[0])
        c = _parameter("encoder_offset", lambda: encoder()[1])
        L = _parameter("encoder_scale", lambda: encoder()[2], constraints.lower_cholesky)
        loc = x @ A + c
        if mask is not None:
            loc = loc + mask.to(x.dtype) @ _parameter("encoder_mask", lambda: torch.zeros_like(A))
        with pyro.plate("unit", len(x)):
            pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=L))

    # -- exact conditional distributions

    def latents(self, arrays: Arrays, **values: torch.Tensor) -> torch.distributions.Distribution:
        """Exact Gaussian distribution of z given the observed entries of x and the other sites."""
        marginal = LowRankGaussian(values["mu"], values["W"], values[self.noise], arrays.get("mask"))
        return marginal.conditional(arrays["x"])

    def imputation(self, arrays: Arrays, **values: torch.Tensor) -> dist.Normal:
        """Distribution of x given z and the other sites; the features are independent, so the observed entries do not enter."""
        loc = values["z"] @ values["W"].mT + values["mu"]
        return dist.Normal(loc, values[self.noise].expand(loc.shape[-1]))

    def replicated(self, arrays: Arrays, **values: torch.Tensor) -> torch.Tensor:
        return self.imputation(arrays, **values).sample()

    def marginal(self) -> LatentModel:
        return self if self.marginalize else type(self)(**{**self.hyperparameters(), "marginalize": True})

    def maximum_likelihood(self, arrays: Arrays, rng: np.random.Generator) -> MaximumLikelihood:
        return best_optimum(
            arrays["x"],
            arrays.get("mask"),
            n_latent=self.n_latent,
            noise=self.noise,
            noise_per_feature=bool(self.noise_dims),
            fixed_mean=self.mu_scale == 0,
            rng=rng,
        )

    # -- data

    def check(self, dataset: Dataset) -> None:
        """Reject data that are not a table with at least `n_latent` + 1 features and max(2, `n_latent` + 1) units.

        Columns without observed entries and tables of identical rows are rejected. A constant column is rejected if each feature
        has a separate noise variance.

        Raises:
            DataError: Names both numbers, or the column.
        """
        what = f"{type(self).__name__}: {dataset.name}"
        require_table(what, dataset)
        n_units, n_features = dataset.x.shape
        if self.n_latent >= n_features:
            raise DataError(f"{what}: n_latent must be below the number of features, {n_features}; got {self.n_latent}.")
        if n_units < self.n_latent + 1 or n_units < 2:
            raise DataError(f"{what} has {n_units} units; n_latent = {self.n_latent} needs at least {max(2, self.n_latent + 1)}.")
        observed = ~np.isnan(dataset.x)
        if not observed.any(0).all():
            raise DataError(f"{what}: column {str(dataset.features[~observed.any(0)][0])!r} has no observed entry; remove it.")
        low, high = np.nanmin(dataset.x, 0), np.nanmax(dataset.x, 0)
        if (low == high).all():
            raise DataError(f"{what}: all {n_units} rows are identical, so positions cannot be estimated.")
        if self.noise_dims and (low == high).any():
            name = str(dataset.features[low == high][0])
            raise DataError(
                f"{what}: column {name!r} is constant, so its noise variance cannot be estimated; "
                "drop constant columns by `drop_constant: true`."
            )

    def check_new(self, dataset: Dataset) -> None:
        """Reject data that are not a table.

        Raises:
            DataError: Names the array.
        """
        require_table(f"{type(self).__name__}: {dataset.name}", dataset)

    def cautions(self, dataset: Dataset) -> list[Caution]:
        """Warn of outliers, and of unidentified feature noise beyond the Ledermann bound."""
        d, q = dataset.x.shape[1], self.n_latent
        if not self.noise_dims or self.W_scale == 0 or (d - q) ** 2 >= d + q:
            return outliers(dataset)
        most = max(k for k in range(d) if (d - k) ** 2 >= d + k)
        remedy = f"use at most {most} factor{'s' * (most > 1)}" if most else "use at least 3 features"
        text = (
            f"{self.noise}, W and the positions are not identified: with {q} factor{'s' * (q > 1)} of {d} features, different "
            f"noise variances imply the same covariance, and only the prior distinguishes them; {remedy}"
        )
        bound = Caution("identification", text, float((d - q) ** 2), f">= {d + q} ((D - k)^2 >= D + k)")
        return [bound, *outliers(dataset)]

    def initialize(self, arrays: Arrays, rng: np.random.Generator) -> dict[str, Any]:
        """Start from the principal subspace after a random orthogonal transformation, with the residual noise."""
        start = _principal_start(arrays, self.n_latent, self.noise_dims)
        turn, _ = np.linalg.qr(rng.standard_normal((self.n_latent, self.n_latent)))
        start["W"] = start["W"] @ torch.from_numpy(turn)
        z = LowRankGaussian(start["mu"], start["W"], start["noise"], arrays.get("mask")).conditional(arrays["x"]).mean
        return {"W": start["W"], "mu": start["mu"], self.noise: start["noise"], "z": z}

    def simulate(self, rng: np.random.Generator, n_units: int, n_features: int = 10) -> Dataset:
        """Draw the sites from their priors, and the data from the model."""
        W = self.W_scale * rng.standard_normal((n_features, self.n_latent))
        mu = self.mu_scale * rng.standard_normal(n_features)
        noise_scale = getattr(self, f"{self.noise}_scale")
        scale = np.abs(noise_scale * rng.standard_normal(n_features if self.noise_dims else ()))
        z = rng.standard_normal((n_units, self.n_latent))
        x = z @ W.T + mu + scale * rng.standard_normal((n_units, n_features))
        dataset = Dataset({"x": x}, dims={"x": ("unit", "feature")}, name=f"simulated {self.name}")
        truth = {"W": W, "mu": mu, self.noise: np.asarray(scale), "z": z}
        return replace(dataset, truth=truth, truth_dims=dict(self.dims))


def _parameter(name: str, start: Callable[[], torch.Tensor], constraint: Any = constraints.real) -> torch.Tensor:
    """Register a parameter of the guide; its start is computed once and copied, since Pyro would use the tensor itself."""
    return pyro.param(name, lambda: start().detach().clone(memory_format=torch.contiguous_format), constraint=constraint)


def _spread(site: str, loc: torch.Tensor) -> torch.Tensor:
    return _parameter(f"{site}_spread", lambda: torch.full_like(loc, GUIDE_SCALE), constraints.positive)


def _encoder(W: torch.Tensor, mu: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Slope `(feature, latent)`, offset `(latent,)` and Cholesky factor of the exact conditional of z given a complete x."""
    exact = LowRankGaussian(mu, W, noise)
    at_zero = exact.conditional(torch.zeros_like(mu)[None])
    slope = exact.conditional(torch.eye(len(mu), dtype=mu.dtype)).mean - at_zero.mean
    return slope, at_zero.mean[0], at_zero.scale_tril.expand(1, W.shape[1], W.shape[1])[0]


def _principal_start(arrays: Arrays, n_latent: int, noise_dims: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Closed-form PPCA estimate on the data with missing entries at their column's mean.

    If each feature has a separate noise variance, the columns are standardised, and the noise is the residual of each feature.
    """
    x, mask = arrays["x"], arrays.get("mask")
    observed = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
    mu = torch.where(observed, x, 0.0).sum(0) / observed.sum(0).clamp(min=1)
    centred = torch.where(observed, x - mu, 0.0)
    scale = torch.linalg.vector_norm(centred, dim=0) / math.sqrt(len(x))
    if not noise_dims:
        scale = torch.linalg.vector_norm(scale).expand(len(scale)) / math.sqrt(len(scale))
    scale = torch.where(scale > 0, scale, 1.0)
    centred = centred / scale
    S = centred.mT @ centred / len(x)
    values, vectors = torch.linalg.eigh(S)
    values, vectors = values.flip(0), vectors.flip(1)
    floor = LEAST_SHARE * values.mean().clamp(min=LEAST_SHARE)
    rest = torch.maximum(values[n_latent:].mean(), floor)
    W = vectors[:, :n_latent] * torch.sqrt(torch.clamp(values[:n_latent] - rest, min=floor))
    noise = torch.sqrt(rest) * scale[0]
    if noise_dims:
        noise = torch.sqrt(torch.maximum(torch.diagonal(S) - (W**2).sum(1), floor)) * scale
    W = torch.from_numpy(np.ascontiguousarray(principal_axes((W * scale[:, None]).numpy())))
    return {"W": W, "mu": mu, "noise": noise}
