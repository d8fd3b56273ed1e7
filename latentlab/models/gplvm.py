r"""The Gaussian process latent variable model: smooth unknown functions of latent positions."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy.optimize import minimize

from latentlab.data.dataset import Dataset
from latentlab.distributions.gaussian_process import GaussianProcess
from latentlab.errors import ConfigError, DataError
from latentlab.models.base import Arrays, Caution, LatentModel, Position, outliers, require_table
from latentlab.models.fixed import log_normal
from latentlab.models.gplvm_dynamics import Dynamics, smooth_prior
from latentlab.models.gplvm_kernel import Kernel
from latentlab.models.gplvm_starts import N_NEIGHBORS, STARTS, n_components, start
from latentlab.models.mixture import check_table
from latentlab.settings import Count, NonNegative, Positive, settings

MOST_UNITS = 3000
"""Largest number of units; time grows with its cube, memory with its square."""
COLLAPSED = 0.01
"""Largest correlation of the functions between units, or the root of its least difference from 1, of a collapsed kernel."""
N_STEPS = 30
"""Largest number of steps in which sigma and the kernel are fitted to a starting embedding."""
MOST_CHANGE = 2.0
"""Largest change of the log of a site in these steps."""
ROUGHNESS = 0.01
"""Variance of the part of a starting embedding that the smooth prior over time removes."""


@settings
class GPLVM(LatentModel):
    r"""Gaussian process latent variable model: each feature is a smooth random function of the latent positions.

    $$ \ell \sim \mathrm{LogNormal}(0, \text{lengthscale\_spread}^2), \quad
       a \sim \mathrm{LogNormal}(0, \text{amplitude\_spread}^2), \quad \sigma \sim \mathrm{HalfNormal}(\text{sigma\_scale}) $$
    $$ z_n \sim N(0, I_q), \quad f_d \sim GP(0, k), \quad x_{nd} \sim N(f_d(z_n), \sigma^2) $$

    The functions are marginalised: the columns of x are independent draws from $N(0, K + (\sigma^2 + \nu a^2) I)$ with
    $K_{nm} = k(z_n, z_m) + \text{mean\_scale}^2$. The kernel k is one of `rbf`, `matern32`, `matern52`, `rational_quadratic` and
    `linear` (see `latentlab.models.covariances`), or a sum such as `rbf+linear`, each with its amplitude a, and its lengthscale l
    unless it is linear. For sums, the sites are named by kernel, such as `amplitude_rbf`.

    z (unit, latent) are the positions. lengthscale () is in units of the positions, amplitude () and sigma () are standard
    deviations in the units of the features. All kernels depend on distances and inner products only, so that positions are
    identified up to one common rotation or reflection, O(q). With `ard`, a lengthscale (latent,) for each dimension leaves
    permutations and sign changes of the dimensions; lengthscales are permuted with them. Units are dependent given the positions.
    With a linear kernel the model is the dual of PPCA. With `dynamics`, the columns of z are smooth functions of time with the
    timescale tau () (`latentlab.models.gplvm_dynamics`); a dataset's coordinates `sequence` and `time` give the times. The
    likelihood has many modes; restarts begin at several embeddings, and all are kept.

    Args:
        n_latent: Latent dimensions q.
        kernel: Kernel, or a sum of kernels joined by `+`.
        ard: Whether each latent dimension has its own lengthscale (automatic relevance determination). A linear kernel then has
            lengthscales and no amplitude.
        lengthscale_spread: Standard deviation of the log of the lengthscale.
        amplitude_spread: Standard deviation of the log of the amplitude.
        sigma_scale: Scale of the half-normal prior of the noise.
        mean_scale: Standard deviation of the mean of each feature; 0 for centred features.
        nugget: Variance nu added to the diagonal, as a share of the squared amplitudes, for the Cholesky factor.
        dynamics: Covariance function of the positions over time; None for independent units.
        timescale_median: Median of the timescale tau, in units of the median gap between successive times.
        timescale_spread: Standard deviation of the log of the timescale.
        starts: Embeddings from which restarts begin, in turn: `pca`, `isomap`, `spectral`, `random`.

    Raises:
        ConfigError: A setting is out of its range.

    References:
        Lawrence (2005), Probabilistic Non-linear Principal Component Analysis with Gaussian Process Latent Variable Models, JMLR
        6:1783.

    Example:
        >>> GPLVM(n_latent=2, kernel="rbf+linear").dims["lengthscale_rbf"]
        ()
    """

    name = "gplvm"
    methods = ("map", "svi", "nuts", "chees")
    positions = (Position("z"),)
    jitter = 0.1

    n_latent: Count
    kernel: str = "rbf"
    ard: bool = False
    lengthscale_spread: NonNegative = 1.0
    amplitude_spread: NonNegative = 1.0
    sigma_scale: Positive = 1.0
    mean_scale: NonNegative = 0.0
    nugget: Positive = 1e-6
    dynamics: Dynamics | None = None
    timescale_median: Positive = 10.0
    timescale_spread: NonNegative = 1.0
    starts: list[Literal["pca", "isomap", "spectral", "random"]] | None = None

    def __post_init__(self) -> None:
        self._kernel = Kernel(
            self.kernel,
            ard=self.ard,
            n_latent=self.n_latent,
            spreads=(self.amplitude_spread, self.lengthscale_spread),
            mean_scale=self.mean_scale,
        )
        self.symmetry = self._kernel.symmetry
        self.start_names = tuple(self.starts or STARTS[:3])
        if self.starts is not None and not self.starts:
            raise ConfigError(f"GPLVM: `starts` must have at least one of {', '.join(STARTS)}; got [].")
        timescale = {"timescale": ()} if self.dynamics else {}
        self.dims = {**self._kernel.dims, "sigma": (), **timescale, "z": ("unit", "latent")}

    # -- the program

    def model(
        self,
        x: torch.Tensor,
        mask: torch.Tensor | None = None,
        sequence: torch.Tensor | None = None,
        time: torch.Tensor | None = None,
    ) -> None:
        values = self._kernel.sample()
        values["sigma"] = pyro.sample("sigma", dist.HalfNormal(self.sigma_scale))
        if self.dynamics:
            values["timescale"] = log_normal("timescale", torch.tensor(self.timescale_median), self.timescale_spread)
        arrays = {"x": x, "mask": mask, "sequence": sequence, "time": time}
        with pyro.plate("unit", len(x)):
            values["z"] = pyro.sample("z", self._prior(arrays, values))
            pyro.sample("x", self.process(arrays, **values), obs=x)

    def _prior(self, arrays: Arrays, values: Mapping[str, torch.Tensor]) -> dist.TorchDistribution:
        """Prior of the positions, batch `(unit,)`."""
        if self.dynamics:
            return smooth_prior(self.dynamics, arrays, values["timescale"], self.nugget, self.n_latent)
        return dist.Normal(torch.zeros(self.n_latent), 1.0).to_event(1)

    def takes(self, argument: str) -> bool:
        """Whether the program has an argument of this name; those of time only with `dynamics`."""
        return super().takes(argument) and (self.dynamics is not None or argument not in ("sequence", "time"))

    def process(self, arrays: Arrays, **values: torch.Tensor) -> GaussianProcess:
        """Distribution of the rows given positions and parameters of the kernel."""
        K = self._kernel.covariance(values["z"], values["z"], values)
        diagonal = values["sigma"] ** 2 + self.nugget * self._kernel.scale(values)
        eye = torch.eye(len(K), dtype=K.dtype, device=K.device)
        return GaussianProcess(K + diagonal * eye, arrays["x"].shape[-1], arrays.get("mask"))

    def covariance(self, one: torch.Tensor, other: torch.Tensor, **values: torch.Tensor) -> torch.Tensor:
        """Covariance of the functions at two sets of positions, `(n, m)`."""
        return self._kernel.covariance(one, other, values)

    # -- exact conditional distributions

    def map_at(self, arrays: Arrays, positions: torch.Tensor, **values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Means and variances of the functions at new positions `(new, latent)`: two arrays `(new, feature)`."""
        prior = self._kernel.variances(positions, values)
        cross = self.covariance(positions, values["z"], **values)
        return self.process(arrays, **values).predicted(arrays["x"], cross, prior)

    def imputation(self, arrays: Arrays, **values: torch.Tensor) -> dist.Normal:
        """Distribution of each missing entry given the observed entries of its column, and all sites."""
        mean, variance = self.map_at(arrays, values["z"], **values)
        nugget = self.nugget * self._kernel.scale(values)
        return dist.Normal(mean, torch.sqrt(variance + values["sigma"] ** 2 + nugget))

    def replicated(self, arrays: Arrays, **values: torch.Tensor) -> torch.Tensor:
        return self.imputation(arrays, **values).sample()

    def leave_one_out(self, arrays: Arrays, **values: torch.Tensor) -> torch.Tensor:
        return self.process(arrays, **values).leave_one_out(arrays["x"])

    def roots(self, arrays: Arrays, **values: torch.Tensor) -> tuple[str, torch.Tensor, str]:
        r"""Root of $(P^{-1} + D s K^{-1})^{-1}$ for each column of z, with its prior covariance P and mean squared slope s.

        A displacement of the positions that is smooth over the latent space is compensated by the functions; a rough one is not.
        Positions follow the lengthscale, since the likelihood depends on their ratio.
        """
        K, n_features = self.process(arrays, **values).K, arrays["x"].shape[-1]
        B = K / (n_features * self._kernel.slope(values))
        prior = torch.eye(len(K), dtype=K.dtype)
        if self.dynamics:
            prior = smooth_prior(self.dynamics, arrays, values["timescale"], self.nugget, self.n_latent).K
        covariance = B - B @ torch.linalg.solve(prior + B, B)
        covariance = (covariance + covariance.mT) / 2
        lower, info = torch.linalg.cholesky_ex(covariance)
        root = lower if int(info) == 0 else torch.eye(len(K), dtype=K.dtype)
        return "z", root, next((site for site, role in self._kernel.roles.items() if role == "lengthscale"), "")

    # -- data

    def cautions(self, dataset: Dataset) -> list[Caution]:
        """Warnings about outliers, and about a graph of neighbours, for a start, that is not connected."""
        found = outliers(dataset)
        if {"isomap", "spectral"} & set(self.start_names) and (n := n_components(dataset.x)) > 1:
            text = f"the graph of {N_NEIGHBORS} neighbours of the starts isomap and spectral has {n} components; they are rough"
            found.append(Caution("starts", text, n, "1"))
        return found

    def remarks(self, arrays: Arrays, values: Mapping[str, np.ndarray]) -> list[str]:
        """Notes on a kernel that has collapsed, and on a nugget that is most of the noise, with the condition number of K."""
        sites = {name: torch.tensor(np.array(value), dtype=torch.float64) for name, value in values.items()}
        K = self._kernel.covariance(sites["z"], sites["z"], sites)
        root = torch.sqrt(torch.diagonal(K))
        others = (K / (root[:, None] * root))[~torch.eye(len(K), dtype=torch.bool)]
        condition = float(torch.linalg.cond(self.process(arrays, **sites).K))
        notes = []
        if float(others.max()) < COLLAPSED:
            notes.append(f"the kernel has collapsed: the largest correlation of two units is {float(others.max()):.2g}")
        if float(others.min()) > 1 - COLLAPSED**2:
            notes.append(f"the kernel has collapsed: the smallest correlation of two units is {float(others.min()):.6f}")
        nugget = self.nugget * float(self._kernel.scale(sites))
        if nugget > float(sites["sigma"]) ** 2:
            share = nugget / (nugget + float(sites["sigma"]) ** 2)
            notes.append(f"`nugget` is {share:.0%} of the noise variance; the condition number of K is {condition:.2g}")
        return notes

    def check(self, dataset: Dataset) -> None:
        """Reject data that are not a table, have fewer than 4 units or more than 3000, or have a constant column.

        Raises:
            DataError: Names the number of units, or the column.
        """
        what = f"{type(self).__name__}: {dataset.name}"
        check_table(what, dataset)
        n_units = len(dataset.x)
        if not 4 <= n_units <= MOST_UNITS:
            raise DataError(f"{what} must have from 4 to {MOST_UNITS} units; got {n_units}; use `sparse_gplvm` for more.")
        low, high = np.nanmin(dataset.x, 0), np.nanmax(dataset.x, 0)
        if (low == high).any():
            raise DataError(
                f"{what}: column {str(dataset.features[low == high][0])!r} is constant, and has no relation to positions; drop "
                "constant columns by `drop_constant: true`."
            )

    def check_new(self, dataset: Dataset) -> None:
        """Reject data that are not a table.

        Raises:
            DataError: Names the array.
        """
        require_table(f"{type(self).__name__}: {dataset.name}", dataset)

    def initialize(self, arrays: Arrays, rng: np.random.Generator, name: str = "") -> dict[str, Any]:
        """Start at an embedding, the first of `starts` unless named, randomly rotated, with parameters of its scale."""
        x, mask = arrays["x"].numpy(), arrays.get("mask")
        z = start(x, None if mask is None else mask.numpy(), self.n_latent, (name or self.start_names[0],), rng)
        spread = float(np.sqrt(np.nanmean(x**2)))
        found = {"z": torch.from_numpy(z), "sigma": torch.tensor(0.3 * spread), **self._kernel.start(spread)}
        if self.dynamics:
            timescale = torch.tensor(self.timescale_median, dtype=torch.float64)
            found |= {"timescale": timescale} if self.timescale_spread else {}
            C = smooth_prior(self.dynamics, arrays, timescale, self.nugget, self.n_latent).K
            found["z"] = C @ torch.linalg.solve(C + ROUGHNESS * torch.eye(len(C), dtype=C.dtype), found["z"])
        return found | self._given_positions(arrays, found)

    def _given_positions(self, arrays: Arrays, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Maximise the joint density over sigma and the sites of the kernel at fixed positions, from these values."""
        names = [site for site in (*self._kernel.dims, "sigma") if site in values]
        shapes = [values[name].shape for name in names]
        fixed = {site: torch.ones(self._kernel.shape(site), dtype=torch.float64) for site in self._kernel.dims}

        @torch.enable_grad()
        def objective(v: np.ndarray) -> tuple[float, np.ndarray]:
            logs = torch.tensor(v, requires_grad=True)
            parts = torch.exp(logs).split([shape.numel() for shape in shapes])
            sites = {name: part.reshape(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
            loss = -self.process(arrays, **{**fixed, **values, **sites}).log_prob_sum(arrays["x"])
            for name, value in sites.items():
                spread = 0.0 if name == "sigma" else self._kernel.spread(name)
                loss = loss + (torch.log(value) ** 2 / (2 * spread**2) if spread else (value / self.sigma_scale) ** 2 / 2).sum()
            return float(loss.detach()), torch.autograd.grad(loss, logs)[0].numpy()

        start = torch.cat([torch.log(values[name]).reshape(-1) for name in names]).double().numpy()
        bounds = [(u - MOST_CHANGE, u + MOST_CHANGE) for u in start]
        found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": N_STEPS})
        parts = torch.exp(torch.tensor(found.x)).split([shape.numel() for shape in shapes])
        return {name: part.reshape(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}

    def simulate(self, rng: np.random.Generator, n_units: int, n_features: int = 5, n_sequences: int = 1) -> Dataset:
        """Draw the sites from their priors, and the data from the model; with `dynamics`, of sequences of equal length."""
        truth = self._kernel.simulate(rng)
        truth |= {"sigma": abs(self.sigma_scale * rng.standard_normal())}
        z, coords = rng.standard_normal((n_units, self.n_latent)), {}
        arrays: dict[str, torch.Tensor] = {"x": torch.empty(n_units, n_features)}
        if self.dynamics:
            truth["timescale"] = self.timescale_median * np.exp(self.timescale_spread * rng.standard_normal())
            sequence = np.arange(n_units) * n_sequences // n_units
            time = np.arange(n_units) - np.searchsorted(sequence, sequence)
            coords = {"sequence": sequence.astype(str), "time": time}
            arrays |= {"sequence": torch.tensor(sequence), "time": torch.tensor(time, dtype=torch.float64)}
            timescale = torch.tensor(truth["timescale"], dtype=torch.float64)
            prior = smooth_prior(self.dynamics, arrays, timescale, self.nugget, self.n_latent)
            z = np.linalg.cholesky(prior.K.numpy()) @ z
        truth["z"] = z
        values = {site: torch.tensor(value, dtype=torch.float64) for site, value in truth.items()}
        K = self.process(arrays, **values).K.numpy()
        x = np.linalg.cholesky(K) @ rng.standard_normal((n_units, n_features))
        dataset = Dataset({"x": x}, dims={"x": ("unit", "feature")}, coords=coords, name=f"simulated {self.name}")
        return replace(dataset, truth={site: np.asarray(value) for site, value in truth.items()}, truth_dims=dict(self.dims))
