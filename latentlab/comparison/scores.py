"""Scores of each row: against posterior draws, with ceilings and floors, and against known labels that no method used."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from latentlab.compare.labels import downstream_accuracy, folds, label_agreement, largest_class
from latentlab.compare.lift import ceiling_table, floor_table, score_table
from latentlab.compare.metric import Metric
from latentlab.compare.neighbors import recall
from latentlab.compare.positions import Positions
from latentlab.comparison.rows import Row
from latentlab.data.memory import thinned
from latentlab.fit import Fit
from latentlab.registry import METRICS
from latentlab.seeds import Seeds

MOST_NUMBERS = 2**24
"""Largest size of the array of label probabilities used for scores (128 MB)."""
N_RECALL_DRAWS = 5
"""Draws for which the recall of approximate neighbours is computed."""
LABEL_METRICS = ("adjusted_rand", "matched_accuracy")
"""Metrics between a clustering and known labels."""
N_LABEL_DRAWS = 100
"""Number of draws of labels that are scored against known labels; for positions, half of this number."""
RECALLS = {"neighbor_recall": "embeddings", "neighbor_recall_draws": "draws"}
"""Variables of the dataset that hold the recall -> the name of their subject in notes."""


def draws_for_scores(fit: Fit, draws: np.ndarray, n_draws: int) -> dict[str, np.ndarray]:
    """Returns the draws for scores by kind of metric: `positions`; or `labels`, with their probabilities as `positions`."""
    if not fit.model.is_discrete:
        return {"positions": thinned(draws, n_draws)}
    n_draws = min(n_draws, max(2, MOST_NUMBERS // (draws[0, 0].size * fit.model.n_labels())))
    soft = fit.probabilities(n_draws=n_draws).values
    return {"positions": soft, "labels": thinned(draws[..., 0], n_draws)}


def _metric_inputs(rows: Sequence[Row], kind: str, draws: dict[str, np.ndarray]) -> dict[int, np.ndarray]:
    """Inputs of the metrics of this kind (`positions` or `labels`), by index of the row; only clusterings have labels."""
    if kind == "labels":
        return {j: labels for j, row in enumerate(rows) if (labels := row.labels) is not None}
    return {j: row.columns if "labels" in draws else row.values for j, row in enumerate(rows)}


def n_scores(rows: Sequence[Row], chosen: Sequence[Metric], draws: dict[str, np.ndarray]) -> int:
    """Number of steps that `scored` reports: each draw, and each row's floor."""
    kinds = {metric.of for metric in chosen}
    return sum(int(np.prod(a.shape[:2])) + len(_metric_inputs(rows, kind, draws)) for kind, a in draws.items() if kind in kinds)


def scored(
    rows: Sequence[Row],
    chosen: Sequence[Metric],
    draws: dict[str, np.ndarray],
    neighbor_options: dict[str, Any],
    sizes: tuple[int, int],
    seeds: Seeds,
    bar: Any,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Computes scores `(metric, embedding, chain, draw)`, ceilings `(metric, pair)`, floors `(metric, embedding, permutation)`.

    Scores and floors are NaN for a metric of labels and an embedding that is not a clustering.
    """
    n_pairs, n_permutations = sizes
    n_chains, n_draws = next(iter(draws.values())).shape[:2]
    scores = np.full((len(chosen), len(rows), n_chains, n_draws), np.nan)
    ceiling = np.full((len(chosen), n_pairs), np.nan)
    floor = np.full((len(chosen), len(rows), n_permutations), np.nan)
    for kind, values in draws.items():
        which = [i for i, metric in enumerate(chosen) if metric.of == kind]
        metrics = [chosen[i] for i in which]
        if not metrics:
            continue
        arrays = _metric_inputs(rows, kind, draws)
        options = {name: value for name, value in neighbor_options.items() if any(name in m.options for m in metrics)}
        scores[np.ix_(which, list(arrays))] = score_table(metrics, list(arrays.values()), values, tick=bar.update, **options)
        ceiling[which] = ceiling_table(metrics, values, seeds.child("ceiling").numpy(), n_pairs, **options)
        for j, array in arrays.items():
            floor[which, j] = floor_table(metrics, array, values, seeds.child("floor").numpy(), n_permutations, **options)
            bar.update()
    return scores, ceiling, floor


def subset_notes(chosen: Sequence[Metric], n_units: int) -> list[str]:
    """Returns notes on the metrics that use only a subset of the units."""
    notes = []
    for n_used in sorted({metric.n_used(n_units) for metric in chosen} - {n_units}):
        names = ", ".join(metric.name for metric in chosen if metric.n_used(n_units) == n_used)
        notes.append(f"{names}: computed on {n_used} of {n_units} units")
    return notes


def recalls(rows: Sequence[Row], draws: np.ndarray, k: int) -> xr.Dataset:
    """Computes the recall of approximate neighbours (share of true ones), for each row and for a subset of the draws."""
    thinned_draws = thinned(draws, N_RECALL_DRAWS)
    flat = thinned_draws.reshape(-1, *thinned_draws.shape[2:])
    arrays = {
        "neighbor_recall": (("embedding",), np.array([recall(Positions(row.values), k) for row in rows])),
        "neighbor_recall_draws": (("recall_draw",), np.array([recall(Positions(draw), k) for draw in flat])),
    }
    return xr.Dataset(arrays, coords={"embedding": [row.label for row in rows]})


def clusters_and_labels(rows: Sequence[Row], draws: np.ndarray, centre: np.ndarray, labels: np.ndarray) -> xr.Dataset:
    """Computes the agreement of each clustering, the point estimate and a subset of the draws with known labels."""
    known = np.unique(labels.astype(str), return_inverse=True)[1]
    thinned_draws = thinned(draws, N_LABEL_DRAWS)
    arrays: dict[str, Any] = {"largest_class": ((), largest_class(labels))}
    for metric in (METRICS.load(name) for name in LABEL_METRICS):
        of_rows = [np.nan if row.labels is None else metric(row.labels, known) for row in rows]
        arrays[f"label_{metric.name}"] = (("embedding",), np.array(of_rows))
        arrays[f"label_{metric.name}_posterior_mean"] = ((), metric(centre, known))
        of_draws = [[metric(draw, known) for draw in chain] for chain in thinned_draws]
        arrays[f"label_{metric.name}_draws"] = (("chain", "label_draw"), np.array(of_draws))
    return xr.Dataset(arrays, coords={"embedding": [row.label for row in rows]})


def positions_and_labels(rows: Sequence[Row], draws: np.ndarray, labels: np.ndarray, k: int, seeds: Seeds) -> xr.Dataset:
    """Computes label agreement and downstream accuracy of each row, the posterior mean and a subset of the draws."""
    thinned_draws = thinned(draws, N_LABEL_DRAWS // 2)
    fixed = folds(labels, seeds.child("folds").numpy())
    tasks = {
        "label_agreement": partial(label_agreement, labels=labels, n_neighbors=k),
        "downstream_accuracy": partial(downstream_accuracy, labels=labels, folds=fixed, n_neighbors=k),
    }
    arrays: dict[str, Any] = {}
    for name, score in tasks.items():
        arrays[name] = (("embedding",), np.array([score(Positions(row.values)) for row in rows]))
        arrays[f"{name}_posterior_mean"] = ((), score(Positions(draws.mean(axis=(0, 1)))))
        of_draws = [[score(Positions(draw)) for draw in chain] for chain in thinned_draws]
        arrays[f"{name}_draws"] = (("chain", "label_draw"), np.array(of_draws))
    arrays["largest_class"] = ((), largest_class(labels))
    return xr.Dataset(arrays, coords={"embedding": [row.label for row in rows]})
