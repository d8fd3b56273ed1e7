r"""Likelihoods of a decoder: the distribution of each entry given the network's outputs for its feature.

The outputs of D features are `(..., k D)`: k blocks of D numbers. `LIKELIHOODS` has the likelihoods by name.

| name | support | outputs of a feature | parameter |
|---|---|---|---|
| `gaussian` | numbers | mean; with noise `entry` also $\sigma$ | `sigma` |
| `bernoulli` | 0 or 1 | logit | |
| `continuous_bernoulli` | numbers from 0 to 1 | logit | |
| `poisson` | counts | log rate | |
| `negative_binomial` | counts | log mean; with noise `entry` also the log dispersion | `dispersion` |
| `categorical` | codes 0, ..., K - 1 | K logits | |
| `discretised_logistic` | values on a grid | location; with noise `entry` also the log scale | `scale` |
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyro.distributions as dist
import torch
from torch.nn.functional import softplus

from latentlab.distributions.entries import (
    Codes,
    ContinuousBernoulli,
    DiscretisedLogistic,
    NegativeBinomial,
    inverse_softplus,
)

Tensors = Mapping[str, torch.Tensor]
LEAST = 1e-2
"""Lower bound at the start: on the noise, as a share of the data's standard deviation; on rates; on probabilities and 1 - p."""
LARGEST_DISPERSION = 1e3
"""Upper bound on the dispersion at the start; the distribution is then nearly Poisson."""


@dataclass(frozen=True)
class Likelihood(ABC):
    """Distribution of the entries of a table given the decoder's outputs.

    Args:
        noise: Whether the parameter of scale is `shared` by all features, one for each `feature`, or an output for each `entry`.
        noise_floor: Lower bound of the standard deviation of a Gaussian with noise `entry`.
        n_categories: Number K of codes.
        grid: First and last value of the grid.
        bin_width: Distance between values of the grid.
    """

    noise: str = "shared"
    noise_floor: float = LEAST
    n_categories: int = 2
    grid: tuple[float, float] = (0.0, 1.0)
    bin_width: float = 1.0

    parameter: ClassVar[str | None] = None
    """Name of the parameter of scale, which is positive."""

    @property
    def n_outputs(self) -> int:
        """Number of outputs of the decoder for each feature."""
        return 2 if self.parameter and self.noise == "entry" else 1

    @property
    def n_inputs(self) -> int:
        """Number of inputs of the encoder for each feature."""
        return 1

    @property
    def dims(self) -> dict[str, tuple[str, ...]]:
        """Dims of the parameter of scale; empty if there is none."""
        if self.parameter is None or self.noise == "entry":
            return {}
        return {self.parameter: ("feature",) if self.noise == "feature" else ()}

    @property
    @abstractmethod
    def support(self) -> str:
        """Values that are allowed, in words."""

    @abstractmethod
    def invalid(self, x: np.ndarray) -> np.ndarray:
        """Whether each entry is outside the support; missing entries are not."""

    @abstractmethod
    def distribution(self, out: torch.Tensor, values: Tensors) -> dist.TorchDistribution:
        """Distribution of the data, batch shape `(..., feature)`, given the outputs and the parameter of scale."""

    @abstractmethod
    def offsets(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Outputs `(k D,)` at which moments of the entries equal those of the data's columns."""

    def start(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Parameter of scale at which moments of the entries equal those of the data."""
        raise NotImplementedError(f"{type(self).__name__} has no parameter of scale.")

    def draw(self, distribution: dist.TorchDistribution, rng: np.random.Generator) -> np.ndarray:
        """Draw the entries of a table by the inverse of their distribution function."""
        return np.asarray(distribution.icdf(torch.from_numpy(rng.uniform(size=tuple(distribution.batch_shape)))).numpy())

    def inputs(self, x: torch.Tensor) -> torch.Tensor:
        """Transform the data to inputs of the encoder, `(unit, feature)`, or blocks of D numbers."""
        return x

    def _blocks(self, out: torch.Tensor) -> torch.Tensor:
        return out.unflatten(-1, (self.n_outputs, -1))

    def _shared(self, each: torch.Tensor) -> torch.Tensor:
        """Scale of each feature, or their root mean square if it is shared."""
        return each if self.noise == "feature" else (each**2).mean().sqrt()


class Gaussian(Likelihood):
    r"""Normal entries. With noise `entry`, $\sigma = \sigma_0 + \log(1 + e^o)$ for the output o, and $\sigma_0$ is `noise_floor`.

    The lower bound keeps the likelihood bounded: at most $(2 \pi \sigma_0^2)^{-1/2}$ for each entry.
    """

    parameter = "sigma"
    support = "numbers"

    def invalid(self, x: np.ndarray) -> np.ndarray:
        return np.zeros(x.shape, dtype=bool)

    def distribution(self, out: torch.Tensor, values: Tensors) -> dist.TorchDistribution:
        if self.noise != "entry":
            return dist.Normal(out, values["sigma"])
        loc, raw = self._blocks(out).unbind(-2)
        return dist.Normal(loc, self.noise_floor + softplus(raw))

    def offsets(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        if self.noise != "entry":
            return mean(x, mask)
        sd = variance(x, mask).sqrt().clamp(min=2.0 * self.noise_floor)
        return torch.cat([mean(x, mask), inverse_softplus(sd - self.noise_floor)])

    def start(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return variance(x, mask).mean().sqrt() if self.noise == "shared" else variance(x, mask).sqrt()

    def draw(self, distribution: dist.TorchDistribution, rng: np.random.Generator) -> np.ndarray:
        shape = tuple(distribution.batch_shape)
        return np.asarray(distribution.mean.numpy() + distribution.stddev.numpy() * rng.standard_normal(shape))


class Bernoulli(Likelihood):
    """Zeros and ones."""

    support = "0 or 1"

    def invalid(self, x: np.ndarray) -> np.ndarray:
        return ~np.isnan(x) & (x != 0) & (x != 1)

    def distribution(self, out: torch.Tensor, values: Tensors) -> dist.TorchDistribution:
        return dist.Bernoulli(logits=out)

    def offsets(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return torch.logit(mean(x, mask).clamp(LEAST, 1.0 - LEAST))

    def draw(self, distribution: dist.TorchDistribution, rng: np.random.Generator) -> np.ndarray:
        return rng.binomial(1, distribution.mean.numpy()).astype(np.float64)


class Shades(Likelihood):
    """Numbers from 0 to 1 by the continuous Bernoulli distribution."""

    support = "numbers from 0 to 1"

    def invalid(self, x: np.ndarray) -> np.ndarray:
        return ~np.isnan(x) & ((x < 0) | (x > 1))

    def distribution(self, out: torch.Tensor, values: Tensors) -> dist.TorchDistribution:
        return ContinuousBernoulli(out)

    def offsets(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Logits at which the means are those of the columns, by bisection."""
        target = mean(x, mask).clamp(LEAST, 1.0 - LEAST)
        low, high = torch.full_like(target, -2.0 / LEAST), torch.full_like(target, 2.0 / LEAST)
        for _ in range(60):
            middle = 0.5 * (low + high)
            below = ContinuousBernoulli(middle).mean < target
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return 0.5 * (low + high)


class Poisson(Likelihood):
    """Counts with a variance equal to the mean."""

    support = "counts (whole numbers from 0)"

    def invalid(self, x: np.ndarray) -> np.ndarray:
        return ~np.isnan(x) & ((x < 0) | (x != np.round(x)))

    def distribution(self, out: torch.Tensor, values: Tensors) -> dist.TorchDistribution:
        return dist.Poisson(torch.exp(out))

    def offsets(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return torch.log(mean(x, mask).clamp(min=LEAST))

    def inputs(self, x: torch.Tensor) -> torch.Tensor:
        return torch.log1p(x)

    def draw(self, distribution: dist.TorchDistribution, rng: np.random.Generator) -> np.ndarray:
        return rng.poisson(distribution.mean.numpy()).astype(np.float64)


class Overdispersed(Poisson):
    """Counts with mean m and variance m + m^2 / r; r is the dispersion. The limit of large r is Poisson."""

    parameter = "dispersion"

    def distribution(self, out: torch.Tensor, values: Tensors) -> dist.TorchDistribution:
        if self.noise == "entry":
            log_mean, log_r = self._blocks(out).unbind(-2)
            return NegativeBinomial(torch.exp(log_r), logits=log_mean - log_r)
        return NegativeBinomial(values["dispersion"], logits=out - torch.log(values["dispersion"]))

    def offsets(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        log_mean = super().offsets(x, mask)
        return log_mean if self.noise != "entry" else torch.cat([log_mean, torch.log(self._moments(x, mask))])

    def start(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        r = self._moments(x, mask)
        return r if self.noise == "feature" else torch.exp(torch.log(r).mean())

    def _moments(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        m = mean(x, mask).clamp(min=LEAST)
        excess = variance(x, mask) - m
        return (m**2 / excess.clamp(min=m**2 / LARGEST_DISPERSION)).clamp(min=LEAST)

    def draw(self, distribution: dist.TorchDistribution, rng: np.random.Generator) -> np.ndarray:
        shape = tuple(distribution.batch_shape)
        r = np.broadcast_to(distribution.total_count.numpy(), shape)
        return rng.negative_binomial(r, r / (r + distribution.mean.numpy())).astype(np.float64)


class Categorical(Likelihood):
    """Codes 0, ..., K - 1 of categories, the same number K for all features; the encoder's inputs are indicators."""

    @property
    def support(self) -> str:
        return f"codes (whole numbers from 0 to {self.n_categories - 1})"

    @property
    def n_outputs(self) -> int:
        return self.n_categories

    @property
    def n_inputs(self) -> int:
        return self.n_categories

    def invalid(self, x: np.ndarray) -> np.ndarray:
        return ~np.isnan(x) & ((x < 0) | (x >= self.n_categories) | (x != np.round(x)))

    def distribution(self, out: torch.Tensor, values: Tensors) -> dist.TorchDistribution:
        return Codes(self._blocks(out).mT)

    def offsets(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Logs of the shares of the categories, each with a pseudo-count of 1."""
        seen = self.inputs(x).unflatten(-1, (self.n_categories, -1))
        seen = seen if mask is None else seen * mask.to(x.dtype)[..., None, :]
        counts = seen.sum(0) + 1.0
        return torch.log(counts / counts.sum(0)).flatten()

    def inputs(self, x: torch.Tensor) -> torch.Tensor:
        codes = torch.arange(self.n_categories, dtype=x.dtype, device=x.device)
        return (x[..., None, :] == codes[:, None]).to(x.dtype).flatten(-2)


class Levels(Likelihood):
    """Values on a grid by a discretised logistic distribution."""

    parameter = "scale"

    @property
    def support(self) -> str:
        return f"values {self.grid[0]:g}, {self.grid[0] + self.bin_width:g}, ..., {self.grid[1]:g}"

    def invalid(self, x: np.ndarray) -> np.ndarray:
        steps = (x - self.grid[0]) / self.bin_width
        off = np.abs(steps - np.round(steps)) > 1e-6
        return ~np.isnan(x) & (off | (x < self.grid[0] - 1e-6 * self.bin_width) | (x > self.grid[1] + 1e-6 * self.bin_width))

    def distribution(self, out: torch.Tensor, values: Tensors) -> dist.TorchDistribution:
        if self.noise != "entry":
            return DiscretisedLogistic(out, values["scale"], self.grid, self.bin_width)
        loc, log_scale = self._blocks(out).unbind(-2)
        return DiscretisedLogistic(loc, torch.exp(log_scale), self.grid, self.bin_width)

    def offsets(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        loc = mean(x, mask)
        return loc if self.noise != "entry" else torch.cat([loc, torch.log(self._scales(x, mask))])

    def start(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return self._shared(self._scales(x, mask))

    def _scales(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Scales of logistic distributions with the variances of the columns, at least a tenth of the bin width."""
        return (variance(x, mask).sqrt() * math.sqrt(3.0) / math.pi).clamp(min=0.1 * self.bin_width)

    def inputs(self, x: torch.Tensor) -> torch.Tensor:
        """Scale the grid to the range from -1 to 1."""
        low, high = self.grid
        return (x - 0.5 * (low + high)) / (0.5 * (high - low))


LIKELIHOODS: Mapping[str, type[Likelihood]] = {
    "gaussian": Gaussian,
    "bernoulli": Bernoulli,
    "continuous_bernoulli": Shades,
    "poisson": Poisson,
    "negative_binomial": Overdispersed,
    "categorical": Categorical,
    "discretised_logistic": Levels,
}


def mean(x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Mean of each feature over observed entries."""
    observed = torch.ones_like(x) if mask is None else mask.to(x.dtype)
    return (observed * x).sum(0) / observed.sum(0).clamp(min=1.0)


def variance(x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Variance of each feature, at least `LEAST`^2 of the mean variance."""
    spread = mean((x - mean(x, mask)) ** 2, mask)
    return torch.maximum(spread, LEAST**2 * spread.mean()) + 1e-300
