"""Exponentials and sums, compiled by Numba."""

import math
from typing import Any

import numpy as np

from latentlab.distributions.loops import compiled, summing

LOG_2_E, ROUNDING = 1 / math.log(2.0), 1.5 * 2.0**52
LOG_2_HIGH, LOG_2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
"""Two parts of log 2, accurate to 80 bits together; the first ends in zero bits, so its product with an integer is exact."""
LOG_2PI = math.log(2 * math.pi)
LEAST_EXPONENT = -700.0
FACTORIALS = tuple(float(math.factorial(n)) for n in range(12, -1, -1))


@compiled
def exponential(x: float) -> float:
    """Compute exp(x), or 0 if x is below -700, since results near the smallest float are far slower to compute."""
    return 0.0 if x < LEAST_EXPONENT else math.exp(x)


@compiled
def exp_all(x: Any, n: int) -> None:
    r"""Replace the first n entries of x, none above 700, by their exponentials; entries below -700 become 0.

    $e^x = 2^m e^r$ with integer m and $|r| \le \log(2) / 2$, and $e^r$ by its Taylor series; the relative error is about 1e-15.
    A float of 2^52 or more has no fractional bits. Adding ROUNDING therefore rounds to m and leaves m in the last bits, which
    are shifted to the exponent. The compiler can vectorise the loop.
    """
    for i in range(n):
        small = x[i] < LEAST_EXPONENT
        y = 0.0 if small else x[i]
        rounded = y * LOG_2_E + ROUNDING
        m = rounded - ROUNDING
        r = (y - m * LOG_2_HIGH) - m * LOG_2_LOW
        series = 1.0 / 6227020800.0
        for factorial in FACTORIALS:
            series = series * r + 1.0 / factorial
        power = (np.float64(rounded).view(np.int64) + 1023) << 52
        x[i] = 0.0 if small else series * np.int64(power).view(np.float64)


@compiled
def fill(matrix: Any, value: float) -> None:
    for i in range(matrix.shape[0]):
        for j in range(matrix.shape[1]):
            matrix[i, j] = value


@summing
def dot(x: Any, y: Any) -> float:
    total = 0.0
    for t in range(len(x)):
        total += x[t] * y[t]
    return total
