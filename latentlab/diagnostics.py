r"""Did inference work: a table of checks with verdicts, on what the model's symmetry leaves identified.

MCMC. R-hat (nested R-hat where many short chains start from a few points), ESS and MCSE are taken on the group's invariants,
the log density and the log likelihood; the sites as drawn are shown as `raw coordinates`, without a verdict. An entry that stays
where it is in some chain fails, unless it is declared deterministic; an invariant that is constant because it is so by
construction (weights sum to 1) is left out.

*One level of log density.* Chains in modes of different weight can agree on every quantity that is looked at. Their mean log
densities are compared by Welch's analysis of variance with each chain's effective number of draws for its size: the p-value is
uniform for chains that share a distribution. The check fails below `LEVEL`, so for 1 sound fit in 1000. (Measured on 15 000
simulated fits a case, 2 to 8 chains, normal and gamma densities: 0.7 to 1.3 in 1000 with 100 effective draws a chain or more,
2.8 with 30.) Where `exchanges` is larger than the symmetry (a stick-breaking mixture), the log density depends on the order of
the parts; the log likelihood, which does not, is compared in its place.

*Modes.* Chains that sit in different modes are told apart by name (`latentlab.modes`), and are never averaged: the check fails.
Where the modes are images of one another under a larger group than the declared one, the row names the group.

*Symmetry*, of every method. The log joint is evaluated under elements of the declared group (`inference.invariance`): the check
fails where it changes by more than rounding, and warns where a larger group leaves it unchanged.

Variational. With r = log p - log q over draws of q, and q averaged over the group: k-hat of exp(r), the mean over blocks of
2000 draws, since one k-hat of all has a standard error of about 0.1 and lets some bad fits pass (measured on mean-field fits to
a normal pair, 40 fits of 20 000 draws a case: at a correlation of 0.95 or 0.99 it passes 3 of 40 and the mean over blocks none;
at 0.5 both pass all); and
log mean exp(r) - mean(r), the importance-weighted ELBO less the ELBO, which estimates KL(q || p) from below. Drift is the
rise of the ELBO over the last quarter of the steps, by least squares on batch means, with three of its standard errors.

Point estimates have no spread; their gradient is looked at.

All fits: the scale of the data against that of the prior predictive (`latentlab.prior_data`), and warnings about model and data
(`LatentModel.cautions`).

References:
    Welch (1951), On the comparison of several mean values, Biometrika 38:330. Yao, Vehtari, Simpson & Gelman (2018), Yes, but
    did it work?, ICML. Burda, Grosse & Salakhutdinov (2016), Importance weighted autoencoders, ICLR. Betancourt (2016),
    Diagnosing suboptimal cotangent disintegrations in Hamiltonian Monte Carlo, arXiv:1604.00695 (E-BFMI).
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy
import xarray as xr

from latentlab.errors import InferenceError, ModelError
from latentlab.modes import chain_modes, images, restart_modes, said
from latentlab.posterior import (
    arrays,
    ess_bulk,
    ess_mean,
    ess_tail,
    khat,
    khat_limit,
    kinds,
    loo,
    mcse_mean,
    mcse_sd,
    nested_rhat,
    power_sensitivity,
    rhat,
)
from latentlab.prior_data import prior_rows
from latentlab.quantities import entries, identified, is_count, labels_of
from latentlab.symmetry.group import Group

RHAT = 1.01
ESS = 400
MCSE = 0.1
"""Largest Monte Carlo error in units of the quantity's own sd."""
BFMI = 0.3
LEVEL = 0.001
"""The p-value below which chains are at different levels: the false alarm rate."""
SATURATED = 0.01
"""Share of iterations at the largest tree depth up to which the check warns instead of failing: it costs, it does not bias."""
DRIFT = 1.0
"""Nats that the ELBO may move over the last quarter: a nat moves the approximation by about a posterior sd in one direction."""
UNIT_DRIFT = 0.1
"""Likewise, of a unit's ELBO, where what still moves are parameters and not an approximation of their posterior."""
GAP = 1.0
"""Nats of importance-weighted ELBO over ELBO above which the check warns."""
N_BATCHES = 20
BLOCK = 2000
"""Draws of an approximation for each k-hat, of which the mean is judged."""
GRADIENT = 1e-3
"""Largest derivative at a point estimate: of the log density, or of the mean log likelihood of a unit."""

DENSITIES = ("lp", "log_q", "log_q_averaged")
"""What of `sample_stats` must be finite; the energy of a diverging trajectory need not be."""

COLUMNS = ("check", "quantity", "value", "threshold", "verdict")

Row = tuple[str, str, Any, str, str]


def diagnose(
    data: xr.DataTree, *, group: Group, dims: Mapping[str, Sequence[str]], position: str, lp_is_invariant: bool = True
) -> pd.DataFrame:
    """All checks that go with how the draws were made.

    Args:
        data: The result of a fit, as `posterior.build` makes it, with the attribute `inference`: mcmc, vi or point.
        group: The model's symmetry.
        dims: Own dims of the sites.
        position: The site that is the latent position; one that holds whole numbers is read as labels.
        lp_is_invariant: Whether the group leaves the log density as it is; else the log likelihood is judged in its place.

    Returns:
        A row a check: check, quantity, value (a number, or a text saying why there is none), threshold, verdict (pass, warn,
        fail, not applicable).

    Example:
        >>> from latentlab.posterior import build
        >>> from latentlab.symmetry.groups import Identity
        >>> draws = np.random.default_rng(0).normal(size=(4, 1000))
        >>> data = build({"posterior": {"mu": draws}}, dims={"mu": ()}, attrs={"inference": "mcmc"})
        >>> table = diagnose(data, group=Identity(), dims={"mu": ()}, position="mu")
        >>> table.set_index("check").verdict[["R-hat", "bulk ESS"]].tolist()
        ['pass', 'pass']
    """
    rows = _finite(data)
    kind = str(data.attrs.get("inference", "mcmc"))
    values = {name: array for name, array in arrays(data, "posterior").items() if name in dims}
    declared: dict[str, Any] = {"group": group, "dims": dims, "position": position}
    if kind == "point" or data.attrs.get("point_estimate"):
        rows += _point(data) + _restarts(data, declared)
    elif kind == "vi":
        rows += _variational(data) + _restarts(data, declared)
    else:
        own = {name: tuple(dims[name]) for name in values}
        densities = _densities(data, lp=lp_is_invariant)
        rows += _series(data, values, own, group, position, densities) + _levels(data, lp=lp_is_invariant)
        rows += _chains(data, declared) + _sampler(data)
        rows += _raw(values, own, group)
    rows += _symmetry(data) + _active(data) + prior_rows(data) + _cautions(data) + _loo(data, kind)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def converged(table: pd.DataFrame) -> bool:
    """Whether no check failed, and every check that counts has a number."""
    counted = table[table["verdict"] != "not applicable"]
    numbers = pd.to_numeric(counted["value"], errors="coerce")
    return bool(len(counted)) and bool(counted["verdict"].isin(["pass", "warn"]).all()) and not bool(numbers.isna().any())


def sensitivity(data: xr.DataTree, *, group: Group, dims: Mapping[str, Sequence[str]], position: str) -> pd.DataFrame:
    """How much what the symmetry leaves identified changes when the prior, or the likelihood, is made a little stronger.

    By power-scaling (`posterior.power_sensitivity`); the positions are left out, whose prior is part of the model.

    Returns:
        A row a quantity, the most sensitive to the prior first: quantity, prior, likelihood, diagnosis.

    Raises:
        ModelError: A point estimate, or densities were not kept (of all units, where the data stay on disk).
    """
    if data.attrs.get("point_estimate"):
        raise ModelError("a point estimate has no spread whose sensitivity to the prior could be told.")
    n_kept = _n_points(data)
    if _n_fitted(data) > n_kept:
        raise ModelError(f"the sensitivity needs the log likelihood of all {_n_fitted(data)} units; it was kept of {n_kept}.")
    placed = {name for name, own in dims.items() if not set(own).isdisjoint(kinds(data))}
    values = {n: array for n, array in arrays(data, "posterior").items() if n in dims and n != position and n not in placed}
    quantities = identified(values, {name: tuple(dims[name]) for name in values}, group, position)
    names, flat = entries(quantities, labels_of(data, dims, group), data["posterior"].sizes)
    if not names:
        raise ModelError("no quantity varies over the draws.")
    table = power_sensitivity(data, {name: flat[..., i] for i, name in enumerate(names)})
    return table.dropna(subset=["prior"]).sort_values("prior", ascending=False, kind="stable", ignore_index=True)


# -- rows


def _row(check: str, quantity: str, value: float, threshold: str, *, ok: bool, otherwise: str = "fail") -> Row:
    return check, quantity, float(value), threshold, "pass" if ok else otherwise


def _not_applicable(checks: Iterable[str], why: str) -> list[Row]:
    return [(check, "", why, "", "not applicable") for check in checks]


def _finite(data: xr.DataTree) -> list[Row]:
    rows = []
    for group in ("posterior", "latents", "sample_stats", "log_likelihood", "log_weights", "log_prior"):
        for name, array in arrays(data, group).items():
            n_bad = int((~np.isfinite(array.astype(np.float64))).sum())
            if n_bad and (group != "sample_stats" or name in DENSITIES):
                rows.append(_row("finite", f"{group}: {name}", n_bad, "0", ok=False))
    return rows or [_row("finite", "posterior and densities", 0, "0", ok=True)]


# -- MCMC


def _series(
    data: xr.DataTree,
    values: Mapping[str, np.ndarray],
    dims: Mapping[str, tuple[str, ...]],
    group: Group,
    position: str,
    densities: dict[str, np.ndarray],
) -> list[Row]:
    declared = set(filter(None, re.split(r",\s*", str(data.attrs.get("deterministic", "")))))
    watched = {**values, **densities}
    stuck = _stuck(watched, declared)
    quantities = {} if stuck else identified(values, dims, group, position) | densities
    names, flat = entries(quantities, labels_of(data, dims, group), data["posterior"].sizes)
    counted = [is_count(name, position) for name in names]
    n_chains = flat.shape[0]
    n_superchains = int(data.attrs.get("n_superchains", 1))
    checks: list[tuple[str, np.ndarray, str, Any, Any]] = [
        ("R-hat", rhat(flat), f"< {RHAT:g}", lambda v: v < RHAT, np.argmax),
        ("bulk ESS", ess_bulk(flat), f">= {ESS:g}", lambda v: v >= ESS, np.argmin),
        ("tail ESS", ess_tail(flat), f">= {ESS:g}", lambda v: v >= ESS, np.argmin),
        ("MCSE of the mean / sd", _relative(mcse_mean, flat), f"< {MCSE:g}", lambda v: v < MCSE, np.argmax),
        ("MCSE of the sd / sd", _relative_of_sd(flat, counted), f"< {MCSE:g}", lambda v: v < MCSE, np.argmax),
    ]
    if n_superchains > 1:  # many short chains, whose plain R-hat says how short they are
        checks.insert(0, ("nested R-hat", nested_rhat(flat, n_superchains), f"< {RHAT:g}", lambda v: v < RHAT, np.argmax))
    rows: list[Row] = []
    for check, found, threshold, ok, worst in checks:
        if check == "R-hat" and n_chains == 1:
            rows += _not_applicable([check], "one chain: nothing to compare it with")
        elif check == "R-hat" and n_superchains > 1 and len(found):
            largest = int(np.argmax(np.nan_to_num(found, nan=np.inf)))
            rows.append((check, f"{names[largest]} (of many short chains)", float(found[largest]), "", "not applicable"))
        elif not len(found):
            rows.append(_row(check, stuck or "nothing moves", math.nan, threshold, ok=False))
        else:
            index = int(worst(found)) if not np.isnan(found).any() else int(np.flatnonzero(np.isnan(found))[0])
            rows.append(_row(check, names[index], found[index], threshold, ok=bool(ok(found[index]))))
    return rows


def _stuck(values: Mapping[str, np.ndarray], declared: set[str]) -> str:
    """The first site, as text, that is not finite, or an entry of which does not move in some chain (whole numbers need not).

    Entries that are 0, or 1, throughout are so by construction (a triangular factor), unless all of the site are.
    """
    for name, array in values.items():
        if not np.isfinite(array).all():
            return f"{name} (not finite)"
        flat = array.reshape(*array.shape[:2], -1)
        still = (flat == flat[:, :1]).all(axis=1)
        by_construction = (flat == flat[:1, :1]).all(axis=(0, 1)) & np.isin(flat[0, 0], (0.0, 1.0))
        chains = still.all(axis=1) | (still & ~by_construction).any(axis=1)
        if chains.any() and array.dtype.kind == "f" and name not in declared:
            return f"{name} (chain {int(chains.argmax())} does not move)"
    return ""


def _densities(data: xr.DataTree, *, lp: bool) -> dict[str, np.ndarray]:
    found = {name: array for name, array in arrays(data, "sample_stats").items() if name == "lp" and lp}
    for name, array in arrays(data, "log_likelihood").items():
        found[name.replace("_", " ")] = array.reshape(*array.shape[:2], -1).sum(axis=-1)
    return found


def _relative_of_sd(flat: np.ndarray, counted: list[bool]) -> np.ndarray:
    """As `_relative`, of the sd; 0 for counts of labels: the sd of a rare event is nothing that anybody needs."""
    return np.where(counted, 0.0, _relative(mcse_sd, flat))


def _relative(error: Any, flat: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(error(flat) / flat.std(axis=(0, 1)))


def _levels(data: xr.DataTree, *, lp: bool) -> list[Row]:
    check, judged = "level of log density", "lp" if lp else "log likelihood"
    level = _densities(data, lp=lp).get(judged)
    if level is None:
        return _not_applicable([check], "no log density was kept")
    if level.shape[0] == 1:
        return _not_applicable([check], "one chain: nothing to compare it with")
    p, off = same_level(level), np.abs(np.median(level, axis=1) - np.median(level))
    which = "" if lp else " of the log likelihood, which exchanges leave as it is"
    return [_row(check, f"p-value{which}; chain {int(off.argmax())} is farthest off", p, f">= {LEVEL:g}", ok=p >= LEVEL)]


def same_level(lp: np.ndarray) -> float:
    r"""p-value that chains `(chain, draw)` share one mean, by Welch's analysis of variance with ESS for sample sizes.

    With means $m_c$, $w_c = \mathrm{ESS}_c / s_c^2$ and $h = \sum_c (1 - w_c / \sum w)^2 / (\mathrm{ESS}_c - 1)$,
    $$ F = \frac{\sum_c w_c (m_c - \bar m)^2 / (C - 1)}{1 + 2 (C - 2) h / (C^2 - 1)} \sim F_{C - 1,\; (C^2 - 1) / 3h}. $$
    NaN where a chain does not move or is not finite.
    """
    n_chains, n_draws = lp.shape
    ess = np.minimum(ess_mean(lp.T[None]), n_draws)
    if not (np.isfinite(ess).all() and (ess > 1).all()):
        return math.nan
    mean, weight = lp.mean(axis=1), ess / lp.var(axis=1, ddof=1)
    share = weight / weight.sum()
    h = float(((1 - share) ** 2 / (ess - 1)).sum())
    between = float((weight * (mean - share @ mean) ** 2).sum()) / (n_chains - 1)
    statistic = between / (1 + 2 * (n_chains - 2) * h / (n_chains**2 - 1))
    return float(scipy.stats.f.sf(statistic, n_chains - 1, (n_chains**2 - 1) / (3 * h)))


def _chains(data: xr.DataTree, declared: dict[str, Any]) -> list[Row]:
    check = "modes"
    if data["posterior"].sizes["chain"] == 1:
        return _not_applicable([check], "one chain: nothing to compare it with")
    try:
        table = chain_modes(data, **declared)
    except InferenceError as error:  # draws that are not finite
        return [_row(check, str(error), math.nan, "1", ok=False)]
    if not len(table):
        return [_row(check, "no quantity varies", math.nan, "1", ok=False)]
    parts = [said(table, "chains"), _images(data, table, declared)] if len(table) > 1 else ["all chains sit in one"]
    text = "; ".join(filter(None, parts))
    return [_row(check, text, len(table), "1", ok=len(table) == 1)]


def _images(data: xr.DataTree, table: pd.DataFrame, declared: dict[str, Any]) -> str:
    found = images(data, table, **declared)
    return found and f"{found}: if the joint is symmetric so, declare it as the model's `symmetry`"


def _restarts(data: xr.DataTree, declared: dict[str, Any]) -> list[Row]:
    """How many modes the restarts found: nothing is wrong with several, but one that was found once may not be the best."""
    check = "modes"
    n = next((array.shape[0] for array in arrays(data, "restarts").values()), 0)
    if n < 2:
        return []
    table = restart_modes(data, **declared)
    best = int(table["n"].iloc[0])
    more = [said(table.head(3), "restarts"), _images(data, table, declared)] if len(table) > 1 else []
    text = "; ".join(filter(None, [f"of {n} restarts, {best} found the best one", *more]))
    return [_row(check, text, len(table), "the best one found twice", ok=best > 1, otherwise="warn")]


def _sampler(data: xr.DataTree) -> list[Row]:
    stats = arrays(data, "sample_stats")
    rows = []
    if "diverging" in stats:
        n_diverging = int(stats["diverging"].sum())
        rows.append(_row("divergences", f"of {stats['diverging'].size} draws", n_diverging, "0", ok=n_diverging == 0))
    if "energy" in stats:
        energy = stats["energy"]
        with np.errstate(divide="ignore", invalid="ignore"):
            bfmi = (np.diff(energy, axis=1) ** 2).sum(axis=1) / ((energy - energy.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
        worst = int(np.argmin(np.where(np.isnan(bfmi), -np.inf, bfmi)))
        rows.append(_row("E-BFMI", f"chain {worst}", bfmi[worst], f">= {BFMI:g}", ok=bool(bfmi[worst] >= BFMI)))
    if "tree_depth" in stats and "max_tree_depth" in data.attrs:
        share = float((stats["tree_depth"] >= int(data.attrs["max_tree_depth"])).mean())
        quantity = f"share of draws at depth {int(data.attrs['max_tree_depth'])}"
        rows.append(_row("tree depth", quantity, share, "0", ok=share == 0, otherwise="warn" if share <= SATURATED else "fail"))
    return rows


def _raw(values: Mapping[str, np.ndarray], dims: Mapping[str, tuple[str, ...]], group: Group) -> list[Row]:
    """R-hat of the sites that the group acts on, as drawn: large wherever chains are turned, which is no fault."""
    rows: list[Row] = []
    for name, array in values.items():
        if not group.is_trivial() and group.dim in dims[name] and array.shape[0] > 1:
            found = rhat(array)
            worst = float(np.nanmax(found)) if not np.isnan(found).all() else math.nan
            rows.append(("R-hat", f"{name} (raw coordinates)", worst, "", "not applicable"))
    return rows


# -- variational


def _variational(data: xr.DataTree) -> list[Row]:
    rows = _not_applicable(
        ["R-hat", "bulk ESS", "tail ESS", "level of log density"], "independent draws of an approximation, no Markov chain"
    )
    stats = arrays(data, "sample_stats")
    if "log_weights" in data.children:
        rows += _by_unit(arrays(data, "log_weights")["log_weight"])
    elif "lp" in stats and "log_q" in stats:
        kept = "log_q_averaged" in stats
        averaged = kept and bool(data.attrs.get("averaged", 1))
        raw = (stats["lp"] - stats["log_q"]).ravel()
        ratios = (stats["lp"] - stats["log_q_averaged"]).ravel() if kept else raw
        n_blocks = max(1, ratios.size // BLOCK)
        limit = khat_limit(ratios.size // n_blocks)
        k, of_raw = (float(np.mean([khat(block) for block in np.array_split(r, n_blocks)])) for r in (ratios, raw))
        quantity = "q averaged over the symmetry" if averaged else "q"
        blocks = f"; mean over {n_blocks} blocks" if n_blocks > 1 else ""
        rows.append(_row("k-hat", quantity + blocks, k, f"< {limit:.2f}", ok=k < limit))
        rows.append(("k-hat", "raw", of_raw, "", "not applicable"))
        gap = float(scipy.special.logsumexp(ratios) - math.log(ratios.size) - ratios.mean())
        text = "importance-weighted ELBO - ELBO, nats"
        rows.append(_row("ELBO gap", text, gap, f"< {GAP:g}", ok=gap < GAP, otherwise="warn" if gap >= GAP else "fail"))
    optimization = arrays(data, "optimization")
    n_units = _n_fitted(data) if "parameters" in data.children else None
    return [*rows, _drift(**optimization, n_units=n_units)] if "loss" in optimization else rows


def _n_fitted(data: xr.DataTree) -> int:
    """Points that were fitted: more than there are positions of, where the data stay on disk."""
    return int(data.attrs.get("n_units_fitted", _n_points(data)))


def _n_points(data: xr.DataTree) -> int:
    """Points, in a table units, that the result is about."""
    points = str(data.attrs.get("points", "unit"))
    return int(data["posterior"].sizes.get(points, data["observed_data"].sizes[points] if points != "unit" else 1))


def _by_unit(log_weights: np.ndarray) -> list[Row]:
    """k-hat and gap where each unit has importance weights of its own, `(chain, draw, unit)`: an encoder, given parameters."""
    flat = log_weights.reshape(-1, log_weights.shape[-1])
    limit = khat_limit(len(flat))
    each = np.array([khat(unit) for unit in flat.T])
    share = float(np.mean(~(each < limit)))
    k = float(each.mean())
    gap = float((scipy.special.logsumexp(flat, axis=0) - math.log(len(flat)) - flat.mean(axis=0)).mean())
    return [
        _row("k-hat", f"encoder; mean over units, {share:.0%} at the limit or above", k, f"< {limit:.2f}", ok=k < limit),
        _row("ELBO gap", "importance-weighted ELBO - ELBO, nats a unit", gap, f"< {GAP:g}", ok=gap < GAP, otherwise="warn"),
    ]


def _drift(loss: np.ndarray, elbo: np.ndarray | None = None, n_units: int | None = None) -> Row:
    """Of the whole ELBO; of a unit's, to a tighter limit, where parameters are fitted (`n_units`): no posterior hangs on it."""
    rise, error, n_steps = elbo_drift(loss[0 if elbo is None else int(elbo.argmax())])
    limit, unit = (DRIFT, "nats") if n_units is None else (UNIT_DRIFT, "nats a unit")
    rise, error = rise / (n_units or 1), error / (n_units or 1)
    low, high = rise - 3 * error, rise + 3 * error
    quantity = f"rise over the last {n_steps} steps, {unit}; +- {3 * error:.2g}"
    ok, moved = bool(low > -limit and high < limit), bool(low > limit or high < -limit or math.isnan(rise))
    return _row("ELBO drift", quantity, rise, f"within +- {limit:g}", ok=ok, otherwise="fail" if moved else "warn")


def _active(data: xr.DataTree) -> list[Row]:
    """How many dimensions of an encoder carry anything: none at all is no answer, fewer than all is worth knowing."""
    if "n_active" not in data.attrs:
        return []
    n = int(data.attrs["n_active"])
    q = next((size for dim, size in data["latents"].sizes.items() if dim not in ("chain", "draw", *kinds(data))), n)
    return [_row("active units", f"of {q} latent dimensions", n, f">= {q}", ok=n == q, otherwise="warn" if n else "fail")]


def elbo_drift(loss: np.ndarray) -> tuple[float, float, int]:
    """Rise of the ELBO over the last quarter of the steps, its standard error, and the number of steps looked at.

    Least squares on up to `N_BATCHES` batch means. Equal values at the end, which pad a restart that stopped early, are not
    looked at. NaN with fewer than 3 batches.
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


# -- point estimates, and what all have


def _symmetry(data: xr.DataTree) -> list[Row]:
    """Whether the log joint is invariant under the declared symmetry, and under no larger group (`inference.invariance`)."""
    check, attrs = "symmetry", data.attrs
    rows: list[Row] = []
    if "symmetry_note" in attrs:
        rows.append((check, str(attrs["symmetry_note"]), 1.0, "no note", "warn"))
    if "symmetry_change" in attrs:
        change, limit = float(attrs["symmetry_change"]), float(attrs["symmetry_tolerance"])
        text = f"change of the log joint under {attrs['symmetry']}, nats"
        if not change <= limit:
            text += f"; site {attrs['symmetry_site']}; declare {attrs['symmetry_holds']}"
        rows.append(_row(check, text, change, f"<= {limit:.2g}", ok=change <= limit))
    if "symmetry_larger" in attrs:
        larger = attrs["symmetry_larger"]
        text = f"{larger} leaves the log joint unchanged too; declare {larger} in place of {attrs['symmetry']}"
        rows.append((check, text, float(attrs["symmetry_larger_change"]), "no larger symmetry", "warn"))
    if "symmetry_signs" in attrs:
        text = f"the log joint is unchanged where the sign of axis {attrs['symmetry_signs']} changes"
        remedy = "give all axes one prior and declare SignedPermutation, or fix the signs"
        rows.append((check, f"{text}; {remedy}", 1.0, "no larger symmetry", "warn"))
    return rows


def _point(data: xr.DataTree) -> list[Row]:
    rows = _not_applicable(["R-hat", "bulk ESS", "tail ESS", "level of log density"], "a point estimate has no spread")
    gradient = float(data.attrs.get("gradient", math.nan))
    how = str(data.attrs.get("how", "optimiser"))
    rows.append(_row("gradient", f"largest derivative; {how}", gradient, f"< {GRADIENT:g}", ok=gradient < GRADIENT))
    notes = str(data.attrs.get("notes", ""))
    return rows + [("estimate", note, 1.0, "no note", "warn") for note in filter(None, notes.split("; "))]


def _cautions(data: xr.DataTree) -> list[Row]:
    """Warnings about model and data, kept with the fit (`models.base.Caution`)."""
    found = json.loads(str(data.attrs.get("cautions", "[]")))
    return [(check, quantity, float(value), threshold, "warn") for check, quantity, value, threshold in found]


def _loo(data: xr.DataTree, kind: str) -> list[Row]:
    check = "LOO k-hat"
    if kind == "point" or data.attrs.get("point_estimate"):
        return _not_applicable([check], "a point estimate has no spread")
    if "parameters" in data.children:
        return _not_applicable([check], "parameters are points: units that were held out say how good they are")
    if "log_likelihood" not in data.children:
        return _not_applicable([check], "no log likelihood was kept")
    try:
        found = loo(data)
    except InferenceError as error:
        return [_row(check, str(error), math.nan, "0", ok=False)]
    bad = float(np.mean(~(found.khat < found.limit)))
    given = "; given the units' own positions, LOO is optimistic" if found.conditional else ""
    several = "leave_one_out" in data.children and "left_out" in data["leave_one_out"].dims
    left_out = "sequences" if several else f"{data.attrs.get('points', 'unit')}s"
    quantity = f"share of {left_out} at {found.limit:.2f} or more{given}"
    return [_row(check, quantity, bad, "0", ok=bad == 0, otherwise="warn")]
