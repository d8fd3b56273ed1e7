r"""Gaussians whose covariance is of low rank plus a diagonal, $N(\mu, W W' + \mathrm{diag}(\psi^2))$, with missing entries.

With $r = x - \mu$ over the observed entries o, $M = I + W_o' \Psi_o^{-1} W_o$ and $\hat z = M^{-1} W_o' \Psi_o^{-1} r_o$
(Woodbury, and the determinant lemma),
$$ \log p(x_o) = -\tfrac12 \left[ |o| \log 2\pi + \log|\Psi_o| + \log|M|
   + (r_o - W_o \hat z)' \Psi_o^{-1} (r_o - W_o \hat z) + \hat z' \hat z \right], $$
and $z \mid x_o \sim N(\hat z, M^{-1})$. Nothing of size feature x feature is made, and the quadratic form is a sum of
squares, so that nothing cancels where the noise is small.

The sum over N units with nothing missing needs no more than D + 1 of such forms: with the QR decomposition of the centred
data, $X - 1 \bar x' = QR$, the rows of R and $\sqrt N (\bar x - \mu)$ have the same sum of any quadratic form as the N residuals.
"""

import math
from typing import Any

import numpy as np
import torch
from pyro.distributions import MultivariateNormal, TorchDistribution
from torch.distributions import constraints
from torch.utils.weak import WeakIdKeyDictionary


class LowRankGaussian(TorchDistribution):
    r"""Rows $x_n = W z_n + \mu + \psi \varepsilon_n$, with $z_n$ and $\varepsilon_n$ standard normal and z integrated out.

    Args:
        loc: The mean `(feature,)`.
        W: Loadings `(feature, latent)`.
        scale: Standard deviations of the noise: one, or `(feature,)`.
        observed: True where an entry was observed, `(unit, feature)`; None where all were. Entries that were not do not count.
    """

    arg_constraints = {"loc": constraints.real_vector, "W": constraints.real, "scale": constraints.positive}
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        loc: torch.Tensor,
        W: torch.Tensor,
        scale: torch.Tensor,
        observed: torch.Tensor | None = None,
        *,
        batch: tuple[int, ...] = (),
    ) -> None:
        self.loc, self.W = loc, W
        self.scale = scale.expand(W.shape[:-1])
        self.observed = observed
        batch = batch if observed is None else np.broadcast_shapes(batch, observed.shape[:-1])
        super().__init__(torch.Size(batch), W.shape[-2:-1], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "LowRankGaussian":
        return LowRankGaussian(self.loc, self.W, self.scale, self.observed, batch=tuple(batch_shape))

    def rsample(self, sample_shape: Any = ()) -> torch.Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        z = torch.randn(*shape[:-1], self.W.shape[-1], dtype=self.W.dtype)
        return self.loc + z @ self.W.mT + self.scale * torch.randn(shape, dtype=self.W.dtype)

    def _weights(self) -> torch.Tensor:
        """1 / psi^2, and 0 where an entry is missing: `(feature,)`, or `(unit, feature)` under a mask."""
        weights = self.scale**-2
        return weights if self.observed is None else self.observed * weights

    def _solve(self, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Residuals `r` (0 where missing), the Cholesky factor of M, and the conditional means of z `(unit, latent)`."""
        residual = value - self.loc
        scaled = self.W * (self.scale**-2)[..., None]
        if self.observed is None:
            M = self.W.mT @ scaled
        else:
            residual = torch.where(self.observed, residual, torch.zeros_like(residual))
            outer = (self.W[:, :, None] * scaled[:, None, :]).reshape(self.W.shape[0], -1)
            M = (self.observed.to(value.dtype) @ outer).reshape(*self.observed.shape[:-1], *2 * self.W.shape[-1:])
        lower = cholesky_or_nan(M + torch.eye(M.shape[-1], dtype=M.dtype))
        b = residual @ scaled
        if self.observed is None:
            mean = torch.cholesky_solve(b.mT, lower).mT
        else:
            mean = torch.cholesky_solve(b[..., None], lower)[..., 0]
        return residual, lower, mean

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        residual, lower, mean = self._solve(value)
        rest = residual - mean @ self.W.mT
        quadratic = (rest**2 * self._weights()).sum(-1) + (mean**2).sum(-1)
        log_det = 2 * torch.log(torch.diagonal(lower, dim1=-2, dim2=-1)).sum(-1)
        constants = math.log(2 * math.pi) + 2 * torch.log(self.scale)
        constants = constants.sum(-1) if self.observed is None else (self.observed * constants).sum(-1)
        return -0.5 * (constants + log_det + quadratic)

    def log_prob_sum(self, value: torch.Tensor) -> torch.Tensor:
        """`log_prob(value).sum()`, in time that does not grow with the number of units where nothing is missing."""
        n, d = value.shape
        if self.observed is not None or n <= d + 1:
            return self.log_prob(value).sum()
        mean, root = _moments(value)
        rows = torch.cat([root, math.sqrt(n) * (mean - self.loc)[None]])
        without_n = LowRankGaussian(torch.zeros_like(self.loc), self.W, self.scale).log_prob(rows).sum()
        constant = LowRankGaussian(torch.zeros_like(self.loc), self.W, self.scale).log_prob(torch.zeros_like(mean)[None])[0]
        return without_n + (n - d - 1) * constant

    def conditional(self, value: torch.Tensor) -> MultivariateNormal:
        """The distribution of z given the observed entries of `value`: batch `(unit,)`, event `(latent,)`."""
        _, lower, mean = self._solve(value)
        return multivariate_normal(mean, torch.linalg.cholesky_ex(torch.cholesky_inverse(lower))[0])


def multivariate_normal(loc: torch.Tensor, scale_tril: torch.Tensor) -> MultivariateNormal:
    """Pyro's distribution, made as its `expand` makes one: its constructor imports SymPy, for half a second.

    Args:
        loc: `(*batch, event)`.
        scale_tril: `(event, event)`, or one for each of the batch.

    Example:
        >>> multivariate_normal(torch.zeros(5, 2), torch.eye(2)).sample((3,)).shape
        torch.Size([3, 5, 2])
    """
    made = MultivariateNormal.__new__(MultivariateNormal)
    made.loc, made._unbroadcasted_scale_tril = loc, scale_tril
    torch.distributions.Distribution.__init__(made, loc.shape[:-1], loc.shape[-1:], validate_args=False)
    return made


_MOMENTS = WeakIdKeyDictionary()
"""The mean and the triangular root of data that were summed over before, for as long as the data exist."""


def _moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean `(feature,)` of x `(unit, feature)`, and R `(feature, feature)` of the QR decomposition of the centred x."""
    if x not in _MOMENTS:
        mean = x.mean(0)
        _MOMENTS[x] = (mean, torch.linalg.qr(x - mean, mode="r")[1])
    return _MOMENTS[x]


def cholesky_or_nan(matrix: torch.Tensor) -> torch.Tensor:
    """The lower Cholesky factor, NaN for those of a batch that have none (torch's own raises for the whole batch)."""
    lower, info = torch.linalg.cholesky_ex(matrix)
    return torch.where((info > 0)[..., None, None], torch.full_like(lower, math.nan), lower)
