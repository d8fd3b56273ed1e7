r"""Importance sampling with Pareto-smoothed weights: k-hat, and leave-one-out cross-validation.

* k-hat: shape of the generalised Pareto distribution fitted to the largest importance ratios (Vehtari et al. 2024).
* LOO: $\sum_i \log p(x_i \mid x_{-i})$ by importance sampling with Pareto-smoothed weights (Vehtari, Gelman & Gabry 2017).

References:
    Vehtari, Simpson, Gelman, Yao & Gabry (2024), Pareto smoothed importance sampling, JMLR 25(72). Vehtari, Gelman & Gabry
    (2017), Practical Bayesian model evaluation using leave-one-out cross-validation and WAIC, Statistics and Computing 27:1413.
"""

import math
from dataclasses import dataclass

import numpy as np
import scipy
import xarray as xr

from latentlab.data.memory import by_quantity, n_not_finite
from latentlab.errors import InferenceError, ModelError
from latentlab.results.arviz import psis
from latentlab.results.convergence import ess_mean
from latentlab.results.tree import arrays

MIN_RATIOS = 25
"""Smallest number of importance ratios; with fewer, the tail has fewer than the 5 values that its fit requires."""
EQUAL = 1e-9
"""Largest difference (nats) at which log ratios count as equal up to rounding."""


def pareto_smoothed(log_ratios: np.ndarray, reff: float) -> tuple[np.ndarray, np.ndarray]:
    """Compute Pareto-smoothed, normalised log weights `(n, draw)` and k-hat `(n,)` of each row of log ratios `(n, draw)`.

    k-hat is 0 if all ratios of a row are equal, and infinite if no Pareto tail can be fitted.
    """
    weights, khats = log_ratios - log_ratios.max(axis=1, keepdims=True), np.zeros(len(log_ratios))
    for i in np.flatnonzero(weights.min(axis=1) < -EQUAL):
        try:
            weights[i], khats[i] = psis(weights[i], reff)
        except ValueError:
            khats[i] = np.inf
    return weights - scipy.special.logsumexp(weights, axis=1, keepdims=True), khats


def khat(log_ratios: np.ndarray, *, reff: float = 1.0) -> float:
    r"""Pareto k-hat of importance ratios $\log p - \log q$ at draws of q; below `khat_limit`, q is close enough to p.

    0 if all ratios are equal up to rounding (q is the posterior). NaN with fewer than 25 ratios, a NaN, or an infinite maximum.

    Args:
        log_ratios: Shape `(draw,)` or `(chain, draw)`; minus infinity at draws of posterior density 0.
        reff: Relative efficiency, the effective sample size over the number of draws; 1 for independent draws.

    Example:
        >>> normal = np.random.default_rng(0).normal(size=4000)
        >>> narrow = -normal**2 / 2 / 4 + normal**2 / 2       # p has sd 2, q has sd 1: k is 1 - 1/4
        >>> 0.6 < khat(narrow) < 0.9, khat(-narrow) < 0.5
        (True, True)
    """
    ratios = np.asarray(log_ratios, dtype=np.float64).ravel()
    if ratios.size < MIN_RATIOS or np.isnan(ratios).any() or not np.isfinite(ratios.max()):
        return math.nan
    return float(pareto_smoothed(ratios[None], reff)[1][0])


def khat_limit(n_draws: int) -> float:
    """Largest k-hat at which estimates from S = `n_draws` draws are reliable: min(1 - 1 / log10 S, 0.7)."""
    return min(1 - 1 / math.log10(n_draws), 0.7) if n_draws > 10 else 0.0


@dataclass(frozen=True)
class Loo:
    """Leave-one-out predictive accuracy.

    Attributes:
        elpd: Sum over units of log p(unit | the others); larger is better.
        se: Its standard error over units.
        p_loo: Effective number of parameters: log pointwise predictive density minus `elpd`.
        pointwise: Each unit's term, `(unit,)`.
        khat: Each unit's Pareto k-hat, `(unit,)`; above `limit` its term is unreliable.
        limit: The largest reliable k-hat for this number of draws.
        conditional: Whether units are scored given their own positions; `khat` is then large and `elpd` too high.
    """

    elpd: float
    se: float
    p_loo: float
    pointwise: np.ndarray
    khat: np.ndarray
    limit: float
    conditional: bool


def loo(tree: xr.DataTree) -> Loo:
    r"""Leave-one-out cross-validation over units by Pareto-smoothed importance sampling; over sequences if there are several.

    Draws from the posterior are weighted by $1 / p(x_i \mid \theta)$. Draws from a variational approximation are also weighted
    by $p(\theta, x) / q(\theta)$: the estimand is the same, and k-hat also detects a poor approximation. In a series the units
    depend on each other, and $p(x_i \mid x_{-i}, \theta)$ replaces $p(x_i \mid \theta)$.

    Raises:
        ModelError: There is no log likelihood, or sites or parameters are point estimates.
        InferenceError: A density is not finite, or there are too few draws.

    References:
        Magnusson, Andersen, Jonasson & Vehtari (2019), Bayesian leave-one-out cross-validation for large data, ICML.
    """
    if tree.attrs.get("point_estimate"):
        raise ModelError("LOO requires posterior draws; this fit is a point estimate.")
    if "parameters" in tree.children:
        raise ModelError("LOO requires draws of all parameters; here they are point estimates. Use held-out units instead.")
    left_out = arrays(tree, "leave_one_out")
    draws = next(iter((left_out or arrays(tree, "log_likelihood")).values()), None)
    if draws is None:
        raise ModelError("LOO requires the group 'log_likelihood'; the result has none.")
    log_likelihood = draws.reshape(*draws.shape[:2], -1)
    n_draws, log_weights = math.prod(draws.shape[:2]), _approximation(tree)
    if n_draws < MIN_RATIOS:
        raise InferenceError(f"LOO requires at least {MIN_RATIOS} draws; got {n_draws}.")
    if n_not_finite(draws) or (log_weights is not None and not np.isfinite(log_weights).all()):
        raise InferenceError(
            "LOO requires finite log densities; the log likelihood or log p - log q is not finite in some draws."
        )
    if log_weights is None:
        importance, reff = np.zeros(n_draws), _efficiency(log_likelihood)
    else:
        importance, reff = log_weights, 1.0

    def of_points(part: np.ndarray) -> np.ndarray:
        flat = np.ascontiguousarray(part.reshape(n_draws, -1).T)
        weights, khats = pareto_smoothed(importance - flat, reff)
        pointwise = scipy.special.logsumexp(weights + flat, axis=-1)
        return np.stack([pointwise, scipy.special.logsumexp(flat + _normalized(importance), axis=-1), khats])

    pointwise, in_sample, khats = by_quantity(of_points, log_likelihood)
    n_units = len(pointwise)
    return Loo(
        elpd=float(pointwise.sum()),
        se=float(np.sqrt(n_units) * pointwise.std(ddof=1)) if n_units > 1 else math.nan,
        p_loo=float((in_sample - pointwise).sum()),
        pointwise=pointwise,
        khat=khats,
        limit=khat_limit(n_draws),
        conditional=bool(tree.attrs.get("conditional_log_likelihood", 0)),
    )


def _approximation(tree: xr.DataTree) -> np.ndarray | None:
    """log p - log q at draws from a variational approximation, with q averaged over the symmetry; None for other draws."""
    stats = arrays(tree, "sample_stats")
    return (stats["lp"] - stats["log_q_averaged"]).ravel() if "log_q_averaged" in stats else None


def _normalized(log_weights: np.ndarray) -> np.ndarray:
    return log_weights - scipy.special.logsumexp(log_weights)


def _efficiency(log_likelihood: np.ndarray) -> float:
    """Relative efficiency of the likelihood: ESS over the number of draws, averaged over units; 1 if it is undefined."""
    ess = by_quantity(lambda part: ess_mean(np.exp(part - part.max(axis=(0, 1)))), log_likelihood)
    efficiency = ess / math.prod(log_likelihood.shape[:2])
    return float(np.nanmean(efficiency)) if np.isfinite(efficiency).any() else 1.0
