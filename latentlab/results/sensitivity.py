r"""Sensitivity of a posterior to powers of the prior and of the likelihood.

References:
    Kallioinen, Paananen, Buerkner & Vehtari (2023), Detecting and diagnosing prior and likelihood sensitivity with
    power-scaling, Statistics and Computing 34:57.
"""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
import xarray as xr

from latentlab.errors import ModelError
from latentlab.results.convergence import is_constant
from latentlab.results.loo import pareto_smoothed
from latentlab.results.tree import arrays, kinds

SENSITIVE = 0.05
"""Sensitivity from which a quantity counts as sensitive to the prior or the likelihood (Kallioinen et al.)."""
N_SHIFTS = 4
"""Number of shifts of the weights along the draws, which estimate the sensitivity of a quantity independent of the weights."""
NOISE = 2.0
"""Multiple of the mean sensitivity over these shifts below which a sensitivity counts as Monte Carlo error."""
K_HAT = 0.7
"""Pareto k-hat of the weights above which sensitivities are not reliable."""


def power_sensitivity(tree: xr.DataTree, quantities: Mapping[str, np.ndarray], *, delta: float = 0.01) -> pd.DataFrame:
    r"""Sensitivity of each quantity's posterior to raising the prior or the likelihood to a power near 1.

    Draws are weighted by $p^{\alpha - 1}$ with $\alpha = 1 + \delta$ and $1 / (1 + \delta)$; the weights are Pareto-smoothed.
    The sensitivity is the cumulative Jensen-Shannon distance of the weighted from the unweighted distribution, divided by
    $|\log_2 \alpha|$ and averaged over both powers. Priors of the positions (sites with a dim of units) are part of the model
    and are not scaled.

    In finite samples, variable weights alone give a positive distance. Its size is estimated by shifting the weights along the
    draws, which removes any dependence on the quantity and keeps autocorrelation. A sensitivity below `NOISE` times this size
    is treated as zero. If the k-hat of the weights is above `K_HAT`, the diagnosis is `unreliable`.

    Args:
        tree: A result with the groups `log_prior` and `log_likelihood`.
        quantities: Identified quantities by name, `(chain, draw, ...)`.
        delta: Relative change of the power.

    Returns:
        One row per entry: quantity, prior, likelihood (NaN where it is constant), diagnosis.

    Raises:
        ModelError: A group is missing, or numbers of draws differ.
    """
    powered = {part: _powered(_component(tree, part), delta) for part in ("prior", "likelihood")}
    weights = {part: found[0] for part, found in powered.items()}
    names, columns = [], []
    for name, values in quantities.items():
        flat = np.asarray(values, dtype=np.float64)
        entries = [""] if flat.ndim == 2 else [f"[{', '.join(map(str, i))}]" for i in np.ndindex(flat.shape[2:])]
        flat = flat.reshape(math.prod(flat.shape[:2]), -1)
        if len(flat) != weights["prior"].shape[1]:
            raise ModelError(f"quantity {name!r} has {len(flat)} draws; the groups have {weights['prior'].shape[1]}.")
        names += [name + entry for entry in entries]
        columns.append(flat)
    x = np.concatenate(columns, axis=1)
    table = {part: _sensitivity(x, both, delta) for part, both in weights.items()}
    counts = {part: _counts(table[part], x, both, delta) for part, both in weights.items()}
    unreliable = " and ".join(f"{part} {k:.2g}" for part, (_, k) in powered.items() if not k <= K_HAT)
    diagnosis = np.select(
        [np.full(len(names), bool(unreliable)), counts["prior"] & counts["likelihood"], counts["prior"]],
        [f"unreliable: k-hat of the weights, {unreliable}", "prior and data may conflict", "strong prior or weak likelihood"],
        default="",
    )
    return pd.DataFrame({"quantity": names, **table, "diagnosis": diagnosis})


def _component(tree: xr.DataTree, part: str) -> np.ndarray:
    group = f"log_{part}"
    if group not in tree.children:
        raise ModelError(f"power-scaling requires the group {group!r}; the result has none.")
    sites = tree["posterior"].data_vars
    units = set(kinds(tree)) if part == "prior" else set()
    positions = {str(name) for name, site in sites.items() if not units.isdisjoint(map(str, site.dims))}
    terms = [array for name, array in arrays(tree, group).items() if name not in positions]
    return np.asarray(sum(term.reshape(math.prod(term.shape[:2]), -1).sum(axis=1) for term in terms))


def _powered(component: np.ndarray, delta: float) -> tuple[np.ndarray, float]:
    """Pareto-smoothed weights `(2, draw)` for the lower and the upper power, and the larger of their k-hats."""
    alphas = np.array([1 / (1 + delta), 1 + delta])[:, None]
    smoothed, khat = pareto_smoothed((alphas - 1) * component, 1.0)[:2]
    return np.exp(smoothed), float(np.max(khat))


def _counts(found: np.ndarray, x: np.ndarray, weights: np.ndarray, delta: float) -> np.ndarray:
    """Whether each sensitivity is at least `SENSITIVE`, and more than Monte Carlo error."""
    shifts = [(i + 1) * len(x) // (N_SHIFTS + 1) for i in range(N_SHIFTS)]
    noise = np.mean([_sensitivity(x, np.roll(weights, shift, axis=1), delta) for shift in shifts], axis=0)
    return (found >= SENSITIVE) & (found > NOISE * noise)


def _sensitivity(x: np.ndarray, weights: np.ndarray, delta: float) -> np.ndarray:
    constant = is_constant(x[None])
    found = [np.maximum(_cjs(x, w), _cjs(-x, w)) for w in weights]
    return np.where(constant, np.nan, (found[0] + found[1]) / (2 * np.log2(1 + delta)))


def _cjs(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Cumulative Jensen-Shannon distance `(n,)` of the weighted from the unweighted distribution of draws `(draw, n)`."""
    order = np.argsort(x, axis=0)
    width = np.diff(np.take_along_axis(x, order, axis=0), axis=0)
    p = (np.arange(1, len(x)) / len(x))[:, None]
    q = np.clip(np.cumsum(weights[order], axis=0)[:-1], np.finfo(float).tiny, 1.0)
    middle = np.log2((p + q) / 2)
    half = 0.5 / np.log(2) * (q - p)
    pq = (width * (p * (np.log2(p) - middle) + half)).sum(axis=0)
    qp = (width * (q * (np.log2(q) - middle) - half)).sum(axis=0)
    bound = (width * (p + q)).sum(axis=0)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.sqrt((np.maximum(pq, 0) + np.maximum(qp, 0)) / bound))
