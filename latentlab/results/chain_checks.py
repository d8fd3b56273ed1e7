"""Checks of MCMC chains: convergence, mean log density, modes, sampler statistics."""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import scipy
import xarray as xr

from latentlab.data.memory import blocks, by_quantity, n_not_finite
from latentlab.errors import InferenceError
from latentlab.results.checks import Row, check_row, not_applicable
from latentlab.results.convergence import ess_bulk, ess_mean, ess_tail, mcse_mean, mcse_sd, nested_rhat, rhat
from latentlab.results.modes import chain_modes, describe_modes, images, restart_measure, restart_modes
from latentlab.results.quantities import entries, identified, is_count, labels_of
from latentlab.results.tree import arrays
from latentlab.symmetry.group import Group

RHAT = 1.01
ESS = 400
MCSE = 0.1
"""Largest Monte Carlo standard error, in posterior standard deviations of the quantity."""
BFMI = 0.3
LEVEL = 0.001
"""Significance level of the test that all chains have the same mean log density."""
SATURATED = 0.01
"""Largest share of iterations at the maximum tree depth for a warning; above it the check fails."""
ONE_CHAIN = "requires at least two chains"


def convergence_rows(
    data: xr.DataTree,
    values: Mapping[str, np.ndarray],
    dims: Mapping[str, tuple[str, ...]],
    group: Group,
    position: str,
    densities: dict[str, np.ndarray],
) -> list[Row]:
    declared = set(filter(None, re.split(r",\s*", str(data.attrs.get("deterministic", "")))))
    stuck = _stuck({**values, **densities}, declared)
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
    if n_superchains > 1:  # the plain R-hat of many short chains is large because they are short
        checks.insert(0, ("nested R-hat", nested_rhat(flat, n_superchains), f"< {RHAT:g}", lambda v: v < RHAT, np.argmax))
    rows: list[Row] = []
    for check, statistic, threshold, ok, worst in checks:
        if check == "R-hat" and n_chains == 1:
            rows += not_applicable([check], ONE_CHAIN)
        elif check == "R-hat" and n_superchains > 1 and len(statistic):
            largest = int(np.argmax(np.nan_to_num(statistic, nan=np.inf)))
            quantity = f"{names[largest]} (many short chains: see nested R-hat)"
            rows.append((check, quantity, float(statistic[largest]), "", "not applicable"))
        elif not len(statistic):
            rows.append(check_row(check, stuck or "no quantity varies", math.nan, threshold, ok=False))
        else:
            index = int(worst(statistic)) if not np.isnan(statistic).any() else int(np.flatnonzero(np.isnan(statistic))[0])
            rows.append(check_row(check, names[index], statistic[index], threshold, ok=bool(ok(statistic[index]))))
    return rows


def _stuck(values: Mapping[str, np.ndarray], declared: set[str]) -> str:
    """Describe the first site that is not finite, or has an entry that is constant in some chain; empty if there is none.

    Integer sites and the `declared` deterministic sites are exempt. Entries that are 0 in all chains, or 1 in all chains, are
    constant by construction (a triangular factor). They do not count, unless all entries of the site are constant in a chain.
    """
    for name, array in values.items():
        if n_not_finite(array):
            return f"{name} (non-finite draws)"
        flat = array.reshape(*array.shape[:2], -1)
        constant = np.stack([_all_equal(chain, chain[0]) for chain in flat])
        by_construction = np.isin(flat[0, 0], (0.0, 1.0))
        for chain in flat if by_construction.any() else ():
            by_construction &= _all_equal(chain, flat[0, 0])
        chains = constant.all(axis=1) | (constant & ~by_construction).any(axis=1)
        if chains.any() and array.dtype.kind == "f" and name not in declared:
            return f"{name} (constant in chain {int(chains.argmax())})"
    return ""


def _all_equal(chain: np.ndarray, to: np.ndarray) -> np.ndarray:
    """Whether each entry of a chain `(draw, entry)` equals its value in `to` in all draws, `(entry,)`."""
    equal = np.ones(chain.shape[1:], dtype=bool)
    for s in blocks(len(chain), max(1, chain[0].size)):
        equal &= (chain[s] == to).all(axis=0)
    return equal


def density_draws(data: xr.DataTree, *, lp: bool) -> dict[str, np.ndarray]:
    densities = {name: array for name, array in arrays(data, "sample_stats").items() if name == "lp" and lp}
    for name, array in arrays(data, "log_likelihood").items():
        densities[name.replace("_", " ")] = array.reshape(*array.shape[:2], -1).sum(axis=-1)
    return densities


def _relative_of_sd(flat: np.ndarray, counted: list[bool]) -> np.ndarray:
    """MCSE of the sd relative to the sd; 0 for counts of labels, since the sd of a rare event is not monitored."""
    return np.where(counted, 0.0, _relative(mcse_sd, flat))


def _relative(error: Any, flat: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(error(flat) / by_quantity(lambda part: part.std(axis=(0, 1)), flat))


def mean_density_rows(data: xr.DataTree, *, lp: bool) -> list[Row]:
    check, name = "equal mean log density", "lp" if lp else "log likelihood"
    density = density_draws(data, lp=lp).get(name)
    if density is None:
        return not_applicable([check], "no log density is stored")
    if density.shape[0] == 1:
        return not_applicable([check], ONE_CHAIN)
    p, deviation = equal_means_p_value(density), np.abs(np.median(density, axis=1) - np.median(density))
    which = "" if lp else " for the log likelihood, which is invariant under permutations"
    return [check_row(check, f"p-value{which}; chain {int(deviation.argmax())} deviates most", p, f">= {LEVEL:g}", ok=p >= LEVEL)]


def equal_means_p_value(lp: np.ndarray) -> float:
    r"""p-value of a common mean of chains `(chain, draw)`: Welch's analysis of variance with ESS as sample sizes.

    With means $m_c$, $w_c = \mathrm{ESS}_c / s_c^2$ and $h = \sum_c (1 - w_c / \sum w)^2 / (\mathrm{ESS}_c - 1)$,
    $$ F = \frac{\sum_c w_c (m_c - \bar m)^2 / (C - 1)}{1 + 2 (C - 2) h / (C^2 - 1)} \sim F_{C - 1,\; (C^2 - 1) / 3h}. $$
    NaN if a chain is constant or not finite.
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


def chain_rows(data: xr.DataTree, declared: dict[str, Any]) -> list[Row]:
    check = "modes"
    if data["posterior"].sizes["chain"] == 1:
        return not_applicable([check], ONE_CHAIN)
    try:
        table = chain_modes(data, **declared)
    except InferenceError as error:  # raised if draws are not finite
        return [check_row(check, str(error), math.nan, "1", ok=False)]
    if not len(table):
        return [check_row(check, "no quantity varies", math.nan, "1", ok=False)]
    described = [describe_modes(table, "chain", "mean log density"), image_note(data, table, declared)]
    parts = described if len(table) > 1 else ["all chains are in one mode"]
    text = "; ".join(filter(None, parts))
    return [check_row(check, text, len(table), "1", ok=len(table) == 1)]


def image_note(data: xr.DataTree, table: pd.DataFrame, declared: dict[str, Any]) -> str:
    equivalent = images(data, table, **declared)
    return equivalent and f"{equivalent}; if the joint density has this symmetry, declare it as the model's `symmetry`"


def restart_rows(data: xr.DataTree, declared: dict[str, Any]) -> list[Row]:
    """Number of modes found by the restarts; warns if only one restart ended in the best mode, as there may be a better one."""
    check = "modes"
    n = next((array.shape[0] for array in arrays(data, "restarts").values()), 0)
    if n < 2:
        return []
    table = restart_modes(data, **declared)
    best = int(table["n"].iloc[0])
    described = [describe_modes(table.head(3), "restart", restart_measure(data)), image_note(data, table, declared)]
    parts = [f"{best} of {n} restarts ended in the best mode", *(described if len(table) > 1 else [])]
    starts = str(data.attrs.get("starts", ""))
    parts += [f"restarts began at {starts}"] if starts else []
    text = "; ".join(filter(None, parts))
    return [check_row(check, text, len(table), "best mode found twice", ok=best > 1, otherwise="warn")]


def sampler_rows(data: xr.DataTree) -> list[Row]:
    stats = arrays(data, "sample_stats")
    rows = []
    if "diverging" in stats:
        n_diverging = int(stats["diverging"].sum())
        rows.append(check_row("divergences", f"among {stats['diverging'].size} draws", n_diverging, "0", ok=n_diverging == 0))
    if "energy" in stats:
        energy = stats["energy"]
        with np.errstate(divide="ignore", invalid="ignore"):
            bfmi = (np.diff(energy, axis=1) ** 2).sum(axis=1) / ((energy - energy.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
        worst = int(np.argmin(np.where(np.isnan(bfmi), -np.inf, bfmi)))
        rows.append(check_row("E-BFMI", f"chain {worst}", bfmi[worst], f">= {BFMI:g}", ok=bool(bfmi[worst] >= BFMI)))
    if "tree_depth" in stats and "max_tree_depth" in data.attrs:
        share = float((stats["tree_depth"] >= int(data.attrs["max_tree_depth"])).mean())
        quantity = f"share of draws at maximum depth {int(data.attrs['max_tree_depth'])}"
        rows.append(
            check_row("tree depth", quantity, share, "0", ok=share == 0, otherwise="warn" if share <= SATURATED else "fail")
        )
    return rows


def raw_rows(values: Mapping[str, np.ndarray], dims: Mapping[str, tuple[str, ...]], group: Group) -> list[Row]:
    """R-hat of the sites that the group acts on, before alignment; chains that differ by a group element make it large."""
    rows: list[Row] = []
    for name, array in values.items():
        if not group.is_trivial() and group.dim in dims[name] and array.shape[0] > 1:
            found = rhat(array)
            worst = float(np.nanmax(found)) if not np.isnan(found).all() else math.nan
            rows.append(("R-hat", f"{name} (raw coordinates)", worst, "", "not applicable"))
    return rows
