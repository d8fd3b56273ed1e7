r"""Procrustes distances: residual sum of squares of the embedding, after alignment with the draw, relative to the draw's spread.

    distance = min_T sum_i |T(x_i) - y_i|^2 / sum_i |y_i - mean(y)|^2

0 is a perfect fit; 1 is the value of a single point at the mean of y. The maps T are nested, so that for the same x and y

    affine <= similarity <= orthogonal <= displacement.

| metric | T(x) | the minimum, x and y centred, X^T Y = U S V^T |
|---|---|---|
| `displacement` | x | without alignment, x and y not centred |
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
    """Squared distance between an embedding and a draw without alignment, relative to the draw's spread.

    Lower is closer, in [0, inf). Suitable for models whose axes are identified; it ignores no transformation.
    """
    columns = max(x.values.shape[1], y.values.shape[1])
    difference = _padded(x.values, columns) - _padded(y.values, columns)
    return float(np.einsum("ij,ij->", difference, difference)) / y.size


@metric(direction="lower", range=(0.0, math.inf), ignores=("rotation", "translation"), void=1.0, symmetric=False)
def procrustes_orthogonal(x: Positions, y: Positions) -> float:
    """Residual share of the draw's spread after the best rotation and translation of the embedding.

    Lower is closer, in [0, inf); the embedding is too large if the value is above 1.
    """
    return (x.size + y.size - 2.0 * _overlap(x, y)) / y.size


@metric(direction="lower", range=(0.0, 1.0), ignores=("rotation", "translation", "scale"), void=1.0)
def procrustes_similarity(x: Positions, y: Positions) -> float:
    """Residual share of the draw's spread after the best rotation, scaling and translation of the embedding.

    Lower is closer, in [0, 1]. Equal to the disparity of `scipy.spatial.procrustes`.
    """
    return 1.0 - _overlap(x, y) ** 2 / (x.size * y.size)


@metric(direction="lower", range=(0.0, 1.0), ignores=("rotation", "translation", "scale"), void=1.0, symmetric=False)
def procrustes_affine(x: Positions, y: Positions) -> float:
    """Residual share of the draw's spread after the best affine map of the embedding (1 - R^2).

    Lower is closer, in [0, 1]. It is also invariant under linear maps of x, but not of y. With many columns, least squares
    overfits; compare the value with the floor. It is 1 if x and y together have as many dimensions as units or more.
    """
    if overfits(x, y):
        return 1.0
    explained = x.derived(basis).T @ y.centered
    return 1.0 - float(np.einsum("ij,ij->", explained, explained)) / y.size


def _overlap(x: Positions, y: Positions) -> float:
    """Sum of the singular values of X^T Y, tr S: the maximum of sum_i x_i R y_i^T over rotations R."""
    return float(np.linalg.svd(x.centered.T @ y.centered, compute_uv=False).sum())


def _padded(x: np.ndarray, columns: int) -> np.ndarray:
    return np.pad(x, ((0, 0), (0, columns - x.shape[1])))
