r"""Probabilistic principal component analysis."""

import pyro
import pyro.distributions as dist
import torch

from latentlab.distributions.low_rank_gaussian import LowRankGaussian
from latentlab.models.fixed import normal
from latentlab.models.linear_gaussian import LinearGaussian
from latentlab.settings import Count, NonNegative, Positive, settings


@settings
class PPCA(LinearGaussian):
    r"""Probabilistic PCA: a linear map from latent positions to features, with the same noise variance in all features.

    $$ W_{dk} \sim N(0, \text{W\_scale}^2), \quad \mu_d \sim N(0, \text{mu\_scale}^2), \quad
       \sigma \sim \text{HalfNormal}(\text{sigma\_scale}) $$
    $$ z_n \sim N(0, I_q), \quad x_n \mid z_n \sim N(W z_n + \mu, \sigma^2 I_D) $$

    W (feature, latent) are the loadings, mu (feature,) the mean, sigma the standard deviation of the noise, z (unit, latent)
    the positions. Scales are standard deviations, in the units of the features. With z marginalised,
    $x_n \sim N(\mu, W W^T + \sigma^2 I)$. W W^T, mu, sigma and W z_n are identified. W and z are identified up to one common
    rotation or reflection, O(q). Standardising columns makes equal noise variances unequal, and additional latent dimensions then
    fit the difference. Choose q on raw columns of one unit, or by factor analysis.

    Args:
        n_latent: Latent dimensions q, fewer than features.
        W_scale: Prior standard deviation of each loading; 0 fixes W at 0.
        mu_scale: Prior standard deviation of each mean; 0 fixes mu at 0.
        sigma_scale: Scale of the half-normal prior of the noise's standard deviation.
        marginalize: Marginalise z (the default), or keep it as a site of the program.

    Raises:
        ConfigError: A setting is out of its range.

    References:
        Tipping & Bishop (1999), Probabilistic Principal Component Analysis, JRSS B 61:611.

    Example:
        >>> PPCA(n_latent=2).dims["W"]
        ('feature', 'latent')
    """

    name = "ppca"
    noise = "sigma"
    dims = {"W": ("feature", "latent"), "mu": ("feature",), "sigma": (), "z": ("unit", "latent")}

    n_latent: Count
    W_scale: NonNegative = 1.0
    mu_scale: NonNegative = 10.0
    sigma_scale: Positive = 1.0
    marginalize: bool = True

    def model(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> None:
        (N, D), q = x.shape, self.n_latent
        W = normal("W", self.W_scale, (D, q))
        mu = normal("mu", self.mu_scale, (D,))
        sigma = pyro.sample("sigma", dist.HalfNormal(self.sigma_scale))
        with pyro.plate("unit", N):
            if self.marginalize:
                pyro.sample("x", LowRankGaussian(mu, W, sigma, mask), obs=x)
            else:
                z = pyro.sample("z", dist.Normal(torch.zeros(q), 1.0).to_event(1))
                conditional = dist.Normal(z @ W.mT + mu, sigma)
                pyro.sample("x", (conditional if mask is None else conditional.mask(mask)).to_event(1), obs=x)
