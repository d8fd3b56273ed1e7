r"""Mixtures with the assignments marginalised out: $p(x_n) = \sum_k w_k \, p_k(x_n)$."""

from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch.distributions import constraints

from latentlab.distributions import kernels
from latentlab.distributions.components import Components, GaussianComponents, gaussian_log_density


class Labels(TorchDistribution):
    """Independent labels of units, from log probabilities `(unit, label)` up to a constant.

    Unlike torch's Categorical it samples by inversion, so that draws can be batched over parameters.
    """

    arg_constraints = {}
    support = constraints.nonnegative_integer

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = torch.log_softmax(logits, dim=-1)
        super().__init__(logits.shape[:-1], torch.Size(), validate_args=False)

    @property
    def probs(self) -> torch.Tensor:
        """Probabilities `(unit, label)`."""
        return self.logits.exp()

    def sample(self, sample_shape: Any = ()) -> torch.Tensor:
        steps = torch.cumsum(self.probs, dim=-1)
        u = torch.rand(*sample_shape, *steps.shape[:-1], 1, dtype=steps.dtype)
        return (u > steps[..., :-1]).sum(-1)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        logits = self.logits.expand(*torch.broadcast_shapes(value.shape, self.logits.shape[:-1]), -1)
        return torch.take_along_dim(logits, value.long()[..., None], dim=-1)[..., 0]


class Mixture(TorchDistribution):
    """Mixture distribution of rows, with the component of each row marginalised out.

    Args:
        log_weights: Log mixing weights `(component,)`, normalised.
        components: Distributions of the components.
        observed: True where an entry was observed, `(unit, feature)`; None if all were.
        batch: Batch shape, such as `(unit,)`.
    """

    arg_constraints = {}
    support = constraints.real_vector

    def __init__(
        self,
        log_weights: torch.Tensor,
        components: Components,
        observed: torch.Tensor | None = None,
        *,
        batch: tuple[int, ...] = (),
    ) -> None:
        self.log_weights, self.components, self.observed = log_weights, components, observed
        super().__init__(torch.Size(batch), torch.Size((components.n_features,)), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Mixture":
        return Mixture(self.log_weights, self.components, self.observed, batch=tuple(batch_shape))

    def _joint(self, x: torch.Tensor) -> torch.Tensor:
        """Log joint densities log p(z_n = k, x_n), `(unit, component)`."""
        return self.log_weights + self.components.log_prob(x, self.observed)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        return torch.logsumexp(self._joint(value), dim=-1)

    def log_prob_sum(self, value: torch.Tensor) -> torch.Tensor:
        """Compute `log_prob(value).sum()`, by a compiled kernel with one pass over the data if possible."""
        components = self.components
        complete = self.observed is None and value.dim() == 2
        if isinstance(components, GaussianComponents) and complete and kernels.available_for(components.mu, value):
            return _by_kernel(self.log_weights, components.mu, components.factor(), value.mT.contiguous())
        return self.log_prob(value).sum()

    def conditional(self, value: torch.Tensor) -> Labels:
        """Return the distribution of the labels given the observed entries of `value`; its `probs` are the responsibilities."""
        return Labels(self._joint(value))

    def sample(self, sample_shape: Any = ()) -> torch.Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        return self.components.sample(Labels(self.log_weights.expand(*shape, -1)).sample())


def _in_torch(log_weights: torch.Tensor, mu: torch.Tensor, factor: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    return torch.logsumexp(log_weights + gaussian_log_density(columns.mT, mu, factor), dim=-1).sum()


_by_kernel = kernels.operation(kernels.gaussian_mixture, (1, 2, 3, 2), 3, _in_torch)
