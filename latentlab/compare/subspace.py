r"""How much of the draw's column space the embedding holds, whatever the basis of either.

With orthonormal bases U of the centred x and V of the centred y, the singular values of U'V are the canonical correlations,
the cosines of the principal angles. There are as many as y has linearly independent columns; where x has fewer, the missing
correlations are 0, and where it has more, the further ones are not held against it. With as many dimensions of x and y together
as units, or more, some correlation is 1 for any data: that says nothing, and the value is that of unrelated positions.

References:
    Björck and Golub (1973), Numerical methods for computing angles between linear subspaces, Mathematics of Computation 27:579.
"""

import math

import numpy as np

from latentlab.compare.metric import metric
from latentlab.compare.positions import Positions

RANK = 1e-10
"""Singular values below this share of the largest are zero."""


@metric(direction="higher", range=(0.0, 1.0), ignores=("linear", "translation"), void=0.0)
def cca(x: Positions, y: Positions) -> float:
    """Mean canonical correlation between embedding and draw, over the draw's dimensions.

    Higher is closer, in [0, 1].
    """
    if overfits(x, y):
        return 0.0
    return float(_correlations(x, y).sum()) / y.derived(basis).shape[1]


@metric(direction="lower", range=(0.0, 90.0), ignores=("linear", "translation"), void=90.0)
def principal_angle(x: Positions, y: Positions) -> float:
    """Largest principal angle, in degrees, between the column space of the draw and that of the embedding.

    Lower is closer, in [0, 90]. It is the angle by which the worst recovered axis of the draw is missed; the angle is taken
    from sine and cosine, so that small ones are exact.
    """
    if overfits(x, y):
        return 90.0
    u, v = x.derived(basis), y.derived(basis)
    cosine = float(_correlations(x, y)[-1]) if u.shape[1] >= v.shape[1] else 0.0
    sine = float(np.linalg.norm(v - u @ (u.T @ v), ord=2))
    return math.degrees(math.atan2(sine, cosine))


def basis(x: Positions) -> np.ndarray:
    """An orthonormal basis of the centred columns, `(unit, rank)`."""
    u, size, _ = np.linalg.svd(x.centered, full_matrices=False)
    return u[:, size > RANK * size[0]]


def overfits(x: Positions, y: Positions) -> bool:
    """Whether x and y together have as many dimensions as there are units, or more."""
    return x.derived(basis).shape[1] + y.derived(basis).shape[1] >= x.n_units


def _correlations(x: Positions, y: Positions) -> np.ndarray:
    return np.linalg.svd(x.derived(basis).T @ y.derived(basis), compute_uv=False)
