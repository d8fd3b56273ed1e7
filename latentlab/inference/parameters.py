"""Parameters of guide and program: their names, constraints and starting values."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from torch.distributions import constraints, transform_to

from latentlab.inference.svi_loss import is_reparameterised
from latentlab.models.base import LatentModel
from latentlab.models.fixed import Fixed
from latentlab.models.networks import redrawn_weights, start_values, weights
from latentlab.seeds import forked

PARAMETER = "parameter "
"""Prefix of the parameters' names among the arrays of a restart."""


@dataclass(frozen=True)
class GuideParameters:
    """Parameters of guide and program, made by `pyro.param` or registered by `pyro.module`.

    Args:
        model: The model.
        names: Names of the parameters.
        leaves: Unconstrained tensors at their starting values.
        constraints: Constraints on their values.
        reparameterised: Whether all draws of the guide are differentiable in its parameters.
    """

    model: LatentModel
    names: tuple[str, ...]
    leaves: tuple[torch.Tensor, ...]
    constraints: tuple[Any, ...]
    reparameterised: bool

    def constrained(self, unconstrained: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the constrained values of the parameters by name."""
        items = zip(self.names, self.constraints, unconstrained, strict=True)
        return {name: transform_to(constraint)(value) for name, constraint, value in items}

    @contextlib.contextmanager
    def at(self, unconstrained: Sequence[torch.Tensor]) -> Iterator[LatentModel]:
        """Set the parameters of guide and program to these values within a `with` block; give the model to run there."""
        with at_values(self.model, self.constrained(unconstrained)) as model:
            yield model


@contextlib.contextmanager
def at_values(model: LatentModel, values: Mapping[str, torch.Tensor]) -> Iterator[LatentModel]:
    """Set the parameters of guide and program to these values within a `with` block; give the model to run there."""
    with Fixed(values):
        yield model.with_parameters(values)


def at_start(model: LatentModel) -> contextlib.AbstractContextManager[LatentModel]:
    """Set the parameters of modules to their present values within a `with` block; give the model to run there."""
    return at_values(model, start_values(model))


def register_parameters(
    model: LatentModel, arrays: Mapping[str, Any], *, fresh: bool = False, of_guide: bool = True
) -> GuideParameters:
    """Run guide and program, which registers their parameters, and return them.

    Args:
        model: The model.
        arrays: Its data.
        fresh: Whether the layers of modules start at new values, drawn by their `reset_parameters`, instead of the present ones.
        of_guide: Whether to run the guide; if not, the parameters are those of the program.
    """
    of_modules = redrawn_weights(model) if fresh else weights(model)
    with at_start(model) as started:
        with poutine.trace() as guide_trace:
            if of_guide:
                started.guide(**arrays)  # type: ignore[attr-defined]
        with poutine.trace(param_only=True) as program_trace:
            if model.parameters or of_modules:
                with contextlib.nullcontext() if model.parameters else forked():
                    started.model(**arrays)
    traces = guide_trace.trace, program_trace.trace
    names = dict.fromkeys(n for trace in traces for n, site in trace.nodes.items() if site["type"] == "param")
    names |= dict.fromkeys(name for name, weight in of_modules.items() if weight.constraint is not constraints.real)
    store = pyro.get_param_store().get_state()  # in the trace, a repeated `pyro.param(name)` has the default constraint

    def described(name: str) -> tuple[torch.Tensor, Any]:
        if name in of_modules:
            return of_modules[name].tensor.detach().to("cpu", torch.float64, copy=True), of_modules[name].constraint
        return store["params"][name], store["constraints"][name]

    leaves, kinds = zip(*map(described, names), strict=True) if names else ((), ())
    return GuideParameters(model, tuple(names), leaves, kinds, is_reparameterised(guide_trace.trace))
