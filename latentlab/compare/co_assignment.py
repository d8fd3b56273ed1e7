"""Co-assignment: the share of draws in which two units are in the same cluster."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from latentlab.compare.partition import partitions
from latentlab.data.memory import release

CELLS = 2**22
"""Largest number of entries of contingency tables, or of products with indicators, in memory at once (32 MB)."""
SAME = 1e-10
"""Tolerance within which distances and losses are equal, so that rounding does not break ties."""
BATCHED = 8
"""Number of chains from which the standard error of a mean uses only the means of the chains."""


@dataclass(frozen=True)
class CoAssignment:
    """Co-assignment of each pair of units, with standard errors; each `(unit, unit)`.

    Attributes:
        mean: Share of draws in which the two units are in the same cluster, pi.
        standard_error: Standard error of `mean` from batch means, with about sqrt(draws) batches in each chain. With several
            chains, the standard error from chain means is used if it is larger. NaN for a single draw.
        n_draws: Number of draws.
    """

    mean: np.ndarray
    standard_error: np.ndarray
    n_draws: int

    @property
    def ess(self) -> np.ndarray:
        """Effective sample size by pair, pi (1 - pi) / se^2, at most `n_draws`; NaN for pairs with pi of 0 or 1."""
        spread = self.mean * (1 - self.mean)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(spread > SAME, np.minimum(spread / self.standard_error**2, self.n_draws), np.nan)


def co_assignment(draws: Any) -> CoAssignment:
    """Compute the posterior probability that two units are in the same cluster, for each pair of units.

    Memory grows with unit^2, not with the number of draws.

    Args:
        draws: Labels, `(chain, draw, unit)`.

    Raises:
        DataError: `draws` are not labels of this shape.

    Example:
        >>> found = co_assignment([[[0, 0, 1], [1, 1, 0], [0, 1, 1], [2, 2, 0]]])
        >>> found.mean[0]
        array([1.  , 0.75, 0.  ])
    """
    codes = partitions(draws)
    n_chains, n_draws, n = codes.shape
    n_batches = min(max(2, math.isqrt(n_draws)), n_draws)
    mean, square, between = np.zeros((n, n)), np.zeros((n, n)), np.zeros((n, n))
    for chain in codes:
        chain_mean = np.zeros((n, n))
        for batch in np.array_split(chain, n_batches):
            share = together(batch)
            chain_mean += len(batch) / n_draws * share
            square += share**2
        mean += chain_mean / n_chains
        between += chain_mean**2
    sums = ((square, n_chains * n_batches), (between, n_chains))
    errors = [_standard_error(total, mean, size) for total, size in sums if size > 1]
    error = np.maximum.reduce(errors) if errors else np.full((n, n), np.nan)
    return CoAssignment(mean, error, n_chains * n_draws)


def together(codes: np.ndarray) -> np.ndarray:
    """Share of partitions `(draw, unit)`, coded from 0, in which two units are in the same cluster, `(unit, unit)`."""
    total = np.zeros((codes.shape[1], codes.shape[1]))
    for block, _, _ in label_indicators(codes):
        total += block @ block.T.toarray()
    return total / len(codes)


def flat_labels(draws: Any) -> np.ndarray:
    codes = partitions(draws)
    return codes.reshape(-1, codes.shape[2])


def _standard_error(squares: np.ndarray, mean: np.ndarray, n: int) -> np.ndarray:
    """Standard error sd / sqrt(n) of the mean of n values, from their sum of squares and their mean."""
    return np.sqrt(np.maximum(squares / n - mean**2, 0.0) / (n - 1))


def label_indicators(codes: np.ndarray) -> Iterator[tuple[csr_matrix, np.ndarray, slice]]:
    """Yield for blocks of draws: indicators `(unit, cluster of a draw)`, the column of each unit `(draw, unit)`, the draws."""
    n_draws, n = codes.shape
    width, first = int(codes.max()) + 1, 0
    for part in np.array_split(codes, math.ceil(n_draws * width * n / CELLS)):
        if len(part):
            columns = part + width * np.arange(len(part))[:, None]
            starts = np.arange(0, n * len(part) + 1, len(part))
            indicators = csr_matrix((np.ones(part.size), columns.T.ravel(), starts), shape=(n, width * len(part)))
            yield indicators, columns, slice(first, first + len(part))
            first += len(part)
            release()
