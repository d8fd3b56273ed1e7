"""Draws of a guide, and its log density averaged over the model's symmetry."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from pyro import poutine

from latentlab.data.memory import MEMORY, Place, blocks
from latentlab.errors import InferenceError
from latentlab.inference.density import Density
from latentlab.inference.draws import Problem
from latentlab.inference.lift import constrain_draws, draws_at_once, over_draws
from latentlab.inference.program import is_latent
from latentlab.symmetry.average import LogDensity, compact, log_average
from latentlab.symmetry.group import NEXT

AT_ONCE = 4096
"""Largest number of draws in a vectorised call; the functions here are cheap."""
LEAST_ELEMENTS = 16
"""Smallest number of elements of the symmetry at which log q of each draw is evaluated."""
MOST_AVERAGED = 2**29
"""Largest number of entries of all draws, times `LEAST_ELEMENTS`, for which log q of a model's guide is averaged."""


def over_symmetry(
    problem: Problem,
    log_q: LogDensity,
    draws: dict[str, np.ndarray],
    u: np.ndarray,
    log_q_of_draws: np.ndarray,
    center: Mapping[str, np.ndarray],
) -> np.ndarray | None:
    """Average q over the model's symmetry; return log q on the unconstrained scale, or None if q is singular along an orbit.

    Args:
        problem: The problem.
        log_q: Sites with one leading axis -> log q on the constrained scale.
        draws: Draws of the sites, `(draw, *site)`.
        u: The same draws on the unconstrained scale.
        log_q_of_draws: log q of the draws on the unconstrained scale, not averaged.
        center: Location of q: site -> value.
    """
    density, model = problem.density, problem.model
    dims = {name: tuple(model.dims[name]) for name in draws}
    # Draws are aligned with the centre by a site with exactly one dim of the symmetry; transitions have two.
    candidates = [name for name in draws if [dim.removeprefix(NEXT) for dim in dims[name]].count(model.symmetry.dim) == 1]
    if not candidates or model.symmetry.is_trivial():
        return log_q_of_draws
    block = draws_at_once(u.shape[1], AT_ONCE)
    jacobian = over_draws(lambda v: density.log_jacobian(v["u"]), {"u": u}, block=block)
    on = max(candidates, key=lambda name: draws[name][0].size)
    rng = problem.seeds.child("average").numpy()
    try:
        return log_average(compact(model.symmetry), log_q, draws, dims, on=on, center=center, rng=rng) + jacobian
    except InferenceError:  # q is singular along the orbit; the draws remain usable
        return None


def guide_averaged(problem: Problem, guide: Callable[..., Any], guide_sample: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Compute log q of draws of a Pyro guide, averaged over the model's symmetry.

    None if the model has parameters, which may share the symmetry, the guide has auxiliary draws, or the average takes too long.
    """
    density = problem.density
    if problem.model.parameters or density.own_parameters or guide_sample["u"].size * LEAST_ELEMENTS > MOST_AVERAGED:
        return None
    nodes: Any = poutine.trace(guide).get_trace(**density.arrays).nodes
    names = [site.name for site in density.sites]
    if {name for name, site in nodes.items() if is_latent(site)} != set(names):
        return None

    def one(values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        at: Any = poutine.trace(poutine.condition(guide, data=dict(values))).get_trace(**density.arrays).nodes
        return torch.stack([at[name]["fn"].log_prob(values[name]).sum() for name in names]).sum()

    def log_q(sites: dict[str, np.ndarray]) -> np.ndarray:
        with torch.no_grad():
            return np.asarray(over_draws(one, sites, block=AT_ONCE))

    sites = {name: array[0] for name, array in constrain_draws(density, guide_sample["u"][None], problem.place).items()}
    best = int(np.argmax(guide_sample["log_q"]))
    return over_symmetry(
        problem, log_q, sites, guide_sample["u"], guide_sample["log_q"], {name: a[best] for name, a in sites.items()}
    )


def guide_draws(density: Density, guide: Callable[..., Any], n_draws: int, place: Place = MEMORY) -> dict[str, np.ndarray]:
    """Draw from a Pyro guide: `u` `(draw, size)` in its place, and `lp` and `log_q` `(draw,)` on the unconstrained scale."""
    u, log_q, lp = place.empty((n_draws, density.size)), np.empty(n_draws), np.empty(n_draws)
    with torch.no_grad():
        for block in blocks(n_draws, density.size):
            for i in range(block.start, block.stop):
                nodes: Any = poutine.trace(guide).get_trace(**density.arrays).nodes
                values = {site.name: nodes[site.name]["value"] for site in density.sites}
                at = density.unconstrain(values)
                jacobian = density.log_jacobian(at)
                u[i] = at.numpy()
                log_q[i] = sum(nodes[s.name]["fn"].log_prob(nodes[s.name]["value"]).sum() for s in density.sites) + jacobian
                lp[i] = density.log_joint(values) + jacobian
    return {"u": u, "lp": lp, "log_q": log_q}
