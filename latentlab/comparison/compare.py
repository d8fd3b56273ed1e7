"""Comparison of a fit with embeddings of the same data: scores with ceiling and floor, verdicts, coverage, units, labels.

The stages, in this order: rows (the compared arrays), aligned draws, scores, verdicts, tables.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from latentlab.compare.align import Alignment
from latentlab.compare.clustering import credible_ball, minimum_binder, n_clusters, unsettled
from latentlab.compare.co_assignment import co_assignment
from latentlab.compare.label_units import UnitsOfLabels
from latentlab.compare.metric import Metric, required_invariances
from latentlab.compare.neighbors import N_RECALLED, Search
from latentlab.comparison.choice import alignments_of, check_spread, metrics_of, orientation_notes
from latentlab.comparison.result import Comparison, Scores, judged_data, named, score_data, score_frame, verdict_frame
from latentlab.comparison.rows import Row, fewest_units, rows_of
from latentlab.comparison.scores import (
    RECALLS,
    clusters_and_labels,
    draws_for_scores,
    n_scores,
    positions_and_labels,
    recalls,
    scored,
    subset_notes,
)
from latentlab.comparison.verdicts import N_NAMED, Judged, borderline, judged_labels, judged_positions, n_verdicts
from latentlab.embeddings.embedding import Embedding
from latentlab.errors import ConfigError
from latentlab.fit import Fit
from latentlab.progress import tqdm
from latentlab.seeds import Seeds, one_thread
from latentlab.settings import Count, Fraction, Several, checked, keyword_types

MOST_PAIRED = 2000
"""Largest number of units for which the co-assignment of all pairs is stored (32 MB)."""


@one_thread()
def compare(  # one keyword for each user option; calls the stages in order
    fit: Fit,
    embeddings: Sequence[Embedding],
    *,
    n_neighbors: Count = 15,
    alignments: tuple[Alignment, ...] | None = None,
    metrics: tuple[str, ...] | None = None,
    alpha: Fraction = 0.05,
    n_draws: Several = 200,
    n_pairs: Count = 200,
    n_permutations: Count = 50,
    neighbor_search: Search = "exact",
    progress: bool = True,
) -> Comparison:
    """Compares a fit's positions with embeddings of the same units.

    If there are several kinds of units, each kind has its own scores and verdicts. A score uses one kind alone. For a verdict,
    all kinds in an embedding are aligned jointly, so that their relative positions count.

    Each embedding is compared raw, and again after the map of its correspondence with the model, if there is one. If the
    positions are labels, clusterings are compared with posterior draws of the labels and get a verdict. Every embedding is also
    compared with the label probabilities (distances against soft assignments), by metrics without a verdict.

    Args:
        fit: The fit.
        embeddings: Embeddings, joined with the fit by unit.
        n_neighbors: Number of neighbours for the metrics that use them; lowered if it is not below half of the units.
        alignments: Alignments of an embedding of positions before the verdict: `fixed` (none), `orthogonal`, `similarity`,
            `affine`. If None, `fixed` for positions without symmetry, `affine` if the symmetry includes linear maps, else
            `orthogonal` and `similarity`.
        metrics: Names of metrics. If None, all that are invariant under the model's symmetry, except the slow
            `gromov_wasserstein`; for labels, the metrics of labels and a few of positions.
        alpha: Level of the verdicts, after Holm's adjustment over all arrays compared under one alignment.
        n_draws: Posterior draws for the scores, evenly spaced in each chain; verdicts use all draws.
        n_pairs: Pairs of draws for the ceiling.
        n_permutations: Permutations of the units for the floor.
        neighbor_search: `exact` or `approximate` nearest neighbours. The latter are faster for many units in many columns;
            `notes` and the dataset then contain their recall.
        progress: Whether to show a progress bar on a terminal.

    Raises:
        DataError: An embedding lacks units of the fit, or is not finite.
        ModelError: The method gives the positions no posterior spread.
        ConfigError: A metric, alignment or label is unknown or repeated, an option is out of its range, or there are too few
            draws.
    """
    numbers = {"n_neighbors": n_neighbors, "n_draws": n_draws, "n_pairs": n_pairs, "n_permutations": n_permutations}
    checked("compare", keyword_types(compare), {**numbers, "alpha": alpha, "neighbor_search": neighbor_search})
    chosen = metrics_of(metrics, fit)
    used_alignments = alignments_of(alignments, fit)
    single = isinstance(embeddings, Embedding)
    embeddings = list(embeddings) if not single else embeddings
    invalid = embeddings if single else next((one for one in embeddings if not isinstance(one, Embedding)), None)
    if invalid is not None:
        raise ConfigError(
            "`embeddings` must be a list of `Embedding`s, such as `[embed('pca', dataset), Embedding(name, values, units)]`; "
            f"got {'' if single else 'a list with '}{type(invalid).__name__}."
        )
    if not embeddings:
        raise ConfigError("`embeddings` must contain at least one embedding; got an empty list.")
    check_spread(fit.model, fit.method)
    rows = rows_of(fit, embeddings)
    kinds = [kind for kind in fit.model.kinds if any(row.units == kind for row in rows)]
    names = {kind: fit.dataset.kinds[kind] for kind in kinds}
    draws = {kind: np.ascontiguousarray(fit.latents(fit.model.kinds[kind].site).values) for kind in kinds}
    thinned_draws = {kind: draws_for_scores(fit, draws[kind], n_draws) for kind in kinds}
    neighbor_options: dict[str, dict[str, Any]] = {
        kind: {"n_neighbors": min(n_neighbors, max(1, (len(units) - 1) // 2)), "neighbor_search": neighbor_search}
        for kind, units in names.items()
    }
    seeds = Seeds(fit.seed).child("comparison")
    indices = {kind: [i for i, row in enumerate(rows) if row.units == kind] for kind in kinds}
    rows_by_kind = {kind: [rows[i] for i in which] for kind, which in indices.items()}
    n_steps = sum(n_scores(rows_by_kind[kind], chosen, thinned_draws[kind]) for kind in kinds)
    n_steps += len(rows) if fit.model.is_discrete else n_verdicts(rows, draws, used_alignments) + len(rows)
    with tqdm(total=n_steps, desc="compare", disable=None if progress else True, leave=False) as bar:
        tables: dict[str, Scores] = {
            kind: scored(
                rows_by_kind[kind], chosen, thinned_draws[kind], neighbor_options[kind], (n_pairs, n_permutations), seeds, bar
            )
            for kind in kinds
        }
        unit_names = {kind: [str(unit) for unit in units] for kind, units in names.items()}
        partition = _Partition(fit, draws[kinds[0]][..., 0], names[kinds[0]]) if fit.model.is_discrete else None
        if partition is not None:
            judged = judged_labels(rows, partition.draws, unit_names[kinds[0]], partition.common, alpha, seeds, bar)
        else:
            positions = {kind: by_type["positions"] for kind, by_type in thinned_draws.items()}
            options: dict[str, Any] = {"neighbor_options": neighbor_options, "series": _is_series(fit)}
            judged = judged_positions(rows, draws, positions, unit_names, used_alignments, alpha, seeds, bar, **options)
    fewest, n_units = fewest_units(fit.model), {kind: len(fit.dataset.kinds[kind]) for kind in fit.model.kinds}
    remarks = [f"{k}s are not compared: there are {n}, and {fewest} are needed" for k, n in n_units.items() if n < fewest]
    remarks += orientation_notes(chosen, used_alignments, fit.model)
    if len(n_units) > 1:
        remarks.append("scores use one kind of units each, and verdicts also depend on the relative positions of all kinds")
    parts = {}
    for kind, which in indices.items():
        kind_rows, kind_judged, search_options = rows_by_kind[kind], judged.only(which), neighbor_options[kind]
        data = _part(fit, kind_rows, chosen, names[kind], tables[kind], kind_judged, partition)
        subset = subset_notes(chosen, len(names[kind]))
        data, notes = _with_recalls(data, kind_rows, thinned_draws[kind], search_options, subset)
        data = data.merge(_known_labels(fit, kind, kind_rows, draws[kind], data, search_options, seeds))
        data.attrs = {
            "n_neighbors": search_options["n_neighbors"],
            "alpha": alpha,
            **_symmetry(fit),
            "alignments": ", ".join(kind_judged.verdicts),
            "notes": "; ".join([*notes, *remarks]),
            "ties": "; ".join([*_tie_notes(data, names[kind]), *borderline(kind_rows, kind_judged.verdicts)]),
            "failed_checks": _failed_checks(fit),
        }
        parts[kind] = named(data, kind)
    scores = [score_frame(rows_by_kind[kind], chosen, tables[kind]) for kind in kinds]
    return Comparison(pd.concat(scores, ignore_index=True), verdict_frame(rows, judged.verdicts), parts, fit, tuple(embeddings))


class _Partition:
    """Posterior summaries of the partition of the units, if the positions are labels.

    Args:
        fit: The fit.
        draws: Aligned draws of the labels `(chain, draw, unit)`.
        units: Names of the units.
    """

    def __init__(self, fit: Fit, draws: np.ndarray, units: np.ndarray) -> None:
        self.draws, self.units = draws, units
        self.pairs = co_assignment(draws)
        self.common = UnitsOfLabels(draws, self.pairs.mean, fit.model.n_labels())

    def data(self) -> xr.Dataset:
        """Returns the point estimate, label probabilities, number of clusters, credible ball and co-assignment."""
        centre = minimum_binder(self.draws)
        ball = credible_ball(self.draws, centre)
        arrays: dict[str, Any] = {
            "point_estimate": (("unit",), centre),
            "unsettled": (("unit",), np.isin(np.arange(len(centre)), unsettled(self.draws, centre))),
            "label_probability": (("unit", "label"), self.common.probabilities),
            "n_clusters": (("clusters_chain", "clusters_draw"), n_clusters(self.draws)),
            "ball_radius": ((), ball.radius),
            "ball_mass": ((), ball.mass),
        }
        if len(self.units) <= MOST_PAIRED:
            arrays |= {
                "co_assignment": (("unit", "other_unit"), self.pairs.mean),
                "co_assignment_se": (("unit", "other_unit"), self.pairs.standard_error),
            }
        return xr.Dataset(arrays, coords={"unit": self.units})


def _part(
    fit: Fit,
    rows: Sequence[Row],
    chosen: Sequence[Metric],
    units: np.ndarray,
    table: Scores,
    judged: Judged,
    partition: _Partition | None,
) -> xr.Dataset:
    """Returns scores, verdicts and disagreement of one kind of units as a dataset."""
    data = score_data(rows, chosen, units, table).merge(judged_data(rows, judged, units), compat="override")
    return data if partition is None else data.merge(partition.data(), compat="override")


def _with_recalls(
    data: xr.Dataset, rows: Sequence[Row], draws: Mapping[str, np.ndarray], options: Mapping[str, Any], notes: list[str]
) -> tuple[xr.Dataset, list[str]]:
    """Returns data and notes, with the recall of the neighbours added if the search is approximate."""
    if options["neighbor_search"] != "approximate":
        return data, notes
    recall = recalls(rows, draws["positions"], options["n_neighbors"])
    means = (f"{float(recall[name].mean()):.3f} in {subject}" for name, subject in RECALLS.items())
    n_units = min(N_RECALLED, draws["positions"].shape[2])
    return data.merge(recall), [*notes, f"approximate neighbours: recall {', '.join(means)} (computed on {n_units} units)"]


def _known_labels(
    fit: Fit, kind: str, rows: Sequence[Row], draws: np.ndarray, data: xr.Dataset, options: Mapping[str, Any], seeds: Seeds
) -> xr.Dataset:
    """Returns scores against known labels that the fit did not use; empty without labels or with a single class."""
    labels = fit.dataset.labels_of(kind)
    if labels is None or len(np.unique(labels)) < 2:
        return xr.Dataset()
    if fit.model.is_discrete:
        return clusters_and_labels(rows, draws[..., 0], data["point_estimate"].values, labels)
    return positions_and_labels(rows, draws, labels, options["n_neighbors"], seeds)


def _symmetry(fit: Fit) -> dict[str, str]:
    """Names of the model's symmetry and of its transformations, under which metrics must be invariant; `none` if trivial."""
    group, dims = fit.model.exchanges, fit.model.dims[fit.model.position.site]
    invariances = (
        "permutations of the labels" if fit.model.is_discrete else ", ".join(sorted(required_invariances(group, dims))) or "none"
    )
    return {"symmetry": type(group).__name__, "ignores": invariances}


def _is_series(fit: Fit) -> bool:
    """Whether the units are in the order of time."""
    return "leave_one_out" in fit.model.offers or not {"time", "sequence"}.isdisjoint(fit.dataset.coords)


def _tie_notes(data: xr.Dataset, units: np.ndarray) -> list[str]:
    """Returns a note on units for which another cluster is as good within Monte Carlo error; empty if there are none."""
    if "unsettled" not in data or not data["unsettled"].values.any():
        return []
    which = units[data["unsettled"].values]
    names = ", ".join(str(unit).replace(";", ",") for unit in which[:N_NAMED]) + (", ..." if len(which) > N_NAMED else "")
    return [
        f"tie: for {len(which)} of {len(units)} units ({names}), another cluster of the point estimate has the same expected "
        "loss within Monte Carlo error, and their cluster could change with other draws or another CPU"
    ]


def _failed_checks(fit: Fit) -> str:
    """Names of the fit's failed checks; empty if it converged."""
    table = fit.diagnostics()
    names = dict.fromkeys(table.loc[table["verdict"] == "fail", "check"])
    return "" if fit.converged else ", ".join(names) or "a check without a value"
