r"""The linear-Gaussian state-space model: positions with linear dynamics, marginalised by the Kalman filter."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch

from latentlab.data.dataset import Dataset
from latentlab.distributions.linear_gaussian_chain import LinearGaussianChain, LinearGaussianPath
from latentlab.errors import DataError
from latentlab.models.base import Arrays, Caution, LatentModel, MaximumLikelihood, Position, outliers, require_table
from latentlab.models.fixed import normal
from latentlab.models.mixture import check_table
from latentlab.models.state_space_optimum import best_optimum, start
from latentlab.settings import Count, NonNegative, Positive, settings
from latentlab.symmetry.groups import Orthogonal


@settings
class LinearGaussianStateSpace(LatentModel):
    r"""Linear-Gaussian state-space model (a dynamic factor model): positions with linear dynamics, observed with Gaussian noise.

    $$ A_{ij} \sim N(0, \text{A\_scale}^2), \quad C_{dj} \sim N(0, \text{C\_scale}^2), \quad
       \mu_d \sim N(0, \text{mu\_scale}^2), \quad \sigma_d \sim \text{HalfNormal}(\text{sigma\_scale}) $$
    $$ z_1 \sim N(0, \text{initial\_scale}^2 I_q), \quad z_t \sim N(A z_{t-1}, I_q), \quad
       x_t \sim N(C z_t + \mu, \text{diag}(\sigma^2)) $$

    A (next_latent, latent) is the transition, C (feature, latent) the loadings, mu (feature,) the mean, sigma (feature,) the
    standard deviations of the noise, z (unit, latent) the positions. A unit is a time step. Scales are standard deviations, in
    the units of the features. A dataset's coordinate `sequence` assigns steps to sequences, which are independent. The scale of z
    is fixed by its innovations of covariance I. sigma, mu, C z_t, and $C A^k C^T$ for every k are identified. A, C and z are
    identified up to one common rotation or reflection, O(q), which maps A to R^T A R. A can be unstable.

    Args:
        n_latent: Latent dimensions q; they may exceed the number of features.
        A_scale: Prior standard deviation of each entry of A; 0 fixes A at 0, so that steps are independent.
        C_scale: Prior standard deviation of each loading.
        mu_scale: Prior standard deviation of each mean; 0 fixes mu at 0.
        sigma_scale: Scale of the half-normal prior of the noise.
        initial_scale: Standard deviation of the first position of a sequence.

    Raises:
        ConfigError: A setting is out of its range.

    References:
        Shumway & Stoffer (1982), An approach to time series smoothing and forecasting using the EM algorithm, J. Time Series
        Analysis 3:253. Durbin & Koopman (2012), Time Series Analysis by State Space Methods, 2nd ed., Oxford.

    Example:
        >>> LinearGaussianStateSpace(n_latent=2).dims["A"]
        ('next_latent', 'latent')
    """

    name = "state_space"
    methods = ("nuts", "chees", "svi", "map", "exact")
    positions = (Position("z"),)
    symmetry = Orthogonal()
    jitter = 0.5

    dims = {
        "A": ("next_latent", "latent"),
        "C": ("feature", "latent"),
        "mu": ("feature",),
        "sigma": ("feature",),
        "z": ("unit", "latent"),
    }

    n_latent: Count
    A_scale: NonNegative = 0.5
    C_scale: Positive = 1.0
    mu_scale: NonNegative = 10.0
    sigma_scale: Positive = 1.0
    initial_scale: Positive = 1.0

    # -- the program

    def model(self, x: torch.Tensor, mask: torch.Tensor | None = None, sequence: torch.Tensor | None = None) -> None:
        n_units, n_features = x.shape
        A = normal("A", self.A_scale, (self.n_latent, self.n_latent))
        C = normal("C", self.C_scale, (n_features, self.n_latent))
        mu = normal("mu", self.mu_scale, (n_features,))
        sigma = pyro.sample("sigma", dist.HalfNormal(torch.full((n_features,), self.sigma_scale)).to_event(1))
        with pyro.plate("unit", n_units):
            pyro.sample("x", self._chain({"x": x, "mask": mask, "sequence": sequence}, A=A, C=C, mu=mu, sigma=sigma), obs=x)

    def _chain(self, arrays: Arrays, **values: torch.Tensor) -> LinearGaussianChain:
        eye = torch.eye(self.n_latent, dtype=torch.float64)
        return LinearGaussianChain(
            values["A"],
            eye,
            values["C"],
            values["mu"],
            values["sigma"],
            torch.zeros_like(eye[0]),
            self.initial_scale**2 * eye,
            _starts(arrays),
            arrays.get("mask"),
        )

    # -- exact conditional distributions

    def latents(self, arrays: Arrays, **values: torch.Tensor) -> LinearGaussianPath:
        """Exact Gaussian distribution of the path z given the observed entries of x and the other sites."""
        return self._chain(arrays, **values).conditional(arrays["x"])

    def imputation(self, arrays: Arrays, **values: torch.Tensor) -> dist.Normal:
        """Distribution of x given z and the other sites; the entries are independent, so the observed ones do not enter."""
        loc = values["z"] @ values["C"].mT + values["mu"]
        return dist.Normal(loc, values["sigma"].expand(loc.shape[-1]))

    def replicated(self, arrays: Arrays, **values: torch.Tensor) -> torch.Tensor:
        return self.imputation(arrays, **values).sample()

    def leave_one_out(self, arrays: Arrays, **values: torch.Tensor) -> torch.Tensor:
        """log p(x_t | all other steps) for one sequence, `(unit,)`; for several, log p of each sequence, `(sequence,)`."""
        chain = self._chain(arrays, **values)
        several = int(chain.starts.sum()) > 1
        return chain.sequence_log_prob(arrays["x"]) if several else chain.leave_one_out(arrays["x"])

    def maximum_likelihood(self, arrays: Arrays, rng: np.random.Generator) -> MaximumLikelihood:
        return best_optimum(
            arrays["x"],
            arrays.get("mask"),
            _starts(arrays),
            n_latent=self.n_latent,
            initial_scale=self.initial_scale,
            fixed=tuple(site for site, scale in (("A", self.A_scale), ("mu", self.mu_scale)) if scale == 0),
            rng=rng,
        )

    # -- data

    def cautions(self, dataset: Dataset) -> list[Caution]:
        return outliers(dataset)

    def check(self, dataset: Dataset) -> None:
        """Reject data that are not a table, have fewer than three steps, or have a constant column.

        Raises:
            DataError: Names the number of steps, or the column.
        """
        what = f"{type(self).__name__}: {dataset.name}"
        check_table(what, dataset)
        if len(dataset.x) < 3:
            raise DataError(f"{what} must have at least 3 time steps; got {len(dataset.x)}.")
        low, high = np.nanmin(dataset.x, 0), np.nanmax(dataset.x, 0)
        if (low == high).any():
            raise DataError(
                f"{what}: column {str(dataset.features[low == high][0])!r} is constant, so its noise variance cannot be "
                "estimated; drop constant columns by `drop_constant: true`."
            )

    def check_new(self, dataset: Dataset) -> None:
        """Reject data that are not a table.

        Raises:
            DataError: Names the array.
        """
        require_table(f"{type(self).__name__}: {dataset.name}", dataset)

    def initialize(self, arrays: Arrays, rng: np.random.Generator) -> dict[str, Any]:
        """Start from principal components and their regression on the previous step, after a random orthogonal transformation."""
        initial = start(arrays["x"], arrays.get("mask"), _starts(arrays), self.n_latent, rng)
        turn = torch.from_numpy(np.linalg.qr(rng.standard_normal((self.n_latent, self.n_latent)))[0])
        return {**initial, "A": turn.mT @ initial["A"] @ turn, "C": initial["C"] @ turn}

    def simulate(self, rng: np.random.Generator, n_units: int, n_features: int = 5, n_sequences: int = 1) -> Dataset:
        """Draw the sites from their priors, and the data from the model; lengths of sequences differ by at most one step."""
        q = self.n_latent
        A = self.A_scale * rng.standard_normal((q, q))
        C = self.C_scale * rng.standard_normal((n_features, q))
        mu = self.mu_scale * rng.standard_normal(n_features)
        sigma = np.abs(self.sigma_scale * rng.standard_normal(n_features))
        sequence = np.arange(n_units) * n_sequences // n_units
        z = rng.standard_normal((n_units, q))
        for t in range(n_units):
            begins = t == 0 or sequence[t] != sequence[t - 1]
            z[t] = self.initial_scale * z[t] if begins else A @ z[t - 1] + z[t]
        x = z @ C.T + mu + sigma * rng.standard_normal((n_units, n_features))
        coords = {"sequence": sequence.astype(str)} if n_sequences > 1 else {}
        dataset = Dataset({"x": x}, dims={"x": ("unit", "feature")}, coords=coords, name=f"simulated {self.name}")
        return replace(dataset, truth={"A": A, "C": C, "mu": mu, "sigma": sigma, "z": z}, truth_dims=dict(self.dims))


def _starts(arrays: Arrays) -> torch.Tensor:
    """True where a sequence begins `(unit,)`."""
    first = torch.arange(len(arrays["x"])) == 0
    sequence = arrays.get("sequence")
    return first if sequence is None else first | (sequence != sequence.roll(1))
