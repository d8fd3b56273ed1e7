r"""Mixtures of independent yes-or-no features (latent classes) and of independent counts."""

from latentlab.models.emissions import Bernoulli, PerComponent, Poisson, per_component, whole
from latentlab.models.mixture import MixtureModel


class BernoulliMixture(MixtureModel):
    r"""Mixture of Bernoullis, or latent class analysis: within a class the yes-or-no features are independent.

    $$ w \sim \text{Dirichlet}(\text{weights\_concentration}), \quad
       p_{kd} \sim \text{Beta}(a, a), \; a = \text{probability\_concentration} $$
    $$ z_n \sim w, \quad x_{nd} \mid z_n = k \sim \text{Bernoulli}(p_{kd}) $$

    weights (component,), probability (component, feature), z (unit,); x holds 0 and 1. z is summed out. The other sites are
    identified up to the order of the components, if at all: with few features several mixtures have the same likelihood.

    Args:
        n_components: Components (classes) K.
        weights_concentration: Of the Dirichlet prior of the weights: one number, or one for each component.
        probability_concentration: a of the beta prior of the probabilities; above 1 they keep off 0 and 1.

    Raises:
        ConfigError: A setting is out of its range.

    References:
        Lazarsfeld & Henry (1968), Latent Structure Analysis. Allman, Matias & Rhodes (2009), Identifiability of parameters in
        latent structure models with many observed variables, Annals of Statistics 37:3099.
    """

    name = "bernoulli_mixture"

    def __init__(
        self, n_components: int, weights_concentration: PerComponent = 1.0, probability_concentration: float = 1.5
    ) -> None:
        owner = type(self).__name__
        n_components = whole(owner, "n_components", n_components, 1)
        self.weights_concentration, self.probability_concentration = weights_concentration, probability_concentration
        concentration = per_component(owner, "weights_concentration", weights_concentration, n_components, above=0.0)
        self._settings(n_components, Bernoulli(owner, n_components, concentration=probability_concentration), concentration)


class PoissonMixture(MixtureModel):
    r"""Mixture of Poissons: within a component the counts are independent.

    $$ w \sim \text{Dirichlet}(\text{weights\_concentration}), \quad
       \lambda_{kd} \sim \text{Gamma}(a, a / m), \; a = \text{rate\_shape}, \; m = \text{rate\_mean} $$
    $$ z_n \sim w, \quad x_{nd} \mid z_n = k \sim \text{Poisson}(\lambda_{kd}) $$

    weights (component,), rate (component, feature), z (unit,); x holds counts. z is summed out. The other sites are identified up
    to the order of the components.

    Args:
        n_components: Components K.
        weights_concentration: Of the Dirichlet prior of the weights: one number, or one for each component.
        rate_shape: a of the gamma prior of the rates.
        rate_mean: m, their prior mean, in counts: one number, or one for each component.

    Raises:
        ConfigError: A setting is out of its range.

    References:
        Teicher (1960), On the mixture of distributions, Annals of Mathematical Statistics 31:55 (identifiability).
    """

    name = "poisson_mixture"

    def __init__(
        self,
        n_components: int,
        weights_concentration: PerComponent = 1.0,
        rate_shape: float = 1.0,
        rate_mean: PerComponent = 5.0,
    ) -> None:
        owner = type(self).__name__
        n_components = whole(owner, "n_components", n_components, 1)
        self.weights_concentration, self.rate_shape, self.rate_mean = weights_concentration, rate_shape, rate_mean
        concentration = per_component(owner, "weights_concentration", weights_concentration, n_components, above=0.0)
        self._settings(n_components, Poisson(owner, n_components, shape=rate_shape, mean=rate_mean), concentration)
