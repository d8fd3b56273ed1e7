r"""Series emitted by a hidden Markov chain, with the states marginalised out."""

from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch.distributions import constraints

from latentlab.distributions import kernels
from latentlab.distributions.components import Components, GaussianComponents, gaussian_log_density
from latentlab.distributions.hidden_markov import HiddenPath, log_likelihood, log_likelihood_by_scan, log_predictive


class HiddenMarkovSeries(TorchDistribution):
    r"""Steps of one or several sequences: $z_1 \sim \pi$, $z_t \mid z_{t-1} \sim A_{z_{t-1}}$, $x_t \mid z_t = k \sim p_k$.

    `log_prob` is the log density of each step given the earlier steps of its sequence, `(unit,)`. Their sum is the log
    density of the series.

    Args:
        log_initial: Log probabilities of the first states `(state,)`.
        log_transition: Log probabilities of the transitions `(state, next_state)`; -inf where forbidden.
        components: Emission distributions of the states.
        starts: True where a sequence begins `(unit,)`.
        observed: True where an entry was observed, `(unit, feature)`; None if all were.
    """

    arg_constraints = {}
    support = constraints.real_vector

    def __init__(
        self,
        log_initial: torch.Tensor,
        log_transition: torch.Tensor,
        components: Components,
        starts: torch.Tensor,
        observed: torch.Tensor | None = None,
    ) -> None:
        self.log_initial, self.log_transition, self.components = log_initial, log_transition, components
        self.starts, self.observed = starts, observed
        super().__init__(starts.shape, torch.Size((components.n_features,)), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "HiddenMarkovSeries":
        return HiddenMarkovSeries(self.log_initial, self.log_transition, self.components, self.starts, self.observed)

    def chain(self, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the arguments of the functions of `hidden_markov`."""
        return self.log_initial, self.log_transition, self.components.log_prob(value, self.observed), self.starts

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        return log_predictive(*self.chain(value))

    def log_prob_sum(self, value: torch.Tensor) -> torch.Tensor:
        """Compute `log_prob(value).sum()` with far fewer operations."""
        components = self.components
        if isinstance(components, GaussianComponents) and self.observed is None and kernels.available_for(components.mu, value):
            emission = (components.mu, components.factor(), value.mT.contiguous())
            return _by_kernel(self.log_initial, self.log_transition, *emission, self.starts)
        return log_likelihood(*self.chain(value))

    def conditional(self, value: torch.Tensor) -> HiddenPath:
        """Return the distribution of the states given the observed entries of `value`."""
        return HiddenPath(*self.chain(value))

    def sample(self, sample_shape: Any = ()) -> torch.Tensor:
        silent = torch.zeros(len(self.starts), len(self.log_initial), dtype=self.log_initial.dtype)
        path = HiddenPath(self.log_initial, self.log_transition, silent, self.starts).sample(sample_shape)
        return self.components.sample(path)


def _in_torch(
    log_initial: torch.Tensor,
    log_transition: torch.Tensor,
    mu: torch.Tensor,
    factor: torch.Tensor,
    columns: torch.Tensor,
    starts: torch.Tensor,
) -> torch.Tensor:
    return log_likelihood_by_scan(log_initial, log_transition, gaussian_log_density(columns.mT, mu, factor), starts)


_by_kernel = kernels.operation(kernels.gaussian_hidden_markov, (1, 2, 2, 3, 2, 1), 4, _in_torch)
