r"""Mixtures of Gaussians, with a fixed number of components or a Dirichlet-process prior."""

from collections.abc import Mapping

import numpy as np
import pyro
import pyro.distributions as dist
import torch

from latentlab.distributions.components import GaussianComponents
from latentlab.distributions.mixture import Mixture
from latentlab.distributions.ordered_normal import OrderedNormal
from latentlab.distributions.stick_breaking import StickBreaking
from latentlab.models.base import Arrays
from latentlab.models.emissions.base import Covariance, PerComponent, PositivePerComponent, SigmaPrior, per_component
from latentlab.models.emissions.gaussian import Gaussian
from latentlab.models.fixed import dirichlet, log_normal, on_default_device
from latentlab.models.mixture import MixtureModel, Units, k_means
from latentlab.settings import Count, NonNegative, Positive, Several, settings
from latentlab.symmetry.group import Group
from latentlab.symmetry.groups import Identity, Permutation

START_CLUSTERS = 10
"""Largest number of clusters at the start of a Dirichlet-process mixture."""


@settings
class GaussianMixture(MixtureModel):
    r"""Gaussian mixture: each unit belongs to one of K components.

    $$ w \sim \text{Dirichlet}(\text{weights\_concentration}), \quad \mu_{kd} \sim N(\text{mu\_loc}, \text{mu\_scale}^2) $$
    $$ \sigma_{kd} \sim \text{LogNormal}(\log \text{sigma\_scale}, \text{sigma\_spread}), \quad
       R_k \sim \text{LKJCholesky}(\text{corr\_concentration}) $$
    $$ z_n \sim w, \quad x_n \mid z_n = k \sim N(\mu_k, \Sigma_k), \quad
       \Sigma_k = \text{diag}(\sigma_k) \, R_k R_k^T \, \text{diag}(\sigma_k) $$

    weights (component,), mu (component, feature), z (unit,). $\Sigma_k$ by `covariance`: `spherical` sigma (component,);
    `diagonal` sigma (component, feature); `full` sigma (component, feature) and corr, the Cholesky factors of the correlations
    (component, feature, next_feature); `tied` one covariance for all, sigma (feature,) and corr (feature, next_feature). Scales
    are standard deviations in the units of the features; the defaults are meant for standardised data. The assignments z are
    marginalised. The other sites are identified up to the order of the components, unless their priors differ or `ordered` fixes
    it. The log-normal prior prevents components from collapsing onto one unit, where the likelihood is unbounded.

    Args:
        n_components: Components K.
        covariance: `full`, `diagonal`, `spherical` or `tied`.
        weights_concentration: Concentration of the Dirichlet prior of the weights: one number, or one for each component.
        mu_loc: Prior mean of the means: one number, or one for each component.
        mu_scale: Prior standard deviation of the means: one number, or one for each component.
        sigma_prior: `log_normal`, or `half_normal` of scale `sigma_scale`, under which the posterior density can be unbounded.
        sigma_scale: Prior median of the standard deviations: one number, or one for each component.
        sigma_spread: Standard deviation of their logs; 0 fixes them at `sigma_scale`.
        corr_concentration: Concentration of the LKJ prior of the correlations; 1 is uniform, larger favours weak correlations.
        ordered: Constrain the means of a single feature to increasing order; the prior is not renormalised.

    Raises:
        ConfigError: A setting is out of its range.

    References:
        Fraley & Raftery (2002), Model-based clustering, discriminant analysis, and density estimation, JASA 97:611.
        Lewandowski, Kurowicka & Joe (2009), Generating random correlation matrices, J. Multivariate Analysis 100:1989 (LKJ).

    Example:
        >>> GaussianMixture(n_components=3, covariance="diagonal").dims["sigma"]
        ('component', 'feature')
    """

    name = "gaussian_mixture"

    n_components: Count
    covariance: Covariance = "full"
    weights_concentration: PositivePerComponent = 1.0
    mu_loc: PerComponent = 0.0
    mu_scale: PositivePerComponent = 2.0
    sigma_prior: SigmaPrior = "log_normal"
    sigma_scale: PositivePerComponent = 0.5
    sigma_spread: NonNegative = 0.7
    corr_concentration: Positive = 2.0
    ordered: bool = False

    def __post_init__(self) -> None:
        owner, K = type(self).__name__, self.n_components
        emission = Gaussian(
            owner,
            K,
            covariance=self.covariance,
            mu_loc=self.mu_loc,
            mu_scale=self.mu_scale,
            sigma_prior=self.sigma_prior,
            sigma_scale=self.sigma_scale,
            sigma_spread=self.sigma_spread,
            corr_concentration=self.corr_concentration,
            ordered=self.ordered,
        )
        self._settings(emission, per_component(owner, "weights_concentration", self.weights_concentration, K))

    def model(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> None:
        K, D = self.n_components, x.shape[1]
        weights = dirichlet("weights", on_default_device(self.concentration))
        loc, scale = (
            one[:, None].expand(K, D)
            for one in (on_default_device(self.emission.mu_loc), on_default_device(self.emission.mu_scale))
        )
        mu = pyro.sample("mu", OrderedNormal(loc, scale) if self.ordered else dist.Normal(loc, scale).to_event(2))
        median = self.emission.median(D)  # `sigma_scale`, expanded to the shape of sigma
        if self.sigma_prior == "half_normal":
            sigma = pyro.sample("sigma", dist.HalfNormal(median).to_event(median.dim()))
        else:
            sigma = log_normal("sigma", median, self.sigma_spread)
        corr = None
        if self.covariance in ("full", "tied"):
            lkj = dist.LKJCholesky(D, torch.tensor(self.corr_concentration, dtype=torch.float64))
            corr = pyro.sample("corr", lkj.expand([K]).to_event(1) if self.covariance == "full" else lkj)
        components = GaussianComponents(mu, sigma[:, None] if self.covariance == "spherical" else sigma, corr)
        with pyro.plate("unit", len(x)):
            pyro.sample("x", Mixture(torch.log(weights), components, mask), obs=x)  # z is marginalised


@settings
class DPMixture(MixtureModel):
    r"""Truncated Dirichlet-process mixture of Gaussians: the number of occupied components is inferred from the data.

    $$ \alpha \sim \text{Gamma}(\text{alpha\_shape}, \text{alpha\_rate}), \quad v_k \sim \text{Beta}(1, \alpha), \quad
       w_k = v_k \prod_{j<k} (1 - v_j), \quad v_K = 1 $$
    $$ \mu_{kd} \sim N(\text{mu\_loc}, \text{mu\_scale}^2), \quad
       \sigma_{kd} \sim \text{LogNormal}(\log \text{sigma\_scale}, \text{sigma\_spread}), \quad
       R_k \sim \text{LKJCholesky}(\text{corr\_concentration}) $$
    $$ z_n \sim w, \quad x_n \mid z_n = k \sim N(\mu_k, \Sigma_k), \quad
       \Sigma_k = \text{diag}(\sigma_k) \, R_k R_k^T \, \text{diag}(\sigma_k) $$

    alpha is the concentration, weights (component,); the other sites are as in `GaussianMixture`. The prior expectation of the
    number of occupied components for N units is about $\alpha \log(1 + N / \alpha)$. The partition of the units, the number of
    occupied components, and the density of x are identified. Components are not exchangeable under the stick-breaking prior:
    permuting them changes the joint density slightly. Chains permute them nevertheless. Draws are therefore aligned, and chains
    compared, modulo their order.

    Args:
        n_components: Truncation level K of the process; the last components should be empty.
        covariance: `diagonal`, `full`, `spherical` or `tied`.
        alpha_shape: Shape of the concentration's gamma prior; 0 fixes alpha at `1 / alpha_rate`.
        alpha_rate: Rate of the concentration's gamma prior.
        mu_loc: Prior mean of the means.
        mu_scale: Prior standard deviation of the means.
        sigma_scale: Prior median of the standard deviations.
        sigma_spread: Standard deviation of their logs; 0 fixes them at `sigma_scale`.
        corr_concentration: Concentration of the LKJ prior of the correlations.

    Raises:
        ConfigError: A setting is out of its range.

    References:
        Ishwaran & James (2001), Gibbs sampling methods for stick-breaking priors, JASA 96:161. Escobar & West (1995), Bayesian
        density estimation and inference using mixtures, JASA 90:577.
    """

    name = "dp_mixture"
    methods = ("nuts", "chees", "svi", "map")

    n_components: Several = 10
    covariance: Covariance = "diagonal"
    alpha_shape: NonNegative = 2.0
    alpha_rate: Positive = 2.0
    mu_loc: float = 0.0
    mu_scale: Positive = 2.0
    sigma_scale: Positive = 0.5
    sigma_spread: NonNegative = 0.7
    corr_concentration: Positive = 2.0

    def __post_init__(self) -> None:
        emission = Gaussian(
            type(self).__name__,
            self.n_components,
            covariance=self.covariance,
            mu_loc=self.mu_loc,
            mu_scale=self.mu_scale,
            sigma_prior="log_normal",
            sigma_scale=self.sigma_scale,
            sigma_spread=self.sigma_spread,
            corr_concentration=self.corr_concentration,
            ordered=False,
        )
        self._settings(emission, torch.ones(self.n_components, dtype=torch.float64))
        self.dims = {"alpha": (), **self.dims}
        self.symmetry = Identity("component")

    @property
    def exchanges(self) -> Group:
        return Permutation("component")

    def model(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> None:
        K, D = self.n_components, x.shape[1]
        if self.alpha_shape == 0:
            alpha = pyro.deterministic("alpha", torch.tensor(1 / self.alpha_rate, dtype=torch.float64))
        else:
            rate = torch.tensor(self.alpha_rate, dtype=torch.float64)
            alpha = pyro.sample("alpha", dist.Gamma(torch.tensor(self.alpha_shape, dtype=torch.float64), rate))
        weights = pyro.sample("weights", StickBreaking(alpha, K))
        mu = pyro.sample("mu", dist.Normal(torch.full((K, D), self.mu_loc, dtype=torch.float64), self.mu_scale).to_event(2))
        median = self.emission.median(D)  # `sigma_scale`, expanded to the shape of sigma
        sigma = log_normal("sigma", median, self.sigma_spread)
        corr = None
        if self.covariance in ("full", "tied"):
            lkj = dist.LKJCholesky(D, torch.tensor(self.corr_concentration, dtype=torch.float64))
            corr = pyro.sample("corr", lkj.expand([K]).to_event(1) if self.covariance == "full" else lkj)
        components = GaussianComponents(mu, sigma[:, None] if self.covariance == "spherical" else sigma, corr)
        with pyro.plate("unit", len(x)):
            pyro.sample("x", Mixture(torch.log(weights), components, mask), obs=x)  # z is marginalised

    def remarks(self, arrays: Arrays, values: Mapping[str, np.ndarray]) -> list[str]:
        return [note for note in super().remarks(arrays, values) if "is empty" not in note]  # empty components are expected

    def initialize(self, arrays: Arrays, rng: np.random.Generator) -> dict[str, object]:
        """Start from k-means with a random number of clusters, sorted by size; the means of other components are random units.

        The number is uniform from 1 to the smallest of `START_CLUSTERS`, the number of components and that of distinct units.
        """
        distinct = len(np.unique(arrays["x"].numpy(), axis=0))
        standardized = Units.of(self.emission, arrays).arrays
        labels = k_means(standardized, int(rng.integers(1, min(START_CLUSTERS, self.n_components, distinct) + 1)), rng)
        order = np.argsort(-np.bincount(labels, minlength=self.n_components), kind="stable")
        labels = np.argsort(order)[labels]
        values = self._from_labels(arrays, labels)
        empty = np.bincount(labels, minlength=self.n_components) == 0
        random_units = torch.from_numpy(rng.choice(len(labels), self.n_components))
        values["mu"] = torch.where(torch.from_numpy(empty)[:, None], arrays["x"][random_units], values["mu"])
        return values

    def _draw_weights(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        alpha = 1 / self.alpha_rate if self.alpha_shape == 0 else rng.gamma(self.alpha_shape, 1 / self.alpha_rate)
        sticks = rng.beta(1.0, alpha, self.n_components)
        sticks[-1] = 1.0
        rest = np.concatenate([[1.0], np.cumprod(1 - sticks[:-1])])
        return {"alpha": np.asarray(alpha), "weights": sticks * rest}
