"""Checks of a model's torch modules before a fit; each error names the layer, what is expected and what was found."""

from typing import Any

import pyro
import torch
from pyro.nn import PyroModule
from torch.distributions import constraints
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from latentlab.errors import ModelError
from latentlab.models.base import LatentModel
from latentlab.models.fixed import Fixed
from latentlab.models.networks import networks, start_values, weights
from latentlab.seeds import double, forked, reseed

PRECISIONS = (torch.float32, torch.float64)
"""Types of the numbers of a module; a fit converts them to float64, or to the precision of its steps."""


def check_modules(model: LatentModel) -> None:
    """Reject modules that cannot be trained as copies.

    Raises:
        ModelError: A module is scripted or not initialised, a tensor has a wrong type or device or is not finite, two parameters
            share memory, or batch normalisation would use the statistics of a batch.
    """
    memory: dict[int, tuple[int, str]] = {}
    for prefix, module in networks(model).items():
        for path, layer in module.named_modules(prefix=prefix):
            _check_layer(layer, f"layer {path!r} of {model.name!r}")
            for name, tensor in (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)):
                _check_tensor(layer, f"{path}.{name}", tensor)
            for name, tensor in layer.named_parameters(recurse=False):
                _, other = owner = memory.setdefault(tensor.untyped_storage().data_ptr(), (id(tensor), f"{path}.{name}"))
                if tensor.numel() and owner[0] != id(tensor):
                    raise ModelError(
                        f"the parameters {other!r} and {path + '.' + name!r} of {model.name!r} must not share memory; got two "
                        "parameters with the same numbers. Use one `torch.nn.Parameter` in both layers."
                    )


def _check_layer(layer: torch.nn.Module, where: str) -> None:
    kind = type(layer).__name__
    if isinstance(layer, torch.jit.ScriptModule):
        raise ModelError(
            f"{where} must be a torch module in Python; got a scripted one. Use the module before `torch.jit.script`."
        )
    if any(is_lazy(one) for one in (*layer._parameters.values(), *layer._buffers.values()) if one is not None):
        raise ModelError(
            f"{where} must be initialised; got {kind} without a shape. Call the module once on data of the right size."
        )
    if isinstance(layer, _BatchNorm) and (layer.training or layer.running_mean is None):
        remedy = "call `.eval()` on it, which uses its running statistics" if layer.running_mean is not None else "replace it"
        raise ModelError(
            f"{where} must treat units separately; got {kind}, which normalises by the statistics of a batch: {remedy}, or use "
            "LayerNorm or GroupNorm."
        )
    if isinstance(layer, _DropoutNd) and layer.training and layer.p > 0:
        raise _random(where, kind)


def _random(where: str, kind: str) -> ModelError:
    return ModelError(
        f"{where} must be deterministic; got {kind}, which draws random numbers that are no site of the program: call "
        "`.eval()` on it, or remove it."
    )


def _check_tensor(layer: torch.nn.Module, name: str, tensor: torch.Tensor) -> None:
    if tensor.device.type != "cpu":
        raise ModelError(
            f"{name!r} must be on the CPU, from which a fit copies it; got a tensor on {str(tensor.device)!r}. Call `.cpu()`, "
            "and set `device` of SVI."
        )
    number = tensor.is_floating_point() or tensor.is_complex()
    if number and tensor.dtype not in PRECISIONS:
        raise ModelError(
            f"{name!r} must be float32 or float64; got {str(tensor.dtype).removeprefix('torch.')}. Call `.float()`, and set "
            "`precision` of SVI."
        )
    if number and not bool(torch.isfinite(tensor).all()):
        n = int((~torch.isfinite(tensor)).sum())
        raise ModelError(f"{name!r} must be finite at the start; got {n} of {tensor.numel()} entries that are not.")


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
                reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                raise ModelError(
                    f"layer {path!r} of {model.name!r}, {type(layer).__name__}, fails on inputs of shape {inputs}: {reason}"
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
                raise _random(f"layer {path!r} of {self.model!r}", type(layer).__name__)
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
