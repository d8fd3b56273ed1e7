r"""Posteriors of an encoder: distributions of a unit's position given the encoder's outputs.

| name | outputs for q dimensions | distribution |
|---|---|---|
| `diagonal` | q means, q logs of standard deviations | normal, independent dimensions |
| `full` | q means, q logs of the diagonal of L, q (q - 1) / 2 entries below it, by rows | normal, covariance $L L^T$ |
"""

from collections.abc import Mapping, Sequence

import pyro.distributions as dist
import torch


class Diagonal:
    """Normal distribution with independent dimensions."""

    heads: Mapping[str, str] = {"encoder_loc": "latent", "encoder_scale": "axis"}
    """Dim of each output layer of the encoder."""

    @staticmethod
    def n_scale(q: int) -> int:
        """Number of outputs of the encoder in addition to the means."""
        return q

    @staticmethod
    def distribution(outputs: Sequence[torch.Tensor]) -> dist.TorchDistribution:
        """Distribution of the positions, batch shape `(..., unit)`."""
        loc, log_scale = outputs
        return dist.Normal(loc, torch.exp(log_scale)).to_event(1)


class Full:
    """Normal distribution with a covariance matrix for each unit."""

    heads: Mapping[str, str] = {"encoder_loc": "latent", "encoder_cholesky": "lower"}

    @staticmethod
    def n_scale(q: int) -> int:
        """Number of entries of a lower triangular matrix."""
        return q * (q + 1) // 2

    @staticmethod
    def distribution(outputs: Sequence[torch.Tensor]) -> dist.TorchDistribution:
        """Distribution of the positions, batch shape `(..., unit)`."""
        loc, entries = outputs
        q = loc.shape[-1]
        rows, columns = torch.tril_indices(q, q, -1)
        below = torch.zeros(len(rows), q * q, dtype=loc.dtype, device=loc.device)
        below[torch.arange(len(rows)), rows * q + columns] = 1.0
        L = torch.diag_embed(torch.exp(entries[..., :q])) + (entries[..., q:] @ below).unflatten(-1, (q, q))
        return dist.MultivariateNormal(loc, scale_tril=L)


POSTERIORS: Mapping[str, type[Diagonal] | type[Full]] = {"diagonal": Diagonal, "full": Full}
