r"""Coordinates for maximisation in which the posterior is about as wide in every direction, from a model's `roots`.

About a point $u_0$, a site z with root L that follows a scale $\ell = e^{s}$ has the coordinates v with
$$ z = e^{s - s_0} (z_0 + L v). $$
A change of the scale alone thus leaves $z / \ell$ unchanged. All other entries are $u_0 + v$.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from latentlab.inference.draws import Problem

Objective = Callable[[np.ndarray], tuple[float, np.ndarray]]
"""Function from a vector to a value and its gradient."""


@dataclass(frozen=True)
class Rooted:
    """Coordinates about a center.

    Args:
        center: The point with coordinates 0, `(size,)`.
        place: Entries of the site.
        root: Its root, `(n, n)`.
        scale: Entries of the logs of the scale, one or one for each column of the site; None if it follows none.
    """

    center: np.ndarray
    place: slice
    root: np.ndarray
    scale: slice | None

    def _factor(self, v: np.ndarray) -> np.ndarray:
        return np.exp(v[self.scale]) if self.scale else np.ones(1)

    def _unscaled(self, v: np.ndarray) -> np.ndarray:
        n = len(self.root)
        return self.center[self.place].reshape(n, -1) + self.root @ v[self.place].reshape(n, -1)

    def point(self, v: np.ndarray) -> np.ndarray:
        """Map coordinates to the vector."""
        found = self.center + v
        found[self.place] = (self._unscaled(v) * self._factor(v)).ravel()
        return found

    def gradient(self, v: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """Map the gradient with respect to the vector at coordinates v to that with respect to v."""
        found, factor = gradient.copy(), self._factor(v)
        each = gradient[self.place].reshape(len(self.root), -1) * factor
        found[self.place] = (self.root.T @ each).ravel()
        if self.scale:
            along = (each * self._unscaled(v)).sum(0)
            found[self.scale] += along if len(factor) > 1 else along.sum()
        return found

    def objective(self, function: Objective) -> Objective:
        """Return the function of the coordinates."""

        def rooted(v: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = function(self.point(v))
            return value, self.gradient(v, gradient)

        return rooted


def rooted_coordinates(problem: Problem, point: np.ndarray) -> Rooted | None:
    """Coordinates about a point; None without the model's `roots`."""
    if "roots" not in problem.model.offers:
        return None
    density = problem.density
    with torch.no_grad():
        values = density.constrain(torch.from_numpy(point[: density.size]))
        site, root, scale = problem.model.roots(problem.arrays, **values, **density.deterministics(values))
    places = {one.name: slice(one.start, one.stop) for one in density.sites}
    return Rooted(point, places[site], root.numpy(), places.get(scale))
