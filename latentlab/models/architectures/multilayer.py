"""Fully connected layers whose weights have named dims."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch

Tensors = Mapping[str, torch.Tensor]
Dims = dict[str, tuple[str, ...]]

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "softplus": torch.nn.functional.softplus,
}


class Multilayer:
    """Fully connected network with several inputs and output layers.

    The weights of the layer `decoder_1` from the input z are `decoder_1_z`, and its offsets `decoder_1_b`. Offsets and weights of
    the input `missing` start at 0. Other weights have variance 2 / (inputs + outputs).

    Args:
        side: `encoder` or `decoder`, the prefix of the names.
        inputs: Dim of each input.
        heads: Dim of each output layer, by its name.
        widths: Sizes of the hidden layers; without any the network is linear.
        activation: Name of the function between layers.
    """

    def __init__(
        self, side: str, inputs: Mapping[str, str], heads: Mapping[str, str], widths: Sequence[int], activation: str
    ) -> None:
        self.side, self.inputs, self.heads, self.activation = side, tuple(inputs), tuple(heads), activation
        self.sizes = {f"{side}_{i}": size for i, size in enumerate(widths, 1)}
        self.dims: Dims = {}
        for layer in self.sizes:
            self.dims |= _layer(layer, inputs, layer)
            inputs = {"h": layer}
        for head, dim in heads.items():
            self.dims |= _layer(head, inputs, dim)

    def starts(self, sizes: Mapping[str, int]) -> Callable[[str], torch.Tensor]:
        """Return a function that draws the starting value of a parameter, given the sizes of all dims."""

        def start(name: str) -> torch.Tensor:
            shape = tuple(sizes[dim] for dim in self.dims[name])
            if len(shape) == 1 or name.endswith("_missing"):
                return torch.zeros(shape)
            return torch.randn(shape) * math.sqrt(2.0 / sum(shape))

        return start

    def __call__(self, inputs: Tensors, values: Tensors) -> tuple[torch.Tensor, ...]:
        """Compute the outputs of each head."""
        for layer in self.sizes:
            inputs = {"h": ACTIVATIONS[self.activation](_affine(layer, inputs, values))}
        return tuple(_affine(head, inputs, values) for head in self.heads)


def _layer(name: str, inputs: Mapping[str, str], size: str) -> Dims:
    """Dims of a layer's weights, one matrix for each input, and of its offsets."""
    return {**{f"{name}_{source}": (dim, size) for source, dim in inputs.items()}, f"{name}_b": (size,)}


def _affine(layer: str, inputs: Tensors, values: Tensors) -> torch.Tensor:
    out = values[f"{layer}_b"]
    for name, value in inputs.items():
        out = out + value @ values[f"{layer}_{name}"]
    return out
