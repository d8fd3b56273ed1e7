"""Exponentials and sums in machine code."""

import math
from typing import Any

import numpy as np

from latentlab.distributions.loops import compiled, summing

LOG_2_E, ROUNDING = 1 / math.log(2.0), 1.5 * 2.0**52
LOG_2_HIGH, LOG_2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
"""Their sum is log 2 to 80 bits; the first ends in zeros, so that its product with a whole number is exact."""
LOG_2PI = math.log(2 * math.pi)
LEAST_EXPONENT = -700.0
FACTORIALS = tuple(float(math.factorial(n)) for n in range(12, -1, -1))


@compiled
def exponential(x: float) -> float:
    """exp(x), and 0 below e^-700: at the edge of what a float can be, it takes far longer than elsewhere."""
    return 0.0 if x < LEAST_EXPONENT else math.exp(x)


@compiled
def exp_all(x: Any, n: int) -> None:
    r"""The first n of x, none above 700, become their exponentials, and 0 below e^-700; to 1e-15, and several at once.

    $e^x = 2^m e^r$ with m whole and $|r| \le \log(2) / 2$, and the Taylor series of $e^r$. A float of 2^52 and more has no
    digits after the point: adding ROUNDING rounds to m, and leaves it in the last bits, from where it goes to the exponent.
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
