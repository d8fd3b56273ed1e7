r"""Climbing a likelihood by EM, and to its top by L-BFGS: the gradient is small only where a derivative says so."""

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
    values, gradient = _polished(log_likelihood, values, n_units, fixed)
    trace.append(float(log_likelihood(values)))
    arrays = {name: value.numpy() for name, value in values.items()}
    return MaximumLikelihood(arrays, f"EM, {len(trace) - 1} steps, then L-BFGS", gradient, np.array(trace))


def _polished(
    log_likelihood: Callable[[Values], torch.Tensor], values: Values, n_units: int, fixed: tuple[str, ...]
) -> tuple[dict[str, torch.Tensor], float]:
    """The values moved to where the derivative is 0, if that is near and higher, and the largest derivative there.

    Values at the edge of what they can be (a variance at its floor, a probability of 0) stay where EM put them.
    """
    moved = {name: value for name, value in values.items() if name not in fixed and _inside(name, value)}
    transforms = {name: biject_to(_support(name, value)) for name, value in moved.items()}
    parts = {name: transforms[name].inv(value) for name, value in moved.items()}
    shapes = {name: part.shape for name, part in parts.items()}

    def at(u: torch.Tensor) -> dict[str, torch.Tensor]:
        pieces = torch.split(u, [shape.numel() for shape in shapes.values()])
        new = {name: transforms[name](piece.reshape(shapes[name])) for name, piece in zip(shapes, pieces, strict=True)}
        return {**values, **new}

    slope = torch.func.grad_and_value(lambda u: -log_likelihood(at(u)) / n_units)

    def objective(u: np.ndarray) -> tuple[float, np.ndarray]:
        gradient, value = slope(torch.from_numpy(u))
        return float(value), gradient.numpy()

    if not parts:
        return dict(values), 0.0
    begin = torch.cat([part.reshape(-1) for part in parts.values()]).numpy()
    before, gradient_before = objective(begin)
    found = scipy.optimize.minimize(
        objective, begin, jac=True, method="L-BFGS-B", options={"maxiter": 2000, "gtol": GRADIENT, "ftol": 0.0, "maxcor": 20}
    )
    after, gradient = objective(found.x)
    if np.isfinite(after) and after <= before + 1e-12 * abs(before) and _inside_all(at(torch.from_numpy(found.x)), moved):
        return at(torch.from_numpy(found.x)), float(np.abs(gradient).max())
    return dict(values), float(np.abs(gradient_before).max())


def _support(name: str, value: torch.Tensor) -> constraints.Constraint:
    if name == "probability":
        return constraints.simplex if value.dim() == 3 else constraints.unit_interval
    return SUPPORTS[name]


def _inside(name: str, value: torch.Tensor) -> bool:
    if name in ("weights", "initial", "transition", "probability"):
        return value.shape[-1] > 1 and bool((value > EDGE).all())
    if name in ("sigma", "rate"):
        return bool((value > LEAST).all())
    return True


def _inside_all(values: Values, moved: Values) -> bool:
    return all(_inside(name, values[name]) for name in moved)
