"""Encoder and decoder of an autoencoder, built from settings once the size of the data is known."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

from latentlab.errors import ConfigError
from latentlab.models.architectures.module import (
    MULTILAYER,
    Factory,
    Given,
    ModuleNetwork,
    begins_linear,
    checked_setting,
)
from latentlab.models.architectures.multilayer import Dims, Multilayer, Tensors
from latentlab.models.posteriors import Diagonal


class Network(Protocol):
    """Encoder or decoder: dims of its parameters, their starting values, and its outputs by head."""

    dims: Dims

    def starts(self, sizes: Mapping[str, int]) -> Callable[[str], torch.Tensor]: ...
    def __call__(self, inputs: Tensors, values: Tensors) -> tuple[torch.Tensor, ...]: ...


class Pair:
    """Encoder and decoder.

    Args:
        n_latent: Latent dimensions q.
        widths: Sizes of the hidden layers of `multilayer`, for each side.
        activation: Activation of `multilayer`.
        conditional: Whether labels are inputs.
        n_codes: Number of inputs of the encoder for each feature.
        n_blocks: Number of outputs of the decoder for each feature.
        posterior: Distribution of the positions given the encoder's outputs.
        settings: Setting of each side.
    """

    def __init__(  # one argument for each property of the networks
        self,
        *,
        n_latent: int,
        widths: Mapping[str, Sequence[int]],
        activation: str,
        conditional: bool,
        n_codes: int,
        n_blocks: int,
        posterior: Diagonal,
        settings: Mapping[str, Any],
    ) -> None:
        self.n_latent, self.widths, self.activation, self.conditional = n_latent, widths, activation, conditional
        self.n_codes, self.n_blocks, self.posterior = n_codes, n_blocks, posterior
        self.settings = {side: checked_setting(side, setting) for side, setting in settings.items()}
        self.own: dict[str, Factory | Given] = {
            side: setting if isinstance(setting, Given) else Factory(side, setting)
            for side, setting in self.settings.items()
            if setting != MULTILAYER
        }
        shared = _shared(*(own.module for own in self.own.values() if isinstance(own, Given)))
        if shared:
            raise ConfigError(f"VAE: `encoder` and `decoder` must not share parameters; got {shared} in both. Copy one of them.")
        self.offset = "decoder_b" if "decoder" in self.own else f"decoder_{len(widths['decoder']) + 1}_b"
        self._layers = {side: self._multilayer(side) for side in ("decoder", "encoder") if side not in self.own}
        self._modules: dict[str, ModuleNetwork] = {}
        self._size: tuple[int, int] | None = None

    def absorbs_rotations(self) -> bool:
        """Whether the decoder's first layer is linear in the positions, and its weights have the dim `latent`."""
        own = self.own.get("decoder")
        if own is None:
            return True
        return not self.conditional and (begins_linear(own.module) if isinstance(own, Given) else own.is_built_in)

    def build(self, n_features: int, labels: torch.Tensor | None) -> Mapping[str, Network]:
        """Return the networks for data of this size; torch modules are built and checked at the first call.

        Raises:
            ModelError: A module does not have the required form.
        """
        n_labels = labels.shape[1] if labels is not None and self.conditional else 0
        if self._size != (n_features, n_labels):
            self._modules = {side: self._module(side, n_features, n_labels) for side in self.own}
            self._size = n_features, n_labels
        return {**self._layers, **self._modules}

    def built(self, side: str) -> Network:
        """Return a network for data of the size of the last call of `build`."""
        return self._layers[side] if side in self._layers else self._modules[side]

    def dims(self, side: str) -> Dims:
        """Dims of the parameters of a network; those of a torch module are known once it is built."""
        if side in self._layers:
            return self._layers[side].dims
        known = self._modules[side].dims if side in self._modules else {}
        return known if side == "encoder" else {**known, self.offset: (self._output,)}

    def sizes(self, n_features: int, labels: torch.Tensor | None) -> dict[str, int]:
        """Size of each dim of the parameters, for data with these columns and labels."""
        found = {**self.posterior.sizes(), "feature": n_features}
        found |= {"code": self.n_codes * n_features, "output": self.n_blocks * n_features}
        found |= {"label": 0 if labels is None else labels.shape[1]}
        return {**found, **{layer: size for layers in self._layers.values() for layer, size in layers.sizes.items()}}

    @property
    def _output(self) -> str:
        return "feature" if self.n_blocks == 1 else "output"

    @property
    def input(self) -> str:
        """Dim of the encoder's inputs from the data."""
        return "feature" if self.n_codes == 1 else "code"

    def _multilayer(self, side: str) -> Multilayer:
        labels = {"labels": "label"} if self.conditional else {}
        if side == "decoder":
            inputs, heads = {"z": "latent"}, {f"decoder_{len(self.widths[side]) + 1}": self._output}
        else:
            inputs, heads = {"x": self.input, "missing": "feature"}, dict(self.posterior.heads)
        return Multilayer(side, {**inputs, **labels}, heads, self.widths[side], self.activation)

    def _module(self, side: str, n_features: int, n_labels: int) -> ModuleNetwork:
        q, own = self.n_latent, self.own[side]
        if side == "decoder":
            n_inputs, heads = q + n_labels, {"out": self.n_blocks * n_features}
        else:
            sizes = self.posterior.sizes()
            n_inputs = self.n_codes * n_features + n_labels
            heads = {head: sizes[dim] for head, dim in self.posterior.heads.items()}

        def make() -> torch.nn.Module:
            return own.module if isinstance(own, Given) else own(n_inputs, sum(heads.values()), n_features)

        return ModuleNetwork(side, make, n_inputs, heads, latent=side == "decoder" and self.absorbs_rotations())


def _shared(*modules: torch.nn.Module) -> str | None:
    """Return the name of a parameter that is in two modules."""
    if len(modules) < 2:
        return None
    others = {id(value) for value in modules[1].parameters()}
    return next((name for name, value in modules[0].named_parameters() if id(value) in others), None)
