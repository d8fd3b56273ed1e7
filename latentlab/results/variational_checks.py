"""Checks of variational approximations: k-hat, ELBO gap, drift."""

import math

import numpy as np
import scipy
import xarray as xr

from latentlab.results.checks import Row, check_row, not_applicable
from latentlab.results.loo import khat, khat_limit
from latentlab.results.tree import arrays

DRIFT = 1.0
"""Largest change of the ELBO over the last quarter, in nats; a shift of the approximation by 1.4 sd changes it by one nat."""
UNIT_DRIFT = 0.1
"""Largest change of the ELBO per unit, in nats, if parameters are fitted as points."""
GAP = 1.0
"""Smallest difference of importance-weighted ELBO and ELBO, in nats, for a warning."""
N_BATCHES = 20
BLOCK = 2000
"""Draws in each block; k-hat is averaged over the blocks."""


def variational_rows(data: xr.DataTree) -> list[Row]:
    why = "requires Markov chains; draws of a variational approximation are independent"
    rows = not_applicable(["R-hat", "bulk ESS", "tail ESS", "equal mean log density"], why)
    stats = arrays(data, "sample_stats")
    if "log_weights" in data.children:
        rows += _by_unit(arrays(data, "log_weights")["log_weight"])
    elif "lp" in stats and "log_q" in stats:
        has_averaged = "log_q_averaged" in stats
        averaged = has_averaged and bool(data.attrs.get("averaged", 1))
        raw = (stats["lp"] - stats["log_q"]).ravel()
        ratios = (stats["lp"] - stats["log_q_averaged"]).ravel() if has_averaged else raw
        n_blocks = max(1, ratios.size // BLOCK)
        limit = khat_limit(ratios.size // n_blocks)
        k, k_raw = (float(np.mean([khat(block) for block in np.array_split(r, n_blocks)])) for r in (ratios, raw))
        quantity = "q averaged over the symmetry" if averaged else "q"
        blocks = f"; mean over {n_blocks} blocks" if n_blocks > 1 else ""
        rows.append(check_row("k-hat", quantity + blocks, k, f"< {limit:.2f}", ok=k < limit))
        rows.append(("k-hat", "q without averaging over the symmetry", k_raw, "", "not applicable"))
        gap = float(scipy.special.logsumexp(ratios) - math.log(ratios.size) - ratios.mean())
        text = "importance-weighted ELBO - ELBO, in nats"
        rows.append(check_row("ELBO gap", text, gap, f"< {GAP:g}", ok=gap < GAP, otherwise="warn" if gap >= GAP else "fail"))
    optimization = arrays(data, "optimization")
    n_units = n_fitted(data) if "parameters" in data.children else None
    return [*rows, _drift(**optimization, n_units=n_units)] if "loss" in optimization else rows


def n_fitted(data: xr.DataTree) -> int:
    """Number of fitted points; larger than `n_points` if the data stay on disk."""
    return int(data.attrs.get("n_units_fitted", n_points(data)))


def n_points(data: xr.DataTree) -> int:
    """Number of points (in a table: units) in the result."""
    points = str(data.attrs.get("points", "unit"))
    return int(data["posterior"].sizes.get(points, data["observed_data"].sizes[points] if points != "unit" else 1))


def _by_unit(log_weights: np.ndarray) -> list[Row]:
    """Rows for k-hat and ELBO gap of an encoder, from each unit's log importance weights `(chain, draw, unit)`."""
    flat = log_weights.reshape(-1, log_weights.shape[-1])
    limit = khat_limit(len(flat))
    each = np.array([khat(unit) for unit in flat.T])
    share, k = float(np.mean(~(each < limit))), float(each.mean())
    quantity = f"encoder, mean over units; k-hat >= {limit:.2f} for {share:.0%} of the units"
    text = "importance-weighted ELBO - ELBO, in nats per unit"
    gap = float((scipy.special.logsumexp(flat, axis=0) - math.log(len(flat)) - flat.mean(axis=0)).mean())
    return [
        check_row("k-hat", quantity, k, f"< {limit:.2f}", ok=k < limit),
        check_row("ELBO gap", text, gap, f"< {GAP:g}", ok=gap < GAP, otherwise="warn"),
    ]


def _drift(loss: np.ndarray, elbo: np.ndarray | None = None, n_units: int | None = None) -> Row:
    """Row for the drift of the ELBO; of the ELBO per unit, with a tighter limit, if parameters are fitted (`n_units`)."""
    rise, error, n_steps = elbo_drift(loss[0 if elbo is None else int(elbo.argmax())])
    limit, unit = (DRIFT, "nats") if n_units is None else (UNIT_DRIFT, "nats per unit")
    rise, error = rise / (n_units or 1), error / (n_units or 1)
    low, high = rise - 3 * error, rise + 3 * error
    quantity = f"increase over the last {n_steps} steps, in {unit}; 3 standard errors are {3 * error:.2g}"
    ok, moved = bool(low > -limit and high < limit), bool(low > limit or high < -limit or math.isnan(rise))
    return check_row("ELBO drift", quantity, rise, f"within +/-{limit:g}", ok=ok, otherwise="fail" if moved else "warn")


def elbo_drift(loss: np.ndarray) -> tuple[float, float, int]:
    """Increase of the ELBO over the last quarter of the steps, its standard error, and the number of those steps.

    Least squares on up to `N_BATCHES` batch means. Equal values at the end, which pad a restart that stopped early, are left
    out. NaN with fewer than 3 batches.
    """
    changes = np.flatnonzero(loss != loss[-1])
    steps = loss[: changes[-1] + 2] if len(changes) else loss[:1]
    last = -steps[len(steps) - len(steps) // 4 :]
    n_batches = min(N_BATCHES, len(last))
    if n_batches < 3:
        return math.nan, math.nan, len(last)
    size = len(last) // n_batches
    means = last[len(last) - n_batches * size :].reshape(n_batches, size).mean(axis=1)
    t = np.arange(n_batches) - (n_batches - 1) / 2
    slope = float(t @ means / (t @ t))
    residual = means - means.mean() - slope * t
    error = math.sqrt(float(residual @ residual) / (n_batches - 2) / float(t @ t))
    return slope * n_batches, error * n_batches, len(last)
