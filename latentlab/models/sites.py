"""Sites of programs: priors that are fixed if their spread is 0, and tensors on the device of a step."""

import pyro
import pyro.distributions as dist
import torch


def normal(site: str, scale: float, shape: tuple[int, ...]) -> torch.Tensor:
    """Sample a site of independent N(0, scale^2) entries; fixed at 0 if the scale is 0."""
    if scale == 0:
        return pyro.deterministic(site, torch.zeros(shape))
    return pyro.sample(site, dist.Normal(torch.zeros(shape), scale).to_event(len(shape)))


def log_normal(site: str, median: torch.Tensor, spread: float) -> torch.Tensor:
    """Sample a site of independent log-normal entries, logs N(log median, spread^2); fixed at the median if the spread is 0."""
    if spread == 0:
        return pyro.deterministic(site, median.clone())
    return pyro.sample(site, dist.LogNormal(torch.log(median), spread).to_event(median.dim()))


def dirichlet(site: str, concentration: torch.Tensor) -> torch.Tensor:
    """Sample a site of probabilities, one row for each row of concentrations; fixed at 1 if a row has one entry."""
    if concentration.shape[-1] == 1:
        return pyro.deterministic(site, torch.ones_like(concentration))
    return pyro.sample(site, dist.Dirichlet(concentration).to_event(concentration.dim() - 1))


def on_default_device(tensor: torch.Tensor) -> torch.Tensor:
    """Move a tensor stored by a model to the default device, since steps may be computed on another device."""
    return tensor.to(torch.get_default_device())
