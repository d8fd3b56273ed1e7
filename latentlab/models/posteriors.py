r"""Posteriors of an encoder: distributions of a unit's position given the encoder's outputs.

| name | outputs for q dimensions | distribution |
|---|---|---|
| `diagonal` | q means, q logs of standard deviations | normal, independent dimensions |
| `full` | q means, q logs of the diagonal of L, q (q - 1) / 2 entries below it, by rows | normal, covariance $L L^T$ |
| `flow` | q locations m, q logs of scales s, `n_context` inputs c of the flow | $z = m + s g(u; c)$, $u \sim N(0, I)$ |

g is the inverse of a conditional normalising flow (`latentlab/models/flows.py`) and the identity at the start of a fit, where the
distribution is that of `diagonal`. Its parameters `posterior_flow...` belong to the guide. A posterior is no part of the joint
density, so that it does not change the symmetry, except with a `vamp` prior. The axes of `diagonal` and `flow` are favoured only
through the bound.
"""

from collections.abc import Mapping, Sequence

import pyro.distributions as dist
import torch

from latentlab.models.architectures.module import ModuleNetwork
from latentlab.models.flows import FlowDistribution, FlowSettings, Tensors, flow_network


class Diagonal:
    """Normal distribution with independent dimensions."""

    heads: Mapping[str, str] = {"encoder_loc": "latent", "encoder_scale": "axis"}
    """Dim of each output layer of the encoder."""
    networks: Mapping[str, ModuleNetwork] = {}
    """Networks besides the encoder, by the prefix of their parameters."""

    def __init__(self, settings: FlowSettings) -> None:
        """Build the networks; without any, the settings are not used."""
        self.settings = settings

    def sizes(self) -> dict[str, int]:
        """Sizes of the dims of `heads`."""
        q = self.settings.n_latent
        return {"latent": q, "axis": q}

    def distribution(self, outputs: Sequence[torch.Tensor], values: Tensors) -> dist.TorchDistribution:
        """Distribution of the positions, batch shape `(..., unit)`, given the encoder's outputs and the parameters."""
        loc, log_scale = outputs
        return dist.Normal(loc, torch.exp(log_scale)).to_event(1)


class Full(Diagonal):
    """Normal distribution with a covariance matrix for each unit."""

    heads = {"encoder_loc": "latent", "encoder_cholesky": "lower"}

    def sizes(self) -> dict[str, int]:
        """Sizes of the dims of `heads`; `lower` is the number of entries of a lower triangular matrix."""
        q = self.settings.n_latent
        return {**super().sizes(), "lower": q * (q + 1) // 2}

    def distribution(self, outputs: Sequence[torch.Tensor], values: Tensors) -> dist.TorchDistribution:
        """Distribution of the positions, batch shape `(..., unit)`, given the encoder's outputs."""
        loc, entries = outputs
        q = loc.shape[-1]
        rows, columns = torch.tril_indices(q, q, -1)
        below = torch.zeros(len(rows), q * q, dtype=loc.dtype, device=loc.device)
        below[torch.arange(len(rows)), rows * q + columns] = 1.0
        L = torch.diag_embed(torch.exp(entries[..., :q])) + (entries[..., q:] @ below).unflatten(-1, (q, q))
        return dist.MultivariateNormal(loc, scale_tril=L)


class Flow(Diagonal):
    """Normalising flow of coupling transforms given the encoder's outputs: draws and densities cost two passes each."""

    heads = {"encoder_loc": "latent", "encoder_scale": "axis", "encoder_context": "context"}

    def __init__(self, settings: FlowSettings) -> None:
        super().__init__(settings)
        self.flow = flow_network("posterior_flow", settings, settings.n_context, is_coupling=True)
        self.networks = {"posterior_flow": self.flow}

    def sizes(self) -> dict[str, int]:
        """Sizes of the dims of `heads`."""
        return {**super().sizes(), "context": self.settings.n_context}

    def distribution(self, outputs: Sequence[torch.Tensor], values: Tensors) -> dist.TorchDistribution:
        """Distribution of the positions, batch shape `(..., unit)`, given the encoder's outputs and the flow's parameters."""
        return FlowDistribution(self.flow, values, *outputs)


POSTERIORS: Mapping[str, type[Diagonal]] = {"diagonal": Diagonal, "full": Full, "flow": Flow}
