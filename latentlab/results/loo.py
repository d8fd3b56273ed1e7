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

from latentlab.errors import InferenceError, ModelError
from latentlab.results.arviz import psis
from latentlab.results.convergence import ess_mean
from latentlab.results.tree import arrays

MIN_RATIOS = 25
"""With fewer importance ratios the tail holds fewer than the 5 that a fit needs."""
EQUAL = 1e-9
"""Log ratios (nats) that differ by no more than this are equal up to rounding."""


def pareto_smoothed(log_ratios: np.ndarray, reff: float) -> tuple[np.ndarray, np.ndarray]:
    """Pareto-smoothed, normalised log weights and k-hat of each row `(n, draw)`: `(n, draw)`, `(n,)`.

    Equal ratios need no smoothing and have k-hat 0; a tail of equal ratios below others has none that can be fitted: infinity.
    """
    weights, khats = log_ratios - log_ratios.max(axis=1, keepdims=True), np.zeros(len(log_ratios))
    for i in np.flatnonzero(weights.min(axis=1) < -EQUAL):
        try:
            weights[i], khats[i] = psis(weights[i], reff)
        except ValueError:
            khats[i] = np.inf
    return weights - scipy.special.logsumexp(weights, axis=1, keepdims=True), khats


def khat(log_ratios: np.ndarray, *, reff: float = 1.0) -> float:
    r"""Pareto k-hat of importance ratios $\log p - \log q$ at draws of q; below `khat_limit` the two are close enough.

    0 where all ratios are equal up to rounding (q is the posterior); NaN where they are not finite or fewer than 25.

    Args:
        log_ratios: `(draw,)`, or with chains; minus infinity is a draw that the posterior excludes.
        reff: Share of the draws that is effective, for draws that are not independent.

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
    """The k-hat up to which `n_draws` draws give estimates with the usual error: min(1 - 1 / log10 S, 0.7)."""
    return min(1 - 1 / math.log10(n_draws), 0.7) if n_draws > 10 else 0.0


@dataclass(frozen=True)
class Loo:
    """Leave-one-out predictive accuracy.

    Attributes:
        elpd: Sum over units of log p(unit | the others); larger is better.
        se: Its standard error over units.
        p_loo: Effective number of parameters: log density of the data less `elpd`.
        pointwise: Each unit's term, `(unit,)`.
        khat: Each unit's Pareto k-hat, `(unit,)`; above `limit` its term is not to be relied on.
        limit: The largest k-hat that this number of draws can do with.
        conditional: Whether units were scored given their own positions: then `khat` is large and `elpd` too high.
    """

    elpd: float
    se: float
    p_loo: float
    pointwise: np.ndarray
    khat: np.ndarray
    limit: float
    conditional: bool


def loo(tree: xr.DataTree) -> Loo:
    r"""Leave-one-out over units by Pareto-smoothed importance sampling; over sequences where there are several series.

    Draws of the posterior are weighted by $1 / p(x_i \mid \theta)$; draws of a variational approximation also by
    $p(\theta, x) / q(\theta)$, so that what is estimated is the same, and k-hat sees a bad approximation too. In a series the
    units depend on each other, and $p(x_i \mid x_{-i}, \theta)$ stands in place of $p(x_i \mid \theta)$.

    Raises:
        ModelError: No log likelihood, or a point estimate.
        InferenceError: A density is not finite, or there are too few draws.

    References:
        Magnusson, Andersen, Jonasson & Vehtari (2019), Bayesian leave-one-out cross-validation for large data, ICML.
    """
    if tree.attrs.get("point_estimate"):
        raise ModelError("a point estimate has no LOO: there is no posterior to leave a unit out of.")
    if "parameters" in tree.children:
        raise ModelError("parameters that are points have no LOO: there is no posterior to leave a unit out of; hold units out.")
    left_out = arrays(tree, "leave_one_out")
    draws = next(iter((left_out or arrays(tree, "log_likelihood")).values()), None)
    if draws is None:
        raise ModelError("LOO needs the group 'log_likelihood'.")
    log_likelihood = draws.reshape(*draws.shape[:2], -1)
    flat = np.ascontiguousarray(log_likelihood.reshape(-1, log_likelihood.shape[-1]).T)
    base = _approximation(tree)
    if flat.shape[1] < MIN_RATIOS:
        raise InferenceError(f"LOO needs at least {MIN_RATIOS} draws; there are {flat.shape[1]}.")
    if not (np.isfinite(flat).all() and (base is None or np.isfinite(base).all())):
        raise InferenceError("LOO needs a finite log likelihood (and densities of p and q): some draws have none.")
    if base is None:
        base, reff = np.zeros(flat.shape[1]), _efficiency(log_likelihood)
    else:
        reff = 1.0
    weights, khats = pareto_smoothed(base - flat, reff)
    pointwise = scipy.special.logsumexp(weights + flat, axis=-1)
    whole = scipy.special.logsumexp(flat + _normalized(base), axis=-1)
    n_units = len(pointwise)
    return Loo(
        elpd=float(pointwise.sum()),
        se=float(np.sqrt(n_units) * pointwise.std(ddof=1)) if n_units > 1 else math.nan,
        p_loo=float((whole - pointwise).sum()),
        pointwise=pointwise,
        khat=khats,
        limit=khat_limit(flat.shape[1]),
        conditional=bool(tree.attrs.get("conditional_log_likelihood", 0)),
    )


def _approximation(tree: xr.DataTree) -> np.ndarray | None:
    """log p - log q of a variational approximation's draws, q averaged over the symmetry; None for other draws."""
    stats = arrays(tree, "sample_stats")
    return (stats["lp"] - stats["log_q_averaged"]).ravel() if "log_q_averaged" in stats else None


def _normalized(log_weights: np.ndarray) -> np.ndarray:
    return log_weights - scipy.special.logsumexp(log_weights)


def _efficiency(log_likelihood: np.ndarray) -> float:
    """ESS of the likelihood over its draws, the mean over units; 1 where it cannot be told."""
    likelihood = np.exp(log_likelihood - log_likelihood.max(axis=(0, 1)))
    found = ess_mean(likelihood) / math.prod(log_likelihood.shape[:2])
    return float(np.nanmean(found)) if np.isfinite(found).any() else 1.0
