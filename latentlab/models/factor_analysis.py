r"""Factor analysis."""

import pyro
import pyro.distributions as dist
import torch

from latentlab.distributions.low_rank_gaussian import LowRankGaussian
from latentlab.models.fixed import normal
from latentlab.models.linear_gaussian import LinearGaussian
from latentlab.settings import Count, NonNegative, Positive, settings


@settings
class FactorAnalysis(LinearGaussian):
    r"""Factor analysis: a linear map from latent positions to features, with a separate noise variance for each feature.

    $$ W_{dk} \sim N(0, \text{W\_scale}^2), \quad \mu_d \sim N(0, \text{mu\_scale}^2), \quad
       \psi_d \sim \text{HalfNormal}(\text{psi\_scale}) $$
    $$ z_n \sim N(0, I_q), \quad x_{nd} \mid z_n \sim N(w_d^T z_n + \mu_d, \psi_d^2) $$

    W (feature, latent) are the loadings, mu (feature,) the mean, psi (feature,) the standard deviations of the noise, z
    (unit, latent) the positions, or factor scores. Scales are standard deviations, in the units of the features. With z
    marginalised, $x_n \sim N(\mu, W W^T + \mathrm{diag}(\psi^2))$. W W^T + diag(psi^2) and mu are identified. psi is generically
    identified if (D - q)^2 > D + q (the Ledermann bound), and at least locally at equality. W and z are identified up to one
    common rotation or reflection, O(q). Beyond the bound no number of units identifies psi, W W^T and the positions, and the
    diagnostics of every fit warn. A psi near
    0 (a Heywood case) makes one feature a factor. The posterior can have several modes.

    Args:
        n_latent: Latent dimensions q, fewer than features.
        W_scale: Prior standard deviation of each loading; 0 fixes W at 0.
        mu_scale: Prior standard deviation of each mean; 0 fixes mu at 0.
        psi_scale: Scale of the half-normal prior of each noise standard deviation.
        marginalize: Marginalise z (the default), or keep it as a site of the program.

    Raises:
        ConfigError: A setting is out of its range.

    References:
        Rubin & Thayer (1982), EM algorithms for ML factor analysis, Psychometrika 47:69. Ledermann (1937), On the rank of the
        reduced correlational matrix in multiple-factor analysis, Psychometrika 2:85.

    Example:
        >>> FactorAnalysis(n_latent=2).dims["psi"]
        ('feature',)
    """

    name = "factor_analysis"
    noise = "psi"
    dims = {"W": ("feature", "latent"), "mu": ("feature",), "psi": ("feature",), "z": ("unit", "latent")}

    n_latent: Count
    W_scale: NonNegative = 1.0
    mu_scale: NonNegative = 10.0
    psi_scale: Positive = 1.0
    marginalize: bool = True

    def model(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> None:
        (N, D), q = x.shape, self.n_latent
        W = normal("W", self.W_scale, (D, q))
        mu = normal("mu", self.mu_scale, (D,))
        psi = pyro.sample("psi", dist.HalfNormal(self.psi_scale).expand([D]).to_event(1))
        with pyro.plate("unit", N):
            if self.marginalize:
                pyro.sample("x", LowRankGaussian(mu, W, psi, mask), obs=x)
            else:
                z = pyro.sample("z", dist.Normal(torch.zeros(q), 1.0).to_event(1))
                conditional = dist.Normal(z @ W.mT + mu, psi)
                pyro.sample("x", (conditional if mask is None else conditional.mask(mask)).to_event(1), obs=x)
