"""Conditional distribution of missing entries given the observed ones of the same unit, for correlated features."""

from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch.distributions import constraints


class Filled(TorchDistribution):
    """Rows with some known entries; the others are jointly Gaussian.

    Args:
        mean: Means `(unit, feature)`; the values of known entries.
        factor: Lower factors of the covariances `(unit, feature, feature)`; rows of known entries are zero.
    """

    arg_constraints = {}
    support = constraints.real

    def __init__(self, mean: torch.Tensor, factor: torch.Tensor) -> None:
        self.loc, self.factor = mean, factor
        super().__init__(mean.shape, torch.Size(), validate_args=False)

    @property
    def mean(self) -> torch.Tensor:
        return self.loc

    def sample(self, sample_shape: Any = ()) -> torch.Tensor:
        noise = torch.randn(*sample_shape, *self.loc.shape, 1, dtype=self.loc.dtype)
        return self.loc + (self.factor @ noise)[..., 0]

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Marginal log density of each entry, `(unit, feature)`; NaN for known entries."""
        spread = torch.linalg.vector_norm(self.factor, dim=-1)
        return torch.distributions.Normal(self.loc, spread, validate_args=False).log_prob(value)
