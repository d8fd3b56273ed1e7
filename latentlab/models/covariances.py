r"""Covariance functions of latent positions, $k(z, z') = a^2 \kappa$, with $r = |z - z'| / \ell$.

| name | $\kappa$ |
|---|---|
| `rbf` | $\exp(-r^2 / 2)$ |
| `matern32` | $(1 + \sqrt 3 r) \exp(-\sqrt 3 r)$ |
| `matern52` | $(1 + \sqrt 5 r + 5 r^2 / 3) \exp(-\sqrt 5 r)$ |
| `rational_quadratic` | $(1 + r^2 / 2 \beta)^{-\beta}$ |
| `linear` | $z^T z'$ |

References:
    Rasmussen & Williams (2006), Gaussian Processes for Machine Learning, chapter 4.
"""

import math
from collections.abc import Callable, Mapping

import torch


def rbf(d2: torch.Tensor) -> torch.Tensor:
    """Squared exponential function of squared distances."""
    return torch.exp(-0.5 * d2)


def matern32(d2: torch.Tensor) -> torch.Tensor:
    """Matern function of smoothness 3/2."""
    s = math.sqrt(3) * _root(d2)
    return (1 + s) * torch.exp(-s)


def matern52(d2: torch.Tensor) -> torch.Tensor:
    """Matern function of smoothness 5/2."""
    s = math.sqrt(5) * _root(d2)
    return (1 + s + 5 / 3 * d2) * torch.exp(-s)


STATIONARY: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {"rbf": rbf, "matern32": matern32, "matern52": matern52}
KERNELS = (*STATIONARY, "rational_quadratic", "linear")


def squared_distances(z: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Squared Euclidean distances of positions `(n, latent)` and `(m, latent)`, `(n, m)`."""
    squares = (z**2).sum(-1)[:, None] + (other**2).sum(-1) - 2 * z @ other.mT
    return torch.clamp(squares, min=0.0)


def covariance(
    name: str, z: torch.Tensor, other: torch.Tensor, lengthscale: torch.Tensor, shape: torch.Tensor | None = None
) -> torch.Tensor:
    r"""Matrix $\kappa$ of two sets of positions, `(n, m)`.

    Args:
        name: One of `KERNELS`.
        z, other: Positions `(n, latent)` and `(m, latent)`.
        lengthscale: $\ell$, a number, or one of each axis `(latent,)`.
        shape: $\beta$ of `rational_quadratic`; 1 if None.
    """
    z, other = z / lengthscale, other / lengthscale
    if name == "linear":
        return z @ other.mT
    d2 = squared_distances(z, other)
    if name == "rational_quadratic":
        beta = torch.ones((), dtype=d2.dtype) if shape is None else shape
        return torch.exp(-beta * torch.log1p(d2 / (2 * beta)))
    return STATIONARY[name](d2)


def variances(name: str, z: torch.Tensor, lengthscale: torch.Tensor) -> torch.Tensor:
    """Diagonal of the covariance of positions with themselves, `(n,)`."""
    return ((z / lengthscale) ** 2).sum(-1) if name == "linear" else torch.ones_like(z[:, 0])


def _root(d2: torch.Tensor) -> torch.Tensor:
    """Square root, with derivative 0 at 0, where that of the Matern functions is 0."""
    positive = d2 > 0
    return torch.where(positive, torch.sqrt(torch.where(positive, d2, torch.ones_like(d2))), torch.zeros_like(d2))
