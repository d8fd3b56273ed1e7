"""VAE on the digits with 128 hidden units and batches of 128: a step against Pyro's `SVI.step`, an epoch against a PyTorch loop.

The networks and the estimator of the ELBO, with one draw in float64, are the same. The PyTorch loop is written for speed: a
module of two networks, batches by index, the Kullback-Leibler term in closed form, and fused Adam. Float32 has a separate row.
The time of a step of latentlab is the difference of a long and a short run, divided by the difference in steps.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO

import latentlab as ll
from experiments.benchmarks.harness import Row, in_turn, same_up_to_a_constant, timed
from latentlab.inference.draws import Problem
from latentlab.results.prepare import prepared
from latentlab.seeds import Seeds, isolated, one_thread

N_LATENT, N_HIDDEN, BATCH = 2, 128, 128
RATE = 1e-3
SIZES = {"tiny": (1, 1), "small": (2, 2), "full": (10, 5)}
"""Epochs, rounds."""


class ByHand(torch.nn.Module):
    """Encoder, decoder, and the log of the noise."""

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.encoder = torch.nn.Sequential(torch.nn.Linear(n_features, N_HIDDEN), torch.nn.ReLU())
        self.loc, self.log_scale = torch.nn.Linear(N_HIDDEN, N_LATENT), torch.nn.Linear(N_HIDDEN, N_LATENT)
        self.decoder = torch.nn.Sequential(
            torch.nn.Linear(N_LATENT, N_HIDDEN), torch.nn.ReLU(), torch.nn.Linear(N_HIDDEN, n_features)
        )
        self.log_sigma = torch.nn.Parameter(torch.zeros(()))

    def loss(self, x: torch.Tensor, noise: torch.Tensor, *, closed: bool = True) -> torch.Tensor:
        """Compute minus the ELBO of a batch, with the Kullback-Leibler term in closed form or at the draw."""
        h = self.encoder(x)
        loc, log_scale = self.loc(h), self.log_scale(h)
        z = loc + torch.exp(log_scale) * noise
        residual = (x - self.decoder(z)) * torch.exp(-self.log_sigma)
        fit = 0.5 * (residual**2).sum() + x.numel() * (self.log_sigma + 0.5 * math.log(2 * math.pi))
        if closed:
            return fit + 0.5 * (loc**2 + torch.exp(2 * log_scale) - 1 - 2 * log_scale).sum()
        return fit + 0.5 * (z**2 - noise**2).sum() - log_scale.sum()

    def take(self, values: dict[str, torch.Tensor]) -> None:
        """Copy the parameters of latentlab's VAE into the layers."""
        layers = {
            "encoder_1": (self.encoder[0], "x"),
            "encoder_loc": (self.loc, "h"),
            "encoder_scale": (self.log_scale, "h"),
            "decoder_1": (self.decoder[0], "z"),
            "decoder_2": (self.decoder[2], "h"),
        }
        with torch.no_grad():
            for name, (layer, source) in layers.items():
                layer.weight.copy_(values[f"{name}_{source}"].T)
                layer.bias.copy_(values[f"{name}_b"])
            self.log_sigma.copy_(torch.log(values["sigma"]))


def losses(problem: Problem, n: int, network: Callable[[int], Any] = ByHand) -> tuple[list[float], list[float]]:
    """Compute minus the ELBO's integrand at the same parameters and draws, by Pyro's traces of the programs and by hand."""
    ours, theirs = [], []
    arrays: dict[str, Any] = {**problem.arrays, "x": problem.arrays["x"][:BATCH]}
    model: Any = problem.model
    for seed in range(n):
        with isolated(Seeds(seed)), pyro.validation_enabled(False):
            drawn = poutine.trace(model.guide).get_trace(**arrays)
            whole = poutine.trace(poutine.replay(model.model, trace=drawn)).get_trace(**arrays)
            ours.append((drawn.log_prob_sum() - whole.log_prob_sum()).item())
            values = {name: pyro.param(name).detach() for name in problem.model.parameters if name in pyro.get_param_store()}
            q = drawn.nodes["z"]["fn"].base_dist
            noise = (drawn.nodes["z"]["value"] - q.loc) / q.scale
            by_hand = network(arrays["x"].shape[1])
            by_hand.take(values)
            theirs.append(by_hand.loss(arrays["x"], noise, closed=False).item())
    return ours, theirs


def own_epoch(problem: Problem, method: ll.SVI, n_steps: int) -> Callable[[int], float]:
    """Return a function that measures the seconds of `n_steps` steps of latentlab."""
    short, long = replace(method, n_steps=1), replace(method, n_steps=1 + n_steps)
    short.run(problem)

    def measure(seed: int) -> float:
        seeded = replace(problem, seeds=Seeds(seed))
        return timed(lambda: long.run(seeded)) - timed(lambda: short.run(seeded))

    return measure


def batches(x: torch.Tensor, n_steps: int) -> Any:
    """Yield the rows of `n_steps` batches, epoch by epoch without replacement."""
    done = 0
    while done < n_steps:
        order = torch.randperm(len(x))
        for first in range(0, len(x) - BATCH + 1, BATCH):
            if done < n_steps:
                yield x[order[first : first + BATCH]]
            done += 1


def pyro_epoch(problem: Problem, n_steps: int) -> Callable[[int], float]:
    def measure(seed: int) -> float:
        x, model = problem.arrays["x"], problem.model
        with isolated(Seeds(seed)), pyro.validation_enabled(False):
            scaled = [poutine.scale(program, scale=len(x) / BATCH) for program in (model.model, model.guide)]  # type: ignore[attr-defined]
            svi = pyro.infer.SVI(*scaled, pyro.optim.Adam({"lr": RATE}), Trace_ELBO())
            svi.step(x[:BATCH])
            return timed(lambda: [svi.step(batch) for batch in batches(x, n_steps)])

    return measure


def epoch_by_hand(
    problem: Problem, n_steps: int, dtype: torch.dtype, network: Callable[[int], Any] = ByHand
) -> Callable[[int], float]:
    def measure(seed: int) -> float:
        with isolated(Seeds(seed)):
            x = problem.arrays["x"].to(dtype)
            module = network(x.shape[1]).to(dtype)
            optimizer = torch.optim.Adam(module.parameters(), lr=RATE, fused=True)
            scale = len(x) / BATCH

            def epochs(n: int) -> None:
                for batch in batches(x, n):
                    optimizer.zero_grad(set_to_none=True)
                    (scale * module.loss(batch, torch.randn(BATCH, N_LATENT, dtype=dtype))).backward()
                    optimizer.step()

            epochs(1)
            return timed(lambda: epochs(n_steps))

    return measure


def rows(size: str) -> list[Row]:
    n_epochs, n_rounds = SIZES[size]
    dataset = ll.load_dataset("digits", drop_constant=True)
    problems = {}
    compiled = size != "tiny"
    sides_of: dict[str, dict[str, Any]] = {
        "latentlab SVI": {"compiled": False},
        **({"latentlab SVI, compiled": {"compiled": True}} if compiled else {}),
        "latentlab SVI, float32": {"compiled": compiled, "precision": "single"},
    }
    for side, options in sides_of.items():
        method = ll.SVI(guide="model", n_particles=1, batch_size=BATCH, n_draws=1, learning_rate=RATE, **options)
        problem = prepared(ll.models.VAE(N_LATENT, hidden=(N_HIDDEN,)), dataset, method, progress=False)
        problems[side] = problem, method
    each = len(dataset.x) // BATCH
    n_steps = n_epochs * each
    name = "VAE on digits"
    with one_thread():
        found = [same_up_to_a_constant(name, "by hand", *losses(problem, 5))]
        sides: dict[str, Callable[[int], float]] = {
            **{side: own_epoch(*pair, n_steps) for side, pair in problems.items()},
            "Pyro SVI.step": pyro_epoch(problem, n_steps),
            "torch by hand, float64": epoch_by_hand(problem, n_steps, torch.float64),
            "torch by hand, float32": epoch_by_hand(problem, n_steps, torch.float32),
        }
        what = f"epoch of {each} steps"
        for is_single in (False, True):  # float64 and float32 are compared separately
            same_precision = {side: run for side, run in sides.items() if side.endswith("float32") == is_single}
            per_epoch = {side: (lambda i, run=run: 1e3 * run(i) / n_epochs) for side, run in same_precision.items()}
            found += in_turn(name, what, "ms", per_epoch, n_rounds=n_rounds)
        return found
