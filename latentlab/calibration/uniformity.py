"""Tests of the uniformity of ranks."""

import numpy as np
from scipy.special import gammaln
from scipy.stats import binom


def rank_counts(ranks: np.ndarray, n_ranks: int) -> np.ndarray:
    """Cumulative counts of ranks below 1, ..., `n_ranks`."""
    return np.asarray(np.searchsorted(np.sort(ranks), np.arange(1, n_ranks + 1), side="left"))


def ecdf_p_value(counts: np.ndarray, n: int) -> float:
    r"""p-value of the hypothesis that n ranks are uniform on 0, ..., L.

    The statistic is the smallest over i of the two-sided tail $2 \min(P(C_i \le c_i), P(C_i \ge c_i))$, $C_i \sim
    \text{Binomial}(n, i / (L + 1))$. Its distribution is computed exactly.

    Args:
        counts: Cumulative counts $c_i$ of ranks below 1, ..., L.
        n: Number of ranks.

    Example:
        >>> even = np.arange(1, 10) * 10
        >>> round(ecdf_p_value(even, 100), 6), ecdf_p_value(np.full(9, 50), 100) < 1e-12
        (1.0, True)
    """
    tails = _tails(n, len(counts))
    least = tails[np.arange(len(counts)), counts].min()
    return max(1.0 - _inside(tails > least * (1 + 1e-9)), 0.0)


def ecdf_band(n: int, n_ranks: int, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Simultaneous band of the counts of n uniform ranks below 1, ..., L, of probability at least `1 - level`.

    Returns:
        Smallest and largest count in the band, each `(L,)`.
    """
    tails = _tails(n, n_ranks)
    low, high = np.log(level) - 10.0, np.log(level)
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if 1.0 - _inside(tails > np.exp(middle)) <= level else (low, middle)
    allowed = tails > np.exp(low)
    return allowed.argmax(axis=1), n - allowed[:, ::-1].argmax(axis=1)


def _tails(n: int, n_ranks: int) -> np.ndarray:
    """Two-sided binomial tails `(L, n + 1)` of each count 0, ..., n of uniform ranks below 1, ..., L."""
    share = np.arange(1, n_ranks + 1)[:, None] / (n_ranks + 1)
    counts = np.arange(n + 1)
    return np.minimum(2 * np.minimum(binom.cdf(counts, n, share), binom.sf(counts - 1, n, share)), 1.0)


def _inside(allowed: np.ndarray) -> float:
    """Probability that the counts of n uniform ranks below 1, ..., L are all allowed.

    The counts are a Markov chain: each rank that is not below i - 1 is below i with probability 1 / (L + 2 - i).

    Args:
        allowed: Whether each count 0, ..., n is allowed, `(L, n + 1)`; each row is true on one interval.
    """
    n_ranks, n = allowed.shape[0], allowed.shape[1] - 1
    log_factorial = gammaln(np.arange(n + 1) + 1.0)
    before, weight = np.array([0]), np.array([1.0])
    for i in range(1, n_ranks + 1):
        after = np.flatnonzero(allowed[i - 1])
        new, left, p = after[:, None] - before, n - before, 1.0 / (n_ranks + 2 - i)
        log_coefficient = log_factorial[left] - log_factorial[np.maximum(new, 0)] - log_factorial[n - after][:, None]
        step = np.where(new >= 0, np.exp(log_coefficient + new * np.log(p) + (n - after)[:, None] * np.log1p(-p)), 0.0)
        before, weight = after, step @ weight
    return float(weight.sum())
