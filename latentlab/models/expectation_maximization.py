r"""Maximum likelihood by EM with Anderson acceleration, followed by L-BFGS if the gradient is not yet small.

A step of EM is a map $u \mapsto u + f(u)$ of the unconstrained values of the sites. Near its fixed point f is almost linear, so
that a few values of f determine its root (Anderson mixing): with the last points $u_i$,
$$ u \leftarrow \sum_i \alpha_i (u_i + f(u_i)), \quad \alpha = \arg\min_{\sum \alpha_i = 1} \| \sum_i \alpha_i f(u_i) \|. $$
A point with a lower likelihood or with further entries on the boundary is discarded for a plain EM step from the previous point.
The likelihood therefore never decreases.

References:
    Walker & Ni (2011), Anderson acceleration for fixed-point iterations, SIAM J. Numer. Anal. 49:1715. Henderson & Varadhan
    (2019), Damped Anderson acceleration with restarts and monotonicity control for accelerating EM, JCGS 28:834.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import scipy
import torch
from torch.distributions import biject_to, constraints

from latentlab.models.base import MaximumLikelihood

Values = Mapping[str, torch.Tensor]
Step = Callable[[Values], tuple[float, dict[str, torch.Tensor]]]
"""Step of EM: from values of the sites to their log likelihood and the updated values."""
AtBound = Callable[[Values], Mapping[str, torch.Tensor]]
"""Function from values of the sites to masks of the entries at a bound."""
Objective = Callable[[np.ndarray], tuple[float, np.ndarray]]
"""Function from a point to the objective to be minimised and its gradient."""

MOST_STEPS = 5000
GAIN = 1e-10
"""Relative increase of the log likelihood in a step below which plain EM ends."""
EXTRAPOLATED, REMEMBERED = 30, 6
"""Largest number of accelerated steps, and of previous points in each."""
STILL = 1e-9
"""The gradient is evaluated if an EM step changes every unconstrained value by at most this."""
GRADIENT = 1e-9
EDGE = 1e-5
"""Distance from 0 or 1 within which a probability counts as on the boundary."""
LEAST = 2e-3
"""Value below which a rate counts as on the boundary."""

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
    at_bound: AtBound = lambda values: {},
) -> MaximumLikelihood:
    """Find a local maximum of a likelihood.

    Args:
        step: A step of EM.
        log_likelihood: Log likelihood of values, differentiable.
        start: Starting values.
        n_units: Number of units, over which the gradient is averaged.
        fixed: Sites that are not estimated.
        at_bound: Function from values to masks of the entries at a bound of the step, except probabilities and rates near 0.
    """
    values: Values = {name: value.clone() for name, value in start.items()}
    trace: list[float] = []
    for _ in range(MOST_STEPS):
        level, after = step(values)
        trace.append(level)
        if len(trace) > 1 and level - trace[-2] <= GAIN * abs(level) and level >= trace[-2] - 1e-8 * abs(level):
            break
        values = {name: after.get(name, value) for name, value in values.items()}
    free = _Free.of(values, fixed, at_bound)
    how, gradient = f"EM, {len(trace) - 1} steps", math.nan
    if free.transforms:
        values, gradient, refinement = _refined(step, log_likelihood, free, after, trace, n_units)
        how += refinement
    if free.boundary:
        how += f"; values of {', '.join(free.boundary)} on the boundary are fixed"
    return MaximumLikelihood({name: value.numpy() for name, value in values.items()}, how, gradient, np.array(trace))


class _Transform(NamedTuple):
    """Map from the unconstrained scale to the values of a site, for tensors and for arrays, and its inverse."""

    to: Callable[[torch.Tensor], torch.Tensor]
    to_array: Callable[[np.ndarray], np.ndarray]
    inv: Callable[[np.ndarray], np.ndarray]

    @staticmethod
    def of(support: constraints.Constraint) -> "_Transform":
        if support in _TRANSFORMS:
            return _TRANSFORMS[support]
        general = biject_to(support)
        return _Transform(
            general,
            lambda u: general(torch.from_numpy(u)).numpy(),
            lambda value: general.inv(torch.from_numpy(value)).numpy(),
        )


def _log_ratios(p: np.ndarray) -> np.ndarray:
    """Logs of the ratios of probabilities to the last one, on the last dim."""
    logs = np.log(p)
    return logs[..., :-1] - logs[..., -1:]


def _from_log_ratios(u: np.ndarray) -> np.ndarray:
    highest = np.maximum(u.max(-1, keepdims=True), 0.0)
    p = np.exp(np.concatenate([u - highest, -highest], -1))
    return p / p.sum(-1, keepdims=True)


_TRANSFORMS: dict[constraints.Constraint, _Transform] = {
    constraints.real: _Transform(lambda u: u, lambda u: u, lambda value: value),
    constraints.positive: _Transform(torch.exp, np.exp, np.log),
    constraints.simplex: _Transform(
        lambda u: torch.softmax(torch.nn.functional.pad(u, (0, 1)), -1), _from_log_ratios, _log_ratios
    ),
}


@dataclass(frozen=True)
class _Free:
    """Conversion between the values of the sites and a vector of their free entries on the unconstrained scale.

    Entries on the boundary (a standard deviation at its floor, a probability of 0) stay fixed; on a simplex, the whole row.
    """

    values: Values
    inside: dict[str, np.ndarray]
    """Mask of the free entries of each site that is not fixed."""
    transforms: dict[str, _Transform]
    """Transform from the unconstrained scale for each site with a free entry."""
    bound: AtBound

    @staticmethod
    def of(values: Values, fixed: tuple[str, ...], at_bound: AtBound) -> "_Free":
        inside = _inside({n: value for n, value in values.items() if n not in fixed and not _is_one(n, value)}, at_bound(values))
        return _Free(
            values, inside, {n: _Transform.of(_support(n, values[n])) for n, mask in inside.items() if mask.any()}, at_bound
        )

    @property
    def boundary(self) -> list[str]:
        """Sites with an entry on the boundary."""
        return [name for name, mask in self.inside.items() if not mask.all()]

    def _inverted(self, values: Values) -> dict[str, np.ndarray]:
        """Unconstrained values of the sites with a free entry; not finite for entries at 0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return {name: transform.inv(values[name].numpy()) for name, transform in self.transforms.items()}

    def vector(self, values: Values) -> np.ndarray:
        pieces = []
        for name, piece in self._inverted(values).items():
            pieces.append(piece.reshape(-1) if self._complete[name] else piece[self._free_masks[name].numpy()])
        return np.concatenate(pieces)

    def point(self, u: np.ndarray) -> dict[str, torch.Tensor]:
        """Return the values of `at`, without derivatives."""
        if not all(self._complete.values()):
            return self.at(torch.from_numpy(u))
        new, begin = dict(self.values), 0
        for name, transform in self.transforms.items():
            end = begin + self._sizes[name]
            new[name] = torch.from_numpy(transform.to_array(u[begin:end].reshape(self._unconstrained[name].shape)))
            begin = end
        return new

    def at(self, u: torch.Tensor) -> dict[str, torch.Tensor]:
        new, begin = dict(self.values), 0
        for name, transform in self.transforms.items():
            piece, begin = u[begin : begin + self._sizes[name]], begin + self._sizes[name]
            if self._complete[name]:
                new[name] = transform.to(piece.view(self._unconstrained[name].shape))
            else:
                moved = transform.to(self._unconstrained[name].masked_scatter(self._free_masks[name], piece))
                new[name] = torch.where(torch.from_numpy(self.inside[name]), moved, self.values[name])
        return new

    def same_free_entries(self, values: Values) -> bool:
        """Whether the free entries at these values are the same."""
        inside = _inside({name: values[name] for name in self.transforms}, self.bound(values))
        return all((mask == self.inside[name]).all() for name, mask in inside.items())

    @cached_property
    def _unconstrained(self) -> dict[str, torch.Tensor]:
        found = self._inverted(self.values)
        return {name: torch.from_numpy(u if self._complete[name] else np.nan_to_num(u)) for name, u in found.items()}

    @cached_property
    def _free_masks(self) -> dict[str, torch.Tensor]:
        """Masks of the free unconstrained values of each site; a row of a simplex has one value less and is free as a whole."""
        masks = {}
        for name, part in self._unconstrained.items():
            mask = torch.from_numpy(self.inside[name])
            if name == "corr":  # a Cholesky factor is free or fixed as a whole
                mask = mask.flatten(-2)[..., :1].expand(part.shape)
            elif part.dim():
                mask = mask[..., : part.shape[-1]]
            masks[name] = mask if mask.shape == part.shape else torch.ones_like(part, dtype=torch.bool)
        return masks

    @cached_property
    def _complete(self) -> dict[str, bool]:
        """Whether all entries of a site are free."""
        return {name: bool(self.inside[name].all()) for name in self.transforms}

    @cached_property
    def _sizes(self) -> dict[str, int]:
        return {
            name: u.numel() if self._complete[name] else int(self._free_masks[name].sum())
            for name, u in self._unconstrained.items()
        }


def _refined(
    step: Step,
    log_likelihood: Callable[[Values], torch.Tensor],
    free: _Free,
    after: Values,
    trace: list[float],
    n_units: int,
) -> tuple[Values, float, str]:
    """Refine the result of EM until the gradient vanishes, by accelerated EM and L-BFGS.

    Returns the values, their largest derivative and a description. The values of EM are kept if the refined likelihood is lower
    or other entries reach the boundary. The log likelihoods of the refinement are appended to `trace`.
    """

    def objective(point: np.ndarray) -> tuple[float, np.ndarray]:
        u = torch.from_numpy(point).requires_grad_()
        value = -log_likelihood(free.at(u)) / n_units
        return value.item(), torch.autograd.grad(value, u)[0].numpy()

    n_before, level = len(trace), trace[-1]
    u, value, gradient = _extrapolated(step, objective, free, after, trace)
    n_steps = len(trace) - n_before
    how = f" and {n_steps} accelerated steps" if n_steps else ""
    if not np.abs(gradient).max() <= GRADIENT:
        options = {"maxiter": 2000, "gtol": GRADIENT, "ftol": 0.0, "maxcor": 20}
        u = scipy.optimize.minimize(objective, u, jac=True, method="L-BFGS-B", options=options).x
        value, gradient = objective(u)
        how += ", then L-BFGS"
        trace.append(-value * n_units)
    end = free.point(u)
    if trace[-1] >= level - 1e-12 * abs(level) and free.same_free_entries(end):
        return end, float(np.abs(gradient).max()), how
    del trace[n_before:]
    _, gradient = objective(free.vector(free.values))
    return free.values, float(np.abs(gradient).max()), ""


def _extrapolated(
    step: Step, objective: Objective, free: _Free, after: Values, trace: list[float]
) -> tuple[np.ndarray, float, np.ndarray]:
    """Run Anderson-accelerated EM; return the last point with the objective and its gradient.

    The first step leads from the values in `free` to those in `after`.
    """
    points = [free.vector(free.values)]
    moves = [free.vector(after) - points[0]]
    for _ in range(EXTRAPOLATED):
        if not np.isfinite(moves[-1]).all():
            break
        if np.abs(moves[-1]).max() <= STILL:
            value, gradient = objective(points[-1])
            if np.abs(gradient).max() <= GRADIENT:
                return points[-1], value, gradient
        u = points[-1] + moves[-1]
        if len(points) > 1:
            path, along = np.array(points), np.array(moves)
            d_points, d_moves = path[1:] - path[:-1], along[1:] - along[:-1]
            u = u - np.linalg.lstsq(d_moves.T, moves[-1], rcond=None)[0] @ (d_points + d_moves)
        candidate = free.point(u)
        level, reached = step(candidate) if np.isfinite(u).all() and free.same_free_entries(candidate) else (-math.inf, {})
        if level >= trace[-1] - 1e-12 * abs(trace[-1]):
            trace.append(level)
            points, moves = [*points[1 - REMEMBERED :], u], [*moves[1 - REMEMBERED :], free.vector(reached) - u]
        elif len(points) > 1:
            points, moves = points[-1:], moves[-1:]
        else:
            break
    return points[-1], *objective(points[-1])


def _support(name: str, value: torch.Tensor) -> constraints.Constraint:
    if name == "probability":
        return constraints.simplex if value.dim() == 3 else constraints.unit_interval
    return SUPPORTS[name]


def _inside(values: Values, at_bound: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Masks of the entries of each site that are neither on the boundary of the support nor at a bound."""
    masks = {name: _in_support(name, value) for name, value in values.items()}
    return {name: mask & ~at_bound[name].numpy() if name in at_bound else mask for name, mask in masks.items()}


def _is_one(name: str, value: torch.Tensor) -> bool:
    """Whether the values are probabilities of a single component, which are 1."""
    return _support(name, value) is constraints.simplex and value.shape[-1] == 1


def _in_support(name: str, value: torch.Tensor) -> np.ndarray:
    """Mask of the entries inside the support: elementwise, and by rows on a simplex."""
    support, entries = _support(name, value), value.numpy()
    if support is constraints.simplex:
        if entries.min() > EDGE:
            return np.ones(entries.shape, dtype=bool)
        return np.broadcast_to((entries > EDGE).all(-1, keepdims=True), entries.shape).copy()
    if name == "rate":
        return entries > LEAST
    if support is constraints.unit_interval:
        return (entries > EDGE) & (entries < 1 - EDGE)
    return np.ones(entries.shape, dtype=bool)
