"""Standardising: what is subtracted from each column, and what it is divided by."""

from dataclasses import dataclass

import numpy as np

NOISE = 16 * np.finfo(np.float64).eps
"""A column whose sd is below this share of its largest magnitude holds rounding noise, not variation."""


@dataclass(frozen=True)
class Transform:
    """Column-wise `(x - loc) / scale`, as fitted on the training data (`scale` with ddof 0 unless said)."""

    loc: np.ndarray
    scale: np.ndarray
    ddof: int = 0

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return (x - self.loc) / self.scale

    def inverse(self, x: np.ndarray) -> np.ndarray:
        return x * self.scale + self.loc


def moments(x: np.ndarray, axis: int, ddof: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and sd over the units, and the sd relative to the largest magnitude.

    Computed on values scaled by a power of two, which changes no digit, so that neither 1e300 nor 1e-300 is squared
    out of range.
    """
    keep = axis != 0
    largest = np.nanmax(np.abs(x), axis=axis, keepdims=True)
    exponent = np.frexp(largest)[1]
    scaled = np.ldexp(x, -exponent)
    loc = np.ldexp(np.nanmean(scaled, axis=axis, keepdims=True), exponent)
    sd = np.nanstd(scaled, axis=axis, ddof=ddof, keepdims=True)
    relative = sd / np.where(largest > 0, np.ldexp(largest, -exponent), 1.0)
    parts = (loc, np.ldexp(sd, exponent), relative)
    return tuple(part if keep else part[0] for part in parts)
