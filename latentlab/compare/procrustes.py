r"""Procrustes distances: the share of the draw's spread that is left when the embedding is carried onto it.

    distance = min_T sum_i |T(x_i) - y_i|^2 / sum_i |y_i - mean(y)|^2

0 is a perfect fit; 1 is what a single point, the mean of y, would reach. The maps T are nested, so for the same x and y

    affine <= similarity <= orthogonal <= displacement.

| metric | T(x) | the minimum, x and y centred, X'Y = U S V' |
|---|---|---|
| `displacement` | x | as it stands, not centred |
| `procrustes_orthogonal` | x R + t, R orthogonal | (abs(X)^2 + abs(Y)^2 - 2 tr S) / abs(Y)^2 |
| `procrustes_similarity` | b x R + t | 1 - (tr S)^2 / (abs(X)^2 abs(Y)^2) |
| `procrustes_affine` | x A + t | 1 - abs(P Y)^2 / abs(Y)^2, P the projector onto the columns of X |

References:
    Gower and Dijksterhuis (2004), Procrustes Problems, Oxford University Press.
"""

import math

import numpy as np

from latentlab.compare.metric import metric
from latentlab.compare.positions import Positions
from latentlab.compare.subspace import basis, overfits


@metric(direction="lower", range=(0.0, math.inf), ignores=(), void=1.0, symmetric=False)
def displacement(x: Positions, y: Positions) -> float:
    """Squared distance between an embedding and a draw as they stand, as a share of the draw's spread.

    Lower is closer, in [0, inf). For models whose axes are identified; it ignores nothing.
    """
    columns = max(x.values.shape[1], y.values.shape[1])
    difference = _padded(x.values, columns) - _padded(y.values, columns)
    return float(np.einsum("ij,ij->", difference, difference)) / y.size


@metric(direction="lower", range=(0.0, math.inf), ignores=("rotation", "translation"), void=1.0, symmetric=False)
def procrustes_orthogonal(x: Positions, y: Positions) -> float:
    """Share of the draw's spread left after the embedding is rotated and moved onto it.

    Lower is closer, in [0, inf); above 1 the embedding is too large.
    """
    return (x.size + y.size - 2.0 * _overlap(x, y)) / y.size


@metric(direction="lower", range=(0.0, 1.0), ignores=("rotation", "translation", "scale"), void=1.0)
def procrustes_similarity(x: Positions, y: Positions) -> float:
    """Share of the draw's spread left after the embedding is rotated, scaled and moved onto it.

    Lower is closer, in [0, 1]. The same as `scipy.spatial.procrustes`' disparity.
    """
    return 1.0 - _overlap(x, y) ** 2 / (x.size * y.size)


@metric(direction="lower", range=(0.0, 1.0), ignores=("rotation", "translation", "scale"), void=1.0, symmetric=False)
def procrustes_affine(x: Positions, y: Positions) -> float:
    """Share of the draw's spread left after the embedding is carried onto it by an affine map (1 - R^2).

    Lower is closer, in [0, 1]. Of x it also ignores linear maps, of y only what is declared. With many columns least squares
    fits noise too: read it beside the floor. Where the dimensions of x and y together are as many as the units or more, any x
    would fit, and it is 1.
    """
    if overfits(x, y):
        return 1.0
    explained = x.derived(basis).T @ y.centered
    return 1.0 - float(np.einsum("ij,ij->", explained, explained)) / y.size


def _overlap(x: Positions, y: Positions) -> float:
    """tr S: the sum of the singular values of X'Y, the most that a rotation can make of sum_i x_i R y_i'."""
    return float(np.linalg.svd(x.centered.T @ y.centered, compute_uv=False).sum())


def _padded(x: np.ndarray, columns: int) -> np.ndarray:
    return np.pad(x, ((0, 0), (0, columns - x.shape[1])))
