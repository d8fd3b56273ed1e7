r"""How much of the draw's column space the embedding holds, whatever the basis of either.

With orthonormal bases U of the centred x and V of the centred y, the singular values of U'V are the canonical correlations,
the cosines of the principal angles. y has q columns; where x has fewer, the missing correlations are 0, and where it has more,
the further ones are not held against it.

References:
    Björck and Golub (1973), Numerical methods for computing angles between linear subspaces, Mathematics of Computation 27:579.
"""

import math

import numpy as np

from latentlab.compare.metric import metric
from latentlab.compare.positions import Positions
from latentlab.errors import DataError

RANK = 1e-10
"""Singular values below this share of the largest are zero."""


@metric(direction="higher", range=(0.0, 1.0), ignores=("linear", "translation"), if_constant=0.0)
def cca(x: Positions, y: Positions) -> float:
    """Mean canonical correlation between embedding and draw, over the draw's columns.

    Higher is closer, in [0, 1].

    Raises:
        DataError: The columns of x and y together are as many as the units or more, where some correlation is 1 for any data.
    """
    enough_units(x, y, "cca")
    return float(_correlations(x, y).sum()) / y.values.shape[1]


@metric(direction="lower", range=(0.0, 90.0), ignores=("linear", "translation"), if_constant=90.0)
def principal_angle(x: Positions, y: Positions) -> float:
    """Largest principal angle, in degrees, between the column space of the draw and that of the embedding.

    Lower is closer, in [0, 90]. It is the angle by which the worst recovered axis of the draw is missed; the angle is taken
    from sine and cosine, so that small ones are exact.

    Raises:
        DataError: As for `cca`.
    """
    enough_units(x, y, "principal_angle")
    u, v = x.derived(basis), y.derived(basis)
    cosine = float(_correlations(x, y)[-1]) if u.shape[1] >= v.shape[1] else 0.0
    sine = float(np.linalg.norm(v - u @ (u.T @ v), ord=2))
    return math.degrees(math.atan2(sine, cosine))


def basis(x: Positions) -> np.ndarray:
    """An orthonormal basis of the centred columns, `(unit, rank)`."""
    u, size, _ = np.linalg.svd(x.centered, full_matrices=False)
    return u[:, size > RANK * size[0]]


def enough_units(x: Positions, y: Positions, name: str) -> None:
    """Refuse more columns than the units can tell from noise.

    Raises:
        DataError: The columns of x and y together are as many as the units or more.
    """
    p, q = x.values.shape[1], y.values.shape[1]
    if p + q >= x.n_units:
        raise DataError(f"metric '{name}' needs more units than columns of x and y together; got {x.n_units} units, {p} + {q}.")


def _correlations(x: Positions, y: Positions) -> np.ndarray:
    return np.linalg.svd(x.derived(basis).T @ y.derived(basis), compute_uv=False)
