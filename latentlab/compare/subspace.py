r"""Agreement of the column spaces of embedding and draw, independent of their bases.

Let U and V be orthonormal bases of the centred x and y. The singular values of U^T V are the canonical correlations, the
cosines of the principal angles. Their number is the rank of y. If x has a smaller rank, the missing correlations are 0; if it
has a larger rank, its additional dimensions do not change the value. If x and y together have as many dimensions as units or
more, some correlation is 1 for any data. The metric then returns the value of unrelated positions.

References:
    Björck and Golub (1973), Numerical methods for computing angles between linear subspaces, Mathematics of Computation 27:579.
"""

import math

import numpy as np

from latentlab.compare.metric import metric
from latentlab.compare.positions import Positions

RANK = 1e-10
"""Singular values up to this share of the largest count as zero."""


@metric(direction="higher", range=(0.0, 1.0), ignores=("linear", "translation"), void=0.0)
def cca(x: Positions, y: Positions) -> float:
    """Mean canonical correlation between embedding and draw, averaged over the draw's dimensions.

    Higher is closer, in [0, 1].
    """
    if overfits(x, y):
        return 0.0
    return float(_correlations(x, y).sum()) / y.derived(basis).shape[1]


@metric(direction="lower", range=(0.0, 90.0), ignores=("linear", "translation"), void=90.0)
def principal_angle(x: Positions, y: Positions) -> float:
    """Largest principal angle, in degrees, between the column spaces of draw and embedding.

    Lower is closer, in [0, 90]. It is the angle between the worst recovered axis of the draw and the embedding's column space. It
    is computed from both sine and cosine, so that small angles are accurate.
    """
    if overfits(x, y):
        return 90.0
    u, v = x.derived(basis), y.derived(basis)
    cosine = float(_correlations(x, y)[-1]) if u.shape[1] >= v.shape[1] else 0.0
    sine = float(np.linalg.norm(v - u @ (u.T @ v), ord=2))
    return math.degrees(math.atan2(sine, cosine))


def basis(x: Positions) -> np.ndarray:
    """Compute an orthonormal basis of the centred columns, `(unit, rank)`."""
    u, size, _ = np.linalg.svd(x.centered, full_matrices=False)
    return u[:, size > RANK * size[0]]


def overfits(x: Positions, y: Positions) -> bool:
    """Check whether x and y together have as many dimensions as units or more."""
    return x.derived(basis).shape[1] + y.derived(basis).shape[1] >= x.n_units


def _correlations(x: Positions, y: Positions) -> np.ndarray:
    return np.linalg.svd(x.derived(basis).T @ y.derived(basis), compute_uv=False)
