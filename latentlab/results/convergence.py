r"""Convergence statistics of draws.

* R-hat: rank-normalised split R-hat, the maximum over the draws and the folded draws (Vehtari et al. 2021).
* ESS: bulk ESS of the rank-normalised draws; tail ESS, the minimum over the indicators of the two 5% tails.
* MCSE: $s / \sqrt{\mathrm{ESS}}$ for the mean. For the sd, by the delta method, the MCSE of the mean of $(x - \bar x)^2$
  divided by $2 s$.

A statistic is NaN if the draws are constant, not finite or too few; R-hat is NaN also with one chain.

References:
    Vehtari, Gelman, Simpson, Carpenter & Buerkner (2021), Rank-normalization, folding, and localization, Bayesian Analysis
    16:667.
"""

from typing import Any

import numpy as np
import scipy
import xarray as xr

from latentlab.data.memory import by_quantity
from latentlab.errors import DataError
from latentlab.results.arviz import installed_arviz
from latentlab.results.tree import SAMPLE_DIMS

MIN_DRAWS = 4
CONSTANT = 1e-12
"""Draws count as constant, up to rounding, if their range is at most this share of their largest magnitude."""


def rhat(x: np.ndarray) -> np.ndarray:
    """Rank-normalised split R-hat of each quantity; `(chain, draw, *shape)` -> `shape`.

    It is 1 at convergence, NaN with one chain, and very large or infinite if constant chains differ.
    """
    return _each(x, lambda flat: _per_quantity(installed_arviz().rhat, flat), n_chains=2)


def nested_rhat(x: np.ndarray, n_superchains: int) -> np.ndarray:
    r"""Nested R-hat of each quantity, for many short chains; `(chain, draw, *shape)` -> `shape`.

    $\sqrt{1 + B / W}$, with B the variance of the means of the superchains. W is the mean over superchains of the variance of
    the chain means plus the mean variance within chains. The larger of two values is returned: for the rank-normalised draws,
    and for their rank-normalised distances to the median. A superchain consists of consecutive chains with one starting point.

    References:
        Margossian et al. 2024, Nested R-hat, Bayesian Analysis. Vehtari et al. 2021, Rank-normalization, folding, and
        localization, Bayesian Analysis 16:667.
    """

    def nested(flat: np.ndarray) -> np.ndarray:
        ranks = scipy.stats.rankdata(flat.reshape(-1, flat.shape[-1]), axis=0).reshape(flat.shape)
        z = scipy.special.ndtri((ranks - 0.375) / (flat.shape[0] * flat.shape[1] + 0.25))
        chain_means = z.mean(axis=1).reshape(n_superchains, -1, flat.shape[-1])
        within = z.var(axis=1, ddof=1).reshape(chain_means.shape) if flat.shape[1] > 1 else np.zeros_like(chain_means)
        between = chain_means.var(axis=1, ddof=1) if chain_means.shape[1] > 1 else np.zeros_like(chain_means[:, 0])
        between_superchains = chain_means.mean(axis=1).var(axis=0, ddof=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.sqrt(1 + between_superchains / (between + within.mean(axis=1)).mean(axis=0))

    def larger(flat: np.ndarray) -> np.ndarray:
        return np.maximum(nested(flat), nested(np.abs(flat - np.median(flat, axis=(0, 1)))))

    return _each(x, larger, n_chains=2)


def ess_bulk(x: np.ndarray) -> np.ndarray:
    """Bulk effective sample size of each quantity; `(chain, draw, *shape)` -> `shape`."""
    return _each(x, lambda flat: _per_quantity(installed_arviz().ess, flat, method="bulk"))


def ess_tail(x: np.ndarray) -> np.ndarray:
    """Tail effective sample size of each quantity: the minimum over the two 5% tails; `(chain, draw, *shape)` -> `shape`."""

    def tails(flat: np.ndarray) -> np.ndarray:
        low, high = np.quantile(flat, [0.05, 0.95], axis=(0, 1))
        return np.fmin(_each(flat <= low, _ess_mean), _each(flat >= high, _ess_mean))

    return _each(x, tails)


def ess_mean(x: np.ndarray) -> np.ndarray:
    """Effective sample size for the mean of each quantity; `(chain, draw, *shape)` -> `shape`."""
    return _each(x, _ess_mean)


def mcse_mean(x: np.ndarray) -> np.ndarray:
    """Monte Carlo standard error of the mean of each quantity; `(chain, draw, *shape)` -> `shape`."""
    return _each(x, lambda flat: flat.std(axis=(0, 1), ddof=1) / np.sqrt(_ess_mean(flat)), scaled=True)


def mcse_sd(x: np.ndarray) -> np.ndarray:
    """Monte Carlo standard error of the standard deviation of each quantity; `(chain, draw, *shape)` -> `shape`."""

    def error(flat: np.ndarray) -> np.ndarray:
        squares = (flat - flat.mean(axis=(0, 1))) ** 2
        variance = squares.mean(axis=(0, 1))
        return np.sqrt(squares.var(axis=(0, 1)) / _each(squares, _ess_mean) / variance) / 2

    return _each(x, error, scaled=True)


def is_constant(x: np.ndarray) -> np.ndarray:
    """Whether a quantity is constant, up to rounding, over all chains and draws; `(chain, draw, *shape)` -> `shape`."""
    highest, lowest = x.max(axis=(0, 1)), x.min(axis=(0, 1))
    return np.asarray(highest - lowest <= CONSTANT * np.maximum(np.abs(highest), np.abs(lowest)))


def _each(x: np.ndarray, statistic: Any, *, n_chains: int = 1, scaled: bool = False) -> np.ndarray:
    """Compute a statistic of each quantity after rescaling it to [0, 1]; NaN if it is constant, not finite or too short.

    If `scaled`, the statistic is multiplied by the quantity's range.
    """
    values = np.asarray(x)
    if values.ndim < 2:
        raise DataError(f"draws must have shape (chain, draw, ...); got {values.shape}.")
    if values.shape[0] < n_chains or values.shape[1] < MIN_DRAWS:
        return np.full(values.shape[2:], np.nan)

    def of_part(part: np.ndarray) -> np.ndarray:
        flat, result = part.astype(np.float64, copy=False), np.full(part.shape[-1], np.nan)
        valid = np.flatnonzero(np.isfinite(flat).all(axis=(0, 1)))
        valid = valid[~is_constant(flat[..., valid])] if len(valid) else valid
        if len(valid):
            low, high = flat[..., valid].min(axis=(0, 1)), flat[..., valid].max(axis=(0, 1))
            with np.errstate(divide="ignore", invalid="ignore"):
                result[valid] = statistic((flat[..., valid] - low) / (high - low)) * ((high - low) if scaled else 1.0)
        return result

    return by_quantity(of_part, values.reshape(*values.shape[:2], -1)).reshape(values.shape[2:])


def _per_quantity(function: Any, flat: np.ndarray, **options: Any) -> np.ndarray:
    dataset = xr.Dataset({"x": ((*SAMPLE_DIMS, "quantity"), flat)})
    return np.asarray(function(dataset, **options)["x"].values, dtype=np.float64)


def _ess_mean(flat: np.ndarray) -> np.ndarray:
    return _per_quantity(installed_arviz().ess, flat, method="mean")
