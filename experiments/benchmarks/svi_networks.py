"""VAE on the digits with convolutional and residual networks in float32: an epoch against a PyTorch loop with the same modules.

Both sides train the same networks, with the same objective, batches of 128 and one draw. The PyTorch loop is that of `svi_vae`,
with fused Adam. A further row has the time of its forward and backward passes alone, and another that of the convolutions in
them, a bound for any program with these kernels of torch.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import latentlab as ll
from experiments.benchmarks.harness import Row, in_turn, same_up_to_a_constant, seconds, timed
from experiments.benchmarks.svi_vae import BATCH, N_LATENT, RATE, SIZES, epoch_by_hand, losses, own_epoch
from latentlab.inference.draws import Problem
from latentlab.models.architectures.built_in import residual
from latentlab.results.prepare import prepared
from latentlab.seeds import Seeds, isolated, one_thread

SETTINGS: dict[str, Any] = {"convolutional": {"name": "convolutional", "channels": [32, 64]}, "residual": "residual"}
"""Encoder and decoder of each row; the convolutional ones are those of `configs/vae_conv_digits.yaml`."""


def networks(name: str, n_features: int) -> tuple[nn.Module, nn.Module]:
    """Return encoder and decoder in layers of torch."""
    if name == "residual":
        return residual(n_features, 2 * N_LATENT), residual(N_LATENT, n_features)
    first, second = nn.Conv2d(1, 32, 3, 2, 1), nn.Conv2d(32, 64, 3, 2, 1)
    encoder = [nn.Unflatten(1, (1, 8, 8)), first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(256, 2 * N_LATENT)]
    third, fourth = nn.ConvTranspose2d(64, 32, 3, 2, 1, 1), nn.ConvTranspose2d(32, 1, 3, 2, 1, 1)
    decoder = [nn.Linear(N_LATENT, 256), nn.ReLU(), nn.Unflatten(1, (64, 2, 2)), third, nn.ReLU(), fourth, nn.Flatten()]
    return nn.Sequential(*encoder), nn.Sequential(*decoder)


class ByHand(nn.Module):
    """Encoder, decoder, the offsets of its outputs, and the log of the noise."""

    def __init__(self, name: str, n_features: int) -> None:
        super().__init__()
        self.encoder, self.decoder = networks(name, n_features)
        self.decoder_b = nn.Parameter(torch.zeros(n_features))
        self.log_sigma = nn.Parameter(torch.zeros(()))

    def loss(self, x: torch.Tensor, noise: torch.Tensor, *, closed: bool = True) -> torch.Tensor:
        """Compute minus the ELBO of a batch, with the Kullback-Leibler term in closed form or at the draw."""
        loc, log_scale = self.encoder(x).chunk(2, -1)
        z = loc + torch.exp(log_scale) * noise
        residuals = (x - self.decoder(z) - self.decoder_b) * torch.exp(-self.log_sigma)
        fit = 0.5 * (residuals**2).sum() + x.numel() * (self.log_sigma + 0.5 * math.log(2 * math.pi))
        if closed:
            return fit + 0.5 * (loc**2 + torch.exp(2 * log_scale) - 1 - 2 * log_scale).sum()
        return fit + 0.5 * (z**2 - noise**2).sum() - log_scale.sum()

    def take(self, values: dict[str, torch.Tensor]) -> None:
        """Copy the parameters of latentlab's VAE."""
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(torch.log(values["sigma"]) if name == "log_sigma" else values[name])


def passes(problem: Problem, n_steps: int, network: Callable[[int], ByHand]) -> Callable[[int], float]:
    """Return a function that measures the seconds of loss and gradient of `n_steps` batches by hand, without an optimiser."""

    def measure(seed: int) -> float:
        with isolated(Seeds(seed)):
            x = problem.arrays["x"][:BATCH].float()
            module = network(x.shape[1]).float()
            noise = torch.randn(BATCH, N_LATENT, dtype=torch.float32)

            def run(n: int) -> None:
                for _ in range(n):
                    torch.autograd.grad(module.loss(x, noise), list(module.parameters()))

            run(1)
            return timed(lambda: run(n_steps))

    return measure


def convolutions(problem: Problem, n_steps: int, network: Callable[[int], ByHand]) -> Callable[[int], float]:
    """Return a function that measures the seconds of the convolutions in `n_steps` steps by hand, each alone and repeated."""

    def measure(seed: int) -> float:
        with isolated(Seeds(seed)):
            x = problem.arrays["x"][:BATCH].float()
            module = network(x.shape[1]).float()
            calls: list[Callable[[], object]] = []

            def keep(layer: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
                given, slope = inputs[0].detach(), torch.randn_like(output)
                transposed = isinstance(layer, nn.ConvTranspose2d)
                options = layer.stride, layer.padding, layer.dilation, transposed, layer.output_padding, layer.groups
                kept, parameters = [inputs[0].requires_grad, True, True], (layer.weight.detach(), layer.bias.detach())
                back = torch.ops.aten.convolution_backward
                calls.append(lambda: torch.ops.aten.convolution(given, *parameters, *options))
                calls.append(lambda: back(slope, given, parameters[0], [len(parameters[1])], *options, kept))

            for layer in module.modules():
                if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                    layer.register_forward_hook(keep)
            module.loss(x, torch.randn(BATCH, N_LATENT, dtype=torch.float32))
            return sum(seconds(call) for call in calls) * n_steps

    return measure


def rows(size: str) -> list[Row]:
    n_epochs, n_rounds = SIZES[size]
    dataset = ll.load_dataset("digits", dequantize=True, standardize=False)
    each = len(dataset.x) // BATCH
    n_steps, found = n_epochs * each, []
    for architecture, setting in SETTINGS.items():
        name = f"VAE on digits, {architecture}"

        def network(n_features: int, architecture: str = architecture) -> ByHand:
            return ByHand(architecture, n_features)

        problems = {}
        for compiled in (False, True) if size != "tiny" else (False,):
            options: dict[str, Any] = {"n_particles": 1, "batch_size": BATCH, "n_draws": 1, "learning_rate": RATE}
            method = ll.SVI(guide="model", **options, compiled=compiled, precision="single")
            model = ll.models.VAE(N_LATENT, encoder=setting, decoder=setting)
            side = f"latentlab SVI{', compiled' if compiled else ''}, float32"
            problems[side] = prepared(model, dataset, method, progress=False), method
        first = next(iter(problems.values()))[0]
        with one_thread():
            found.append(same_up_to_a_constant(name, "by hand", *losses(first, 5, network)))
            sides: dict[str, Callable[[int], float]] = {
                **{side: own_epoch(*pair, n_steps) for side, pair in problems.items()},
                "torch by hand, float32": epoch_by_hand(first, n_steps, torch.float32, network),
                "torch by hand, float32, without optimiser": passes(first, n_steps, network),
            }
            if architecture == "convolutional":
                sides["torch by hand, float32, convolutions alone"] = convolutions(first, n_steps, network)
            per_epoch = {side: (lambda i, run=run: 1e3 * run(i) / n_epochs) for side, run in sides.items()}
            found += in_turn(name, f"epoch of {each} steps", "ms", per_epoch, n_rounds=n_rounds)
    return found
