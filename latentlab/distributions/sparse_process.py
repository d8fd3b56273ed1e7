r"""Rows of a table given functions with a Gaussian process prior that are summarised by M inducing variables.

The functions have the values $f_d(z) = a(z)^T u_d + \epsilon$, with whitened inducing variables $u_d \sim N(0, I_M)$,
$a(z) = C^{-1} k(Z, z)$ and $C C^T = k(Z, Z)$. With $q(u_d) = N(m_d, S)$, one covariance for all features,
$$ q(f_d(z)) = N\big(a^T m_d,\; v\big), \qquad v = k(z, z) - a^T a + a^T S a. $$
The log density of a row is the expectation of its log likelihood under q, a lower bound after subtraction of KL(q(u) | p(u)):
$$ \mathbb E_q \log N(x \mid f, \sigma^2) = \sum_d \log N(x_d \mid a^T m_d, \sigma^2) - \frac{v}{2 \sigma^2}. $$

References:
    Titsias (2009), Variational Learning of Inducing Variables in Sparse Gaussian Processes, AISTATS.
    Hensman, Fusi & Lawrence (2013), Gaussian Processes for Big Data, UAI.
"""

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from pyro.distributions import TorchDistribution
from torch.distributions import constraints
from torch.nn.functional import softplus

from latentlab.distributions.low_rank_gaussian import cholesky_or_nan

LOG_2PI = math.log(2 * math.pi)
N_NODES = 20
"""Number of nodes of Gauss-Hermite quadrature."""


def weights_of(inducing: torch.Tensor, cross: torch.Tensor) -> torch.Tensor:
    """Weights a of the whitened inducing variables, `(n, M)`, in float64: the rows of $K C^{-T}$.

    Args:
        inducing: Covariance of the inducing inputs, `(M, M)`, nugget included.
        cross: Covariance of positions and inducing inputs K, `(n, M)`.
    """
    lower = cholesky_or_nan(inducing.double())
    return torch.linalg.solve_triangular(lower, cross.double().mT, upper=False).mT


def variances_of(weights: torch.Tensor, prior: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Variances v of the functions, `(n,)`.

    Args:
        weights: Weights a, `(n, M)`.
        prior: Prior variances of the functions, `(n,)`.
        scale: Triangular factor L of $S = L L^T$, `(M, M)`.
    """
    return prior - (weights**2).sum(-1) + ((weights @ scale) ** 2).sum(-1)


def divergence(loc: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence of all $q(u_d)$ from N(0, I), with means `loc` `(..., M, D)` and triangular factor `scale`."""
    n_inducing, n_features = loc.shape[-2:]
    log_det = 2 * torch.log(torch.abs(torch.diagonal(scale, dim1=-2, dim2=-1))).sum(-1)
    return 0.5 * (n_features * ((scale**2).sum((-2, -1)) - n_inducing - log_det) + (loc**2).sum((-2, -1)))


def optimal_inducing(
    weights: torch.Tensor, x: torch.Tensor, sigma: torch.Tensor, scale: float = 1.0, extra: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Means `(M, D)` and triangular factor of the covariance of the optimal q(u) for Gaussian rows.

    $$ S^{-1} = I + \sigma^{-2} (A^T A + E), \qquad m = \sigma^{-2} S A^T x $$

    Args:
        weights: Weights A of all rows, or their expectations under q(z), `(..., n, M)`.
        x: The rows, `(n, D)`.
        sigma: Standard deviation of the noise.
        scale: Number of rows that each row stands for.
        extra: Summed covariances E of the weights under q(z), `(M, M)`; 0 if None.
    """
    gram = weights.mT @ weights if extra is None else weights.mT @ weights + extra
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    lower = cholesky_or_nan(eye + scale * gram / sigma**2)
    factor = torch.linalg.solve_triangular(lower, eye, upper=False).mT
    return torch.cholesky_solve(scale * (weights.mT @ x) / sigma**2, lower), factor


class SparseRows(TorchDistribution):
    """Gaussian rows: `log_prob` is the expected log likelihood; draws are from the predictive distribution.

    Args:
        mean: Means of the functions, `(..., n, D)`.
        variance: Variances of the functions, the same for all features, `(..., n)`.
        sigma: Standard deviation of the noise.
        observed: True where an entry was observed, `(n, D)`; None if all were.
    """

    arg_constraints = {"mean": constraints.real}
    support = constraints.real_vector

    def __init__(
        self, mean: torch.Tensor, variance: torch.Tensor, sigma: torch.Tensor, observed: torch.Tensor | None = None
    ) -> None:
        self.mean_of_f, self.variance_of_f, self.sigma, self.observed = mean, variance, sigma, observed
        super().__init__(mean.shape[:-1], mean.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "SparseRows":
        mean = self.mean_of_f.expand(torch.Size(batch_shape) + self.event_shape)
        return type(self)(mean, self.variance_of_f.expand(batch_shape), self.sigma, self.observed)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Compute the expected log likelihood of each row, of its observed entries."""
        residual = value - self.mean_of_f
        precision = self.sigma**-2
        squares, n_observed = (residual**2).sum(-1), torch.tensor(float(self.event_shape[0]), dtype=value.dtype)
        if self.observed is not None:
            squares, n_observed = (self.observed * residual**2).sum(-1), self.observed.sum(-1).to(value.dtype)
        return -0.5 * (precision * squares + n_observed * (LOG_2PI + 2 * torch.log(self.sigma) + precision * self.variance_of_f))

    def predictive(self) -> torch.distributions.Distribution:
        """Distribution of each entry of a new row at these positions, batch `(..., n, D)`."""
        sd = torch.sqrt(self.variance_of_f.clamp_min(0.0) + self.sigma**2)
        return torch.distributions.Normal(self.mean_of_f, sd[..., None].expand_as(self.mean_of_f), validate_args=False)

    def sample(self, sample_shape: Any = ()) -> torch.Tensor:
        return self.predictive().sample(torch.Size(sample_shape))


class SparseBits(SparseRows):
    """Rows of zeros and ones with logits f: expectations by Gauss-Hermite quadrature; `sigma` is not used."""

    support = constraints.independent(constraints.boolean, 1)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Compute $x E f - E \\log(1 + e^f)$ of each row, of its observed entries."""
        terms = value * self.mean_of_f - self._expected(softplus)
        return (terms if self.observed is None else self.observed * terms).sum(-1)

    def predictive(self) -> torch.distributions.Distribution:
        """Distribution of each entry of a new row at these positions, batch `(..., n, D)`."""
        return torch.distributions.Bernoulli(self._expected(torch.sigmoid).clamp(0.0, 1.0), validate_args=False)

    def _expected(self, function: Any) -> torch.Tensor:
        """Expectation of a function of f, `(..., n, D)`; accumulated over the nodes, so that memory does not grow with them."""
        sd = torch.sqrt(self.variance_of_f.clamp_min(1e-12))[..., None]
        total: Any = 0.0
        for node, weight in zip(*_nodes(), strict=True):
            total = total + weight * function(self.mean_of_f + node * sd)
        return total


@cache
def _nodes() -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Nodes and weights for expectations under N(0, 1)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(N_NODES)
    return tuple(nodes.tolist()), tuple((weights / math.sqrt(2 * math.pi)).tolist())
