"""Checks of a model's torch modules before a fit; each error names the layer, what is expected and what was found."""

from typing import Any

import pyro
import torch
from pyro.nn import PyroModule
from torch.distributions import constraints
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from latentlab.errors import ModelError
from latentlab.models.base import LatentModel
from latentlab.models.fixed import Fixed
from latentlab.models.module_checks import at_random, check_layers
from latentlab.models.networks import lone_tensors, networks, start_values, weights
from latentlab.registry import reason
from latentlab.seeds import double, forked, reseed


def check_modules(model: LatentModel) -> None:
    """Reject modules that cannot be trained as copies, and parameters that are in no module.

    Raises:
        ModelError: Names the layer or the parameter.
    """
    for name, tensor in lone_tensors(model):
        if tensor.requires_grad:
            raise ModelError(
                f"`{name}` of {model.name!r} must be in a torch module or made by `pyro.param`; got {type(tensor).__name__} "
                f"of shape {tuple(tensor.shape)} as attribute of the model. Use `pyro.param({name!r}, ...)` in the program, or "
                "detach it if it is a constant."
            )
    check_layers(model.name, networks(model))


def check_forward(model: LatentModel, method: str, arrays: Any) -> None:
    """Run `model` or `guide` of a model once with its present parameters, and check the result of each layer.

    An error of the program outside of the layers is left to later checks, which describe it.

    Raises:
        ModelError: A layer fails, draws random numbers, changes its buffers, or returns numbers that are not finite.
    """
    if not networks(model):
        return
    starts = start_values(model)
    copied = model.with_parameters(starts)
    layers = {path: layer for name, module in networks(copied).items() for path, layer in module.named_modules(prefix=name)}
    watch = _Watch(model.name)
    buffers = []
    for path, layer in layers.items():
        layer._buffers = {name: None if value is None else value.clone() for name, value in layer._buffers.items()}
        buffers += [(path, layer, name, None if value is None else value.clone()) for name, value in layer._buffers.items()]
        watch.attach(path, layer)
    with (
        forked(),
        pyro.get_param_store().scope(),
        pyro.validation_enabled(False),
        double(),
        Fixed(starts),
        watch,
        torch.no_grad(),
    ):
        reseed(0)
        try:
            getattr(copied, method)(**arrays)
        except ModelError:
            raise
        except Exception as error:  # a program can raise any exception
            if watch.inside:
                path, layer, inputs = watch.inside[-1]
                kind = type(layer).__name__
                raise ModelError(
                    f"layer {path!r} of {model.name!r}, {kind}, fails on inputs of shape {inputs}: {reason(error)}"
                ) from error
            return
    for path, layer, name, before in buffers:
        after = layer._buffers[name]
        if before is not None and not (after is not None and torch.equal(before, after)):
            raise ModelError(
                f"layer {path!r} of {model.name!r} must not change in a step; got {type(layer).__name__}, which updates its "
                f"buffer {name!r}: call `.eval()` on it, or remove it."
            )


class _Watch(TorchDispatchMode):
    """Mode that knows which layers are running, with the shapes of their inputs, and checks what they return."""

    def __init__(self, model: str) -> None:
        super().__init__()
        self.model = model
        self.inside: list[tuple[str, torch.nn.Module, str]] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False; without this method torch would import its compiler."""
        return False

    def attach(self, path: str, layer: torch.nn.Module) -> None:
        """Observe the calls of a layer of a copy."""

        def enter(layer: torch.nn.Module, inputs: Any) -> None:
            shapes = ", ".join(str(tuple(one.shape)) for one in tree_leaves(inputs) if isinstance(one, torch.Tensor))
            self.inside.append((path, layer, shapes))

        def leave(layer: torch.nn.Module, _: Any, outputs: Any) -> None:
            self.inside.pop()
            for one in tree_leaves(outputs):
                if isinstance(one, torch.Tensor) and one.is_floating_point() and not bool(torch.isfinite(one).all()):
                    n = int((~torch.isfinite(one)).sum())
                    raise ModelError(
                        f"the output of layer {path!r} of {self.model!r}, {type(layer).__name__}, must be finite at the start; "
                        f"got {n} of {one.numel()} entries that are not."
                    )

        layer.register_forward_pre_hook(enter)
        layer.register_forward_hook(leave)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if self.inside and torch.Tag.nondeterministic_seeded in func.tags:
            path, layer, _ = self.inside[-1]
            if not isinstance(layer, PyroModule):  # its draws are sites
                raise at_random(f"layer {path!r} of {self.model!r}", type(layer).__name__)
        return func(*args, **(kwargs or {}))


def check_registered(model: LatentModel, names: Any) -> None:
    """Reject trainable parameters of modules that are not among the registered `names`.

    Raises:
        ModelError: Names the first such parameter.
    """
    plain = [name for name, weight in weights(model).items() if weight.constraint is constraints.real]
    missing = next((name for name in plain if name not in names), None)
    if missing is not None:
        module = missing.partition(".")[0]
        raise ModelError(
            f"the parameter {missing!r} of {model.name!r} must be registered by `pyro.module` in the program or the guide; it is "
            f'in neither. Add `pyro.module("{module}", self.{module})`, or fix it by `self.{module}.requires_grad_(False)`.'
        )
