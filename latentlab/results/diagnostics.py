r"""Inference diagnostics: a table of checks with verdicts, on the quantities that the model's symmetry leaves identified.

MCMC. R-hat, ESS and MCSE are computed on the group's invariants, the log density and the log likelihood. If many short chains
start from a few points, nested R-hat is tested instead of R-hat. The sites before alignment are listed as `raw coordinates`,
without a verdict. An entry that is constant in some chain fails, unless it is declared deterministic. Invariants that are
constant by construction (weights sum to 1) are left out.

*Equal mean log density.* Chains in modes of different weight can agree on every monitored quantity. Their mean log densities are
compared by Welch's analysis of variance, with each chain's effective sample size. The p-value is approximately uniform for chains
that share a distribution. The check fails below `LEVEL`: for 1 correct fit in 1000. (Simulated with 15 000 fits per case, 2 to 8
chains, normal and gamma densities: 0.7 to 1.3 in 1000 with at least 100 effective draws per chain, 2.8 with 30.) If `exchanges`
is larger than the symmetry (a stick-breaking mixture), the log density depends on the order of the components. The log
likelihood, which is invariant, is then compared instead.

*Modes.* Chains in different modes are listed by mode (`modes`) and never averaged; the check fails. If the modes are images of
one another under a larger group than the declared one, the row names that group.

*Symmetry*, for every method. The log joint is evaluated under elements of the declared group (`inference.invariance`). The
check fails if it changes by more than rounding error, and warns if it is also invariant under a larger group.

Variational. Let r = log p - log q at draws of q, with q averaged over the group. k-hat of exp(r) is averaged over blocks of 2000
draws: a single k-hat of all draws has a standard error of about 0.1 and lets some bad fits pass. (Measured on mean-field fits to
a bivariate normal, 40 fits of 20 000 draws per case. At a correlation of 0.95 or 0.99, a single k-hat passes 3 of 40 fits, the
mean over blocks none; at 0.5 both pass all.) The ELBO gap is log mean exp(r) - mean(r), the importance-weighted ELBO minus the
ELBO, which estimates KL(q || p) from below. The ELBO drift is the increase over the last quarter of the steps, by least squares
on batch means, plus or minus three standard errors.

Point estimates have no posterior draws; their gradient is checked.

All fits: the scale of the data against that of the prior predictive (`prior_data`), and warnings about model and data
(`LatentModel.cautions`).

References:
    Welch (1951), On the comparison of several mean values, Biometrika 38:330. Yao, Vehtari, Simpson & Gelman (2018), Yes, but
    did it work?, ICML. Burda, Grosse & Salakhutdinov (2016), Importance weighted autoencoders, ICLR. Betancourt (2016),
    Diagnosing suboptimal cotangent disintegrations in Hamiltonian Monte Carlo, arXiv:1604.00695 (E-BFMI).
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from latentlab.data.memory import n_not_finite
from latentlab.errors import InferenceError, ModelError
from latentlab.results.chain_checks import (
    chain_rows,
    convergence_rows,
    density_draws,
    mean_density_rows,
    raw_rows,
    restart_rows,
    sampler_rows,
)
from latentlab.results.checks import Row, check_row, not_applicable
from latentlab.results.loo import loo
from latentlab.results.prior_data import prior_rows
from latentlab.results.quantities import entries, identified, labels_of
from latentlab.results.sensitivity import power_sensitivity
from latentlab.results.tree import arrays, kinds
from latentlab.results.variational_checks import n_fitted, n_points, variational_rows
from latentlab.symmetry.group import Group

GRADIENT = 1e-3
"""Largest absolute derivative at a point estimate: of the log density, or of the mean log likelihood per unit."""
DENSITIES = ("lp", "log_q", "log_q_averaged")
"""Arrays of `sample_stats` that must be finite; the energy of a divergent trajectory need not be."""
COARSE = 1.0
"""Tolerance of the symmetry check, in nats, above which it warns."""
COLUMNS = ("check", "quantity", "value", "threshold", "verdict")


def diagnose(
    data: xr.DataTree, *, group: Group, dims: Mapping[str, Sequence[str]], position: str, lp_is_invariant: bool = True
) -> pd.DataFrame:
    """Return the table of the checks that apply to a fit's inference method.

    Args:
        data: The result of a fit, built by `results.tree.build`, with the attribute `inference`: mcmc, vi or point.
        group: The group modulo which chains are compared.
        dims: Dims of the sites, without chain and draw.
        position: The site of the latent positions; integers are treated as labels.
        lp_is_invariant: Whether the group leaves the log density unchanged; if not, the log likelihood is checked instead.

    Returns:
        One row per check: check, quantity, value (a number, or the reason why there is none), threshold, verdict (pass, warn,
        fail, not applicable).

    Example:
        >>> from latentlab.results.tree import build
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
        rows += _point(data) + restart_rows(data, declared)
    elif kind == "vi":
        rows += variational_rows(data) + restart_rows(data, declared)
    else:
        site_dims = {name: tuple(dims[name]) for name in values}
        densities = density_draws(data, lp=lp_is_invariant)
        rows += convergence_rows(data, values, site_dims, group, position, densities)
        rows += mean_density_rows(data, lp=lp_is_invariant)
        rows += chain_rows(data, declared) + sampler_rows(data)
        rows += raw_rows(values, site_dims, group)
    rows += _symmetry(data) + _active(data) + prior_rows(data) + _cautions(data) + _loo(data, kind)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def converged(table: pd.DataFrame) -> bool:
    """Whether no check failed, and every applicable check has a number."""
    counted = table[table["verdict"] != "not applicable"]
    numbers = pd.to_numeric(counted["value"], errors="coerce")
    return bool(len(counted)) and bool(counted["verdict"].isin(["pass", "warn"]).all()) and not bool(numbers.isna().any())


def sensitivity(data: xr.DataTree, *, group: Group, dims: Mapping[str, Sequence[str]], position: str) -> pd.DataFrame:
    """Power-scaling sensitivity of the identified quantities to the prior and to the likelihood.

    Computed by `results.sensitivity.power_sensitivity`. Positions are left out, since their prior is part of the model.

    Returns:
        One row per quantity, the most sensitive to the prior first: quantity, prior, likelihood, diagnosis.

    Raises:
        ModelError: The fit is a point estimate, no quantity varies, or the densities of some units are not stored.
    """
    if data.attrs.get("point_estimate"):
        raise ModelError("the sensitivity requires posterior draws; this fit is a point estimate.")
    n_kept = n_points(data)
    if n_fitted(data) > n_kept:
        raise ModelError(f"the sensitivity requires the log likelihood of all {n_fitted(data)} units; it is stored for {n_kept}.")
    of_units = {name for name, site_dims in dims.items() if not set(site_dims).isdisjoint(kinds(data))}
    values = {n: array for n, array in arrays(data, "posterior").items() if n in dims and n != position and n not in of_units}
    quantities = identified(values, {name: tuple(dims[name]) for name in values}, group, position)
    names, flat = entries(quantities, labels_of(data, dims, group), data["posterior"].sizes)
    if not names:
        raise ModelError("no quantity varies over the draws.")
    table = power_sensitivity(data, {name: flat[..., i] for i, name in enumerate(names)})
    return table.dropna(subset=["prior"]).sort_values("prior", ascending=False, kind="stable", ignore_index=True)


def _finite(data: xr.DataTree) -> list[Row]:
    rows = []
    for group in ("posterior", "latents", "sample_stats", "log_likelihood", "log_weights", "log_prior"):
        for name, array in arrays(data, group).items():
            n_bad = n_not_finite(array)
            if n_bad and (group != "sample_stats" or name in DENSITIES):
                rows.append(check_row("finite", f"{group}: {name}", n_bad, "0", ok=False))
    return rows or [check_row("finite", "posterior and densities", 0, "0", ok=True)]


def _active(data: xr.DataTree) -> list[Row]:
    """Number of active dimensions of an encoder; fails if none is active, warns if fewer than all are."""
    if "n_active" not in data.attrs:
        return []
    n = int(data.attrs["n_active"])
    q = next((size for dim, size in data["latents"].sizes.items() if dim not in ("chain", "draw", *kinds(data))), n)
    return [check_row("active units", f"among {q} latent dimensions", n, f">= {q}", ok=n == q, otherwise="warn" if n else "fail")]


def _symmetry(data: xr.DataTree) -> list[Row]:
    """Whether the log joint is invariant under the declared symmetry, and under no larger group (`inference.invariance`)."""
    check, attrs = "symmetry", data.attrs
    rows: list[Row] = []
    if "symmetry_note" in attrs:
        rows.append((check, str(attrs["symmetry_note"]), 1.0, "no note", "warn"))
    if "symmetry_change" in attrs:
        change, limit = float(attrs["symmetry_change"]), float(attrs["symmetry_tolerance"])
        text = f"change of the log joint density under {attrs['symmetry']}, in nats"
        if not change <= limit:
            text += f"; site {attrs['symmetry_site']}; declare {attrs['symmetry_holds']}"
        rows.append(check_row(check, text, change, f"<= {limit:.2g}", ok=change <= limit))
        if change <= limit and limit > COARSE:
            coarse = f"a change of the log joint density below {limit:.2g} nats cannot be distinguished from rounding error"
            rows.append((check, coarse, limit, f"<= {COARSE:g}", "warn"))
    if "symmetry_larger" in attrs:
        larger = attrs["symmetry_larger"]
        declare = f"{larger}({attrs['symmetry_dim']!r})" if "symmetry_dim" in attrs else str(larger)
        text = f"the log joint density is also invariant under {larger}; declare {declare} instead of {attrs['symmetry']}"
        rows.append((check, text, float(attrs["symmetry_larger_change"]), "no larger symmetry", "warn"))
    if "symmetry_signs" in attrs:
        text = f"the log joint density is invariant under a sign change of axis {attrs['symmetry_signs']}"
        remedy = "give all axes the same prior and declare SignedPermutation, or fix the signs"
        rows.append((check, f"{text}; {remedy}", 1.0, "no larger symmetry", "warn"))
    return rows


def _point(data: xr.DataTree) -> list[Row]:
    rows = not_applicable(["R-hat", "bulk ESS", "tail ESS", "equal mean log density"], "a point estimate has no posterior draws")
    gradient = float(data.attrs.get("gradient", math.nan))
    how = str(data.attrs.get("how", "optimiser"))
    rows.append(check_row("gradient", f"largest absolute derivative; {how}", gradient, f"< {GRADIENT:g}", ok=gradient < GRADIENT))
    notes = str(data.attrs.get("notes", ""))
    return rows + [("estimate", note, 1.0, "no note", "warn") for note in filter(None, notes.split("; "))]


def _cautions(data: xr.DataTree) -> list[Row]:
    """Warnings about model and data, kept with the fit (`models.base.Caution`)."""
    found = json.loads(str(data.attrs.get("cautions", "[]")))
    return [(check, quantity, float(value), threshold, "warn") for check, quantity, value, threshold in found]


def _loo(data: xr.DataTree, kind: str) -> list[Row]:
    check = "LOO k-hat"
    if kind == "point" or data.attrs.get("point_estimate"):
        return not_applicable([check], "a point estimate has no posterior draws")
    if "parameters" in data.children:
        return not_applicable([check], "parameters are point estimates; use the score of held-out units instead")
    if "log_likelihood" not in data.children:
        return not_applicable([check], "no log likelihood is stored")
    try:
        found = loo(data)
    except InferenceError as error:
        return [check_row(check, str(error), math.nan, "0", ok=False)]
    unreliable = float(np.mean(~(found.khat < found.limit)))
    note = "; LOO is too optimistic, since each unit is scored given its own position" if found.conditional else ""
    several = "leave_one_out" in data.children and "left_out" in data["leave_one_out"].dims
    left_out = "sequences" if several else f"{data.attrs.get('points', 'unit')}s"
    quantity = f"share of {left_out} with k-hat >= {found.limit:.2f}{note}"
    return [check_row(check, quantity, unreliable, "0", ok=unreliable == 0, otherwise="warn")]
