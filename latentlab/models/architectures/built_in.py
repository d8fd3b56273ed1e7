"""Built-in architectures of encoders and decoders as torch modules; each is a factory of the table `networks`."""

import itertools
import math
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Le
from torch import nn

from latentlab.errors import ConfigError
from latentlab.models.architectures.transposed import TransposedConvolution
from latentlab.settings import Count, Sizes, Whole

Activation = Literal["relu", "elu", "gelu", "silu", "tanh", "softplus"]
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
}


def convolutional(  # one keyword for each option of a user
    n_inputs: int,
    n_outputs: int,
    side: str,
    n_features: int,
    *,
    shape: Sizes | None = None,
    channels: Sizes = (16, 32),
    kernel_size: Annotated[int, Ge(1), Le(15)] = 3,
    stride: Annotated[int, Ge(1), Le(4)] = 2,
    activation: Activation = "relu",
) -> nn.Sequential:
    """Strided convolutions and one linear layer; the decoder has one linear layer and transposed convolutions.

    Args:
        n_inputs: Number of inputs.
        n_outputs: Number of outputs.
        side: `encoder` or `decoder`.
        n_features: Number of columns of the data.
        shape: Channels, rows and columns of a unit's image; one channel and a square if not given.
        channels: Channels of the encoder's layers, in order; those of the decoder are in reverse order.
        kernel_size: Rows and columns of a kernel, an odd number.
        stride: Step of each convolution, by which it divides rows and columns.
        activation: `relu`, `elu`, `gelu`, `silu`, `tanh` or `softplus`.

    Raises:
        ConfigError: The shape does not match the number of features.
    """
    if kernel_size % 2 == 0:
        raise ConfigError(f"convolutional: `kernel_size` must be an odd number; got {kernel_size}.")
    if not channels:
        raise ConfigError("convolutional: `channels` must have at least one number; got an empty list.")
    image = _image(shape, n_features, n_inputs if side == "encoder" else n_outputs)
    padding, act = kernel_size // 2, ACTIVATIONS[activation]
    sizes = [image[1:]]
    for _ in channels:
        sizes.append((-(-sizes[-1][0] // stride), -(-sizes[-1][1] // stride)))
    n_last = channels[-1] * math.prod(sizes[-1])
    layers: list[nn.Module]
    if side == "encoder":
        layers = [nn.Unflatten(1, image)]
        for before, after in zip((image[0], *channels), channels, strict=False):
            layers += [nn.Conv2d(before, after, kernel_size, stride, padding), act()]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(n_last, n_outputs))
    layers = [nn.Linear(n_inputs, n_last), act(), nn.Unflatten(1, (channels[-1], *sizes[-1]))]
    reverse = (*channels[::-1], image[0])
    for i, (before, after) in enumerate(itertools.pairwise(reverse)):
        small, large = sizes[-1 - i], sizes[-2 - i]
        extra = large[0] - (small[0] - 1) * stride - 1, large[1] - (small[1] - 1) * stride - 1
        layers += [TransposedConvolution(before, after, kernel_size, stride, padding, extra), act()]
    return nn.Sequential(*layers[:-1], nn.Flatten())


def residual(
    n_inputs: int,
    n_outputs: int,
    *,
    width: Count = 128,
    n_blocks: Whole = 2,
    activation: Activation = "relu",
) -> nn.Sequential:
    """Fully connected blocks, each of which adds a network of one hidden layer to its input.

    Args:
        n_inputs: Number of inputs.
        n_outputs: Number of outputs.
        width: Number of units of each layer.
        n_blocks: Number of blocks.
        activation: `relu`, `elu`, `gelu`, `silu`, `tanh` or `softplus`.
    """
    act = ACTIVATIONS[activation]
    blocks = [_Residual(width, act) for _ in range(n_blocks)]
    return nn.Sequential(nn.Linear(n_inputs, width), *blocks, act(), nn.Linear(width, n_outputs))


def recurrent(
    n_inputs: int,
    n_outputs: int,
    side: str,
    n_features: int,
    *,
    width: Count = 64,
    n_channels: Count = 1,
) -> nn.Sequential:
    """Gated recurrent network over the steps of a unit's series; the encoder reads it in both directions.

    A unit is a whole series, one row of the table: the columns are its steps in order, each with all channels. In the decoder the
    position, after a linear layer, is the input of each step.

    Args:
        n_inputs: Number of inputs.
        n_outputs: Number of outputs.
        side: `encoder` or `decoder`.
        n_features: Number of columns of the data.
        width: Size of the hidden state.
        n_channels: Number of columns of each step.

    Raises:
        ConfigError: The number of features is not a multiple of `n_channels`.

    References:
        Cho et al. (2014), Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine Translation, EMNLP.
    """
    n = n_inputs if side == "encoder" else n_outputs
    if n_features % n_channels or n % n_features:
        raise ConfigError(
            f"recurrent: `n_channels` must divide the {n_features} features, and these the {n} values; got {n_channels}."
        )
    steps = n_features // n_channels
    if side == "encoder":
        return nn.Sequential(_Steps(steps, n_channels), _Reader(n // steps, width), nn.Linear(2 * width, n_outputs))
    return nn.Sequential(nn.Linear(n_inputs, width), nn.Tanh(), _Writer(width, n_channels, steps, n // steps))


class _Residual(nn.Module):
    """x + W2 act(W1 act(x))."""

    def __init__(self, width: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.inside = nn.Sequential(activation(), nn.Linear(width, width), activation(), nn.Linear(width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inside(x)


class _Steps(nn.Module):
    """Blocks of series `(unit, block step channel)` as one series with more channels, `(unit, step, channel block)`."""

    def __init__(self, n_steps: int, n_channels: int) -> None:
        super().__init__()
        self.shape = (-1, n_steps, n_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(1, self.shape).movedim(1, -1).flatten(-2)


class _Gated(nn.Module):
    r"""Gated recurrent unit over the second axis of `(unit, step, input)`, by operations that can be vectorised.

    $$ h_t = (1 - u_t) n_t + u_t h_{t-1}, \quad (r_t, u_t) = \sigma(W x_t + V h_{t-1} + b), \quad
       n_t = \tanh(W' x_t + b' + r_t (V' h_{t-1} + c)) $$

    The parameters and their starts are those of `torch.nn.GRU`.
    """

    def __init__(self, n_inputs: int, width: int) -> None:
        super().__init__()
        self.inputs, self.states = nn.Linear(n_inputs, 3 * width), nn.Linear(width, 3 * width)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -1.0 / math.sqrt(width), 1.0 / math.sqrt(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the states after each step, `(unit, step, width)`."""
        width = self.states.in_features
        h, states = x.new_zeros(len(x), width), []
        for one in self.inputs(x).unbind(1):
            (r, u, n), (r_h, u_h, n_h) = one.split(width, -1), self.states(h).split(width, -1)
            reset, update = torch.sigmoid(r + r_h), torch.sigmoid(u + u_h)
            h = torch.lerp(torch.tanh(n + reset * n_h), h, update)
            states.append(h)
        return torch.stack(states, 1)


class _Reader(nn.Module):
    """Last states of a recurrent network in both directions: `(unit, step, channel)` to `(unit, 2 width)`."""

    def __init__(self, n_channels: int, width: int) -> None:
        super().__init__()
        self.forwards, self.backwards = _Gated(n_channels, width), _Gated(n_channels, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.forwards(x)[:, -1], self.backwards(x.flip(1))[:, -1]], -1)


class _Writer(nn.Module):
    """Outputs of a recurrent network with the same input at each step: `(unit, width)` to `(unit, block step channel)`."""

    def __init__(self, width: int, n_channels: int, n_steps: int, n_outputs: int) -> None:
        super().__init__()
        self.n_steps, self.n_channels = n_steps, n_channels
        self.cells, self.out = _Gated(width, width), nn.Linear(width, n_outputs)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        states = self.cells(z[:, None].expand(-1, self.n_steps, -1))
        out: torch.Tensor = self.out(states)
        return out.unflatten(-1, (self.n_channels, -1)).movedim(-1, 1).flatten(1)


def _image(shape: tuple[int, ...] | None, n_features: int, n: int) -> tuple[int, int, int]:
    """Return channels, rows and columns of `n` values; further blocks of features are further channels."""
    side = math.isqrt(n_features)
    if shape is None and side * side != n_features:
        raise ConfigError(f"convolutional: {n_features} features are no square image; set `shape` to channels, rows, columns.")
    image = (1, side, side) if shape is None else shape
    if len(image) != 3 or math.prod(image) != n_features:
        raise ConfigError(
            f"convolutional: `shape` must be channels, rows and columns, whose product is the number of features, {n_features}; "
            f"got {list(image)}."
        )
    if n % n_features:
        raise ConfigError(f"convolutional: the {n} values must be images of {n_features} features; labels are not possible.")
    return n // (image[1] * image[2]), image[1], image[2]
