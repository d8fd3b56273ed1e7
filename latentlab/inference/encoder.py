r"""Importance weights of units and activity of dimensions under an encoder $q(z_n \mid x_n)$.

A dimension in which the encoder equals the prior has no information about the data (posterior collapse). The activity of a
dimension is the variance over units of the encoder's mean. A dimension with an activity above `ACTIVE` is active.

References:
    Burda, Grosse & Salakhutdinov (2016), Importance Weighted Autoencoders, ICLR.
"""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch

from latentlab.data.memory import MEMORY, Place
from latentlab.errors import ModelError
from latentlab.inference.density import Density
from latentlab.inference.lift import draws_at_once, observed_size, over_draws
from latentlab.models.base import Arrays, LatentModel
from latentlab.seeds import double, forked, reseed

ACTIVE = 0.01
"""Variance of the encoder's mean above which a dimension counts as active (Burda et al.)."""


def is_amortised(density: Density) -> bool:
    """Whether every site belongs to a unit, so that each unit has separate importance weights under the model's guide."""
    return bool(density.sites) and len(density.point_sites) == len(density.sites)


def check_encoder(density: Density) -> None:
    """Reject an encoder, `latents`, that does not give one density for each unit.

    An error of `latents` itself is left to its call.

    Raises:
        ModelError: Names the shapes.
    """
    model, site = density.bound, density.model.position.site
    shape = next((tuple(one.shape) for one in density.sites if one.name == site), None)
    if "latents" not in model.offers or shape is None or site not in density.point_sites:
        return
    try:
        with torch.no_grad(), double(), forked():
            reseed(0)
            others = {name: value for name, value in density.prior().items() if name != site}
            q = model.latents(density.arrays, **{**others, **density.parameters})
    except Exception:  # a program can raise any exception
        return
    found = tuple(q.batch_shape), tuple(q.event_shape)
    if found != (shape[:1], shape[1:]):
        hint = f" Add `.to_event({len(shape) - 1})`." if found[0] + found[1] == shape else ""
        raise ModelError(
            f"`latents` of {model.name!r} must have batch shape {shape[:1]} and event shape {shape[1:]}; got {found[0]} and "
            f"{found[1]}.{hint}"
        )


def log_weights(density: Density, z: np.ndarray, place: Place = MEMORY) -> np.ndarray:
    r"""Compute $\log p(x_n, z_n) - \log q(z_n \mid x_n)$ of each unit, at draws of the positions: `(chain, draw, unit)`.

    Args:
        density: Density of the model with its parameters.
        z: Positions `(chain, draw, unit, latent)`.
        place: Place of the result.
    """
    model = density.bound
    with torch.no_grad(), double():
        q = model.latents(density.arrays, **density.parameters)

        def one(values: Mapping[str, torch.Tensor]) -> torch.Tensor:
            return density.point_log_joint({model.position.site: values["z"]}) - q.log_prob(values["z"])

        block = min(32, draws_at_once(observed_size(density.arrays)))
        found = over_draws(one, {"z": z.reshape(-1, *z.shape[2:])}, block=block, place=place)
    return found.reshape(*z.shape[:2], -1)


def encoder_bound(density: Density, n_samples: int) -> np.ndarray:
    r"""Draw from the encoder, and compute $\log \frac1S \sum_s p(x_n, z_{ns}) / q(z_{ns} \mid x_n)$, `(1, 1, unit)`.

    Its expectation is at most $\log p(x_n)$, and increases with the number of samples S (Burda et al.).
    """
    with torch.no_grad(), double():
        z = density.bound.latents(density.arrays, **density.parameters).sample(torch.Size((1, n_samples))).numpy()
    return np.logaddexp.reduce(log_weights(density, z), axis=1, keepdims=True) - math.log(n_samples)


def activity(model: LatentModel, arrays: Arrays, parameters: Mapping[str, torch.Tensor]) -> pd.DataFrame:
    """Tabulate the dimensions in the encoder's axes, with columns dimension, activity, kl (mean over units, nats), active."""
    with torch.no_grad(), double():
        model = model.with_parameters(parameters)
        kl = model.divergences(arrays, **parameters).numpy().mean(axis=0)
        spread = model.latents(arrays, **parameters).mean.numpy().var(axis=0)
    return pd.DataFrame({"dimension": np.arange(len(kl)), "activity": spread, "kl": kl, "active": spread > ACTIVE})
