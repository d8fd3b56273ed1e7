"""SVI step for a mixture of three Gaussians on wine: latentlab's mean-field guide against Pyro's `SVI.step`.

Both use the same program, the same family (Pyro's `AutoDiagonalNormal`), the same number of draws per step, and Adam. Pyro
draws sequentially, because its vectorised particles need a program with a further axis. The time of a step of latentlab is the
difference of a long and a short run, divided by the difference in steps. The step is recorded before the timing.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal

import latentlab as ll
from experiments.benchmarks.harness import Row, in_turn, same_up_to_a_constant, timed
from latentlab.inference.advi import _losses
from latentlab.inference.draws import Problem
from latentlab.inference.guides import MeanField
from latentlab.inference.nuts import starting_point
from latentlab.results.prepare import prepared
from latentlab.seeds import Seeds, isolated, one_thread

SIZES = {"tiny": ((1,), 3, 1), "small": ((1, 8), 20, 2), "full": ((1, 8), 200, 5)}
SHORT = 2
RATE = 0.005


def own_step(problem: Problem, method: ll.SVI, n_steps: int) -> Callable[[int], float]:
    """Return a function that measures the microseconds of a step of latentlab."""
    short, long = replace(method, n_steps=SHORT), replace(method, n_steps=SHORT + n_steps)
    short.run(problem)

    def measure(seed: int) -> float:
        seeded = replace(problem, seeds=Seeds(seed))
        return 1e6 * (timed(lambda: long.run(seeded)) - timed(lambda: short.run(seeded))) / n_steps

    return measure


def pyro_step(problem: Problem, n_particles: int, n_steps: int) -> Callable[[int], float]:
    """Return a function that measures the microseconds of a step of Pyro."""

    def measure(seed: int) -> float:
        with isolated(Seeds(seed)), pyro.validation_enabled(False):
            guide = autoguide(problem)
            loss = Trace_ELBO(num_particles=n_particles)
            svi = pyro.infer.SVI(problem.model.model, guide, pyro.optim.Adam({"lr": RATE}), loss)
            svi.step(**problem.arrays)
            return 1e6 * timed(lambda: [svi.step(**problem.arrays) for _ in range(n_steps)]) / n_steps

    return measure


def autoguide(problem: Problem) -> Any:
    """Return Pyro's mean-field guide at the starting point of latentlab's guide."""
    start = torch.from_numpy(starting_point(problem.density, Seeds(0)))
    values = problem.density.constrain(start)
    guide = AutoDiagonalNormal(problem.model.model, init_loc_fn=lambda site: values[site["name"]], init_scale=0.05)
    guide(**problem.arrays)
    return guide


def losses(problem: Problem, n: int) -> tuple[list[float], list[float]]:
    """Compute minus the ELBO's integrand at the same draws of the same guide, by latentlab's step and by Pyro's traces."""
    ours, theirs = [], []
    with isolated(Seeds(1)), pyro.validation_enabled(False):
        guide = autoguide(problem)
        loc, scale = guide.loc.detach(), guide.scale.detach()
        losses_of = _losses(problem.density, MeanField(loc), framed=False)
        for _ in range(n):
            drawn = poutine.trace(guide).get_trace(**problem.arrays)
            whole = poutine.trace(poutine.replay(problem.model.model, trace=drawn)).get_trace(**problem.arrays)
            theirs.append((drawn.log_prob_sum() - whole.log_prob_sum()).item())
            u = next(site["value"] for name, site in drawn.nodes.items() if name.endswith("_latent"))
            noise = ((u - loc) / scale).detach()[None]
            ours.append(float(losses_of(torch.cat([loc, torch.log(scale)])[None], noise[None])))
    return ours, theirs


def rows(size: str) -> list[Row]:
    particles, n_steps, n_rounds = SIZES[size]
    name = "SVI step, mixture on wine"
    dataset = ll.load_dataset("wine", drop_constant=True)
    found: list[Row] = []
    with one_thread():
        for n in particles:
            sides = {}
            for side, compiled in (("latentlab SVI", False), ("latentlab SVI, compiled", True))[: 1 + (size != "tiny")]:
                method = ll.SVI(guide="mean_field", n_particles=n, n_draws=1, learning_rate=RATE, compiled=compiled)
                problem = prepared(ll.models.GaussianMixture(3), dataset, method, progress=False)
                sides[side] = own_step(problem, method, n_steps)
            if n == particles[0]:
                found.append(same_up_to_a_constant(name, "Pyro", *losses(problem, 5)))
            sides["Pyro SVI.step"] = pyro_step(problem, n, n_steps)
            found += in_turn(name, f"step, {n} draw{'s' if n > 1 else ''}", "us", sides, n_rounds=n_rounds)
    return found
