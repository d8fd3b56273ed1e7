r"""Effective sample size of chains, and their split into a reference half and a held-out half.

The effective sample size of a series is computed by Geyer's initial monotone sequence over all chains, from the values
themselves, without ranks: M N / tau, tau = -1 + 2 sum_k (rho_2k + rho_2k+1), rho_t = 1 - (W - mean_m s_m(t)) / var+. W is the
mean variance within chains, s_m(t) the autocovariance of a chain, and var+ the variance including differences between chains.
The estimate is at most the number of draws.

References:
    Geyer (1992), Practical Markov chain Monte Carlo, Statistical Science 7:473. Gelman et al. (2013), Bayesian Data
    Analysis, 3rd ed., 11.5.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from latentlab.compare.align import aligner, procrustes_mean
from latentlab.data import memory
from latentlab.data.memory import is_mapped, place_of
from latentlab.errors import DataError

GAP = 5
"""Length of the gap between the two parts of a single chain, in autocorrelation times."""
NUMBERS = 2**26
"""Size of a half, in floating-point numbers, above which its draws are thinned (512 MB)."""
ENOUGH = 400
"""Number of draws up to which a half is never thinned."""


def ess(x: np.ndarray) -> float:
    """Compute the effective sample size of a series `(chain, draw)`, or of several series `(chain, draw, ...)` jointly.

    It is 1 for a constant series, and the number of chains if they have fewer than 4 draws.

    Example:
        >>> ess(np.random.default_rng(0).normal(size=(4, 250))) > 800
        True
    """
    n_chains, n_draws = x.shape[:2]
    if n_draws < 4:
        return float(n_chains)
    deviation = x - x.mean(axis=1, keepdims=True)
    spectrum = np.fft.rfft(deviation, n=2 * n_draws, axis=1)
    others = (0, *range(2, x.ndim))
    covariance = np.fft.irfft((np.abs(spectrum) ** 2).mean(axis=others), n=2 * n_draws)[:n_draws] / n_draws
    within = covariance[0] * n_draws / (n_draws - 1)
    total = covariance[0] + (x.mean(axis=1).var(axis=0, ddof=1).mean() if n_chains > 1 else 0.0)
    if total <= (1e-12 * np.abs(x).max()) ** 2:
        return 1.0
    rho = 1 - (within - covariance) / total
    rho[0] = 1.0
    pairs = rho[: n_draws // 2 * 2].reshape(-1, 2).sum(axis=1)
    ends = np.flatnonzero(pairs <= 0)
    pairs = np.minimum.accumulate(pairs[: ends[0]] if ends.size else pairs)
    tau = max(2 * pairs.sum() - 1, 1.0)
    return float(n_chains * n_draws / tau)


def split(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split draws into an independent reference half and held-out half, each `(chain, draw, unit, latent)`.

    Every second chain is held out. With a single chain, the first part is the reference and the last part is held out. The gap
    between them is 5 autocorrelation times, at most a third of the chain. A half of more than 512 MB is thinned if it has more
    than 400 draws.

    Args:
        draws: Positions, `(chain, draw, unit, latent)`.

    Raises:
        DataError: The shape is wrong, a value is not finite, a half has fewer than latent + 2 draws, or there are too few units.
    """
    draws = _checked(draws)
    return halves(draws, _series, draws.shape[3] + 2, f"draws with {draws.shape[3]} latent dimensions")


def halves(
    draws: np.ndarray, series: Callable[[np.ndarray], Sequence[np.ndarray]], least: int, what: str
) -> tuple[np.ndarray, np.ndarray]:
    """Split draws of any quantity into a reference half and a held-out half, as `split` does for positions.

    Args:
        draws: Draws, `(chain, draw, ...)`.
        series: Maps a chain `(draw, ...)` to series `(step,)`. The gap in a single chain depends on the series with the longest
            autocorrelation time.
        least: Fewest draws of a half.
        what: Name of the draws in error messages.

    Raises:
        DataError: A half has too few draws.
    """
    if len(draws) > 1:
        reference, held_out = draws[::2], draws[1::2]
    else:
        n = draws.shape[1]
        autocorrelation_time = max(len(values) / ess(values[None]) for values in series(draws[0]))
        gap = min(math.ceil(GAP * autocorrelation_time), n // 3)
        first = (n - gap) // 2
        reference, held_out = draws[:, :first], draws[:, first + gap :]
    reference, held_out = _thinned(reference), _thinned(held_out)
    if min(reference.shape[0] * reference.shape[1], held_out.shape[0] * held_out.shape[1]) < least:
        raise DataError(
            f"{what}: the reference half and the held-out half need at least {least} draws each; "
            f"got {draws.shape[0]} chain(s) of {draws.shape[1]} draws. Take more draws."
        )
    return reference, held_out


def joined(half: np.ndarray) -> np.ndarray:
    """Joins the chains of draws `(chain, draw, ...)` to `(draw, ...)`: a view if possible, else a copy in the draws' place."""
    shape = (half.shape[0] * half.shape[1], *half.shape[2:])
    if half.flags.c_contiguous or not is_mapped(half):
        return half.reshape(shape)
    found = place_of(half).empty(shape, half.dtype)
    for i, chain in enumerate(half):
        for part in memory.blocks(len(chain), chain[0].size):
            found[i * len(chain) :][part] = chain[part]
    return found


def leading_score(x: np.ndarray) -> np.ndarray:
    """Compute the first principal component score `(draw,)` of arrays `(draw, ...)`, with axes from at most 400 draws."""
    mean, leading = _leading(x[_thinned_indices(len(x))])
    return (x.reshape(len(x), -1) - mean) @ leading


def _thinned_indices(n_draws: int) -> np.ndarray:
    """Indices of at most 400 draws, evenly spaced."""
    return np.unique(np.linspace(0, n_draws - 1, min(n_draws, ENOUGH)).astype(int))


def _leading(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and leading principal direction of arrays `(draw, ...)`, both flat; the direction is not normalised."""
    flat = draws.reshape(len(draws), -1)
    mean = flat.mean(axis=0)
    deviation = flat - mean
    if len(deviation) > deviation.shape[1]:
        return mean, np.linalg.eigh(deviation.T @ deviation)[1][:, -1]
    return mean, deviation.T @ np.linalg.eigh(deviation @ deviation.T)[1][:, -1]


def _checked(draws: np.ndarray) -> np.ndarray:
    draws = np.asarray(draws, dtype=np.float64)
    if draws.ndim != 4:
        raise DataError(f"draws must have shape (chain, draw, unit, latent); got {draws.shape}.")
    if draws.shape[2] <= draws.shape[3]:
        raise DataError(
            f"draws must have more units than latent dimensions; got {draws.shape[2]} units and {draws.shape[3]} dimensions."
        )
    if n_bad := memory.n_not_finite(draws):
        raise DataError(f"draws must be finite; got {n_bad} non-finite values.")
    return draws


def _series(chain: np.ndarray) -> tuple[np.ndarray, ...]:
    """Squared distance from the mean and leading score of a chain `(draw, unit, latent)`, `(draw,)` each."""
    mean = procrustes_mean(chain)
    align = aligner("orthogonal", mean)
    error_mean, leading = _leading(align(chain[_thinned_indices(len(chain))]) - mean)
    distance, score = np.empty((2, len(chain)))
    for part in memory.blocks(len(chain), mean.size):
        error = (align(chain[part]) - mean).reshape(-1, mean.size)
        distance[part] = np.einsum("sj,sj->s", error, error)
        score[part] = (error - error_mean) @ leading
    return distance, score


def _thinned(half: np.ndarray) -> np.ndarray:
    n_chains, n_draws = half.shape[:2]
    kept = math.ceil(max(ENOUGH, NUMBERS // half[0, 0].size) / n_chains)
    return half[:, :: math.ceil(n_draws / kept)] if n_draws > kept else half
