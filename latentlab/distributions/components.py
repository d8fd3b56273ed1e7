r"""Emission distributions of K components: log densities `(unit, component)`, and draws given labels.

They are used for the components of a mixture and for the states of a hidden Markov chain. Missing entries are marginalised out:
`observed` is True where an entry was observed, `(unit, feature)`, or None if all were.
"""

import math
from abc import ABC, abstractmethod

import torch

from latentlab.distributions.low_rank_gaussian import cholesky_or_nan

LOG_2PI = math.log(2 * math.pi)
AT_ONCE = 2**17
"""Number of residuals, unit x component x feature, above which correlated components are evaluated one after the other."""


class Components(ABC):
    """Emissions of K components over D features."""

    n_components: int
    n_features: int

    @abstractmethod
    def log_prob(self, x: torch.Tensor, observed: torch.Tensor | None = None) -> torch.Tensor:
        """Log densities log p(observed entries of x_n | component k), `(unit, component)`."""

    @abstractmethod
    def sample(self, labels: torch.Tensor) -> torch.Tensor:
        """Draw `(unit, feature)` from the component given by each unit's label `(unit,)`."""


class GaussianComponents(Components):
    r"""Gaussian emissions $N(\mu_k, \Sigma_k)$, $\Sigma_k = S_k R_k R_k^T S_k$.

    $S_k$ is the diagonal matrix of standard deviations, and $R_k$ a factor of the correlation matrix.

    Args:
        mu: Means `(component, feature)`.
        sigma: Standard deviations `(component, feature)`, or of a shape that broadcasts to it.
        corr: Cholesky factors of the correlations, `(component, feature, feature)` or `(feature, feature)`; None for
            independent features.
    """

    def __init__(self, mu: torch.Tensor, sigma: torch.Tensor, corr: torch.Tensor | None = None) -> None:
        self.mu, self.sigma, self.corr = mu, sigma.expand(mu.shape), corr
        self.n_components, self.n_features = mu.shape[-2:]

    def scale_tril(self) -> torch.Tensor:
        """Lower factors of the covariances `(component, feature, feature)`."""
        if self.corr is None:
            return torch.diag_embed(self.sigma)
        return self.sigma[..., None] * self.corr

    def factor(self) -> torch.Tensor:
        """Lower factors as in `scale_tril`; standard deviations `(component, feature, 1)` for independent features."""
        return self.sigma[..., None] if self.corr is None else self.scale_tril()

    def smallest_scale(self) -> torch.Tensor:
        """Standard deviation along the shortest axis of each covariance, `(component,)`; `()` for a shared covariance."""
        return self.sigma.amin(-1) if self.corr is None else torch.linalg.svdvals(self.scale_tril())[..., -1]

    def log_prob(self, x: torch.Tensor, observed: torch.Tensor | None = None) -> torch.Tensor:
        if self.corr is None:
            return self._independent(x, observed)
        if x.numel() * self.n_components <= AT_ONCE:
            return self._correlated(x, observed, self.mu, self.scale_tril())
        lower = self.scale_tril().expand(self.n_components, self.n_features, self.n_features)
        each = [self._correlated(x, observed, self.mu[k : k + 1], lower[k : k + 1]) for k in range(self.n_components)]
        return torch.cat(each, dim=-1)

    def _independent(self, x: torch.Tensor, observed: torch.Tensor | None) -> torch.Tensor:
        """Log densities by matrix products, without arrays of size unit x component x feature; centring limits cancellation."""
        if observed is None:
            centre = x.mean(0)
            x = x - centre
        else:
            seen = observed.to(x.dtype)
            centre = (x * seen).sum(0) / seen.sum(0).clamp(min=1)
            x = (x - centre) * seen
        mu, precision = self.mu - centre, self.sigma**-2
        constants = mu**2 * precision + 2 * torch.log(self.sigma) + LOG_2PI
        counted = constants.sum(-1) if observed is None else seen @ constants.mT
        return x @ (mu * precision).mT - 0.5 * ((x**2) @ precision.mT + counted)

    def _correlated(self, x: torch.Tensor, observed: torch.Tensor | None, mu: torch.Tensor, lower: torch.Tensor) -> torch.Tensor:
        residual = x[:, None, :] - mu
        if observed is None:
            scaled = torch.linalg.solve_triangular(lower, residual.movedim(0, -1), upper=False)
            quadratic, counted = (scaled**2).sum(-2).mT, LOG_2PI * self.n_features
        else:
            lower = _observed_factor(lower, observed)
            residual = torch.where(observed[:, None, :], residual, torch.zeros_like(residual))
            scaled = torch.linalg.solve_triangular(lower, residual[..., None], upper=False)[..., 0]
            quadratic = (scaled**2).sum(-1) + LOG_2PI * observed.to(x.dtype).sum(-1, keepdim=True)
            counted = 0.0
        log_det = torch.log(torch.diagonal(lower, dim1=-2, dim2=-1)).sum(-1)
        return -0.5 * (quadratic + counted) - log_det

    def sample(self, labels: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(*labels.shape, self.n_features, dtype=self.mu.dtype)
        if self.corr is None:
            return self.mu[labels] + self.sigma[labels] * noise
        lower = self.scale_tril()
        lower = lower[labels] if lower.dim() == 3 else lower
        return self.mu[labels] + (lower @ noise[..., None])[..., 0]

    def completed(self, labels: torch.Tensor, x: torch.Tensor, observed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute means and lower factors of the missing entries of x given the observed ones and the labels.

        Returns:
            Means `(unit, feature)` and factors `(unit, feature, feature)`; for observed entries the values of x and zeros.
        """
        lower = self.scale_tril()
        lower = lower[labels] if lower.dim() == 3 else lower.expand(len(labels), *lower.shape)
        covariance = lower @ lower.mT
        seen = observed.to(x.dtype)
        within = covariance * seen[:, :, None] * seen[:, None, :] + torch.diag_embed(1 - seen)
        gain = torch.linalg.solve(within, covariance * seen[:, :, None]).mT * (1 - seen)[:, :, None]
        residual = (x - self.mu[labels]) * seen
        mean = torch.where(observed, x, self.mu[labels] + (gain @ residual[..., None])[..., 0])
        rest = (covariance - gain @ (covariance * seen[:, :, None])) * (1 - seen)[:, :, None] * (1 - seen)[:, None, :]
        factor = torch.linalg.cholesky_ex(rest + torch.diag_embed(seen))[0]
        return mean, factor * (1 - seen)[:, :, None]


def gaussian_log_density(x: torch.Tensor, mu: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Compute log densities `(unit, component)` from means and factors as returned by `GaussianComponents.factor`."""
    if factor.shape[-1] == 1:
        return GaussianComponents(mu, factor[..., 0]).log_prob(x)
    return GaussianComponents(mu, torch.ones_like(mu), factor).log_prob(x)


def _observed_factor(lower: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
    """Factors `(unit, component, feature, feature)` of the covariances of observed entries; identity for missing entries."""
    seen = observed.to(lower.dtype)
    covariance = (lower @ lower.mT).expand(len(observed), *torch.broadcast_shapes(lower.shape, (1, 1, 1)))
    both = seen[:, None, :, None] * seen[:, None, None, :]
    return cholesky_or_nan(covariance * both + torch.diag_embed(1 - seen)[:, None])


class BernoulliComponents(Components):
    r"""Independent binary features, $\Pr(x_{nd} = 1) = p_{kd}$.

    Args:
        probability: Probabilities of 1, `(component, feature)`, in (0, 1).
    """

    def __init__(self, probability: torch.Tensor) -> None:
        self.probability = probability
        self.n_components, self.n_features = probability.shape[-2:]

    def log_prob(self, x: torch.Tensor, observed: torch.Tensor | None = None) -> torch.Tensor:
        yes = x if observed is None else x * observed
        no = (1 - x) if observed is None else (1 - x) * observed
        return yes @ torch.log(self.probability).mT + no @ torch.log1p(-self.probability).mT

    def sample(self, labels: torch.Tensor) -> torch.Tensor:
        p = self.probability[labels]
        return (torch.rand(p.shape, dtype=p.dtype) < p).to(p.dtype)


class PoissonComponents(Components):
    r"""Independent counts, $x_{nd} \sim \mathrm{Poisson}(\lambda_{kd})$.

    Args:
        rate: Rates, `(component, feature)`, positive.
    """

    def __init__(self, rate: torch.Tensor) -> None:
        self.rate = rate
        self.n_components, self.n_features = rate.shape[-2:]

    def log_prob(self, x: torch.Tensor, observed: torch.Tensor | None = None) -> torch.Tensor:
        counts = x if observed is None else x * observed
        exposure = torch.ones_like(x) if observed is None else observed.to(x.dtype)
        constants = torch.lgamma(counts + 1).sum(-1, keepdim=True)
        return counts @ torch.log(self.rate).mT - exposure @ self.rate.mT - constants

    def sample(self, labels: torch.Tensor) -> torch.Tensor:
        return torch.poisson(self.rate[labels])


class CategoricalComponents(Components):
    r"""Independent categorical features, $\Pr(x_{nd} = c) = p_{kdc}$, coded by whole numbers from 0.

    Args:
        probability: Probabilities, `(component, feature, category)`, with sum 1 over categories.
    """

    def __init__(self, probability: torch.Tensor) -> None:
        self.probability = probability
        self.n_components, self.n_features, self.n_categories = probability.shape[-3:]

    def log_prob(self, x: torch.Tensor, observed: torch.Tensor | None = None) -> torch.Tensor:
        codes = torch.arange(self.n_categories, dtype=x.dtype)
        indicator = (x[..., None] == codes).to(x.dtype)
        if observed is not None:
            indicator = indicator * observed[..., None]
        return indicator.flatten(-2) @ torch.log(self.probability).flatten(-2).mT

    def sample(self, labels: torch.Tensor) -> torch.Tensor:
        steps = torch.cumsum(self.probability[labels], dim=-1)
        u = torch.rand(*steps.shape[:-1], 1, dtype=steps.dtype)
        return (u > steps[..., :-1]).sum(-1).to(steps.dtype)
