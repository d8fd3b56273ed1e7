r"""Modes found by the chains or restarts of a fit, modulo the symmetry.

Two chains are separated if the means of some identified quantity differ by more than `SEPARATED` of its standard deviations,
$|m_a - m_b| > 3 \sqrt{(v_a + v_b) / 2}$. (With 20 effective draws each, chains in one mode differ by about 0.3.) Restarts of a
variational fit are compared in the same way, with the standard deviations of the fitted approximation. Point estimates are
separated if their log densities differ by more than `SAME_DENSITY`, or a quantity by more than 5% of its largest value. (The
error of an optimiser enters the log density to second order.) Modes are the clusters of chains, or restarts, by single linkage.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy
import xarray as xr

from latentlab.data.memory import by_quantity
from latentlab.results.quantities import entries, identified, is_count, labels_of
from latentlab.results.tree import arrays, kinds
from latentlab.symmetry.group import Group
from latentlab.symmetry.groups import GeneralLinear, larger_groups

SEPARATED = 3.0
"""Smallest difference of two modes in some quantity, in standard deviations."""
SAME_POINT = 0.05
"""Largest difference of two point estimates of one mode, as a share of the quantity's largest value."""
SAME_DENSITY = 0.01
"""Largest difference of the log densities of two point estimates of one mode, in nats."""
N_NAMED = 3
"""Largest number of quantities that are named as different."""
COLUMNS = ("mode", "members", "n", "share", "log_density", "differs in")
MEASURES = {"elbo": "ELBO", "log_joint": "log joint density", "maxima": "log likelihood"}
"""Arrays of the group `optimization` that rank the restarts, in order of preference -> their names in messages."""


def chain_modes(data: xr.DataTree, *, group: Group, dims: Mapping[str, Sequence[str]], position: str) -> pd.DataFrame:
    """Modes of the chains of a fit, the highest first.

    `log_density` is the largest mean log joint density of a mode's chains. `share` is the share of chains, which does not
    estimate the mode's posterior mass.

    Args:
        data: The result of a fit by MCMC.
        group: The group modulo which chains are compared.
        dims: Dims of the sites, without chain and draw.
        position: The position site.

    Returns:
        One row per mode: mode, members (chains), n, share, log_density, differs in (the quantities that differ most from the
        first mode). No rows if no quantity varies.
    """
    values = {name: array for name, array in arrays(data, "posterior").items() if name in dims}
    site_dims = {name: tuple(dims[name]) for name in values}
    quantities = identified(values, site_dims, group, position)
    names, flat = entries(quantities, labels_of(data, dims, group), data["posterior"].sizes)
    if not names:
        return pd.DataFrame(columns=list(COLUMNS))
    mean, variance = flat.mean(axis=1), by_quantity(lambda part: part.var(axis=1), flat)
    lp = arrays(data, "sample_stats").get("lp")
    log_density = np.full(len(flat), np.nan) if lp is None else lp.mean(axis=1)
    named_last = np.array([is_count(name, position) for name in names], dtype=bool)
    return _modes(mean, np.sqrt((variance[:, None] + variance[None]) / 2), SEPARATED, log_density, names, named_last=named_last)


def restart_modes(data: xr.DataTree, *, group: Group, dims: Mapping[str, Sequence[str]], position: str) -> pd.DataFrame:
    """Modes of the restarts of a fit, the highest first; one row per mode as in `chain_modes`.

    `log_density` is the largest ELBO, log joint density or log likelihood of a mode's restarts. `share` is the share of restarts,
    the size of the mode's basin of attraction. If the positions are the only sites, only these log densities are compared.
    """
    n = next((array.shape[0] for array in arrays(data, "restarts").values()), 0)
    units = set(kinds(data))
    ends = arrays(data, "restarts").items()
    sites = {name: array[None] for name, array in ends if name in dims and units.isdisjoint(dims[name])}
    site_dims = {name: tuple(dims[name]) for name in sites}
    ends_of_restarts = identified(sites, site_dims, group, position)
    names, flat = entries(ends_of_restarts, labels_of(data, dims, group), {"chain": 1, "draw": n})
    points, spread, limit = flat[0], None, SAME_POINT
    if data.attrs.get("inference") == "vi" and sites:
        draws = {name: array for name, array in arrays(data, "posterior").items() if name in sites}
        names, both = _both(identified(draws, site_dims, group, position), ends_of_restarts, names)
        points, spread, limit = both[1], both[0].std(axis=0), SEPARATED
    spread = np.abs(points).max(axis=0) if spread is None else spread
    optimization = arrays(data, "optimization")
    log_density = next((optimization[name] for name in MEASURES if name in optimization), np.full(n, np.nan))
    scale = np.broadcast_to(spread, (n, n, len(names)))
    return _modes(points, scale, limit, log_density, names, exact=limit == SAME_POINT or not sites)


def restart_measure(data: xr.DataTree) -> str:
    """Name of the measure that ranks the restarts of a fit, for messages."""
    return next((text for name, text in MEASURES.items() if name in arrays(data, "optimization")), "log density")


def images(data: xr.DataTree, table: pd.DataFrame, **declared: Any) -> str:
    """Describe the modes of a table that are images of one another under a larger symmetry group; empty if none are.

    Modes are images if neither an invariant of the larger group nor their log density separates them.

    Args:
        data: The result of the fit.
        table: Its modes, from `chain_modes` or `restart_modes`.
        declared: `group`, `dims` and `position` with which the modes were found.
    """
    group, dims = declared["group"], declared["dims"]
    chains = data.attrs.get("inference", "mcmc") == "mcmc"
    find = chain_modes if chains else restart_modes
    lp = arrays(data, "sample_stats").get("lp")
    same = SAME_DENSITY if not chains else np.inf if lp is None else SEPARATED * float(lp.std(axis=1).max())
    present = {name: tuple(dims[name]) for name in arrays(data, "posterior") if name in dims}
    for larger in larger_groups(group, present, size=int(data["posterior"].sizes.get(group.dim, 1))):
        if isinstance(larger, GeneralLinear):  # a span has too few invariants to distinguish two modes
            continue
        for members in find(data, **{**declared, "group": larger})["members"]:
            joined = set(members.split(", "))
            which = [k for k, of_mode in enumerate(table["members"]) if set(of_mode.split(", ")) <= joined]
            if len(which) > 1 and np.ptp(table["log_density"].iloc[which]) <= same:
                return f"modes {', '.join(map(str, which))} are images of one another under {type(larger).__name__}"
    return ""


def describe_modes(table: pd.DataFrame, member: str, measure: str) -> str:
    """Format the modes as one line: `chains 0, 2: ELBO -105.2 | chain 1: ELBO -107.9, differing in mu[0]`."""
    parts = []
    for row in table.to_dict("records"):
        part = f"{member}{'s' if row['n'] > 1 else ''} {row['members']}: {measure} {row['log_density']:.1f}"
        parts.append(part + (f", differing in {row['differs in']}" if row["differs in"] else ""))
    return " | ".join(parts)


def _both(draws: Any, points: Any, names: list[str]) -> tuple[list[str], tuple[np.ndarray, np.ndarray]]:
    """Names and values of the entries that vary over the draws, at the draws `(draw, n)` and at the restarts `(restart, n)`."""
    rows: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    kept: list[str] = []
    for name, array in draws.items():
        flat, other = array.reshape(-1, *array.shape[2:]), points[name].reshape(-1, *points[name].shape[2:])
        flat, other = flat.reshape(len(flat), -1), other.reshape(len(other), -1)
        varies = flat.std(axis=0) > 0
        rows[0].append(flat[:, varies])
        rows[1].append(other[:, varies])
        kept += [f"{name}[{i}]" for i in np.flatnonzero(varies)]
    return kept, (np.concatenate(rows[0], axis=1), np.concatenate(rows[1], axis=1))


def _modes(
    mean: np.ndarray,
    scale: np.ndarray,
    limit: float,
    log_density: np.ndarray,
    names: list[str],
    *,
    exact: bool = False,
    named_last: np.ndarray | None = None,
) -> pd.DataFrame:
    """Cluster members by single linkage, from their means `(member, n)` and the scales of differences `(member, member, n)`.

    Quantities `named_last`, which are counts of labels, are named only if no others differ.
    """
    n, last = len(mean), np.zeros(len(names), dtype=bool) if named_last is None else named_last
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.abs(mean[:, None] - mean[None]) / scale
    distance = np.nan_to_num(distance, nan=0.0, posinf=np.inf)
    invalid = ~np.isfinite(mean)
    distance[invalid[:, None] | invalid[None]] = np.inf  # not linked to any member, since NaN would join separate modes
    linked = (distance.max(axis=-1, initial=0.0) <= limit) if len(names) else np.ones((n, n), dtype=bool)
    if exact:
        linked &= np.abs(log_density[:, None] - log_density[None]) <= SAME_DENSITY
    labels = scipy.sparse.csgraph.connected_components(linked, directed=False)[1] if n else np.zeros(0, dtype=int)
    groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    groups.sort(key=lambda members: -float(f"{np.nan_to_num(log_density[members].max(), nan=-np.inf):.9g}"))  # first of ties
    rows = []
    for k, members in enumerate(groups):
        differs = ""
        if k:
            gap = distance[np.ix_(groups[0], members)].min(axis=(0, 1))
            differs = ", ".join(names[i] for i in [i for i in np.lexsort((-gap, last)) if gap[i] > limit][:N_NAMED])
        largest = float(log_density[members].max())
        rows.append((k, ", ".join(map(str, members)), len(members), len(members) / n, largest, differs))
    return pd.DataFrame(rows, columns=list(COLUMNS))
