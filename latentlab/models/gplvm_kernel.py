"""Kernels of the Gaussian process latent variable model whose parameters are sites: names, priors, and values at positions."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from latentlab.errors import ConfigError
from latentlab.models.covariances import KERNELS, covariance, variances
from latentlab.models.fixed import log_normal
from latentlab.symmetry.groups import Orthogonal, SignedPermutation

Tensors = Mapping[str, torch.Tensor]


class Kernel:
    """A kernel, or a sum of kernels; for sums, sites are named by kernel, such as `amplitude_rbf`.

    Args:
        text: Kernels joined by `+`.
        ard: Whether each latent dimension has its own lengthscale. A linear kernel then has lengthscales and no amplitude.
        n_latent: Number of latent dimensions.
        spreads: Standard deviations of the logs of amplitudes, and of lengthscales and shapes.
        mean_scale: Standard deviation of the mean of each function.

    Raises:
        ConfigError: A kernel is unknown or repeated.
    """

    def __init__(self, text: str, *, ard: bool, n_latent: int, spreads: tuple[float, float], mean_scale: float) -> None:
        self.names, self.ard, self.n_latent, self.mean_scale = text.replace(" ", "").split("+"), ard, n_latent, mean_scale
        self._spreads = spreads
        if not set(self.names) <= set(KERNELS) or len(set(self.names)) < len(self.names):
            raise ConfigError(f"GPLVM: `kernel` must be a sum of different kernels of {', '.join(KERNELS)}; got {text!r}.")

    def sites(self, kernel: str) -> dict[str, str]:
        """Names of the sites of a kernel, by role."""
        linear = ("lengthscale",) if self.ard else ("amplitude",)
        roles = {"linear": linear, "rational_quadratic": ("amplitude", "lengthscale", "shape")}
        ending = f"_{kernel}" if len(self.names) > 1 else ""
        return {role: role + ending for role in roles.get(kernel, ("amplitude", "lengthscale"))}

    @property
    def roles(self) -> dict[str, str]:
        """Role of each site: `amplitude`, `lengthscale` or `shape`."""
        return {site: role for kernel in self.names for role, site in self.sites(kernel).items()}

    @property
    def dims(self) -> dict[str, tuple[str, ...]]:
        """Dims of each site."""
        return {site: ("latent",) if self.ard and role == "lengthscale" else () for site, role in self.roles.items()}

    @property
    def symmetry(self) -> Orthogonal | SignedPermutation:
        """Group of the positions: rotations, or with a lengthscale for each axis permutations and sign changes."""
        return SignedPermutation(unsigned=tuple(s for s, dims in self.dims.items() if dims)) if self.ard else Orthogonal()

    def spread(self, site: str) -> float:
        """Standard deviation of the log of a site."""
        return self._spreads[0] if self.roles[site] == "amplitude" else self._spreads[1]

    def shape(self, site: str) -> tuple[int, ...]:
        """Shape of a site."""
        return (self.n_latent,) if self.dims[site] else ()

    def sample(self) -> dict[str, torch.Tensor]:
        """Sample the sites, or fix those without spread at 1."""
        return {site: log_normal(site, torch.ones(self.shape(site)), self.spread(site)) for site in self.roles}

    def simulate(self, rng: np.random.Generator) -> dict[str, Any]:
        """Draw the sites from their priors."""
        return {site: np.exp(self.spread(site) * rng.standard_normal(self.shape(site))) for site in self.roles}

    def start(self, spread: float) -> dict[str, torch.Tensor]:
        """Starting values of the sites that vary, for data with this root mean square."""
        each = spread / len(self.names) ** 0.5
        found = {}
        for kernel in self.names:
            for role, site in self.sites(kernel).items():
                value = each if role == "amplitude" else 1 / each if kernel == "linear" else 1.0
                found[site] = torch.full(self.shape(site), value)
        return {site: value for site, value in found.items() if self.spread(site)}

    def _terms(self, values: Tensors) -> list[tuple[str, torch.Tensor, torch.Tensor, torch.Tensor | None]]:
        """Name, squared amplitude, lengthscale and shape of each kernel."""
        found = []
        for kernel in self.names:
            of = {role: values[site] for role, site in self.sites(kernel).items()}
            one = torch.ones((), dtype=next(iter(of.values())).dtype)
            found.append((kernel, of.get("amplitude", one) ** 2, of.get("lengthscale", one), of.get("shape")))
        return found

    def covariance(self, one: torch.Tensor, other: torch.Tensor, values: Tensors) -> torch.Tensor:
        """Covariance of the functions at two sets of positions, `(n, m)`."""
        total: Any = self.mean_scale**2
        for kernel, square, lengthscale, shape in self._terms(values):
            total = total + square * covariance(kernel, one, other, lengthscale, shape)
        return total

    def variances(self, positions: torch.Tensor, values: Tensors) -> torch.Tensor:
        """Variance of the functions at positions, `(n,)`."""
        total: Any = self.mean_scale**2
        for kernel, square, lengthscale, _ in self._terms(values):
            total = total + square * variances(kernel, positions, lengthscale)
        return total

    def scale(self, values: Tensors) -> torch.Tensor:
        """Sum of the squared amplitudes, of which the nugget is a share; without an amplitude, of mean squared slopes."""
        total: Any = 0.0
        for kernel, square, lengthscale, _ in self._terms(values):
            total = total + (square * (lengthscale**-2).mean() if kernel == "linear" else square)
        return total

    def slope(self, values: Tensors) -> torch.Tensor:
        """Scale of the squared derivatives of the functions along a latent dimension."""
        return torch.stack([(square * lengthscale**-2).mean() for _, square, lengthscale, _ in self._terms(values)]).sum()
