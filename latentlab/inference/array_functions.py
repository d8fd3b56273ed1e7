"""Functions of small arrays, each for one operation of torch."""

import math
from typing import Any

import numpy as np
from scipy.linalg import lapack


def placed(part: np.ndarray, shape: tuple[int, ...], index: Any) -> np.ndarray:
    """Return zeros with the part at the index."""
    whole = np.zeros(shape)
    whole[index] = part
    return whole


def log_sigmoid(x: np.ndarray) -> tuple[np.ndarray, None]:
    """Return log(1 / (1 + exp(-x))); the second result of torch's operation is not needed for the derivative."""
    return np.minimum(x, 0.0) - np.log1p(np.exp(-np.abs(x))), None


def log_softmax(x: np.ndarray, axis: int) -> np.ndarray:
    """Return x minus the logarithm of the sum of exp(x) along an axis."""
    shifted = x - np.maximum.reduce(x, axis, keepdims=True)
    return shifted - np.log(np.add.reduce(np.exp(shifted), axis, keepdims=True))


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    """Return exp(x) divided by its sum along an axis."""
    weights = np.exp(x - np.maximum.reduce(x, axis, keepdims=True))
    return weights / np.add.reduce(weights, axis, keepdims=True)


def log_sum_exp(x: np.ndarray, axis: Any, *, keep: bool) -> np.ndarray:
    """Return the logarithm of the sum of exp(x) over axes."""
    largest = np.maximum.reduce(x, axis, keepdims=True)
    largest = np.where(np.isfinite(largest), largest, 0.0)
    total = np.log(np.add.reduce(np.exp(x - largest), axis, keepdims=True))
    return total + largest if keep else np.squeeze(total + largest, axis)


def cholesky(a: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the lower Cholesky factor of a matrix and LAPACK's code, which is not 0 if the matrix is not positive definite."""
    factor, info = lapack.dpotrf(a, lower=1, clean=1)
    return factor, info


def solved(a: np.ndarray, b: np.ndarray, lower: int, transposed: int, unit: int) -> np.ndarray:
    """Return the solution of a triangular system; NaN if the matrix is singular."""
    x, info = lapack.dtrtrs(a, b, lower=lower, trans=transposed, unitdiag=unit)
    return np.full(b.shape, math.nan) if info else x


def masked_array(result: np.ndarray, info: int) -> np.ndarray:
    """Return NaN for a matrix whose decomposition failed."""
    return np.full(result.shape, math.nan) if info else result
