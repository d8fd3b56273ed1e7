"""Latentlab's programs and samplers in the sampling benchmarks."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

import latentlab as ll
from experiments.benchmarks.harness import timed
from latentlab.inference.capture import Plan
from latentlab.inference.density import Density
from latentlab.inference.nuts import starting_point
from latentlab.results.convergence import ess_bulk
from latentlab.results.prepare import prepared
from latentlab.seeds import Seeds, one_thread

Values = Mapping[str, np.ndarray]
LEAST = 0.05
"""Share of a run below which the sampling time is smaller than the noise of a difference of times."""
MOST_OF_MANY = 150
"""Draws of each of many chains, enough to measure their time relative to the warm-up."""
Quantities = Callable[[Values], np.ndarray]
"""Function of draws of the sites `(chain, draw, *site)` that returns the compared quantities `(chain, draw, quantity)`."""


@dataclass(frozen=True)
class Sampled:
    """Draws, and their CPU seconds without and with the warm-up; NaN if they are too few to measure."""

    values: Values
    sampling: float
    whole: float

    def least_ess(self, quantities: Quantities) -> float:
        """Smallest bulk ESS of the quantities."""
        return float(np.min(ess_bulk(quantities(self.values))))


def points(density: Density, n: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Return values of the sites at `n` overdispersed starts of the chains."""
    starts = [starting_point(density, Seeds(seed).child("point", i)) for i in range(n)]
    return [{name: value.numpy() for name, value in density.constrain(torch.from_numpy(u)).items()} for u in starts]


def log_joint(density: Density, values: Mapping[str, np.ndarray]) -> float:
    """Compute log p(values, data) on the constrained scale."""
    with torch.no_grad():
        return float(density.log_joint({name: torch.tensor(value) for name, value in values.items()}))


def gradients(density: Density, *, compiled: bool) -> dict[str, Callable[[], object]]:
    """Return functions for one value and gradient by name of the side: by the recorded graph, and by machine code."""
    u = torch.from_numpy(starting_point(density, Seeds(0).child("point", 0)))
    found: dict[str, Callable[[], object]] = {}
    for side, plan in (("latentlab", Plan(compiled=False)), ("latentlab, compiled", Plan(compiled=True)))[: 1 + compiled]:
        planned = Density(density.model, density.arrays, density.dims, plan=plan)
        with one_thread():
            planned.value_and_grad(u)
        found[side] = partial(planned.value_and_grad, u)
    return found


class Chains:
    """Sampler of latentlab for one problem, with its density recorded once for all rounds.

    The seconds of sampling are the difference between a run and a run with a single draw. Both have the same seed, and therefore
    the same warm-up to the last digit.
    """

    def __init__(self, model: ll.LatentModel, dataset: ll.Dataset, method: Any) -> None:
        self.method = method
        self.problem = prepared(model, dataset, method, progress=False)
        short = replace(method, n_draws=1, n_warmup=1)
        with one_thread():
            short.run(self.problem)

    def sample(self, seed: int) -> Sampled:
        problem = replace(self.problem, seeds=Seeds(seed))
        found: list[Any] = []
        with one_thread():
            whole = timed(lambda: found.append(self.method.run(problem)))
            warmup = timed(lambda: replace(self.method, n_draws=1).run(problem))
        sampling = whole - warmup
        return Sampled(found[0].values, sampling if sampling > LEAST * whole else math.nan, whole)


def methods(n_warmup: int, n_draws: int, n_chains: int, n_many: int) -> dict[str, Any]:
    """Return the samplers of latentlab by the name of their side, with few and with many chains."""
    nuts = ll.NUTS(n_chains=n_chains, n_warmup=n_warmup, n_draws=n_draws, compiled=n_many > n_chains)
    many = ll.ChEES(n_many, min(8, n_many), n_warmup, min(n_draws, MOST_OF_MANY), compiled=False)
    found = {f"latentlab NUTS, {n_chains} chains": nuts, f"latentlab ChEES, {n_many} chains": many}
    if n_many > n_chains:
        found[f"latentlab ChEES, {n_many} chains, compiled"] = replace(many, compiled=True)
    return found


def draws_each(n_draws: int, n_chains: int) -> int:
    """Return the draws per chain if 4 chains have `n_draws`: fewer with more chains, but enough for an ESS."""
    return n_draws if n_chains <= 4 else max(8, n_draws * 4 // n_chains, n_draws // 5)
