r"""Hidden Markov models with categorical or Poisson emissions."""

import pyro
import pyro.distributions as dist
import torch

from latentlab.distributions.components import CategoricalComponents, PoissonComponents
from latentlab.distributions.hidden_markov_series import HiddenMarkovSeries
from latentlab.models.emissions.base import PositivePerComponent
from latentlab.models.emissions.counts import Categorical, Poisson
from latentlab.models.fixed import dirichlet, on_default_device
from latentlab.models.hidden_markov import HiddenMarkovModel, begins, forward, log_probability
from latentlab.settings import Count, NonNegative, Positive, Several, settings


@settings
class CategoricalHMM(HiddenMarkovModel):
    r"""Hidden Markov model with categorical emissions.

    $$ \pi \sim \text{Dirichlet}(\text{initial\_concentration}), \quad
       A_k \sim \text{Dirichlet}(\text{transition\_concentration} + \text{sticky} \, e_k), \quad
       p_{kd} \sim \text{Dirichlet}(\text{probability\_concentration}) $$
    $$ z_1 \sim \pi, \quad z_t \mid z_{t-1} \sim A_{z_{t-1}}, \quad x_{td} \mid z_t = k \sim \text{Categorical}(p_{kd}) $$

    initial (state,), transition (state, next_state), probability (state, feature, category), z (unit,); x contains whole numbers
    from 0 to `n_categories` - 1. The first state of each sequence emits its first observation. z is marginalised. The other sites
    are identified up to the order of the states, unless `left_to_right` fixes it.

    Args:
        n_states: States K.
        n_categories: Number C of categories.
        initial_concentration: Concentration of the Dirichlet prior of the first state; 0 fixes it at 1 / K for each.
        transition_concentration: Concentration of the Dirichlet prior of each row of the transitions.
        sticky: Addition to the concentration of self-transitions.
        left_to_right: Start each sequence in the first state, and allow only self-transitions and transitions to the next state.
        probability_concentration: Concentration of the Dirichlet prior of the emissions; above 1 its density is 0 at 0.

    Raises:
        ConfigError: A setting is out of its range.

    References:
        Rabiner (1989), A tutorial on hidden Markov models and selected applications in speech recognition, Proc. IEEE 77:257.
    """

    name = "categorical_hmm"

    n_states: Count
    n_categories: Several
    initial_concentration: NonNegative = 1.0
    transition_concentration: Positive = 1.0
    sticky: NonNegative = 0.0
    left_to_right: bool = False
    probability_concentration: Positive = 1.5

    def __post_init__(self) -> None:
        concentration = self.probability_concentration
        self._settings(Categorical(self.n_states, n_categories=self.n_categories, concentration=concentration))

    def model(self, x: torch.Tensor, mask: torch.Tensor | None = None, sequence: torch.Tensor | None = None) -> None:
        K, D = self.n_states, x.shape[1]
        initial, transition = _markov_prior(self)
        a = torch.full((K, D, self.n_categories), self.probability_concentration, dtype=torch.float64)
        states = CategoricalComponents(pyro.sample("probability", dist.Dirichlet(a).to_event(2)))
        chain = log_probability(initial), log_probability(transition)
        with pyro.plate("unit", len(x)):  # z is marginalised
            pyro.sample("x", HiddenMarkovSeries(*chain, states, begins(sequence, len(x)), mask), obs=x)


@settings
class PoissonHMM(HiddenMarkovModel):
    r"""Hidden Markov model with Poisson emissions.

    $$ \pi \sim \text{Dirichlet}(\text{initial\_concentration}), \quad
       A_k \sim \text{Dirichlet}(\text{transition\_concentration} + \text{sticky} \, e_k), \quad
       \lambda_{kd} \sim \text{Gamma}(a, a / m), \; a = \text{rate\_shape}, \; m = \text{rate\_mean} $$
    $$ z_1 \sim \pi, \quad z_t \mid z_{t-1} \sim A_{z_{t-1}}, \quad x_{td} \mid z_t = k \sim \text{Poisson}(\lambda_{kd}) $$

    initial (state,), transition (state, next_state), rate (state, feature), z (unit,); x contains counts. The first state of each
    sequence emits its first observation. z is marginalised. The other sites are identified up to the order of the states, unless
    their priors differ or `left_to_right` fixes it.

    Args:
        n_states: States K.
        initial_concentration: Concentration of the Dirichlet prior of the first state; 0 fixes it at 1 / K for each.
        transition_concentration: Concentration of the Dirichlet prior of each row of the transitions.
        sticky: Addition to the concentration of self-transitions.
        left_to_right: Start each sequence in the first state, and allow only self-transitions and transitions to the next state.
        rate_shape: Shape a of the gamma prior of the rates.
        rate_mean: Prior mean m of the rates, in counts: one number, or one for each state.

    Raises:
        ConfigError: A setting is out of its range.

    References:
        Zucchini, MacDonald & Langrock (2016), Hidden Markov Models for Time Series.
    """

    name = "poisson_hmm"

    n_states: Count
    initial_concentration: NonNegative = 1.0
    transition_concentration: Positive = 1.0
    sticky: NonNegative = 0.0
    left_to_right: bool = False
    rate_shape: Positive = 1.0
    rate_mean: PositivePerComponent = 5.0

    def __post_init__(self) -> None:
        self._settings(Poisson(type(self).__name__, self.n_states, shape=self.rate_shape, mean=self.rate_mean))

    def model(self, x: torch.Tensor, mask: torch.Tensor | None = None, sequence: torch.Tensor | None = None) -> None:
        K, D = self.n_states, x.shape[1]
        initial, transition = _markov_prior(self)
        a, m = torch.full((K, D), self.rate_shape, dtype=torch.float64), on_default_device(self.emission.mean)[:, None]
        states = PoissonComponents(pyro.sample("rate", dist.Gamma(a, self.rate_shape / m).to_event(2)))
        chain = log_probability(initial), log_probability(transition)
        with pyro.plate("unit", len(x)):  # z is marginalised
            pyro.sample("x", HiddenMarkovSeries(*chain, states, begins(sequence, len(x)), mask), obs=x)


def _markov_prior(model: CategoricalHMM | PoissonHMM) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample the initial probabilities `(state,)` and the transitions `(state, next_state)` from their priors."""
    K = model.n_states
    if model.left_to_right:  # each sequence starts in the first state
        initial = pyro.deterministic("initial", torch.eye(K, dtype=torch.float64)[0])
    elif model.initial_concentration == 0:
        initial = pyro.deterministic("initial", torch.full((K,), 1 / K, dtype=torch.float64))
    else:
        initial = dirichlet("initial", torch.full((K,), model.initial_concentration, dtype=torch.float64))
    counts = torch.full((K, K), model.transition_concentration, dtype=torch.float64)
    counts = counts + model.sticky * torch.eye(K, dtype=torch.float64)
    if model.left_to_right:  # only self-transitions and transitions to the next state
        stay = pyro.sample("stay", dist.Beta(counts[0, 0].expand(K - 1), counts[0, 1]).to_event(1))
        transition = pyro.deterministic("transition", forward(stay))
    else:
        transition = dirichlet("transition", counts)
    return initial, transition
