r"""Hidden Markov models with Gaussian emissions."""

import pyro
import pyro.distributions as dist
import torch

from latentlab.distributions.components import GaussianComponents
from latentlab.distributions.hidden_markov_series import HiddenMarkovSeries
from latentlab.distributions.ordered_normal import OrderedNormal
from latentlab.models.emissions.base import Covariance, PerComponent, PositivePerComponent, SigmaPrior
from latentlab.models.emissions.gaussian import Gaussian
from latentlab.models.fixed import dirichlet, log_normal, on_default_device
from latentlab.models.hidden_markov import HiddenMarkovModel, begins, forward, log_probability
from latentlab.settings import Count, NonNegative, Positive, settings


@settings
class GaussianHMM(HiddenMarkovModel):
    r"""Hidden Markov model with Gaussian emissions.

    $$ \pi \sim \text{Dirichlet}(\text{initial\_concentration}), \quad
       A_k \sim \text{Dirichlet}(\text{transition\_concentration} + \text{sticky} \, e_k) $$
    $$ \mu_{kd} \sim N(\text{mu\_loc}, \text{mu\_scale}^2), \quad
       \sigma_{kd} \sim \text{LogNormal}(\log \text{sigma\_scale}, \text{sigma\_spread}), \quad
       R_k \sim \text{LKJCholesky}(\text{corr\_concentration}) $$
    $$ z_1 \sim \pi, \quad z_t \mid z_{t-1} \sim A_{z_{t-1}}, \quad x_t \mid z_t = k \sim N(\mu_k, \Sigma_k), \quad
       \Sigma_k = \text{diag}(\sigma_k) \, R_k R_k^T \, \text{diag}(\sigma_k) $$

    initial (state,), transition (state, next_state), mu (state, feature), sigma and corr by `covariance` as in
    `GaussianMixture`, z (unit,); the units are time steps. The first state of each sequence emits its first observation. The
    paths z are marginalised. The other sites are identified up to the order of the states, unless their priors differ, or
    `ordered` or `left_to_right` fixes it.

    Args:
        n_states: States K.
        covariance: `diagonal`, `full`, `spherical` or `tied`.
        initial_concentration: Concentration of the Dirichlet prior of the first state; 0 fixes it at 1 / K for each.
        transition_concentration: Concentration of the Dirichlet prior of each row of the transitions.
        sticky: Addition to the concentration of self-transitions.
        left_to_right: Start each sequence in the first state, and allow only self-transitions and transitions to the next state.
        mu_loc: Prior mean of the means: one number, or one for each state.
        mu_scale: Prior standard deviation of the means: one number, or one for each state.
        sigma_prior: `log_normal`, or `half_normal` of scale `sigma_scale`, under which the posterior density can be unbounded.
        sigma_scale: Prior median of the standard deviations: one number, or one for each state.
        sigma_spread: Standard deviation of their logs; 0 fixes them at `sigma_scale`.
        corr_concentration: Concentration of the LKJ prior of the correlations.
        ordered: Constrain the means of a single feature to increasing order; the prior is not renormalised.

    Raises:
        ConfigError: A setting is out of its range.

    References:
        Rabiner (1989), A tutorial on hidden Markov models and selected applications in speech recognition, Proc. IEEE 77:257.
        Fox, Sudderth, Jordan & Willsky (2011), A sticky HDP-HMM, Annals of Applied Statistics 5:1020.
    """

    name = "gaussian_hmm"

    n_states: Count
    covariance: Covariance = "diagonal"
    initial_concentration: NonNegative = 1.0
    transition_concentration: Positive = 1.0
    sticky: NonNegative = 0.0
    left_to_right: bool = False
    mu_loc: PerComponent = 0.0
    mu_scale: PositivePerComponent = 2.0
    sigma_prior: SigmaPrior = "log_normal"
    sigma_scale: PositivePerComponent = 0.5
    sigma_spread: NonNegative = 0.7
    corr_concentration: Positive = 2.0
    ordered: bool = False

    def __post_init__(self) -> None:
        emission = Gaussian(
            type(self).__name__,
            self.n_states,
            covariance=self.covariance,
            mu_loc=self.mu_loc,
            mu_scale=self.mu_scale,
            sigma_prior=self.sigma_prior,
            sigma_scale=self.sigma_scale,
            sigma_spread=self.sigma_spread,
            corr_concentration=self.corr_concentration,
            ordered=self.ordered,
        )
        self._settings(emission)

    def model(self, x: torch.Tensor, mask: torch.Tensor | None = None, sequence: torch.Tensor | None = None) -> None:
        K, D = self.n_states, x.shape[1]
        if self.left_to_right:  # each sequence starts in the first state
            initial = pyro.deterministic("initial", torch.eye(K, dtype=torch.float64)[0])
        elif self.initial_concentration == 0:
            initial = pyro.deterministic("initial", torch.full((K,), 1 / K, dtype=torch.float64))
        else:
            initial = dirichlet("initial", torch.full((K,), self.initial_concentration, dtype=torch.float64))
        counts = torch.full((K, K), self.transition_concentration, dtype=torch.float64)
        counts = counts + self.sticky * torch.eye(K, dtype=torch.float64)
        if self.left_to_right:  # only self-transitions and transitions to the next state
            stay = pyro.sample("stay", dist.Beta(counts[0, 0].expand(K - 1), counts[0, 1]).to_event(1))
            transition = pyro.deterministic("transition", forward(stay))
        else:
            transition = dirichlet("transition", counts)
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
        states = GaussianComponents(mu, sigma[:, None] if self.covariance == "spherical" else sigma, corr)
        chain = log_probability(initial), log_probability(transition)
        with pyro.plate("unit", len(x)):  # z is marginalised
            pyro.sample("x", HiddenMarkovSeries(*chain, states, begins(sequence, len(x)), mask), obs=x)
