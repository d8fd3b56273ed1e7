r"""Gaussian guides $q(u)$ on the flat unconstrained vector: mean field, full rank, low rank.

Draws and log density are pure functions of the parameters and of standard normal noise. They can therefore be captured in one
graph with the model's density.
"""

import math
from collections.abc import Mapping
from typing import ClassVar, Self

import numpy as np
import torch

Parameters = tuple[torch.Tensor, ...]
INITIAL_SCALE = 0.05


class Frame:
    """Coordinates v in which a guide is fitted: `u = center + matrix v`."""

    def __init__(self, center: torch.Tensor, matrix: torch.Tensor) -> None:
        self.center, self.matrix = center, matrix.contiguous()
        self.log_det = torch.linalg.slogdet(self.matrix)[1]

    def __call__(self, v: torch.Tensor) -> torch.Tensor:
        return self.center + v @ self.matrix.mT


class GaussianGuide:
    """Gaussian guide N(loc, scale scale^T); a subclass parametrises `scale`."""

    names: ClassVar[tuple[str, ...]]

    def __init__(self, loc: torch.Tensor) -> None:
        self.parameters = [p.clone().requires_grad_() for p in self.initial(loc)]

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """Restore a guide from its parameters by name."""
        guide = cls.__new__(cls)
        guide.parameters = [torch.tensor(arrays[name]) for name in cls.names]
        return guide

    def arrays(self) -> dict[str, torch.Tensor]:
        """Return the parameters by name."""
        return dict(zip(self.names, self.parameters, strict=True))

    @property
    def loc(self) -> torch.Tensor:
        return self.parameters[0]

    @property
    def rates(self) -> tuple[float, ...]:
        """Return the learning rate of each parameter, as a multiple of the method's."""
        return (1.0,) * len(self.names)

    def initial(self, loc: torch.Tensor) -> Parameters:
        """Return initial parameters: mean `loc` and a small scale."""
        raise NotImplementedError

    def noise(self, n: int, random: torch.Generator | None = None) -> torch.Tensor:
        """Draw the standard normal noise of `n` draws."""
        return torch.randn(n, len(self.loc), generator=random)

    def transform(self, parameters: Parameters, noise: torch.Tensor) -> torch.Tensor:
        """Compute draws `(n, size)` from noise."""
        raise NotImplementedError

    def log_density(self, parameters: Parameters, u: torch.Tensor) -> torch.Tensor:
        """Compute log q of draws `(n, size)`."""
        raise NotImplementedError

    def sample(self, n: int, random: torch.Generator | None = None) -> torch.Tensor:
        """Draw a sample `(n, size)`."""
        with torch.no_grad():
            return self.transform(tuple(self.parameters), self.noise(n, random))

    def log_prob(self, u: torch.Tensor) -> torch.Tensor:
        return self.log_density(tuple(p.detach() for p in self.parameters), u)


class MeanField(GaussianGuide):
    """Mean-field guide with independent coordinates: `u = loc + exp(log_scale) * noise`."""

    names = ("loc", "log_scale")

    def initial(self, loc: torch.Tensor) -> Parameters:
        return loc, torch.full_like(loc, math.log(INITIAL_SCALE))

    def transform(self, parameters: Parameters, noise: torch.Tensor) -> torch.Tensor:
        loc, log_scale = parameters
        return loc + log_scale.exp() * noise

    def log_density(self, parameters: Parameters, u: torch.Tensor) -> torch.Tensor:
        loc, log_scale = parameters
        e = (u - loc) * torch.exp(-log_scale)
        return -0.5 * (e * e).sum(-1) - log_scale.sum() - 0.5 * len(loc) * math.log(2 * math.pi)


class FullRank(GaussianGuide):
    """Full-rank guide: `u = loc + exp(log_scale) * (L noise)`, with L unit lower triangular."""

    names = ("loc", "log_scale", "lower")

    def initial(self, loc: torch.Tensor) -> Parameters:
        return loc, torch.full_like(loc, math.log(INITIAL_SCALE)), loc.new_zeros(len(loc), len(loc))

    @property
    def rates(self) -> tuple[float, ...]:
        """Return rates with a factor 1 / sqrt(size) for L.

        Adam moves all entries of a row of L by similar steps; the factor keeps their joint step independent of the size.
        """
        return 1.0, 1.0, len(self.loc) ** -0.5

    def moved(self, frame: Frame) -> "FullRank":
        """Return the distribution of `u = frame(v)` as a guide, where this guide is the distribution of v."""
        loc, log_scale, lower = (p.detach() for p in self.parameters)
        root = frame.matrix @ (log_scale.exp()[:, None] * self._factor(lower))
        triangular = torch.linalg.qr(root.mT, mode="r")[1].mT
        triangular = triangular * torch.sign(torch.diagonal(triangular))
        scale = torch.diagonal(triangular)
        parts = {"loc": frame(loc), "log_scale": scale.log(), "lower": torch.tril(triangular / scale[:, None], -1)}
        return FullRank.from_arrays({name: part.numpy() for name, part in parts.items()})

    def _factor(self, lower: torch.Tensor) -> torch.Tensor:
        return torch.tril(lower, -1) + torch.eye(len(lower), dtype=lower.dtype)

    def transform(self, parameters: Parameters, noise: torch.Tensor) -> torch.Tensor:
        loc, log_scale, lower = parameters
        return loc + log_scale.exp() * (noise @ self._factor(lower).T)

    def log_density(self, parameters: Parameters, u: torch.Tensor) -> torch.Tensor:
        loc, log_scale, lower = parameters
        scaled = ((u - loc) * torch.exp(-log_scale)).T
        e = torch.linalg.solve_triangular(self._factor(lower), scaled, upper=False, unitriangular=True)
        return -0.5 * (e * e).sum(0) - log_scale.sum() - 0.5 * len(loc) * math.log(2 * math.pi)


class LowRank(GaussianGuide):
    """Low-rank guide with covariance `diag(exp(log_scale))^2 + F F^T`, F `(size, rank)`, rank about the root of the size."""

    names = ("loc", "log_scale", "factor")

    def initial(self, loc: torch.Tensor) -> Parameters:
        rank = max(1, round(math.sqrt(len(loc))))
        factor = torch.randn(len(loc), rank) * INITIAL_SCALE / math.sqrt(rank)
        return loc, torch.full_like(loc, math.log(INITIAL_SCALE)), factor

    def noise(self, n: int, random: torch.Generator | None = None) -> torch.Tensor:
        return torch.randn(n, len(self.loc) + self.parameters[2].shape[1], generator=random)

    def transform(self, parameters: Parameters, noise: torch.Tensor) -> torch.Tensor:
        loc, log_scale, factor = parameters
        return loc + log_scale.exp() * noise[:, : len(loc)] + noise[:, len(loc) :] @ factor.T

    def log_density(self, parameters: Parameters, u: torch.Tensor) -> torch.Tensor:
        loc, log_scale, factor = parameters
        e = (u - loc) * torch.exp(-log_scale)
        v = factor * torch.exp(-log_scale)[:, None]
        lower = torch.linalg.cholesky_ex(torch.eye(v.shape[1], dtype=v.dtype) + v.T @ v)[0]
        w = torch.linalg.solve_triangular(lower, (e @ v).T, upper=False)
        log_det = log_scale.sum() + torch.log(torch.diagonal(lower)).sum()
        return -0.5 * ((e * e).sum(-1) - (w * w).sum(0)) - log_det - 0.5 * len(loc) * math.log(2 * math.pi)


GUIDES: dict[str, type[GaussianGuide]] = {"mean_field": MeanField, "full_rank": FullRank, "low_rank": LowRank}
