"""Torch modules among the attributes of a model: names of their parameters, and the model with other values of them.

The parameter `0.weight` of the attribute `encoder` is called `encoder.0.weight`. A fit never changes the modules of the model. It
runs the programs of copies (`with_parameters`), whose modules contain the fit's tensors, in its precision and on its device.
"""

import copy
import hashlib
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from pyro.nn import PyroModule
from torch.distributions import constraints, transform_to

from latentlab.errors import ModelError

if TYPE_CHECKING:
    from latentlab.models.base import LatentModel

IN_MODULE = "$$$"
"""Part of the names that `pyro.module` gives to parameters."""
UNCONSTRAINED = "_unconstrained"
"""End of the name under which a `PyroModule` stores a parameter with a constraint."""


class Weight(NamedTuple):
    """A parameter of a module: its unconstrained tensor and its constraint."""

    tensor: torch.Tensor
    constraint: Any

    def value(self, unconstrained: torch.Tensor) -> torch.Tensor:
        """Return the constrained value."""
        return unconstrained if self.constraint is constraints.real else transform_to(self.constraint)(unconstrained)

    @property
    def shape(self) -> torch.Size:
        """The shape of its values."""
        shape = self.tensor.shape
        return shape if self.constraint is constraints.real else torch.Size(transform_to(self.constraint).forward_shape(shape))


def networks(model: "LatentModel") -> dict[str, torch.nn.Module]:
    """Return the modules among the attributes of a model, also in lists, tuples and dicts, by name."""
    return {name: module for value in vars(model).items() for name, module in _modules(*value)}


def _modules(name: str, value: Any) -> Iterator[tuple[str, torch.nn.Module]]:
    if isinstance(value, torch.nn.Module):
        yield name, value
    elif isinstance(value, list | tuple | dict):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _modules(f"{name}.{key}", item)


def lone_tensors(model: "LatentModel") -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the tensors among the attributes of a model that are in no module, also in lists, tuples and dicts, by name."""
    for name, value in vars(model).items():
        yield from _lone(name, value)


def _lone(name: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, list | tuple | dict):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _lone(f"{name}.{key}", item)


def weights(model: "LatentModel") -> dict[str, Weight]:
    """Return the parameters of a model's modules by name; one that several layers share has its first name.

    Parameters with `requires_grad=False` are left out, since they are constants.
    """
    found: dict[str, Weight] = {}
    known: set[int] = set()
    for prefix, module in networks(model).items():
        for path, layer in module.named_modules(prefix=prefix):
            declared = layer._pyro_params if isinstance(layer, PyroModule) else {}
            for name, tensor in layer.named_parameters(recurse=False):
                if tensor.requires_grad and id(tensor) not in known:
                    known.add(id(tensor))
                    constraint = declared.get(name.removesuffix(UNCONSTRAINED), (None,))[0]
                    is_plain = constraint is None
                    plain = name if is_plain else name.removesuffix(UNCONSTRAINED)
                    found[f"{path}.{plain}"] = Weight(tensor, constraints.real if is_plain else constraint)
    return found


def description(model: "LatentModel") -> str:
    """Return a hash of the layers and constants of a model's modules, but not of trained parameters; empty without modules."""
    found, trained, digest = networks(model), {id(weight.tensor) for weight in weights(model).values()}, hashlib.sha256()
    for prefix, module in found.items():
        for path, layer in module.named_modules(prefix=prefix):
            digest.update(f"{path} {type(layer).__name__} {layer.extra_repr()} {layer.training}".encode())
            for name, tensor in (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)):
                digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
                digest.update(b"" if id(tensor) in trained else tensor.detach().numpy().tobytes())
    return f" {digest.hexdigest()}" if found else ""


def check_complete(model: "LatentModel", names: Collection[str]) -> None:
    """Reject values of parameters that lack one of a module.

    Raises:
        ModelError: Names the first such parameter.
    """
    missing = next(((name, weight) for name, weight in weights(model).items() if name not in names), None)
    if missing is not None:
        raise ModelError(
            f"the parameter {missing[0]!r} of {model.name!r} must have a value of shape {tuple(missing[1].shape)}; got none."
        )


def check_declared(model: "LatentModel", values: Mapping[str, torch.Tensor]) -> None:
    """Reject values of a model's parameters, declared or in modules, that are incomplete, or whose shapes do not agree.

    Raises:
        ModelError: Names the parameter, what its shape must be, and what it is.
    """
    check_complete(model, values)
    sizes: dict[str, tuple[int, str]] = {}
    for name, dims in model.parameters.items():
        what = f"the parameter {name!r} of {model.name!r}"
        if name not in values:
            raise ModelError(f"{what} must have a value with dims {dims}; got none.")
        shape = tuple(values[name].shape)
        if len(shape) != len(dims):
            raise ModelError(f"{what} must have an axis for each of {dims}; got shape {shape}.")
        for dim, size in zip(dims, shape, strict=True):
            expected, other = sizes.setdefault(dim, (size, name))
            if size != expected:
                raise ModelError(f"{what} must have size {expected} along {dim!r}, as {other!r}; got {size}.")


def start_values(model: "LatentModel") -> dict[str, torch.Tensor]:
    """Return the present values of the parameters of a model's modules in float64, which `pyro.module` registers."""
    return {name: _leaf(weight) for name, weight in weights(model).items()}


def start_hashes(model: "LatentModel") -> dict[str, str]:
    """Return a hash of the present value of each parameter of a model's modules, by name."""
    return {name: hashlib.sha256(one.detach().numpy().tobytes()).hexdigest()[:16] for name, one in start_values(model).items()}


def _leaf(weight: Weight) -> torch.Tensor:
    return weight.value(torch.nn.Parameter(weight.tensor.detach().to("cpu", torch.float64, copy=True)))


def redrawn_weights(model: "LatentModel") -> dict[str, Weight]:
    """Return the parameters of a copy of the modules, whose layers have drawn new ones by `reset_parameters`, if they have it."""
    copied = copy.copy(model)
    for attribute in _attributes(model):
        copied.__dict__[attribute] = copy.deepcopy(model.__dict__[attribute])
    for layer in [layer for module in networks(copied).values() for layer in module.modules()]:
        if callable(reset := getattr(layer, "reset_parameters", None)):
            reset()
    return weights(copied)


def _attributes(model: "LatentModel") -> list[str]:
    """Return the attributes that are modules or contain some."""
    return list(dict.fromkeys(name.partition(".")[0] for name in networks(model)))


def with_parameters(model: "LatentModel", values: Mapping[str, torch.Tensor]) -> "LatentModel":
    """Return a copy of the model whose modules have these values of their parameters; the model itself if it has no module.

    Parameters without a value, and buffers, are constants of the dtype and device of the values.

    Raises:
        ModelError: A value has another shape than the parameter.
    """
    found = networks(model)
    if not found:
        return model
    like = next((value for value in values.values() if value.is_floating_point()), torch.zeros(()))
    named: dict[int, str] = {}
    for name, weight in weights(model).items():
        if name in values and values[name].shape != weight.shape:
            raise ModelError(
                f"the parameter {name!r} of {model.name!r} must have shape {tuple(weight.shape)}; got "
                f"{tuple(values[name].shape)}."
            )
        named[id(weight.tensor)] = name
    memo: dict[int, Any] = {}
    for module in found.values():
        for layer in module.modules():
            for tensor in _tensors(layer):
                name = named.get(id(tensor), "")
                memo[id(tensor)] = values[name] if name in values else _constant(tensor, like)
    copied = copy.copy(model)
    for attribute in _attributes(model):
        copied.__dict__[attribute] = copy.deepcopy(model.__dict__[attribute], memo)
    for prefix, module in networks(copied).items():
        for path, layer in module.named_modules(prefix=prefix):
            if isinstance(layer, PyroModule):
                _set_plain(layer, path, values)
    return copied


def _tensors(layer: torch.nn.Module) -> Iterator[torch.Tensor]:
    """Yields the parameters, buffers and other tensors that are attributes of a layer."""
    for held in (layer._parameters, layer._buffers, vars(layer)):
        yield from (value for value in held.values() if isinstance(value, torch.Tensor))


def _constant(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to(like.device, like.dtype if tensor.is_floating_point() else tensor.dtype)


def _set_plain(layer: Any, path: str, values: Mapping[str, torch.Tensor]) -> None:
    """Turn the constrained parameters of a `PyroModule` into attributes, since it would read them from Pyro's store."""
    for name, (constraint, _) in layer._pyro_params.items():
        stored = layer._parameters.pop(name + UNCONSTRAINED)
        layer.__dict__[name] = values[f"{path}.{name}"] if f"{path}.{name}" in values else transform_to(constraint)(stored)
    layer._pyro_params = type(layer._pyro_params)()


def unregistered(name: str) -> ModelError:
    """Return the error for a registered module that is no attribute of the model, given Pyro's name of a parameter."""
    module, _, parameter = name.partition(IN_MODULE)
    return ModelError(
        f"the module {module!r} must be an attribute of the model; its parameter {parameter!r} is in none of them. Set it in "
        f"`__init__`, such as `self.{module} = torch.nn.Linear(4, 2)`."
    )
