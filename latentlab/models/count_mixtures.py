r"""Mixtures of independent binary features (latent class analysis) and of independent counts."""

import pyro
import pyro.distributions as dist
import torch

from latentlab.distributions.components import BernoulliComponents, PoissonComponents
from latentlab.distributions.mixture import Mixture
from latentlab.models.emissions.base import PositivePerComponent, per_component
from latentlab.models.emissions.counts import Bernoulli, Poisson
from latentlab.models.fixed import dirichlet, on_default_device
from latentlab.models.mixture import MixtureModel
from latentlab.settings import Count, Positive, settings


@settings
class BernoulliMixture(MixtureModel):
    r"""Bernoulli mixture, or latent class analysis: the binary features are independent given the class.

    $$ w \sim \text{Dirichlet}(\text{weights\_concentration}), \quad
       p_{kd} \sim \text{Beta}(a, a), \; a = \text{probability\_concentration} $$
    $$ z_n \sim w, \quad x_{nd} \mid z_n = k \sim \text{Bernoulli}(p_{kd}) $$

    weights (component,), probability (component, feature), z (unit,); x contains 0 and 1. z is marginalised. The other sites are
    identified up to the order of the components, or not at all: with few features several mixtures have the same likelihood.

    Args:
        n_components: Components (classes) K.
        weights_concentration: Concentration of the Dirichlet prior of the weights: one number, or one for each component.
        probability_concentration: Parameter a of the beta prior of the probabilities; above 1 its density is 0 at 0 and 1.

    Raises:
        ConfigError: A setting is out of its range.

    References:
        Lazarsfeld & Henry (1968), Latent Structure Analysis. Allman, Matias & Rhodes (2009), Identifiability of parameters in
        latent structure models with many observed variables, Annals of Statistics 37:3099.
    """

    name = "bernoulli_mixture"

    n_components: Count
    weights_concentration: PositivePerComponent = 1.0
    probability_concentration: Positive = 1.5

    def __post_init__(self) -> None:
        K = self.n_components
        concentration = per_component(type(self).__name__, "weights_concentration", self.weights_concentration, K)
        self._settings(Bernoulli(K, concentration=self.probability_concentration), concentration)

    def model(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> None:
        K, D = self.n_components, x.shape[1]
        weights = dirichlet("weights", on_default_device(self.concentration))
        a = torch.full((K, D), self.probability_concentration, dtype=torch.float64)
        components = BernoulliComponents(pyro.sample("probability", dist.Beta(a, a).to_event(2)))
        with pyro.plate("unit", len(x)):
            pyro.sample("x", Mixture(torch.log(weights), components, mask), obs=x)  # z is marginalised


@settings
class PoissonMixture(MixtureModel):
    r"""Poisson mixture: the counts are independent given the component.

    $$ w \sim \text{Dirichlet}(\text{weights\_concentration}), \quad
       \lambda_{kd} \sim \text{Gamma}(a, a / m), \; a = \text{rate\_shape}, \; m = \text{rate\_mean} $$
    $$ z_n \sim w, \quad x_{nd} \mid z_n = k \sim \text{Poisson}(\lambda_{kd}) $$

    weights (component,), rate (component, feature), z (unit,); x contains counts. z is marginalised. The other sites are
    identified up to the order of the components.

    Args:
        n_components: Components K.
        weights_concentration: Concentration of the Dirichlet prior of the weights: one number, or one for each component.
        rate_shape: Shape a of the gamma prior of the rates.
        rate_mean: Prior mean m of the rates, in counts: one number, or one for each component.

    Raises:
        ConfigError: A setting is out of its range.

    References:
        Teicher (1960), On the mixture of distributions, Annals of Mathematical Statistics 31:55 (identifiability).
    """

    name = "poisson_mixture"

    n_components: Count
    weights_concentration: PositivePerComponent = 1.0
    rate_shape: Positive = 1.0
    rate_mean: PositivePerComponent = 5.0

    def __post_init__(self) -> None:
        owner, K = type(self).__name__, self.n_components
        concentration = per_component(owner, "weights_concentration", self.weights_concentration, K)
        self._settings(Poisson(owner, K, shape=self.rate_shape, mean=self.rate_mean), concentration)

    def model(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> None:
        K, D = self.n_components, x.shape[1]
        weights = dirichlet("weights", on_default_device(self.concentration))
        a, m = torch.full((K, D), self.rate_shape, dtype=torch.float64), on_default_device(self.emission.mean)[:, None]
        components = PoissonComponents(pyro.sample("rate", dist.Gamma(a, self.rate_shape / m).to_event(2)))
        with pyro.plate("unit", len(x)):
            pyro.sample("x", Mixture(torch.log(weights), components, mask), obs=x)  # z is marginalised
