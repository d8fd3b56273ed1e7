"""Parameters of a program that are fixed by a handler, and priors of sites that are fixed if their spread is 0."""

import contextlib
import warnings
from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine

from latentlab.models.networks import IN_MODULE, unregistered


class Fixed(poutine.messenger.Messenger):
    """Pyro handler that fixes the parameters of a program at these values, without reading or writing the parameter store.

    A parameter of a torch module is identified by its tensor, and gets its name in the model.

    Raises:
        ModelError: The program registers a module that is no attribute of the model.
    """

    def __init__(self, parameters: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.parameters = parameters
        self.names = {id(value): name for name, value in parameters.items()}
        self.scope = contextlib.ExitStack()

    def __enter__(self) -> Any:
        if any("." in name for name in self.parameters):
            self.scope.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", ".*was not registered in the param store")  # the fit's tensors need no gradient
        return super().__enter__()

    def __exit__(self, *error: Any) -> Any:
        self.scope.close()
        return super().__exit__(*error)

    def _pyro_param(self, msg: Any) -> None:
        name = self.names.get(id(msg["args"][1]), msg["name"]) if len(msg["args"]) > 1 else msg["name"]
        if name in self.parameters:
            msg["name"], msg["value"], msg["done"] = name, self.parameters[name], True
        elif IN_MODULE in name:
            raise unregistered(name)


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
