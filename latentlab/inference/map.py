"""Maximum a posteriori estimation on the constrained scale, by L-BFGS from several starts."""

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import scipy.optimize
import torch

from latentlab.errors import InferenceError
from latentlab.inference.adam import pack, unpack
from latentlab.inference.arrays import parameter_tensors
from latentlab.inference.capture import capture
from latentlab.inference.density import Density, Gradient, value_and_grad
from latentlab.inference.draws import Draws, Problem, from_checkpoint
from latentlab.inference.lift import constrain_draws, ends
from latentlab.inference.parameters import PARAMETER, register_parameters
from latentlab.inference.roots import Objective, rooted_coordinates
from latentlab.inference.start import non_finite_sites, start
from latentlab.progress import tqdm
from latentlab.seeds import isolated
from latentlab.settings import Count, frozen_settings

BOUNDARY = 12.0
"""Absolute unconstrained value above which a constrained site counts as at the boundary of its support (e^-12 = 6e-6)."""
OPTIONS = {"maxiter": 20_000, "maxfun": 40_000, "ftol": 1e-15, "gtol": 1e-7, "maxcor": 20}
"""Options of L-BFGS-B."""
ROOTED = {**OPTIONS, "maxiter": 400, "gtol": 1e-5, "maxcor": 100}
"""Options of L-BFGS-B in the coordinates of one root."""
MOST_ROOTS = 8
"""Largest number of times that the roots of a model's posterior covariances are computed."""
LEAST_GAIN = 1e-8
"""Increase of the log joint, in nats, below which the roots are not computed again."""


@frozen_settings
class MAP:
    r"""The mode of the posterior density on the constrained scale, by L-BFGS from several starts.

    $\log p(\theta, x)$ is maximised over the constrained sites, without Jacobian, and over the parameters of the program.

    The first restart begins at the model's `initialize`. The others begin there plus uniform noise in each unconstrained
    coordinate, of the width `jitter` of the model. All are kept in the group `optimization`, and the best is the estimate. They
    run one after another, since line searches evaluate different points. A restart takes less than a second for most models.

    A model with `roots`, such as `gplvm`, is maximised in coordinates in which its posterior is about as wide in every direction.
    The roots are computed again at the maximum, until the log joint does not increase. `gradient` is then in these coordinates.

    Args:
        n_restarts: Number of starts.
        n_draws: Number of draws of the positions from their conditional at the estimate; the sites themselves are constant.
    """

    n_restarts: Count = 4
    n_draws: Count = 2000

    name: ClassVar[str] = "map"
    kind: ClassVar[str] = "point"

    def parts(self) -> list[str]:
        """Return the names of the restarts."""
        return [f"restart-{i}" for i in range(self.n_restarts)]

    def part(self, problem: Problem, i: int) -> dict[str, np.ndarray]:
        """Return the arrays of a restart, from its checkpoint or computed."""
        return from_checkpoint(problem, f"restart-{i}", lambda: self._restart(problem, i))

    def run(self, problem: Problem) -> Draws:
        bar = tqdm(range(self.n_restarts), desc="MAP", disable=None if problem.progress else True, leave=False)
        runs = [self.part(problem, i) for i in bar]
        log_joint = np.array([float(run["log_joint"]) for run in runs])
        best = runs[int(np.argmax(log_joint))]
        point = constrain_draws(problem.density, best["u"][None, None])
        parameters = {name.removeprefix(PARAMETER): best[name] for name in best if name.startswith(PARAMETER)}
        fixed = {n: v[0, 0] for n, v in point.items()}
        notes = [_boundary_note(problem.density, best["u"]), *self._remarks(problem, fixed, parameters)]
        names = problem.model.start_names
        starts = {"starts": ", ".join(names[i % len(names)] for i in range(self.n_restarts))} if names else {}
        u = np.broadcast_to(best["u"], (1, self.n_draws, best["u"].size))
        return Draws(
            constrain_draws(problem.density, u, problem.place),
            optimization={"log_joint": log_joint, "gradient": np.array([float(run["gradient"]) for run in runs])},
            restarts=ends(problem.density, [run["u"] for run in runs]),
            attrs={"how": "L-BFGS", "gradient": float(best["gradient"]), "notes": "; ".join(filter(None, notes)), **starts},
            parameters=parameters,
        )

    def _remarks(self, problem: Problem, values: dict[str, np.ndarray], parameters: dict[str, np.ndarray]) -> list[str]:
        tensors = {name: torch.from_numpy(np.asarray(value)) for name, value in values.items()}
        density = problem.density.at(parameter_tensors(parameters))
        fixed = {name: value.numpy() for name, value in density.deterministics(tensors).items()}
        return problem.model.remarks(problem.arrays, {**values, **fixed})

    def _restart(self, problem: Problem, restart: int) -> dict[str, np.ndarray]:
        seeds, density = problem.seeds.child("restart", restart), problem.density
        with isolated(seeds):
            jitter = problem.model.jitter if restart else 0.0
            u = start(density, seeds.child("start").numpy(), jitter=jitter, number=restart)
            point, function, parameters = self._with_parameters(problem, u, fresh=restart > 0)

            def objective(v: np.ndarray) -> tuple[float, np.ndarray]:
                value, gradient = function(torch.from_numpy(v))
                return float(value), gradient.numpy()

            end, n_steps = self._maximum(problem, objective, point.numpy())
            value, gradient = objective(end)
            rooted = rooted_coordinates(problem, end)
            gradient = gradient if rooted is None else rooted.gradient(np.zeros_like(end), gradient)
            if not np.isfinite(value) or not np.isfinite(gradient).all():
                sites = ", ".join(non_finite_sites(density, torch.from_numpy(end[: density.size]))) or "the gradient"
                raise InferenceError(
                    f"MAP, restart {restart}, step {n_steps}: not finite: {sites}; use a prior that bounds scales away from 0."
                )
            values = parameters(torch.from_numpy(end))
        found = {"u": end[: density.size], "log_joint": np.array(-value), "gradient": np.array(np.abs(gradient).max())}
        return {**found, **{PARAMETER + name: value.numpy() for name, value in values.items()}}

    def _maximum(self, problem: Problem, objective: Objective, point: np.ndarray) -> tuple[np.ndarray, int]:
        """Minimise from a point; return the end and the number of steps."""
        n_steps, level = 0, np.inf
        for _ in range(MOST_ROOTS):
            rooted = rooted_coordinates(problem, point)
            if rooted is None:
                found = scipy.optimize.minimize(objective, point, jac=True, method="L-BFGS-B", options=OPTIONS)
                return found.x, int(found.nit)
            function, start = rooted.objective(objective), np.zeros_like(point)
            found = scipy.optimize.minimize(function, start, jac=True, method="L-BFGS-B", options=ROOTED)
            n_steps, point = n_steps + int(found.nit), rooted.point(found.x)
            if not found.fun < level - LEAST_GAIN:
                break
            level = found.fun
        return point, n_steps

    def _with_parameters(
        self, problem: Problem, u: torch.Tensor, *, fresh: bool
    ) -> tuple[torch.Tensor, Gradient, Callable[[torch.Tensor], dict[str, torch.Tensor]]]:
        """Append the parameters of the program to the vector of a start.

        Returns:
            The vector, minus the log joint with its gradient, and the parameters in a vector by name.
        """
        density = problem.density
        if not density.own_parameters:
            return u, density.descent(u), lambda _: {}
        found = register_parameters(problem.model, density.arrays, fresh=fresh, of_guide=False)
        shapes = [leaf.shape for leaf in found.leaves]

        def parameters(point: torch.Tensor) -> dict[str, torch.Tensor]:
            return found.constrained(unpack(point[density.size :], shapes))

        def loss(point: torch.Tensor) -> torch.Tensor:
            return -density.at(parameters(point)).log_prob(point[: density.size], jacobian=False)

        point = torch.cat([u, pack(found.leaves)])
        return point, capture(value_and_grad(loss), point, plan=density.plan), parameters


def _boundary_note(density: Density, u: np.ndarray) -> str:
    """Describe the sites with an entry at the boundary of its support, where the density may be unbounded and have no mode."""
    notes = []
    for site in density.sites:
        values = u[site.start : site.stop]
        if site.transform.codomain is not site.transform.domain and values.size and float(np.abs(values).max()) > BOUNDARY:
            notes.append(f"site {site.name!r} converged to the boundary of its support, where the density may be unbounded")
    return "; ".join(notes)
