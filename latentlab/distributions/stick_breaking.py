r"""Truncated Dirichlet-process weights: $w_k = v_k \prod_{j<k} (1 - v_j)$, $v_k \sim \mathrm{Beta}(1, \alpha)$, $v_K = 1$."""

from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch.distributions import constraints


class StickBreaking(TorchDistribution):
    r"""Distribution of truncated stick-breaking weights on the simplex.

    With $r_k = 1 - \sum_{j<k} w_j$ the remaining stick, $v_k = w_k / r_k$ and $|dw / dv| = \prod_k r_k$, so that
    $$ \log p(w) = \sum_{k<K} \left[ \log \alpha + (\alpha - 1) \log(1 - v_k) - \log r_k \right]. $$

    Args:
        alpha: Concentration, a number above 0.
        n_components: Number K of weights, at least 2.
    """

    arg_constraints = {}
    support = constraints.simplex

    def __init__(self, alpha: torch.Tensor, n_components: int) -> None:
        self.alpha, self.n_components = alpha, n_components
        super().__init__(torch.Size(), torch.Size((n_components,)), validate_args=False)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        after = value.flip(-1).cumsum(-1).flip(-1)[..., 1:]  # r_2, ..., r_K, summed from the last, usually small, weights
        before = torch.cat([torch.ones_like(after[..., :1]), after[..., :-1]], dim=-1)
        remaining = torch.log(after) - torch.log(before)  # log(1 - v_k)
        terms = torch.log(self.alpha) + (self.alpha - 1) * remaining - torch.log(before)
        return terms.sum(-1)

    def sample(self, sample_shape: Any = ()) -> torch.Tensor:
        u = torch.rand(*sample_shape, self.n_components - 1, dtype=self.alpha.dtype)
        remaining = torch.cumprod(u ** (1 / self.alpha), dim=-1)  # 1 - v_k is a uniform number to the power 1 / alpha
        before = torch.cat([torch.ones_like(remaining[..., :1]), remaining], dim=-1)
        return before - torch.cat([remaining, torch.zeros_like(remaining[..., :1])], dim=-1)
