"""Torch modules as encoders and decoders: built from a setting, checked, and called with given parameters."""

import copy
import hashlib
import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from latentlab.errors import ConfigError, LatentLabError, ModelError
from latentlab.models.module_checks import check_layers
from latentlab.registry import NETWORKS, reason, resolve
from latentlab.seeds import Seeds, isolated
from latentlab.settings import checked, keyword_types

Tensors = Mapping[str, torch.Tensor]
Dims = dict[str, tuple[str, ...]]
MULTILAYER = "multilayer"
"""Setting of fully connected layers whose weights have named dims."""
GIVEN = ("n_inputs", "n_outputs", "side", "n_features")
"""Arguments of a factory that the model sets; the last two only if the factory has them."""


class Given:
    """A torch module that was passed as a setting; its text has a digest of its values: tensors, numbers and texts."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __repr__(self) -> str:
        digest = hashlib.sha256()
        for name, value in _tensors(self.module).items():
            digest.update(f"{name} {value.requires_grad}".encode() + value.detach().cpu().double().numpy().tobytes())
        for path, layer in self.module.named_modules():
            own = {name: value for name, value in vars(layer).items() if isinstance(value, bool | int | float | str)}
            digest.update(f"{path} {sorted(own.items())}".encode())
        return f"{' '.join(repr(self.module).split())} with values {digest.hexdigest()[:12]}"


class Factory:
    """Function that builds a network, with its arguments from a setting.

    Args:
        side: `encoder` or `decoder`.
        setting: Name of an architecture, `{"name": ..., ...}`, or `{"factory": "package.module:function", ...}`.

    Raises:
        ConfigError: The function does not exist or does not accept the arguments.
    """

    def __init__(self, side: str, setting: str | Mapping[str, Any]) -> None:
        options = {"name": setting} if isinstance(setting, str) else dict(setting)
        what = [key for key in ("name", "factory") if key in options]
        if len(what) != 1 or not isinstance(options[what[0]], str):
            raise ConfigError(
                f"VAE: `{side}` must have one of the keys `name` and `factory`, with text as value; got {dict(options)!r}."
            )
        self.side, self.label = side, options.pop(what[0])
        self.is_built_in = what[0] == "name" and self.label in NETWORKS.built_in
        self.function = NETWORKS.load(self.label) if what[0] == "name" else _imported(side, self.label)
        own = next((name for name in GIVEN if name in options), None)
        if own is not None:
            raise ConfigError(f"VAE: `{side}`: the argument `{own}` is set by the model; remove it.")
        types = keyword_types(self.function) if self.is_built_in else {}
        known = {name: value for name, value in options.items() if name in types}
        self.options = {**options, **checked(f"VAE: `{side}`: {self.label}", types, known)}
        self._bound(1, 1, 1)

    def _bound(self, n_inputs: int, n_outputs: int, n_features: int) -> dict[str, Any]:
        """Arguments of the function, which are checked against its signature."""
        extra = {"side": self.side, "n_features": n_features}
        try:
            signature = inspect.signature(self.function)
            accepted = {key: value for key, value in extra.items() if key in signature.parameters}
            arguments = {"n_inputs": n_inputs, "n_outputs": n_outputs, **accepted, **self.options}
            signature.bind(**arguments)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"VAE: `{self.side}`: {self.label!r} must accept n_inputs, n_outputs{''.join(f', {k}' for k in self.options)} "
                f"as keywords; got: {error}."
            ) from error
        return arguments

    def __call__(self, n_inputs: int, n_outputs: int, n_features: int) -> nn.Module:
        """Build the network.

        Raises:
            ModelError: The function raises an error or returns no module.
        """
        arguments = self._bound(n_inputs, n_outputs, n_features)
        try:
            found = self.function(**arguments)
        except LatentLabError as error:
            raise ModelError(f"VAE: `{self.side}`: {error}") from error
        except Exception as error:  # a factory can raise any exception
            raise ModelError(f"VAE: `{self.side}`: the factory {self.label!r} raised {reason(error)}") from error
        if not isinstance(found, nn.Module):
            raise ModelError(
                f"VAE: `{self.side}`: the factory {self.label!r} must return a torch.nn.Module; got {type(found).__name__}."
            )
        return found


class ModuleNetwork:
    """A torch module as encoder, decoder or flow; the parameter `0.weight` of a decoder is called `decoder.0.weight`.

    Args:
        side: `encoder`, `decoder`, `prior_flow` or `posterior_flow`.
        make: Builds the module, with its starting values.
        n_inputs: Number of inputs.
        heads: Number of outputs of each head.
        latent: Whether the only inputs are positions and the first layer is linear, so that its weights have the dim `latent`.

    Raises:
        ModelError: A layer cannot be copied or depends on other units, or the module has no parameters, an output of the wrong
            size, or constants that differ between calls of its factory.
    """

    def __init__(
        self, side: str, make: Callable[[], nn.Module], n_inputs: int, heads: Mapping[str, int], *, latent: bool = False
    ) -> None:
        self.side, self.make, self.n_inputs = side, make, n_inputs
        self.outputs = tuple(heads.values())
        with isolated(Seeds(0).child("network")):
            self.module = self._made()
            self._check_outputs()
        self._names, self._constants = _names(self.module), self._untrained(self.module)
        with isolated(Seeds(0).child("network")):  # constants are not saved: a loaded fit builds them anew
            again = self._untrained(self._made())
        other = next((n for n, one in self._constants.items() if n not in again or not torch.equal(one, again[n])), None)
        if other is not None:
            raise ModelError(
                f"VAE: `{side}`: the constant {other!r} must be the same in each call of the factory; got two. Fix its seed."
            )
        self.dims: Dims = {}
        for name, value in self._trained(self.module).items():
            full = f"{side}.{name}"
            self.dims[full] = tuple(f"{full}_{i}" for i in range(value.dim()))
        if latent:
            self.dims[f"{side}.0.weight"] = (f"{side}.0.weight_0", "latent")

    def starts(self, sizes: Mapping[str, int]) -> Callable[[str], torch.Tensor]:
        """Return a function that gives the starting value of a parameter; a factory is called once, for all of them."""

        @cache
        def fresh() -> Tensors:
            return self._trained(self._made())

        return lambda name: fresh()[name.removeprefix(f"{self.side}.")].detach().clone()

    def __call__(self, inputs: Tensors, values: Tensors) -> tuple[torch.Tensor, ...]:
        """Compute the outputs of each head; the inputs are concatenated."""
        return self.outputs_of(inputs, values).split(self.outputs, -1)

    def outputs_of(self, inputs: Tensors, values: Tensors, **options: bool) -> torch.Tensor:
        """Compute all outputs of the module, whose `forward` takes the options."""
        batch = torch.broadcast_shapes(*(one.shape[:-1] for one in inputs.values()))
        x = torch.cat([one.expand(*batch, -1) for one in inputs.values()], -1)
        constants = {name: _like(value, x) for name, value in self._constants.items()}
        given = {n: constants[n] if n in constants else values[f"{self.side}.{n}"] for n in self._names.values()}
        given = {name: given[first] for name, first in self._names.items()}
        # With `tie_weights`, torch would leave these values in a layer that is used twice.
        out: torch.Tensor = functional_call(self.module, given, (x.reshape(-1, x.shape[-1]),), options, tie_weights=False)
        return out.reshape(*batch, out.shape[-1])

    def _made(self) -> nn.Module:
        module = self.make()
        check_layers("vae", {self.side: module})
        if self.side == "decoder" and not self._trained(module):
            raise ModelError("VAE: `decoder` must have parameters to estimate; got a module without any.")
        return copy.deepcopy(module).double()

    @staticmethod
    def _trained(module: nn.Module) -> dict[str, torch.Tensor]:
        return {name: value for name, value in module.named_parameters() if value.requires_grad}

    @classmethod
    def _untrained(cls, module: nn.Module) -> dict[str, torch.Tensor]:
        return {name: value for name, value in _tensors(module).items() if name not in cls._trained(module)}

    @torch.no_grad()
    def _check_outputs(self) -> None:
        """Run the network for two random units, and for each alone."""
        x, expected = torch.randn(2, self.n_inputs, dtype=torch.float64), (2, sum(self.outputs))
        try:
            out = self.module(x)
            alone = torch.cat([self.module(one[None]) for one in x]) if isinstance(out, torch.Tensor) else out
        except Exception as error:  # a module can raise any exception
            raise ModelError(
                f"VAE: `{self.side}` cannot be evaluated for inputs (2, {self.n_inputs}): {reason(error)}"
            ) from error
        shape = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
        if shape != expected:
            raise ModelError(f"VAE: `{self.side}` must have outputs {expected} for inputs (2, {self.n_inputs}); got {shape}.")
        if not torch.isfinite(out).all():
            raise ModelError(
                f"VAE: `{self.side}` must have finite outputs for random inputs; got {out[~torch.isfinite(out)][0]:g}."
            )
        if not torch.allclose(out, alone, rtol=1e-8, atol=1e-10):
            raise ModelError(
                f"VAE: the outputs of `{self.side}` for a unit must not depend on other units or on random numbers; got a "
                f"difference of {float((out - alone).abs().max()):.2g}. Use LayerNorm or GroupNorm instead of batch statistics."
            )


def checked_setting(side: str, setting: Any) -> Any:
    """Return a setting of an encoder or decoder, with a module as `Given`.

    Raises:
        ConfigError: It is no name, mapping or torch module, or has arguments of `multilayer`.
    """
    if isinstance(setting, Mapping) and setting.get("name") == MULTILAYER:
        if len(setting) > 1:
            others = [key for key in setting if key != "name"]
            raise ConfigError(
                f"VAE: `{side}`: {MULTILAYER!r} must have no arguments; got {', '.join(map(repr, others))}. Set its layers by "
                f"`{'hidden' if side == 'decoder' else 'encoder_hidden'}` and `activation` of the model."
            )
        return MULTILAYER
    if isinstance(setting, nn.Module):
        return Given(setting)
    if isinstance(setting, Given | str | Mapping):
        return setting
    raise ConfigError(
        f"VAE: `{side}` must be the name of an architecture, a mapping with `name` or `factory`, or a torch.nn.Module; got "
        f"{setting!r:.60}."
    )


def begins_linear(module: nn.Module) -> bool:
    """Whether a module is a `torch.nn.Sequential` whose first layer is linear, and is not used again."""
    if not isinstance(module, nn.Sequential) or type(module) is not nn.Sequential or not len(module):
        return False
    first, *others = module
    is_used_again = any(layer is first for other in others for layer in other.modules())
    is_alone = list(_names(module).values()).count("0.weight") == 1
    return type(first) is nn.Linear and first.weight.requires_grad and is_alone and not is_used_again


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name; one with several names has the first."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _names(module: nn.Module) -> dict[str, str]:
    """The first name of each parameter and buffer, by each name that it has in different layers."""
    first: dict[int, str] = {}
    found = {}
    for path, layer in module.named_modules():  # a layer that is used twice is one layer
        for name, value in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
            full = f"{path}.{name}" if path else name
            found[full] = first.setdefault(id(value), full)
    return found


def _imported(side: str, entry: str) -> Callable[..., Any]:
    module, _, name = entry.partition(":")
    if not module or not name:
        raise ConfigError(f"VAE: `{side}`: `factory` must be text of the form package.module:function; got {entry!r}.")
    try:
        found: Callable[..., Any] = resolve(entry)
    except Exception as error:  # an imported module can raise any exception
        raise ConfigError(f"VAE: `{side}`: `factory` must be an importable function; got {entry!r}: {reason(error)}") from error
    if not callable(found):
        raise ConfigError(f"VAE: `{side}`: `factory` must be a function; got {entry!r}, which is {type(found).__name__}.")
    return found


def _like(value: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return value.to(x.device, x.dtype) if value.is_floating_point() else value.to(x.device)
