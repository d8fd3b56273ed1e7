r"""Climbing a likelihood by EM, the last steps extrapolated, and by L-BFGS where a derivative says that the top is not reached.

A step of EM is a map $u \mapsto u + f(u)$ of the unconstrained values of the sites. Near its fixed point f is almost linear, so
that a few of its values tell where it is 0 (Anderson's mixing): with the last points $u_i$,
$$ u \leftarrow \sum_i \alpha_i (u_i + f(u_i)), \quad \alpha = \arg\min_{\sum \alpha_i = 1} \| \sum_i \alpha_i f(u_i) \|. $$
A point that lost likelihood, or lies at an edge, is given up for a plain step from the one before: the climb stays monotone.

References:
    Walker & Ni (2011), Anderson acceleration for fixed-point iterations, SIAM J. Numer. Anal. 49:1715. Henderson & Varadhan
    (2019), Damped Anderson acceleration with restarts and monotonicity control for accelerating EM, JCGS 28:834.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy
import torch
from torch.distributions import Transform, biject_to, constraints

from latentlab.models.base import MaximumLikelihood

Values = Mapping[str, torch.Tensor]
Step = Callable[[Values], tuple[float, dict[str, torch.Tensor]]]
"""Values of the sites to their log likelihood, and the values after a step of EM."""
Edge = Callable[[Values], Mapping[str, torch.Tensor]]
"""Values of the sites to which of their entries are held at a bound."""
Objective = Callable[[np.ndarray], tuple[float, np.ndarray]]
"""A point to what is to be made small, and its gradient."""

MOST_STEPS = 5000
GAIN = 1e-10
"""Relative rise of the log likelihood in a step at which EM hands over."""
EXTRAPOLATED, REMEMBERED = 30, 6
"""Extrapolated steps at most, and the points that each is made from."""
STILL = 1e-9
"""Largest move of an unconstrained value in a step of EM from which on the derivative is looked at."""
GRADIENT = 1e-9
EDGE = 1e-5
"""Distance from 0 within which a probability counts as on the edge."""
LEAST = 2e-3
"""The same of a rate."""

SUPPORTS: dict[str, constraints.Constraint] = {
    "weights": constraints.simplex,
    "initial": constraints.simplex,
    "transition": constraints.simplex,
    "mu": constraints.real,
    "sigma": constraints.positive,
    "corr": constraints.corr_cholesky,
    "rate": constraints.positive,
}


def climb(
    step: Step,
    log_likelihood: Callable[[Values], torch.Tensor],
    start: Values,
    n_units: int,
    *,
    fixed: tuple[str, ...] = (),
    edge: Edge = lambda values: {},
) -> MaximumLikelihood:
    """A local maximum of a likelihood.

    Args:
        step: A step of EM.
        log_likelihood: Of values, differentiable.
        start: Values to begin with.
        n_units: Units, over which the gradient is averaged.
        fixed: Sites that are not moved.
        edge: Which entries are held at a bound that the steps respect, beside probabilities and rates near 0.
    """
    values: Values = {name: value.clone() for name, value in start.items()}
    trace: list[float] = []
    for _ in range(MOST_STEPS):
        level, after = step(values)
        trace.append(level)
        if len(trace) > 1 and level - trace[-2] <= GAIN * abs(level) and level >= trace[-2] - 1e-8 * abs(level):
            break
        values = {name: after.get(name, value) for name, value in values.items()}
    free = _Free.of(values, fixed, edge)
    how, gradient = f"EM, {len(trace) - 1} steps", math.nan
    if free.transforms:
        values, gradient, then = _finished(step, log_likelihood, free, after, trace, n_units)
        how += then
    if free.edge:
        how += f", but for values at the edge of {', '.join(free.edge)}"
    return MaximumLikelihood({name: value.numpy() for name, value in values.items()}, how, gradient, np.array(trace))


@dataclass(frozen=True)
class _Free:
    """The values of the sites as a vector of what moves, unconstrained.

    Entries at the edge of what they can be (a standard deviation at its floor, a probability of 0) stay as they are, on a
    simplex the whole row.
    """

    values: Values
    inside: dict[str, torch.Tensor]
    """Which entries move, of each site that is not fixed."""
    transforms: dict[str, Transform]
    """From unconstrained values, of each site that has an entry that moves."""
    bound: Edge

    @staticmethod
    def of(values: Values, fixed: tuple[str, ...], edge: Edge) -> "_Free":
        inside = _inside({n: value for n, value in values.items() if n not in fixed and not _is_one(n, value)}, edge(values))
        return _Free(values, inside, {n: biject_to(_support(n, values[n])) for n, own in inside.items() if own.any()}, edge)

    @property
    def edge(self) -> list[str]:
        """Sites with an entry that does not move."""
        return [name for name, own in self.inside.items() if not own.all()]

    def vector(self, values: Values) -> torch.Tensor:
        return torch.cat([transform.inv(values[name])[self._moves[name]] for name, transform in self.transforms.items()])

    def at(self, u: torch.Tensor) -> dict[str, torch.Tensor]:
        new = dict(self.values)
        for (name, transform), piece in zip(self.transforms.items(), u.split(self._sizes), strict=True):
            moved = transform(self._unconstrained[name].masked_scatter(self._moves[name], piece))
            new[name] = torch.where(self.inside[name], moved, self.values[name])
        return new

    def holds(self, values: Values) -> bool:
        """Whether the same entries are inside."""
        there = _inside({name: values[name] for name in self.transforms}, self.bound(values))
        return all(torch.equal(own, self.inside[name]) for name, own in there.items())

    @cached_property
    def _unconstrained(self) -> dict[str, torch.Tensor]:
        return {name: transform.inv(self.values[name]) for name, transform in self.transforms.items()}

    @cached_property
    def _moves(self) -> dict[str, torch.Tensor]:
        """Which of the unconstrained values of a site move: a simplex has one less in each row, which move together."""
        found = {}
        for name, part in self._unconstrained.items():
            own = self.inside[name]
            if name == "corr":  # a factor moves as a whole
                own = own.flatten(-2)[..., :1].expand(part.shape)
            elif part.dim():
                own = own[..., : part.shape[-1]]
            found[name] = own if own.shape == part.shape else torch.ones_like(part, dtype=torch.bool)
        return found

    @cached_property
    def _sizes(self) -> list[int]:
        return [int(moves.sum()) for moves in self._moves.values()]


def _finished(
    step: Step,
    log_likelihood: Callable[[Values], torch.Tensor],
    free: _Free,
    after: Values,
    trace: list[float],
    n_units: int,
) -> tuple[Values, float, str]:
    """The values where the derivative is 0, if that is near and higher; the largest derivative there; how it was found.

    The levels on the way are added to `trace`.
    """

    def objective(point: np.ndarray) -> tuple[float, np.ndarray]:
        u = torch.from_numpy(point).requires_grad_()
        value = -log_likelihood(free.at(u)) / n_units
        return value.item(), torch.autograd.grad(value, u)[0].numpy()

    n_before, level = len(trace), trace[-1]
    u, value, gradient = _extrapolated(step, objective, free, after, trace)
    n_steps = len(trace) - n_before
    how = f" and {n_steps} extrapolated" if n_steps else ""
    if not np.abs(gradient).max() <= GRADIENT:
        options = {"maxiter": 2000, "gtol": GRADIENT, "ftol": 0.0, "maxcor": 20}
        u = scipy.optimize.minimize(objective, u, jac=True, method="L-BFGS-B", options=options).x
        value, gradient = objective(u)
        how += ", then L-BFGS"
        trace.append(-value * n_units)
    end = free.at(torch.from_numpy(u))
    if trace[-1] >= level - 1e-12 * abs(level) and free.holds(end):
        return end, float(np.abs(gradient).max()), how
    del trace[n_before:]
    _, gradient = objective(free.vector(free.values).numpy())
    return free.values, float(np.abs(gradient).max()), ""


def _extrapolated(
    step: Step, objective: Objective, free: _Free, after: Values, trace: list[float]
) -> tuple[np.ndarray, float, np.ndarray]:
    """The last point on the way to where steps of EM come to rest, with the objective and its gradient there.

    The first steps are from the free values to those `after`.
    """
    points = [free.vector(free.values).numpy()]
    moves = [free.vector(after).numpy() - points[0]]
    for _ in range(EXTRAPOLATED):
        if not np.isfinite(moves[-1]).all():
            break
        if np.abs(moves[-1]).max() <= STILL:
            value, gradient = objective(points[-1])
            if np.abs(gradient).max() <= GRADIENT:
                return points[-1], value, gradient
        u = points[-1] + moves[-1]
        if len(points) > 1:
            apart, turned = np.diff(points, axis=0), np.diff(moves, axis=0)
            u = u - np.linalg.lstsq(turned.T, moves[-1], rcond=None)[0] @ (apart + turned)
        there = free.at(torch.from_numpy(u))
        level, reached = step(there) if np.isfinite(u).all() and free.holds(there) else (-math.inf, {})
        if level >= trace[-1] - 1e-12 * abs(trace[-1]):
            trace.append(level)
            points, moves = [*points[1 - REMEMBERED :], u], [*moves[1 - REMEMBERED :], free.vector(reached).numpy() - u]
        elif len(points) > 1:
            points, moves = points[-1:], moves[-1:]
        else:
            break
    return points[-1], *objective(points[-1])


def _support(name: str, value: torch.Tensor) -> constraints.Constraint:
    if name == "probability":
        return constraints.simplex if value.dim() == 3 else constraints.unit_interval
    return SUPPORTS[name]


def _inside(values: Values, edge: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Which entries of each site are neither at the edge of the support nor held at a bound."""
    found = {name: _free(name, value) for name, value in values.items()}
    return {name: own & ~edge[name] if name in edge else own for name, own in found.items()}


def _is_one(name: str, value: torch.Tensor) -> bool:
    """Whether it is the weight of a single component."""
    return _support(name, value) is constraints.simplex and value.shape[-1] == 1


def _free(name: str, value: torch.Tensor) -> torch.Tensor:
    """Which entries are inside the support: each by itself, on a simplex by rows."""
    support = _support(name, value)
    if support is constraints.simplex:
        return (value > EDGE).all(-1, keepdim=True).expand(value.shape)
    if name == "rate":
        return value > LEAST
    if support is constraints.unit_interval:
        return (value > EDGE) & (value < 1 - EDGE)
    return torch.ones_like(value, dtype=torch.bool)
