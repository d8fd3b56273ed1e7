"""Operations on small triangular matrices, compiled by Numba."""

import math
from typing import Any

from latentlab.distributions.loops import compiled


@compiled
def rotate(upper: Any, row: Any, n: int) -> None:
    """Add `row` to the upper-triangular factor `upper` of a QR decomposition, by Givens rotations.

    The first n entries of `row` are eliminated, but zeros are not stored in them. Both may have further columns, which are
    rotated along. `row` is used as work space.
    """
    width = len(row)
    for j in range(n):
        y = row[j]
        if y == 0.0:
            continue
        x = upper[j, j]
        h = math.sqrt(x * x + y * y)
        inverse = 1 / h
        c, s = x * inverse, y * inverse
        upper[j, j] = h
        for k in range(j + 1, width):
            a, b = upper[j, k], row[k]
            upper[j, k] = c * a + s * b
            row[k] = c * b - s * a


@compiled
def solve_lower(lower: Any, b: Any) -> None:
    """Replace `b` `(q, m)` by L^-1 b."""
    for i in range(len(lower)):
        for k in range(b.shape[1]):
            total = b[i, k]
            for j in range(i):
                total -= lower[i, j] * b[j, k]
            b[i, k] = total / lower[i, i]


@compiled
def solve_upper(upper: Any, b: Any) -> None:
    """Replace `b` `(q, m)` by R^-1 b, with R the first q columns of `upper`."""
    for i in range(len(upper) - 1, -1, -1):
        for k in range(b.shape[1]):
            total = b[i, k]
            for j in range(i + 1, len(upper)):
                total -= upper[i, j] * b[j, k]
            b[i, k] = total / upper[i, i]


@compiled
def add_product(a: Any, b: Any, factor: float, out: Any) -> None:
    """Add factor a b to `out`."""
    for i in range(a.shape[0]):
        for j in range(a.shape[1]):
            scaled = factor * a[i, j]
            for k in range(b.shape[1]):
                out[i, k] += scaled * b[j, k]


@compiled
def add_outer(a: Any, b: Any, out: Any) -> None:
    """Add a b^T to `out`."""
    for i in range(a.shape[0]):
        for k in range(b.shape[0]):
            total = 0.0
            for j in range(a.shape[1]):
                total += a[i, j] * b[k, j]
            out[i, k] += total


@compiled
def log_determinant(lower: Any) -> float:
    total = 0.0
    for i in range(len(lower)):
        total += math.log(lower[i, i])
    return total
