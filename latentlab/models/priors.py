r"""Priors of the positions of an autoencoder.

| name | distribution of z | parameters |
|---|---|---|
| `normal` | $N(0, I)$ | |
| `mixture` | $\sum_k w_k N(m_k, A_k A_k^T + \epsilon I)$ | `prior_logits`, `prior_loc`, `prior_root` |
| `vamp` | $\frac1K \sum_k q(z \mid u_k)$, q the encoder and $u_k$ its inputs | `prior_inputs`, and the encoder's |
| `flow` | $z = f^{-1}(u)$, $u \sim N(0, I)$, f a normalising flow (`latentlab/models/flows.py`) | `prior_flow...` |

References:
    Tomczak & Welling (2018), VAE with a VampPrior, AISTATS.
    Dilokthanakul et al. (2016), Deep Unsupervised Clustering with Gaussian Mixture Variational Autoencoders, arXiv:1611.02648.
"""

from collections.abc import Callable, Mapping

import pyro.distributions as dist
import torch
from torch.distributions import constraints

from latentlab.models.architectures.module import ModuleNetwork
from latentlab.models.flows import FlowDistribution, FlowSettings, Tensors, flow_network

Dims = Mapping[str, tuple[str, ...]]
LEAST_VARIANCE = 1e-6
"""Variance that is added to each covariance of a mixture, so that its density is finite."""
N_NODES, WIDTH = 401, 8.0
"""Nodes of the quadrature for divergences from a mixture, and their range in standard deviations on either side."""


class PositionMixture(dist.MixtureSameFamily):
    """Mixture of distributions on real vectors."""

    support = constraints.real_vector


class StandardNormal:
    """N(0, I); the joint density is invariant under rotations of z if the decoder's first layer absorbs them."""

    dims: Dims = {}
    networks: Mapping[str, ModuleNetwork] = {}
    """Networks of the prior, by the prefix of their parameters, which are also in `dims`."""
    uses_encoder = False
    is_rotatable = True
    """Whether the family of distributions is closed under rotations that act on `dims`."""

    def __init__(self, settings: FlowSettings) -> None:
        """Build the networks; without any, the settings are not used."""
        self.settings = settings

    @staticmethod
    def start(name: str, shape: tuple[int, ...], inputs: torch.Tensor) -> torch.Tensor:
        """Starting value of a parameter, given the encoder's inputs `(unit, input)`."""
        raise KeyError(name)

    def distribution(self, values: Tensors, encode: Callable[[torch.Tensor], dist.TorchDistribution]) -> dist.TorchDistribution:
        """Distribution of a unit's position.

        Args:
            values: Parameters of the prior.
            encode: Distribution of the encoder given inputs `(component, input)`.
        """
        return dist.Normal(torch.zeros(self.settings.n_latent), 1.0).to_event(1)


class GaussianMixture(StandardNormal):
    """Mixture of Gaussians with full covariances, a family that is closed under rotations.

    Components can also be exchanged, and each root multiplied by a rotation from the right. Neither changes the positions.
    """

    dims = {"prior_logits": ("component",), "prior_loc": ("component", "latent"), "prior_root": ("component", "latent", "axis")}

    @staticmethod
    def start(name: str, shape: tuple[int, ...], inputs: torch.Tensor) -> torch.Tensor:
        if name == "prior_loc":
            return torch.randn(shape)
        return torch.zeros(shape) if name == "prior_logits" else torch.eye(shape[-1]).expand(shape).clone()

    def distribution(self, values: Tensors, encode: Callable[[torch.Tensor], dist.TorchDistribution]) -> dist.TorchDistribution:
        root = values["prior_root"]
        covariance = root @ root.mT + LEAST_VARIANCE * torch.eye(self.settings.n_latent, dtype=root.dtype, device=root.device)
        components = dist.MultivariateNormal(values["prior_loc"], scale_tril=torch.linalg.cholesky(covariance))
        return PositionMixture(dist.Categorical(logits=values["prior_logits"]), components)


class Vamp(StandardNormal):
    """Mixture of the encoder's distributions of learnt inputs, with equal weights.

    The encoder is then part of the joint density. Its scales have axes, so that rotations are not a symmetry.
    """

    dims = {"prior_inputs": ("component", "code")}
    uses_encoder = True
    is_rotatable = False

    @staticmethod
    def start(name: str, shape: tuple[int, ...], inputs: torch.Tensor) -> torch.Tensor:
        """Inputs of random units, with noise of a tenth of their spread."""
        chosen = inputs[torch.randint(len(inputs), (shape[0],))]
        return chosen + 0.1 * inputs.std(correction=0) * torch.randn(shape)

    def distribution(self, values: Tensors, encode: Callable[[torch.Tensor], dist.TorchDistribution]) -> dist.TorchDistribution:
        inputs = values["prior_inputs"]
        components = encode(inputs)
        logits = torch.zeros(components.batch_shape, dtype=inputs.dtype, device=inputs.device)
        return PositionMixture(dist.Categorical(logits=logits), components)


class Flow(StandardNormal):
    """Normalising flow whose transforms are autoregressive: a density costs one pass, and a draw q passes.

    The transforms act on single dimensions in a fixed order, so that the family is not closed under rotations. A flow of a
    rotated position is another flow at most approximately, and its parameters are not known by name. With one dimension, the
    sign of the position is not a symmetry either, since its reversal is no operation on the dim `latent` of the parameters.
    """

    is_rotatable = False

    def __init__(self, settings: FlowSettings) -> None:
        super().__init__(settings)
        self.flow = flow_network("prior_flow", settings, 0, is_coupling=False)
        self.networks, self.dims = {"prior_flow": self.flow}, self.flow.dims

    def distribution(self, values: Tensors, encode: Callable[[torch.Tensor], dist.TorchDistribution]) -> dist.TorchDistribution:
        like = values[next(iter(self.dims))]
        zeros = torch.zeros(self.settings.n_latent, dtype=like.dtype, device=like.device)
        return FlowDistribution(self.flow, values, zeros, zeros)


PRIORS: Mapping[str, type[StandardNormal]] = {
    "normal": StandardNormal,
    "mixture": GaussianMixture,
    "vamp": Vamp,
    "flow": Flow,
}


def divergences(q: dist.TorchDistribution, prior: dist.TorchDistribution) -> torch.Tensor:
    """Divergence KL of each dimension of the encoder's distribution from that of the prior, `(unit, latent)`, in nats.

    Both are replaced by normal distributions if they are flows or marginals of flows, with the same mean and variance
    (`FlowDistribution`): their marginal densities have no closed form. For a standard normal prior this is a lower bound. The
    divergence of normal distributions is exact for a normal prior, and by the trapezoidal rule for a mixture.
    """
    mean, variance = q.mean, q.variance
    if isinstance(prior, FlowDistribution):
        mean, variance = (mean - prior.mean) / torch.sqrt(prior.variance), variance / prior.variance
    if not isinstance(prior, PositionMixture):
        return (mean**2 + variance - 1.0 - torch.log(variance)) / 2
    each, sd = prior.component_distribution, torch.sqrt(variance)
    components, log_weights = dist.Normal(each.mean, torch.sqrt(each.variance)), prior.mixture_distribution.logits[:, None]
    nodes = torch.linspace(-WIDTH, WIDTH, N_NODES, dtype=mean.dtype)
    found = torch.zeros_like(mean)
    for node, weight in zip(nodes, torch.softmax(-0.5 * nodes**2, 0), strict=True):  # one at a time, for the memory
        z = mean + node * sd
        log_prior = torch.logsumexp(log_weights + components.log_prob(z[..., None, :]), -2)
        found += weight * (dist.Normal(mean, sd).log_prob(z) - log_prior)
    return found
