"""Guides whose evidence lower bound the model gives in closed form: the bound is maximised by L-BFGS."""

from typing import Any

import numpy as np
import scipy.optimize
import torch

from latentlab.errors import InferenceError
from latentlab.inference.adam import pack, unpack
from latentlab.inference.draws import Problem
from latentlab.inference.parameters import GuideParameters
from latentlab.progress import tqdm

TOLERANCE = 1e-9
"""The search ends when a step raises the bound by less than this share of it."""
MEMORY = 30
"""Number of steps from which L-BFGS estimates the curvature."""


def maximised(problem: Problem, found: GuideParameters, n_steps: int, restart: int) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """Maximise the model's `exact_elbo` over the parameters of guide and program.

    Args:
        problem: The problem with model and data.
        found: The parameters at their start.
        n_steps: Largest number of steps of L-BFGS.
        restart: Number of the restart, for the progress bar and messages.

    Returns:
        The parameters by name, and minus the bound after each step.

    Raises:
        InferenceError: The bound is not finite at the start.
    """
    model: Any = problem.model
    arrays, shapes = problem.density.arrays, [leaf.shape for leaf in found.leaves]
    values, losses = {}, []

    @torch.enable_grad()
    def loss_and_slopes(vector: np.ndarray) -> tuple[float, np.ndarray]:
        leaves = [part.requires_grad_() for part in unpack(torch.tensor(vector), shapes)]
        values.update(found.constrained(leaves))
        loss = -model.exact_elbo(arrays, **values)
        slopes = pack(torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)).numpy()
        value = float(loss.detach())
        if not (np.isfinite(value) and np.isfinite(slopes).all()):  # the line search then takes a shorter step
            return float(np.finfo(float).max) ** 0.5, np.zeros_like(vector)
        return value, slopes

    start = pack(found.leaves).numpy()
    first, slopes = loss_and_slopes(start)
    if not slopes.any():
        raise InferenceError(
            f"SVI, restart {restart}: the bound of {problem.model.name!r} is not finite at the start; raise `nugget`, or choose "
            "another `start`."
        )
    with tqdm(total=n_steps, desc=f"SVI {restart + 1}", disable=None if problem.progress else True, leave=False) as bar:

        def after(intermediate_result: scipy.optimize.OptimizeResult) -> None:
            losses.append(float(intermediate_result.fun))
            bar.set_postfix(elbo=f"{-losses[-1]:.6g}", refresh=False)
            bar.update()

        end = scipy.optimize.minimize(
            loss_and_slopes, start, jac=True, method="L-BFGS-B", callback=after,
            options={"maxiter": n_steps, "maxfun": 2 * n_steps, "ftol": TOLERANCE, "gtol": 1e-6, "maxcor": MEMORY},
        )  # fmt: skip
    with torch.no_grad():
        values = found.constrained(unpack(torch.from_numpy(end.x), shapes))
    return values, np.array([first, *losses])
