r"""Model comparison by leave-one-out predictive accuracy (LOO): fits of different models to one dataset.

With $d_i = \log p_a(x_i \mid x_{-i}) - \log p_b(x_i \mid x_{-i})$ over n points, the difference of two models and its standard
error are

$$ \Delta = \sum_i d_i, \qquad \operatorname{se}(\Delta) = \sqrt{n} \; \mathrm{sd}(d). $$

Both models are scored on the same points, so the standard error is computed from paired differences. The formula
$\sqrt{\mathrm{se}_a^2 + \mathrm{se}_b^2}$ would be far too large if the same points are hard to predict for both models. The
standard error is reliable with many points, no badly misspecified model, and predictions that differ. If $|\Delta|$ is below
`SMALL`, or there are fewer than `FEW` points, the standard error tends to be too small, and $\Delta$ is skewed (Sivula et al.
2020). The table notes such rows.
The elpd of the best of many models is biased upwards by the selection.

References:
    Vehtari, Gelman & Gabry (2017), Practical Bayesian model evaluation using leave-one-out cross-validation and WAIC, Statistics
    and Computing 27:1413. Sivula, Magnusson & Vehtari (2020), Uncertainty in Bayesian leave-one-out cross-validation based model
    comparison, arXiv:2008.10296.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import xarray as xr

from latentlab.compare.clustering import n_clusters
from latentlab.comparison.same_data import check_same_data
from latentlab.errors import ConfigError, DataError, InferenceError, LatentLabError, ModelError
from latentlab.fit import Fit
from latentlab.results.loo import Loo, loo
from latentlab.results.tree import LEFT_OUT, SAMPLE_DIMS, arrays

SMALL = 4.0
"""Difference in nats below which its standard error is unreliable (Sivula et al. 2020)."""
FEW = 100
"""Number of points below which the standard error of every difference is unreliable."""

UNEQUAL = (
    "standardised columns have unequal noise variances, which PPCA can fit by additional dimensions: compare factor_analysis, "
    "or use raw data (`standardize: false`)"
)

DEPENDENT = "{points} are dependent: standard errors tend to be too small"
"""Note on fits whose points are steps of a series, or share units."""

COLUMNS = ("model", "elpd_loo", "se", "p_loo", "elpd_diff", "se_diff", "n_points", "bad_khat", "converged")
CLUSTERS = ("n_clusters", "n_clusters_q05", "n_clusters_q95")
HELD_OUT = ("held_out", "held_out_se")


@dataclass(frozen=True)
class Candidate:
    """The part of a fit that model comparison uses.

    Args:
        data: The result in ArviZ's schema.
        converged: Whether no diagnostic failed.
        held_out: Score of held-out units, as returned by `Fit.held_out_score`; empty if none were held out.
    """

    data: xr.DataTree
    converged: bool
    held_out: Mapping[str, float] = field(default_factory=dict)

    @property
    def n_latent(self) -> int | None:
        """Number of latent dimensions; None if the positions have no dim `latent`."""
        return self.data["latents"].sizes.get("latent") if "latents" in self.data.children else None

    @property
    def labels(self) -> np.ndarray | None:
        """Draws of the labels `(chain, draw, unit)`; None if the positions are not discrete."""
        latents = arrays(self.data, "latents")
        dims = {name: self.data["latents"][name].dims for name in latents}
        return next((a for n, a in latents.items() if dims[n] == (*SAMPLE_DIMS, "unit") and a.dtype.kind in "iu"), None)


def loo_table(fits: Mapping[str, Fit | Candidate]) -> pd.DataFrame:
    r"""Compares fits to the same data by leave-one-out predictive accuracy, the best first.

    A point is a unit of a table, or one observation of ratings or a graph. If one model leaves out whole sequences, the points
    of all models are sequences.

    Args:
        fits: At least two fits, by name.

    Returns:
        One row for each fit: model; elpd_loo, its standard error `se` and the effective number of parameters p_loo; elpd_diff,
        the difference to the best fit (0 for the best, else negative), with se_diff; n_points; bad_khat, the share of points
        whose k-hat is too high; converged; n_clusters, the posterior mean number of occupied components or states with its 90%
        interval, if any fit has labels; held_out, the score of held-out units with held_out_se, if any is known; note, the
        reasons not to rely on the row.

    Raises:
        ConfigError: Fewer than two fits.
        DataError: The fits have different data, the same data on different scales, or different points.
        ModelError: A fit has no LOO, because it is a point estimate, has point estimates of parameters, or has no log likelihood;
            or some fits condition on the units' own positions and others do not.
        InferenceError: LOO cannot be computed; the message names the fit.
    """
    candidates = {name: one if isinstance(one, Candidate) else Candidate(one.data, one.converged) for name, one in fits.items()}
    if len(candidates) < 2:
        raise ConfigError(f"a model comparison needs at least two fits; got {len(candidates)}.")
    check_same_data({name: one.data for name, one in candidates.items()})
    common = with_common_points(candidates)
    return table_of(common, {name: loo_of(name, one) for name, one in common.items()})


def loo_of(name: str, candidate: Candidate) -> Loo:
    """Returns the LOO of a candidate; error messages name it.

    Raises:
        ModelError: The candidate has no LOO; the message gives an alternative.
        InferenceError: LOO cannot be computed.
    """
    data = candidate.data
    if data.attrs.get("point_estimate"):
        method = data.attrs.get("method", "a point estimate")
        raise ModelError(
            f"{name!r}: LOO needs posterior draws, but the fit is a point estimate ({method}); fit the model by nuts or svi."
        )
    if "parameters" in data.children or not {"log_likelihood", "leave_one_out"} & set(data.children):
        raise ModelError(
            f"{name!r}: LOO is not available, because the parameters are point estimates or only a bound of the likelihood is "
            "known. Compare held-out scores (`held_out: 0.2` in the config)."
        )
    try:
        return loo(data)
    except (ModelError, InferenceError) as error:
        raise type(error)(f"{name!r}: {error}") from error


def with_common_points(candidates: Mapping[str, Candidate]) -> dict[str, Candidate]:
    """Converts the points of all candidates to sequences if one of them leaves out sequences.

    Candidates without the coordinate `sequence` stay as they are.

    Raises:
        DataError: The points still differ; the message names the fits and the numbers of points.
    """
    common = dict(candidates)
    if any(_points(one).dims[-1] == "left_out" for one in common.values() if _has_points(one)):
        common = {name: _by_sequence(one) for name, one in common.items()}
    points = {name: _points(one) for name, one in common.items() if _has_points(one)}
    names = list(points)
    for name in names[1:]:
        a, b = (points[n][points[n].dims[-1]].values.astype(str) for n in (names[0], name))
        if a.shape != b.shape or (a != b).any():
            types = ["sequence" if (dim := points[n].dims[-1]) == "left_out" else dim for n in (names[0], name)]
            raise DataError(
                f"{names[0]!r} and {name!r} cannot be compared: LOO leaves out {len(a)} {types[0]}s in the first and {len(b)} "
                f"{types[1]}s in the second."
            )
    return common


def _has_points(candidate: Candidate) -> bool:
    return bool({"log_likelihood", "leave_one_out"} & set(candidate.data.children))


def _points(candidate: Candidate) -> xr.DataArray:
    """Log densities for LOO, `(chain, draw, point)`."""
    group = "leave_one_out" if "leave_one_out" in candidate.data.children else "log_likelihood"
    return next(iter(candidate.data[group].data_vars.values()))


def _by_sequence(candidate: Candidate) -> Candidate:
    """Returns the candidate with log likelihoods summed over each sequence, as units are independent given a draw."""
    if "leave_one_out" in candidate.data.children or not _has_points(candidate):
        return candidate
    units = _points(candidate)
    if "sequence" not in units.coords:
        return candidate
    names = units["sequence"].values
    first = np.flatnonzero(np.r_[True, names[1:] != names[:-1]])
    summed = np.add.reduceat(units.values, first, axis=2)
    coords = {dim: units[dim].values for dim in SAMPLE_DIMS} | {"left_out": names[first]}
    group = xr.Dataset({LEFT_OUT: ((*SAMPLE_DIMS, "left_out"), summed)}, coords=coords)
    groups = {name: node.to_dataset(inherit=False) for name, node in candidate.data.children.items()}
    root = candidate.data.to_dataset(inherit=False)
    data = xr.DataTree.from_dict({"/": root, **groups, "leave_one_out": group})
    return Candidate(data, candidate.converged, candidate.held_out)


# -- the table


def table_of(
    candidates: Mapping[str, Candidate], scores: Mapping[str, Loo], problems: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Returns the table of `loo_table`; fits without LOO, and other names in `problems`, come last with the reason as note.

    Raises:
        ModelError: Some scores condition on the units' own positions and others do not.
    """
    _check_conditional(scores)
    problems = problems or {}
    order = sorted(scores, key=lambda name: -scores[name].elpd)
    without_loo = sorted((n for n in [*candidates, *problems] if n not in scores), key=lambda n: -_held_out(candidates.get(n))[0])
    rows = [
        _row(n, candidates.get(n), scores.get(n), scores[order[0]] if order else None)
        for n in dict.fromkeys([*order, *without_loo])
    ]
    table = pd.DataFrame(rows)
    for optional in (CLUSTERS, HELD_OUT):
        if table[optional[0]].isna().all():
            table = table.drop(columns=[*optional])
    notes = _notes(candidates, scores, order, problems)
    return table.assign(note=[notes[name] for name in table["model"]])


def _check_conditional(scores: Mapping[str, Loo]) -> None:
    conditional = [name for name, one in scores.items() if one.conditional]
    marginal = [name for name, one in scores.items() if not one.conditional]
    if conditional and marginal:
        raise ModelError(
            f"{conditional[0]!r} and {marginal[0]!r} cannot be compared: elpd is conditional on the units' own positions in the "
            "first, and therefore too high, and marginal over the positions in the second."
        )


def _held_out(candidate: Candidate | None) -> tuple[float, float]:
    score = candidate.held_out if candidate is not None else {}
    return float(score.get("elpd", score.get("bound", -math.inf))), float(score.get("se", math.nan))


def _row(name: str, candidate: Candidate | None, score: Loo | None, best: Loo | None) -> dict[str, object]:
    row: dict[str, object] = dict.fromkeys((*COLUMNS, *CLUSTERS, *HELD_OUT), math.nan)
    row |= {"model": name, "n_points": 0, "converged": False if candidate is None else candidate.converged}
    if score is not None and best is not None:
        n = len(score.pointwise)
        difference = score.pointwise - best.pointwise
        row |= {
            "elpd_loo": score.elpd,
            "se": score.se,
            "p_loo": score.p_loo,
            "elpd_diff": float(difference.sum()),
            "se_diff": float(np.sqrt(n) * difference.std(ddof=1)) if n > 1 else math.nan,
            "n_points": n,
            "bad_khat": bad_share(score),
        }
    labels = candidate.labels if candidate is not None else None
    if labels is not None:
        counts = n_clusters(labels)
        row |= dict(zip(CLUSTERS, [float(counts.mean()), *np.quantile(counts, [0.05, 0.95]).tolist()], strict=True))
    if candidate is not None and candidate.held_out:
        row |= dict(zip(HELD_OUT, _held_out(candidate), strict=True))
    return row


def bad_share(score: Loo) -> float:
    """Share of points whose k-hat is too high; NaN counts as too high."""
    return float(np.mean(~(score.khat < score.limit)))


def _notes(
    candidates: Mapping[str, Candidate], scores: Mapping[str, Loo], order: list[str], problems: Mapping[str, str]
) -> dict[str, str]:
    """Returns the reasons why each row may be unreliable, by name."""
    discrete = {name: _predicts_counts(candidates[name]) for name in scores}
    mixed = len({value for value in discrete.values() if value is not None}) > 1
    ppca = {name: one.n_latent for name, one in candidates.items() if one.data.attrs.get("model") == "ppca"}
    unequal = len(set(ppca.values())) > 1 and all(_is_standardised(candidates[name]) for name in ppca)
    notes = {}
    for name in dict.fromkeys([*candidates, *problems]):
        remarks = [problems[name]] if name in problems else []
        if name in scores and (points := _dependent(candidates[name])):
            remarks.append(DEPENDENT.format(points=points))
        if unequal and name in ppca:
            remarks.append(UNEQUAL)
        if name in candidates and not candidates[name].converged:
            remarks.append("not converged")
        if name in scores:
            remarks += _score_notes(scores[name], scores[order[0]])
        if name in scores and mixed and discrete[name] is not None:
            kind = "probabilities of whole numbers" if discrete[name] else "densities"
            remarks.append(
                f"elpd is of {kind}, unlike in other fits: comparable only if densities approximate the probabilities of "
                "whole numbers"
            )
        if name in candidates and "bound" in candidates[name].held_out:
            remarks.append("held_out is a lower bound")
        notes[name] = "; ".join(remarks)
    return notes


def _score_notes(score: Loo, best: Loo) -> list[str]:
    """Returns the reasons why a score, or its difference to the best, may be unreliable."""
    remarks, bad = [], bad_share(score)
    if score.conditional:
        remarks.append("elpd is conditional on the units' own positions and therefore too high")
    if bad > 0:
        remarks.append(f"Pareto k-hat too high for a share {bad:.2g} of the points: elpd is unreliable")
    if score is best:
        return remarks
    difference = score.pointwise - best.pointwise
    n = len(difference)
    se = math.sqrt(n) * float(difference.std(ddof=1)) if n > 1 else math.nan
    if abs(difference.sum()) < SMALL:
        remarks.append(f"|elpd_diff| below {SMALL:g}: se_diff is unreliable")
    if abs(difference.sum()) < se:
        remarks.append("|elpd_diff| below its standard error se_diff")
    if n < FEW:
        remarks.append(f"fewer than {FEW} points: se_diff may be too small")
    return remarks


def _dependent(candidate: Candidate) -> str:
    """Description of points that are not independent: steps of a series, or points that share a unit; empty otherwise."""
    points = _points(candidate)
    if points.dims[-1] == "left_out":  # whole sequences
        return ""
    if str(candidate.data.attrs.get("index", "{}")) != "{}":
        return f"{points.dims[-1]}s that share a unit"
    series = "leave_one_out" in candidate.data.children or not {"time", "sequence"}.isdisjoint(map(str, points.coords))
    return "steps of a series" if series else ""


def _is_standardised(candidate: Candidate) -> bool:
    """Whether the columns of the data have mean 0 and standard deviation 1."""
    x = next(iter(arrays(candidate.data, "observed_data").values()))
    return bool(np.allclose(np.nanmean(x, 0), 0, atol=1e-6) and np.allclose(np.nanstd(x, 0), 1, atol=1e-6))


def _predicts_counts(candidate: Candidate) -> bool | None:
    """Whether all predictions are whole numbers; None if the data are not, or if no predictions were kept."""
    observed = next(iter(arrays(candidate.data, "observed_data").values()))
    predicted = next(iter(arrays(candidate.data, "posterior_predictive").values()), None)
    if predicted is None or not _is_whole(observed):
        return None
    return _is_whole(predicted)


def _is_whole(x: np.ndarray) -> bool:
    observed = x[~np.isnan(x)] if x.dtype.kind == "f" else x
    return bool((observed == np.floor(observed)).all())


def lenient_table(candidates: Mapping[str, Candidate], problems: Mapping[str, str]) -> pd.DataFrame:
    """Returns the table of `loo_table`, in which fits without LOO and `problems` have a row with the reason.

    A single fit is allowed.

    Raises:
        DataError: The fits have different data or different points.
        ModelError: Some scores condition on the units' own positions and others do not.
    """
    reasons, scores = dict(problems), {}
    if candidates:
        check_same_data({name: one.data for name, one in candidates.items()})
    common = with_common_points(candidates)
    for name, one in common.items():
        try:
            scores[name] = loo_of(name, one)
        except LatentLabError as error:
            reasons[name] = str(error)
    return table_of(common, scores, reasons)
