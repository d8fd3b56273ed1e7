r"""Climbing a likelihood by EM, and to its top by L-BFGS: the gradient is small only where a derivative says so."""

import math
from collections.abc import Callable, Mapping

import numpy as np
import scipy.optimize
import torch
from torch.distributions import biject_to, constraints

from latentlab.models.base import MaximumLikelihood

Values = Mapping[str, torch.Tensor]

MOST_STEPS = 5000
GAIN = 1e-10
"""Relative rise of the log likelihood in a step at which EM hands over."""
GRADIENT = 1e-9
EDGE = 1e-5
"""Distance from 0 within which a probability counts as on the edge."""
LEAST = 2e-3
"""The same of a standard deviation or a rate; the floor of a variance is 1e-6."""

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
    step: Callable[[Values], tuple[float, dict[str, torch.Tensor]]],
    log_likelihood: Callable[[Values], torch.Tensor],
    start: Values,
    n_units: int,
    *,
    fixed: tuple[str, ...] = (),
) -> MaximumLikelihood:
    """A local maximum of a likelihood.

    Args:
        step: Values of the sites to their log likelihood, and the values after an EM step.
        log_likelihood: Of values, differentiable.
        start: Values to begin with.
        n_units: Units, over which the gradient is averaged.
        fixed: Sites that are not moved.
    """
    values, trace = {name: value.clone() for name, value in start.items()}, []
    for _ in range(MOST_STEPS):
        level, after = step(values)
        trace.append(level)
        if len(trace) > 1 and level - trace[-2] <= GAIN * abs(level) and level >= trace[-2] - 1e-8 * abs(level):
            break
        values = {name: after.get(name, value) for name, value in values.items()}
    values, gradient, edge = _polished(log_likelihood, values, n_units, fixed)
    trace.append(float(log_likelihood(values)))
    arrays = {name: value.numpy() for name, value in values.items()}
    how = f"EM, {len(trace) - 1} steps, then L-BFGS" + (f", but for values at the edge of {', '.join(edge)}" if edge else "")
    return MaximumLikelihood(arrays, how, gradient, np.array(trace))


def _polished(
    log_likelihood: Callable[[Values], torch.Tensor], values: Values, n_units: int, fixed: tuple[str, ...]
) -> tuple[dict[str, torch.Tensor], float, list[str]]:
    """The values moved to where the derivative is 0, if that is near and higher; the largest derivative there; sites at an edge.

    Entries at the edge of what they can be (a standard deviation at its floor, a probability of 0) stay where EM put them, on a
    simplex the whole row. Where nothing else is left the derivative is NaN.
    """
    free = {n: _free(_support(n, value), value) for n, value in values.items() if n not in fixed and not _is_one(n, value)}
    transforms = {name: biject_to(_support(name, values[name])) for name, own in free.items() if own.any()}
    parts = {name: transform.inv(values[name]) for name, transform in transforms.items()}
    masks = {name: free[name][..., : part.shape[-1]] if part.dim() else free[name] for name, part in parts.items()}
    masks = {
        name: mask if mask.shape == parts[name].shape else torch.ones_like(parts[name], dtype=torch.bool)
        for name, mask in masks.items()
    }
    edge = [name for name, own in free.items() if not own.all()]

    def at(u: torch.Tensor) -> dict[str, torch.Tensor]:
        pieces = torch.split(u, [int(mask.sum()) for mask in masks.values()])
        new = {}
        for (name, mask), piece in zip(masks.items(), pieces, strict=True):
            part = parts[name].masked_scatter(mask, piece)
            new[name] = torch.where(free[name], transforms[name](part), values[name])
        return {**values, **new}

    if not parts:
        return dict(values), math.nan, edge
    slope = torch.func.grad_and_value(lambda u: -log_likelihood(at(u)) / n_units)

    def objective(u: np.ndarray) -> tuple[float, np.ndarray]:
        gradient, value = slope(torch.from_numpy(u))
        return float(value), gradient.numpy()

    begin = torch.cat([parts[name][mask] for name, mask in masks.items()]).numpy()
    before, gradient_before = objective(begin)
    found = scipy.optimize.minimize(
        objective, begin, jac=True, method="L-BFGS-B", options={"maxiter": 2000, "gtol": GRADIENT, "ftol": 0.0, "maxcor": 20}
    )
    after, gradient = objective(found.x)
    end = at(torch.from_numpy(found.x))
    inside = all(bool((_free(_support(name, end[name]), end[name]) == free[name]).all()) for name in parts)
    if np.isfinite(after) and after <= before + 1e-12 * abs(before) and inside:
        return end, float(np.abs(gradient).max()), edge
    return dict(values), float(np.abs(gradient_before).max()), edge


def _support(name: str, value: torch.Tensor) -> constraints.Constraint:
    if name == "probability":
        return constraints.simplex if value.dim() == 3 else constraints.unit_interval
    return SUPPORTS[name]


def _is_one(name: str, value: torch.Tensor) -> bool:
    """Whether it is the weight of a single component."""
    return _support(name, value) is constraints.simplex and value.shape[-1] == 1


def _free(support: constraints.Constraint, value: torch.Tensor) -> torch.Tensor:
    """Which entries are inside the support: each by itself, on a simplex by rows."""
    if support is constraints.simplex:
        return (value > EDGE).all(-1, keepdim=True).expand(value.shape)
    if support is constraints.unit_interval:
        return (value > EDGE) & (value < 1 - EDGE)
    return value > LEAST if support is constraints.positive else torch.ones_like(value, dtype=torch.bool)
