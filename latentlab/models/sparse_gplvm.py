r"""The Gaussian process latent variable model with inducing points, for many units."""

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

from latentlab.data.dataset import Dataset
from latentlab.distributions.low_rank_gaussian import cholesky_or_nan
from latentlab.distributions.sparse_process import (
    SparseBits,
    SparseRows,
    divergence,
    optimal_inducing,
    variances_of,
    weights_of,
)
from latentlab.errors import ConfigError, DataError, ModelError
from latentlab.models.base import Arrays, Caution, LatentModel, Position, outliers, require_table
from latentlab.models.emissions.base import check_entries
from latentlab.models.flows import FlowSettings
from latentlab.models.mixture import check_table
from latentlab.models.psi_statistics import EXACT, Psi, collapsed_bound, psi_statistics
from latentlab.models.sparse_kernel import Kernel, Tensors
from latentlab.models.sparse_positions import SHAPES, Guide, placed, spread_out, starting_positions
from latentlab.settings import Count, NonNegative, Positive, Sizes, settings
from latentlab.symmetry.groups import Orthogonal, SignedPermutation

LEAST_NOISE = 0.05
"""Smallest standard deviation of the noise at the start, relative to the root mean square of the data."""
BLOCK = 2_000_000
"""Number of function values computed at once for a bound with many samples."""


@settings
class SparseGPLVM(LatentModel):
    r"""Gaussian process latent variable model with inducing points, whose minibatches need no matrix of all units.

    $$ z_n \sim N(0, I_q), \quad f_d \sim GP(0, k), \quad
       x_{nd} \sim N(f_d(z_n), \sigma^2) \text{ or } \mathrm{Bernoulli}(\mathrm{logit}^{-1} f_d(z_n)) $$

    The kernel k is that of `GPLVM`; its parameters and sigma are point estimates. The functions are summarised by their values at
    M inducing inputs Z: $f_d(z) \mid u_d \sim N(a(z)^T u_d, k(z, z) - a^T a)$ with whitened values $u_d \sim N(0, I_M)$,
    $a(z) = C^{-1} k(Z, z)$, $C C^T = k(Z, Z) + \nu \bar k I$, where $\bar k$ is the mean variance of the inducing inputs. The
    approximate posterior is $q(u_d) = N(m_d, S)$, with one covariance S for all features. For Gaussian rows without missing
    entries the optimum of S does not depend on the feature. The program has the density
    $$ \log p(z) + \sum_n \mathbb E_q \log p(x_n \mid f(z_n)) - \mathrm{KL}(q(u) \,\|\, p(u)), $$
    a lower bound on log p(x, z), with equality if Z are the positions and q(u) is the posterior. Its expectation over q(z) minus
    that of log q(z) is the stochastic bound of the fit. With `elbo: collapsed`, the bound is in closed form with q(u) at its
    optimum, and L-BFGS maximises it: the estimate of the noise is then far more accurate.

    z (unit, latent) are the positions, Z (inducing, latent) the inducing inputs, `u_loc` (inducing, feature) is m, and `u_scale`
    the Cholesky factor of S. `lengthscale` is in units of the positions. With one lengthscale, positions are identified up to one
    common rotation or reflection, O(q). With a lengthscale for each dimension (`ard`), they are identified up to the order and
    the signs of the dimensions. The density depends on squared lengthscales only, so that a change of their signs has no effect.

    Args:
        n_latent: Latent dimensions q.
        n_inducing: Number of inducing inputs M.
        kernel: Kernel (`rbf`, `matern32`, `matern52`, `rational_quadratic`, `linear`), or a sum of kernels joined by `+`.
        ard: Whether each latent dimension has a lengthscale.
        likelihood: `gaussian`, or `bernoulli` for zeros and ones.
        posterior: q(z) of each unit: a `point` estimate, or normal with a `diagonal` or `full` covariance.
        encoder: Sizes of the hidden layers of a network that maps rows to q(z) (back-constraint); if None, each unit has its own
            parameters.
        elbo: `stochastic` for minibatches, or `collapsed` for all units at once, a Gaussian likelihood, no missing entries, and
            the kernel `rbf` or `linear`; the time of a step grows with the number of units times M^2.
        mean_scale: Standard deviation of the mean of each feature; 0 for centred features.
        nugget: Variance nu added to the covariance of the inducing inputs, as a share of their mean variance. It is never raised;
            a matrix without a Cholesky factor stops the fit.
        start: Embedding at which positions start: `pca`, `isomap`, `spectral` or `random`.

    Raises:
        ConfigError: A setting is out of its range.

    References:
        Titsias & Lawrence (2010), Bayesian Gaussian Process Latent Variable Model, AISTATS.
        Lalchand, Ravuri & Lawrence (2022), Generalised GPLVM with Stochastic Variational Inference, AISTATS.
        Hensman, Fusi & Lawrence (2013), Gaussian Processes for Big Data, UAI.

    Example:
        >>> SparseGPLVM(n_latent=2, n_inducing=20).parameters["u_loc"]
        ('inducing', 'feature')
    """

    name = "sparse_gplvm"
    dims = {"z": ("unit", "latent")}
    positions = (Position("z"),)
    symmetry = Orthogonal()
    methods = ("svi",)
    joint_is_bound = True

    n_latent: Count
    n_inducing: Count = 50
    kernel: str = "rbf"
    ard: bool = False
    likelihood: Literal["gaussian", "bernoulli"] = "gaussian"
    posterior: Literal["point", "diagonal", "full"] = "diagonal"
    encoder: Sizes | None = None
    elbo: Literal["stochastic", "collapsed"] = "stochastic"
    mean_scale: NonNegative = 0.0
    nugget: Positive = 1e-6
    start: Literal["pca", "isomap", "spectral", "random"] = "pca"

    def __post_init__(self) -> None:
        self._kernel = Kernel("SparseGPLVM", self.kernel, self.mean_scale, ard=self.ard)
        self._shape = SHAPES[self.posterior](FlowSettings(self.n_latent, "affine", 1, (), "tanh", 1))
        self._guide = Guide(self._shape, self.encoder)
        if self.ard:
            self.symmetry = SignedPermutation()  # type: ignore[assignment]
        if self.elbo == "collapsed" and (self.likelihood != "gaussian" or self.kernel.strip() not in EXACT):
            raise ConfigError(
                f"SparseGPLVM: `elbo` must be stochastic unless `likelihood` is gaussian and `kernel` {' or '.join(EXACT)}; got "
                f"'collapsed' with the likelihood {self.likelihood!r} and the kernel {self.kernel!r}."
            )

    @property
    def parameters(self) -> Mapping[str, tuple[str, ...]]:  # type: ignore[override]
        """Dims of the parameters of program and guide."""
        return {**self._program_dims(), **self._guide.dims}

    def _program_dims(self) -> dict[str, tuple[str, ...]]:
        u = {"u_loc": ("inducing", "feature"), "u_scale": ("inducing", "next_inducing")}
        sigma: dict[str, tuple[str, ...]] = {"sigma": ()} if self.likelihood == "gaussian" else {}
        return {"Z": ("inducing", "latent"), **u, **self._kernel.dims, **sigma}

    # -- the program

    def model(
        self, x: torch.Tensor, mask: torch.Tensor | None = None, row: torch.Tensor | None = None, n_unit: int | None = None
    ) -> None:
        values = self._registered(self._program_dims(), x, mask, row, n_unit)
        with pyro.plate("unit", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(self.n_latent), 1.0).to_event(1))
            pyro.sample("x", self._rows(z, mask, values), obs=x)
        pyro.factor("u", -divergence(values["u_loc"], values["u_scale"]).reshape(z.shape[:-2] and (-1, 1)))

    def guide(
        self, x: torch.Tensor, mask: torch.Tensor | None = None, row: torch.Tensor | None = None, n_unit: int | None = None
    ) -> None:
        """Sample the positions from their posteriors."""
        values = self._registered(self._guide.dims, x, mask, row, n_unit)
        with pyro.plate("unit", len(x)):
            pyro.sample("z", self._guide.distribution(x, mask, row, values))

    def takes(self, argument: str) -> bool:
        """Whether the program has an argument of this name; `row` only without an encoder."""
        return super().takes(argument) and (argument != "row" or self.encoder is None)

    def _registered(
        self,
        dims: Mapping[str, tuple[str, ...]],
        x: torch.Tensor,
        mask: torch.Tensor | None,
        row: torch.Tensor | None,
        n_unit: int | None,
    ) -> dict[str, torch.Tensor]:
        """Register parameters: positions start at an embedding, inducing inputs among them, q(u) at its optimum given these."""
        found: dict[str, torch.Tensor] = {}

        def starts() -> dict[str, torch.Tensor]:
            if not found:
                found.update(self._starts(x, mask, row, n_unit))
            return found

        positive = {*self._kernel.dims, "sigma"}
        bounds = {name: constraints.positive for name in positive} | {"u_scale": constraints.lower_cholesky}
        return {
            name: pyro.param(name, partial(lambda name: starts()[name], name), constraint=bounds.get(name, constraints.real))
            for name in dims
        }

    def _starts(
        self, x: torch.Tensor, mask: torch.Tensor | None, row: torch.Tensor | None, n_unit: int | None
    ) -> dict[str, torch.Tensor]:
        z, spreads = starting_positions(x, mask, self.n_latent, self.start)
        found: dict[str, torch.Tensor] = {}
        if self.encoder is not None or row is not None:  # new units have no parameters
            of_guide = self._guide.starts(x, z, row, n_unit)
            found = {name: of_guide(name) for name in self._guide.dims}
        observed = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
        is_gaussian = self.likelihood == "gaussian"
        spread = math.sqrt(float((x[observed] ** 2).mean())) if is_gaussian and bool(observed.any()) else 1.0
        found |= {name: self._kernel.start(name, spreads, spread or 1.0) for name in self._kernel.dims}
        found |= {"sigma": torch.tensor(0.2 * (spread or 1.0)), "Z": spread_out(z, self.n_inducing)}
        found |= {"u_loc": torch.zeros(self.n_inducing, x.shape[1]), "u_scale": 0.3 * torch.eye(self.n_inducing)}
        if is_gaussian and self.encoder is None:  # positions of an encoder start at random
            weights, _ = self._weights(z, found)
            scale = (n_unit or len(x)) / len(x)
            rows = torch.where(observed, x, 0.0).double()
            loc, _ = optimal_inducing(weights, rows, found["sigma"], scale)
            residual = torch.where(observed, rows - weights @ loc, 0.0)
            found["sigma"] = torch.sqrt((residual**2).sum() / observed.sum()).clamp_min(LEAST_NOISE * (spread or 1.0))
            loc, factor = optimal_inducing(weights, rows, found["sigma"], scale)
            if not bool(torch.isfinite(loc).all()):
                raise ModelError(
                    f"SparseGPLVM: `nugget` must be larger, since the covariance of the {self.n_inducing} inducing inputs has no "
                    f"Cholesky factor at the start; got {self.nugget:g}. Or use a smaller `n_inducing`."
                )
            found |= {"u_loc": loc, "u_scale": torch.linalg.cholesky(factor @ factor.mT)}
        return found

    def _weights(self, z: torch.Tensor, values: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights of the inducing variables `(..., unit, inducing)`, and prior variances `(..., unit)`, in float64."""
        at = {name: values[name].double() for name in (*self._kernel.dims, "Z")}
        flat, Z = z.reshape(-1, self.n_latent).double(), at["Z"]
        weights = weights_of(self._inducing_covariance(at), self._kernel.covariance(flat, Z, at))
        prior = self._kernel.variances(flat, at)
        return weights.unflatten(0, z.shape[:-1]), prior.unflatten(0, z.shape[:-1])

    def _inducing_covariance(self, values: Tensors) -> torch.Tensor:
        Z = values["Z"]
        nugget = self.nugget * self._kernel.variances(Z, values).mean()
        return self._kernel.covariance(Z, Z, values) + nugget * torch.eye(len(Z), dtype=Z.dtype, device=Z.device)

    def _rows(self, z: torch.Tensor, mask: torch.Tensor | None, values: Tensors) -> SparseRows:
        """Distribution of the rows at positions, whose log density is the expected log likelihood."""
        weights, prior = self._weights(z, values)
        loc, scale = values["u_loc"], values["u_scale"]
        variance = variances_of(weights, prior, scale.double()).to(z.dtype)
        kind = SparseRows if self.likelihood == "gaussian" else SparseBits
        return kind(weights.to(z.dtype) @ loc, variance, values.get("sigma", variance), mask)

    # -- the collapsed bound

    @property
    def offers(self) -> frozenset[str]:
        """Methods of the model; `exact_elbo` only with `elbo: collapsed`."""
        return super().offers - ({"exact_elbo"} if self.elbo == "stochastic" else set())

    def exact_elbo(self, arrays: Arrays, **values: torch.Tensor) -> torch.Tensor:
        r"""Collapsed bound: the largest lower bound on log p(x) over all q(u), with exact expectations under q(z).

        For point estimates of the positions it is a bound on log p(x, z).
        """
        x, q = arrays["x"], self._guide.distribution(arrays["x"], None, arrays.get("row"), values)
        return collapsed_bound(x, self._psi(q, values), self._inducing_covariance(values), values["sigma"]) - _divergence(q)

    def completed(self, arrays: Arrays, values: Tensors) -> dict[str, torch.Tensor]:
        """Set q(u) to its optimum after a fit with the collapsed bound."""
        if self.elbo != "collapsed":
            return dict(values)
        q = self._guide.distribution(arrays["x"], None, arrays.get("row"), values)
        psi, lower = self._psi(q, values), cholesky_or_nan(self._inducing_covariance(values))
        weights = torch.linalg.solve_triangular(lower, psi.one.mT, upper=False).mT
        half = torch.linalg.solve_triangular(lower, psi.two, upper=False)
        second = torch.linalg.solve_triangular(lower, half.mT, upper=False)
        loc, factor = optimal_inducing(weights, arrays["x"], values["sigma"], extra=second - weights.mT @ weights)
        return {**values, "u_loc": loc, "u_scale": torch.linalg.cholesky(factor @ factor.mT)}

    def _psi(self, q: dist.TorchDistribution, values: Tensors) -> Psi:
        """Expected covariances of positions and inducing inputs."""
        one = torch.ones((), dtype=torch.float64)
        at = values.get("lengthscale", one), values.get("amplitude", one)
        return psi_statistics(self._kernel.names[0], q.mean, _covariance(q), values["Z"], *at, self.mean_scale)

    # -- positions

    def latents(self, arrays: Arrays, **values: torch.Tensor) -> dist.TorchDistribution:
        """Posterior of each unit: of the fit by its number `row`, of new units by the encoder, or else by optimisation.

        The optimisation starts at inducing inputs, with the map fixed, and is deterministic.
        """
        x, mask, row = arrays["x"], arrays.get("mask"), arrays.get("row")
        if self.encoder is not None or row is not None:
            return self._guide.distribution(x, mask, row, values)

        def log_joint(z: torch.Tensor) -> torch.Tensor:
            return self._rows(z, mask, values).log_prob(x) - 0.5 * (z**2).sum(-1)

        candidates = torch.cat([values["Z"], torch.zeros(1, self.n_latent, dtype=x.dtype)]).detach()
        return placed(log_joint, candidates, len(x), self._shape)

    def bound(self, arrays: Arrays, n_samples: int, **values: torch.Tensor) -> torch.Tensor:
        r"""Importance-weighted bound $\log \frac1S \sum_s p(x_n \mid z_{ns}) p(z_{ns}) / q(z_{ns})$, $z_{ns} \sim q$, `(unit,)`.

        p(x | z) is the predictive density under q(u). The expectation of the bound is at most log p(x_n). For point estimates,
        q(z) is the normal distribution that new units have with `posterior: diagonal`.
        """
        x, mask = arrays["x"], arrays.get("mask")
        if self.posterior == "point":
            other = replace(self, posterior="diagonal", encoder=None)
            q = other.latents({**arrays, "row": None}, **values)
        else:
            q = self.latents(arrays, **values)
        prior = dist.Normal(torch.zeros(self.n_latent), 1.0).to_event(1)
        block, parts = max(1, BLOCK // max(1, x.numel())), []
        for first in range(0, n_samples, block):
            z = q.sample(torch.Size((min(block, n_samples - first),)))
            each = self._rows(z, mask, values).predictive().log_prob(x)
            fit = (each if mask is None else torch.where(mask, each, 0.0)).sum(-1)
            parts.append(fit + prior.log_prob(z) - q.log_prob(z))
        return torch.logsumexp(torch.cat(parts), dim=0) - math.log(n_samples)

    def divergences(self, arrays: Arrays, **values: torch.Tensor) -> torch.Tensor:
        """Divergence of q(z) from the prior in each dimension, `(unit, latent)`; half of the squares of point estimates."""
        if self.posterior == "point":
            return 0.5 * self.latents(arrays, **values).mean ** 2
        return super().divergences(arrays, **values)

    # -- the map

    def map_at(self, arrays: Arrays, positions: torch.Tensor, **values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Means and variances of the functions at new positions `(new, latent)`: two arrays `(new, feature)`."""
        rows = self._rows(positions, None, values)
        return rows.mean_of_f, rows.variance_of_f[:, None].expand_as(rows.mean_of_f)

    def imputation(self, arrays: Arrays, **values: torch.Tensor) -> torch.distributions.Distribution:
        """Predictive distribution of each entry given the unit's position; features are independent given it."""
        return self._rows(values["z"], None, values).predictive()

    # -- data

    def inactive(self, arrays: Arrays) -> Collection[str]:
        """Weights of the indicators of missing entries, if there are none."""
        return [] if arrays.get("mask") is not None else [name for name in self._guide.dims if name.endswith("_missing")]

    def cautions(self, dataset: Dataset) -> list[Caution]:
        return outliers(dataset) if self.likelihood == "gaussian" else []

    def check(self, dataset: Dataset) -> None:
        """Reject data that are not a table, have fewer than 4 units or than inducing inputs, or have a constant column.

        Raises:
            DataError: Names the number of units, the column, or the entry.
        """
        what = f"{type(self).__name__}: {dataset.name}"
        check_table(what, dataset)
        self.check_new(dataset)
        n_units = len(dataset.x)
        if n_units < 4:
            raise DataError(f"{what} must have at least 4 units; got {n_units}.")
        if n_units < self.n_inducing:
            raise DataError(f"{what}: `n_inducing` must be at most the number of units, {n_units}; got {self.n_inducing}.")
        low, high = np.nanmin(dataset.x, 0), np.nanmax(dataset.x, 0)
        if (low == high).any() and self.likelihood == "gaussian":
            raise DataError(
                f"{what}: column {str(dataset.features[low == high][0])!r} is constant, and has no relation to positions; drop "
                "constant columns by `drop_constant: true`."
            )
        if self.elbo == "collapsed" and np.isnan(dataset.x).any():
            raise DataError(f"{what} must have no missing entries for `elbo: collapsed`; use `elbo: stochastic`.")

    def check_new(self, dataset: Dataset) -> None:
        """Reject data that are not a table, and values outside the support of the likelihood.

        Raises:
            DataError: Names the array or the entry.
        """
        what = f"{type(self).__name__}: {dataset.name}"
        require_table(what, dataset)
        if self.likelihood == "bernoulli":
            invalid = (dataset.x != 0) & (dataset.x != 1)
            check_entries(what, dataset, invalid, "must be 0 or 1 for the likelihood 'bernoulli'")

    def simulate(self, rng: np.random.Generator, n_units: int, n_features: int = 5) -> Dataset:
        """Draw positions, functions and rows; q(u) in the truth is concentrated at the inducing variables that were drawn."""
        q, M = self.n_latent, self.n_inducing
        z, Z = rng.standard_normal((n_units, q)), rng.standard_normal((M, q))
        truth: dict[str, Any] = {name: np.exp(0.3 * rng.standard_normal([q] * len(d))) for name, d in self._kernel.dims.items()}
        truth |= {"z": z, "Z": Z, "u_loc": rng.standard_normal((M, n_features)), "u_scale": 0.1 * np.eye(M)}
        truth |= {"sigma": np.array(rng.uniform(0.2, 0.6))} if self.likelihood == "gaussian" else {}
        values = {name: torch.tensor(np.asarray(value), dtype=torch.float64) for name, value in truth.items()}
        weights, prior = self._weights(values["z"], values)
        rest = torch.sqrt((prior - (weights**2).sum(-1)).clamp_min(0.0)).numpy()[:, None]
        f = (weights @ values["u_loc"]).numpy() + rest * rng.standard_normal((n_units, n_features))
        if self.likelihood == "gaussian":
            x = f + truth["sigma"] * rng.standard_normal(f.shape)
        else:
            x = (rng.random(f.shape) < 1 / (1 + np.exp(-f))).astype(float)
        dataset = Dataset({"x": x}, dims={"x": ("unit", "feature")}, name=f"simulated {self.name}")
        return replace(dataset, truth=truth, truth_dims={"z": ("unit", "latent"), **self._program_dims()})


def _covariance(q: dist.TorchDistribution) -> torch.Tensor:
    """Covariance of the position of each unit, `(unit, latent, latent)`; 0 for point estimates."""
    return q.covariance_matrix if hasattr(q, "covariance_matrix") else torch.diag_embed(q.variance)


def _divergence(q: dist.TorchDistribution) -> torch.Tensor:
    """Sum over units of KL(q(z) | N(0, I)); of point estimates, minus the log density of the prior."""
    n, d = q.batch_shape[0], q.event_shape[0]
    if isinstance(q.base_dist if hasattr(q, "base_dist") else q, dist.Delta):
        return 0.5 * (q.mean**2).sum() + 0.5 * n * d * math.log(2 * math.pi)
    covariance = _covariance(q)
    return 0.5 * ((q.mean**2).sum() + torch.diagonal(covariance, dim1=-2, dim2=-1).sum() - n * d - torch.logdet(covariance).sum())
