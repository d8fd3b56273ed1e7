"""Checks of the layers of torch modules before they are copied; each error names the layer, what must be and what was found."""

from collections.abc import Mapping

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy

from latentlab.errors import ModelError

PRECISIONS = (torch.float32, torch.float64)
"""Types of the numbers of a module; a fit converts them to float64, or to the precision of its steps."""


def check_layers(model: str, modules: Mapping[str, torch.nn.Module]) -> None:
    """Reject modules of a model that cannot be trained as copies.

    Args:
        model: Name of the model.
        modules: Modules by name.

    Raises:
        ModelError: A module is scripted or not initialised, a tensor has a wrong type or device or is not finite, two parameters
            share memory, or batch normalisation would use the statistics of a batch.
    """
    memory: dict[int, tuple[int, str]] = {}
    for prefix, module in modules.items():
        for path, layer in module.named_modules(prefix=prefix):
            _check_layer(layer, f"layer {path!r} of {model!r}")
            for name, tensor in (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)):
                _check_tensor(f"{path}.{name}", tensor)
            for name, tensor in layer.named_parameters(recurse=False):
                _, other = owner = memory.setdefault(tensor.untyped_storage().data_ptr(), (id(tensor), f"{path}.{name}"))
                if tensor.numel() and owner[0] != id(tensor):
                    raise ModelError(
                        f"the parameters {other!r} and {path + '.' + name!r} of {model!r} must not share memory; got two "
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
    computed = next((name for name, one in vars(layer).items() if isinstance(one, torch.Tensor) and not one.is_leaf), None)
    if computed is not None:
        raise ModelError(
            f"{where} must compute its tensors when it is called; got {kind} with {computed!r} computed before, which cannot be "
            "copied: use `torch.nn.utils.parametrizations`, such as its `weight_norm`."
        )
    if isinstance(layer, _BatchNorm) and (layer.training or layer.running_mean is None):
        remedy = "call `.eval()` on it, which uses its running statistics" if layer.running_mean is not None else "replace it"
        raise ModelError(
            f"{where} must treat units separately; got {kind}, which normalises by the statistics of a batch: {remedy}, or use "
            "LayerNorm or GroupNorm."
        )
    if isinstance(layer, _DropoutNd) and layer.training and layer.p > 0:
        raise at_random(where, kind)


def at_random(where: str, kind: str) -> ModelError:
    """Return the error for a layer that draws random numbers."""
    return ModelError(
        f"{where} must be deterministic; got {kind}, which draws random numbers that are no site of the program: call "
        "`.eval()` on it, or remove it."
    )


def _check_tensor(name: str, tensor: torch.Tensor) -> None:
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
