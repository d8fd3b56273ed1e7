"""A handler that fixes the parameters of a program."""

import contextlib
import warnings
from collections.abc import Mapping
from typing import Any

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
