r"""Rows whose columns are independent draws from one Gaussian over all units, $x_{\cdot d} \sim N(0, K)$.

With $K = L L^T$, $\alpha = K^{-1} X$ and D columns,
$$ \log p(X) = -\tfrac12 \mathrm{tr}\, X^T \alpha - D \sum_n \log L_{nn} - \tfrac{ND}2 \log 2\pi, \qquad
   \frac{\partial \log p}{\partial K} = \tfrac12 \left( \alpha \alpha^T - D K^{-1} \right). $$
One Cholesky factor and one inverse give value and gradient: about half of the time of automatic differentiation.

References:
    Rasmussen & Williams (2006), Gaussian Processes for Machine Learning, sections 2.2, 5.4.1 and 5.4.2.
"""

import math
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch.distributions import constraints

from latentlab.distributions.low_rank_gaussian import cholesky_or_nan

LOG_2PI = math.log(2 * math.pi)


class GaussianProcess(TorchDistribution):
    """Rows of a table with covariance K between units and independent columns of mean 0, batch `(unit,)`, event `(feature,)`.

    Rows are dependent: `log_prob` of a row is conditional on the rows above it, so that the sum is the joint log density. It is
    NaN if K is not positive definite.

    Args:
        K: Covariance of the units, noise included, `(unit, unit)`.
        n_features: Number of columns.
        observed: True where an entry was observed, `(unit, feature)`; None if all were. Missing entries are marginalised out.
    """

    arg_constraints = {"K": constraints.real}
    support = constraints.real_vector

    def __init__(self, K: torch.Tensor, n_features: int, observed: torch.Tensor | None = None) -> None:
        self.K, self.observed = K, observed
        super().__init__(K.shape[-1:], torch.Size([n_features]), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "GaussianProcess":
        if torch.Size(batch_shape) != self.batch_shape:
            raise ValueError(
                f"the batch shape of a Gaussian process must be ({self.batch_shape[0]},), its number of units; got "
                f"{tuple(batch_shape)}."
            )
        return self

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Compute log p(x_n | x_1 ... x_{n-1}), `(unit,)`."""
        total = value.new_zeros(len(value))
        for rows, columns in self._blocks():
            lower = cholesky_or_nan(self.K[rows][:, rows])
            whitened = torch.linalg.solve_triangular(lower, value[rows][:, columns], upper=False)
            constant = whitened.shape[1] * (torch.log(torch.diagonal(lower)) + 0.5 * LOG_2PI)
            total = total.index_add(0, rows, -0.5 * (whitened**2).sum(1) - constant)
        return total

    def log_prob_sum(self, value: torch.Tensor) -> torch.Tensor:
        """Compute `log_prob(value).sum()` with the analytic gradient."""
        if self.observed is None:
            return _LogDensity.apply(self.K, value)[0]
        return torch.stack([_LogDensity.apply(self.K[r][:, r], value[r][:, c])[0] for r, c in self._blocks()]).sum()

    def leave_one_out(self, value: torch.Tensor) -> torch.Tensor:
        """Compute log p(x_n | all other rows), `(unit,)`; with missing entries, of the entries observed."""
        total = value.new_zeros(len(value))
        for rows, columns in self._blocks():
            lower = cholesky_or_nan(self.K[rows][:, rows])
            precision = torch.diagonal(torch.cholesky_inverse(lower))[:, None]
            residual = torch.cholesky_solve(value[rows][:, columns], lower) / precision
            terms = 0.5 * (torch.log(precision) - LOG_2PI - residual**2 * precision)
            total = total.index_add(0, rows, terms.sum(1))
        return total

    def predicted(self, value: torch.Tensor, cross: torch.Tensor, prior: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute means and variances of function values at other positions given the rows.

        Args:
            value: The rows, `(unit, feature)`.
            cross: Covariances with the units, `(new, unit)`.
            prior: Prior variances, `(new,)`.

        Returns:
            Means and variances `(new, feature)`.
        """
        mean = value.new_zeros(len(cross), value.shape[1])
        variance = torch.zeros_like(mean)
        for rows, columns in self._blocks():
            lower = cholesky_or_nan(self.K[rows][:, rows])
            mean[:, columns] = cross[:, rows] @ torch.cholesky_solve(value[rows][:, columns], lower)
            whitened = torch.linalg.solve_triangular(lower, cross[:, rows].mT, upper=False)
            variance[:, columns] = (prior - (whitened**2).sum(0))[:, None].expand(-1, len(columns))
        return mean, variance

    def rsample(self, sample_shape: Any = ()) -> torch.Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        return cholesky_or_nan(self.K) @ torch.randn(shape, dtype=self.K.dtype, device=self.K.device)

    def _blocks(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Units and columns of each pattern of missing entries of a column."""
        n, d = *self.batch_shape, *self.event_shape
        if self.observed is None:
            return [(torch.arange(n), torch.arange(d))]
        patterns, which = torch.unique(self.observed, dim=1, return_inverse=True)
        return [(torch.nonzero(p)[:, 0], torch.nonzero(which == k)[:, 0]) for k, p in enumerate(patterns.mT) if bool(p.any())]


class _LogDensity(torch.autograd.Function):
    """Log density of all rows, with the gradient above; second derivatives go through the Cholesky factor."""

    generate_vmap_rule = True

    @staticmethod
    def forward(K: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        lower = cholesky_or_nan(K)
        alpha = torch.cholesky_solve(x, lower)
        log_det = 2 * torch.log(torch.diagonal(lower)).sum()
        value = -0.5 * ((x * alpha).sum() + x.shape[1] * (log_det + len(x) * LOG_2PI))
        return value, lower, alpha

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, ...], output: tuple[torch.Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*inputs, *output[1:])

    @staticmethod
    def backward(ctx: Any, of_value: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        K, x, lower, alpha = ctx.saved_tensors
        if torch.is_grad_enabled():  # for second derivatives: the saved factor is not a function of K
            lower = cholesky_or_nan(K)
            alpha = torch.cholesky_solve(x, lower)
        return of_value * 0.5 * (alpha @ alpha.mT - x.shape[1] * torch.cholesky_inverse(lower)), -of_value * alpha
