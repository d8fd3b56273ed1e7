r"""Smooth prior of positions over time: each latent dimension is a Gaussian process of unit variance.

$$ z_{\cdot j} \sim N(0, (1 - \nu) C + \nu I), \quad C_{nm} = \kappa(|t_n - t_m| / \tau) $$
within a sequence, and 0 between sequences, with the timescale $\tau$ and the nugget $\nu$.

References:
    Wang, Fleet & Hertzmann (2005), Gaussian process dynamical models, NeurIPS. Damianou, Titsias & Lawrence (2011), Variational
    Gaussian process dynamical systems, NeurIPS.
"""

from typing import Literal

import torch

from latentlab.distributions.gaussian_process import GaussianProcess
from latentlab.models.base import Arrays
from latentlab.models.covariances import covariance

Dynamics = Literal["rbf", "matern52"]


def smooth_prior(kernel: str, arrays: Arrays, timescale: torch.Tensor, nugget: float, n_latent: int) -> GaussianProcess:
    """Distribution of the positions, batch `(unit,)`, event `(latent,)`.

    Args:
        kernel: Covariance function over time.
        arrays: `time` and `sequence` of the units, or neither; the units are then the steps of one sequence.
        timescale: Lengthscale over time.
        nugget: Share of the variance that is independent between units.
        n_latent: Number of latent dimensions.
    """
    time = arrays.get("time")
    time = torch.arange(len(arrays["x"]), dtype=timescale.dtype) if time is None else time
    C = covariance(kernel, time[:, None], time[:, None], timescale)
    sequence = arrays.get("sequence")
    if sequence is not None:
        C = C * (sequence[:, None] == sequence)
    return GaussianProcess((1 - nugget) * C + nugget * torch.eye(len(C), dtype=C.dtype, device=C.device), n_latent)
