"""Common steps of the sampling benchmarks: check the densities, time a gradient, and count effective draws per second."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import latentlab as ll
from experiments.benchmarks import in_numpyro, own
from experiments.benchmarks.harness import Row, absent, compared, in_turn, is_here, same_means, same_up_to_a_constant, seconds
from latentlab.inference.arrays import tensors
from latentlab.inference.density import Density
from latentlab.seeds import one_thread

N_POINTS = 5
"""Number of points at which log densities are compared."""
Programs = Mapping[str, tuple[Callable[..., None], tuple[str, ...]]]
"""Side -> NumPyro program, and the modules that it requires."""


def gradients(
    name: str, model: ll.LatentModel, dataset: ll.Dataset, programs: Programs, *, n_rounds: int, compiled: bool
) -> list[Row]:
    """Return rows of the checks, and of one value and gradient at one point, compiled by each library, with one thread."""
    density = Density(model, tensors(model, dataset), dataset.array_dims)
    points = own.points(density, N_POINTS)
    found: list[Row] = []
    sides = own.gradients(density, compiled=compiled)
    for side, (program, needs) in programs.items():
        if not is_here(*needs):
            found.append(absent(name, side, *needs))
            continue
        in_numpyro.double()
        data = (in_numpyro.array(dataset.x),)
        ours = [own.log_joint(density, values) for values in points]
        theirs = [in_numpyro.log_joint(program, data, values) for values in points]
        found.append(same_up_to_a_constant(name, side, ours, theirs))
        sides[side] = in_numpyro.gradient(program, data, points[0])
    with one_thread():
        timings = {side: (lambda _, function=function: 1e6 * seconds(function)) for side, function in sides.items()}
        return found + in_turn(name, "value and gradient", "us", timings, n_rounds=n_rounds)


def effective(
    name: str,
    model: ll.LatentModel,
    dataset: ll.Dataset,
    program: Callable[..., None],
    quantities: own.Quantities,
    *,
    what: str,
    n_warmup: int,
    n_draws: int,
    n_chains: tuple[int, ...],
    n_many: int,
    n_rounds: int,
    check_means: bool,
) -> list[Row]:
    """Measure the smallest bulk ESS of the quantities per second alternately, without and with the warm-up.

    All chains start at the starting points of latentlab. NumPyro is run with each number of chains in `n_chains`, NUTS of
    latentlab with the smallest of them, and ChEES with `n_many`. `check_means` compares posterior means and requires long runs.
    """
    chains: dict[str, Any] = {
        side: own.Chains(model, dataset, method) for side, method in own.methods(n_warmup, n_draws, min(n_chains), n_many).items()
    }
    found: list[Row] = []
    density = next(iter(chains.values())).problem.density
    for n in n_chains:
        side = f"NumPyro NUTS, {n} chains"
        if not is_here("numpyro"):
            found.append(absent(name, side, "numpyro"))
            continue
        in_numpyro.double()
        data, starts = (in_numpyro.array(dataset.x),), own.points(density, n)
        chains[side] = in_numpyro.Chains(program, data, starts, n_warmup, own.draws_each(n_draws, n))
    alone, whole = ({side: np.empty(n_rounds) for side in chains} for _ in range(2))
    draws: dict[str, list[np.ndarray]] = {side: [] for side in chains}
    for i in range(n_rounds):
        for side, sampler in chains.items():
            sampled = sampler.sample(i)
            ess = sampled.least_ess(quantities)
            alone[side][i], whole[side][i] = ess / sampled.sampling, ess / sampled.whole
            draws[side].append(quantities(sampled.values))
    if check_means:
        first, *others = draws
        ours = np.concatenate(draws[first])
        found += [same_means(name, side, ours, np.concatenate(draws[side])) for side in others]
    for part, values in (("sampling", alone), ("warm-up and sampling", whole)):
        found += compared(name, f"smallest ESS of {what} per second of {part}", "1/s", values, better="more")
    return found
