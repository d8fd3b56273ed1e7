r"""Expected covariances of Gaussian positions and inducing inputs, and the collapsed bound.

For positions $z_n \sim N(\mu_n, \Sigma_n)$, inducing inputs $\zeta_i$, and $\Lambda$ the diagonal matrix of squared lengthscales,
$$ \psi_0 = \sum_n \mathbb E k(z_n, z_n), \qquad \psi_{1,ni} = \mathbb E k(z_n, \zeta_i), \qquad
   \psi_{2,ij} = \sum_n \mathbb E k(z_n, \zeta_i) k(z_n, \zeta_j). $$
For the RBF kernel with amplitude a,
$$ \psi_{1,ni} = a^2 |I + \Lambda^{-1} \Sigma_n|^{-1/2}
   e^{-(\mu_n - \zeta_i)^T (\Lambda + \Sigma_n)^{-1} (\mu_n - \zeta_i) / 2}, $$
$$ \psi_{2,ij} = \sum_n a^4 e^{-(\zeta_i - \zeta_j)^T \Lambda^{-1} (\zeta_i - \zeta_j) / 4} |I + 2 \Lambda^{-1} \Sigma_n|^{-1/2}
   e^{-(\mu_n - \bar\zeta_{ij})^T (\Lambda + 2 \Sigma_n)^{-1} (\mu_n - \bar\zeta_{ij})}, \quad
   \bar\zeta_{ij} = (\zeta_i + \zeta_j) / 2. $$

References:
    Titsias & Lawrence (2010), Bayesian Gaussian Process Latent Variable Model, AISTATS.
"""

import math
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from latentlab.distributions.low_rank_gaussian import cholesky_or_nan

BLOCK = 2**17
"""Largest number of entries of an intermediate array of the sum over units, which then stays in the cache."""
EXACT = ("rbf", "linear")
"""Kernels whose expectations have a closed form here."""


class Psi(NamedTuple):
    """Statistics of all units: a number, `(unit, inducing)`, and `(inducing, inducing)`."""

    zero: torch.Tensor
    one: torch.Tensor
    two: torch.Tensor


def psi_statistics(
    kernel: str,
    mean: torch.Tensor,
    covariance: torch.Tensor,
    inducing: torch.Tensor,
    lengthscale: torch.Tensor,
    amplitude: torch.Tensor,
    mean_scale: float = 0.0,
) -> Psi:
    """Compute the statistics; the sum over units is in blocks, so that no array has units x inducing x inducing entries.

    Args:
        kernel: `rbf` or `linear`.
        mean: Means of the positions, `(unit, latent)`.
        covariance: Their covariances, `(unit, latent, latent)`; 0 for point estimates.
        inducing: Inducing inputs, `(inducing, latent)`.
        lengthscale: A number, or one for each dimension.
        amplitude: Standard deviation of the functions.
        mean_scale: Standard deviation of the mean of each function, whose square is added to the kernel.
    """
    scale = lengthscale.expand(mean.shape[1])
    mean, inducing = mean / scale, inducing / scale
    covariance = covariance / (scale[:, None] * scale)
    found = (_linear if kernel == "linear" else _rbf)(mean, covariance, inducing, amplitude**2)
    c2, n = mean_scale**2, len(mean)
    columns = found.one.sum(0)
    two = found.two + c2 * (columns[:, None] + columns) + n * c2**2
    return Psi(found.zero + n * c2, found.one + c2, two)


def _linear(mean: torch.Tensor, covariance: torch.Tensor, inducing: torch.Tensor, a2: torch.Tensor) -> Psi:
    second = mean.mT @ mean + covariance.sum(0)
    return Psi(a2 * torch.trace(second), a2 * mean @ inducing.mT, a2**2 * inducing @ second @ inducing.mT)


def _rbf(mean: torch.Tensor, covariance: torch.Tensor, inducing: torch.Tensor, a2: torch.Tensor) -> Psi:
    n_inducing, q = inducing.shape
    eye = torch.eye(q, dtype=mean.dtype, device=mean.device)
    origin = inducing.mean(0)
    mean, inducing = mean - origin, inducing - origin
    coefficients, powers = _quadratic(mean, covariance + eye, inducing, 0.5)
    first = a2 * torch.exp(-coefficients @ powers.mT)
    i, j = torch.triu_indices(n_inducing, n_inducing)
    middle = (inducing[i] + inducing[j]) / 2
    total = _SumOfBells.apply(*_quadratic(mean, 2 * covariance + eye, middle, 1.0))
    upper = torch.exp(-0.25 * ((inducing[i] - inducing[j]) ** 2).sum(-1)) * total
    two = torch.zeros(n_inducing, n_inducing, dtype=mean.dtype, device=mean.device).index_put((i, j), upper)
    return Psi(len(mean) * a2, first, a2**2 * (two + torch.triu(two, 1).mT))


def _quadratic(
    mean: torch.Tensor, matrix: torch.Tensor, points: torch.Tensor, factor: float
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Write $c (\mu_n - p)^T V_n^{-1} (\mu_n - p) + \tfrac12 \log |V_n|$ of matrices V and points p as a product of two tables.

    Returns:
        Coefficients `(unit, term)`, and powers of the points `(point, term)`: 1, p and the products of its entries.
    """
    lower = cholesky_or_nan(matrix)
    precision = torch.cholesky_inverse(lower)
    linear = (precision @ mean[..., None])[..., 0]
    half_log_det = torch.log(torch.diagonal(lower, dim1=-2, dim2=-1)).sum(-1)
    quadratic = torch.cat([(linear * mean).sum(-1, keepdim=True), -2 * linear, precision.flatten(1)], 1)
    coefficients = factor * quadratic + torch.nn.functional.pad(half_log_det[:, None], (0, quadratic.shape[1] - 1))
    powers = torch.cat([torch.ones_like(points[:, :1]), points, (points[:, :, None] * points[:, None]).flatten(1)], 1)
    return coefficients, powers


class _SumOfBells(torch.autograd.Function):
    r"""Compute $\sum_n |V_n|^{-1/2} e^{-(\mu_n - p)^T V_n^{-1} (\mu_n - p)}$ of the tables of `_quadratic`, `(point,)`.

    Blocks of units are computed once more for the gradient, so that no array has
    an entry for each unit and point.
    """

    @staticmethod
    def forward(coefficients: torch.Tensor, powers: torch.Tensor) -> torch.Tensor:
        return torch.stack([_bells(block, powers).sum(0) for block in _blocks(coefficients, powers)]).sum(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        coefficients, powers = ctx.saved_tensors
        of_coefficients, of_powers = [], torch.zeros_like(powers)
        for block in _blocks(coefficients, powers):
            bells = _bells(block, powers).mul_(-slopes)
            of_coefficients.append(bells @ powers)
            of_powers += bells.mT @ block
        return torch.cat(of_coefficients), of_powers


def _blocks(coefficients: torch.Tensor, powers: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return coefficients.split(max(1, BLOCK // len(powers)))


def _bells(coefficients: torch.Tensor, powers: torch.Tensor) -> torch.Tensor:
    return (coefficients @ powers.mT).neg_().exp_()


def collapsed_bound(x: torch.Tensor, psi: Psi, inducing: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    r"""Compute the bound on log p(x) with the optimal q(u), before subtraction of KL(q(z) | p(z)).

    With $\tilde\psi_2 = C^{-1} \psi_2 C^{-T}$, $B = I + \tilde\psi_2 / \sigma^2$ and $P = C^{-1} \psi_1^T x / \sigma^2$,
    $$ -\tfrac{ND}2 \log 2\pi\sigma^2 - \tfrac D2 \log |B| - \tfrac1{2\sigma^2} |x|^2 + \tfrac12 \mathrm{tr}\, P^T B^{-1} P
       - \tfrac D{2\sigma^2} (\psi_0 - \mathrm{tr}\, \tilde\psi_2). $$

    Args:
        x: The rows, `(unit, feature)`.
        psi: Statistics of the positions.
        inducing: Covariance of the inducing inputs, nugget included, `(inducing, inducing)`.
        sigma: Standard deviation of the noise.
    """
    n, d = x.shape
    lower = cholesky_or_nan(inducing)
    half = torch.linalg.solve_triangular(lower, psi.two, upper=False)
    two = torch.linalg.solve_triangular(lower, half.mT, upper=False)
    projected = torch.linalg.solve_triangular(lower, psi.one.mT @ x, upper=False) / sigma**2
    root = cholesky_or_nan(torch.eye(len(two), dtype=x.dtype, device=x.device) + two / sigma**2)
    whitened = torch.linalg.solve_triangular(root, projected, upper=False)
    bound = -0.5 * n * d * (math.log(2 * math.pi) + 2 * torch.log(sigma)) - d * torch.log(torch.diagonal(root)).sum()
    bound = bound - 0.5 * (x**2).sum() / sigma**2 + 0.5 * (whitened**2).sum()
    return bound - 0.5 * d * (psi.zero - torch.trace(two)) / sigma**2
