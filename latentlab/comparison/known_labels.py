"""Agreement of rows and draws with known labels, which neither the model nor the embeddings used."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from latentlab.compare.labels import downstream_accuracy, folds, label_agreement, largest_class
from latentlab.compare.positions import Positions
from latentlab.comparison.rows import Row
from latentlab.data.memory import thinned
from latentlab.registry import METRICS
from latentlab.seeds import Seeds

LABEL_METRICS = ("adjusted_rand", "matched_accuracy")
"""Metrics between a clustering and known labels."""
N_DRAWS = 100
"""Draws of labels that are scored against known labels; half as many draws of positions."""


def clusters_and_labels(rows: Sequence[Row], draws: np.ndarray, centre: np.ndarray, labels: np.ndarray) -> xr.Dataset:
    """Computes the agreement of each clustering, the point estimate and some draws with known labels."""
    known = np.unique(labels.astype(str), return_inverse=True)[1]
    few = thinned(draws, N_DRAWS)
    arrays: dict[str, Any] = {"largest_class": ((), largest_class(labels))}
    for metric in (METRICS.load(name) for name in LABEL_METRICS):
        of_rows = [np.nan if row.labels is None else metric(row.labels, known) for row in rows]
        arrays[f"label_{metric.name}"] = (("embedding",), np.array(of_rows))
        arrays[f"label_{metric.name}_posterior_mean"] = ((), metric(centre, known))
        of_draws = [[metric(draw, known) for draw in chain] for chain in few]
        arrays[f"label_{metric.name}_draws"] = (("chain", "label_draw"), np.array(of_draws))
    return xr.Dataset(arrays, coords={"embedding": [row.label for row in rows]})


def positions_and_labels(rows: Sequence[Row], draws: np.ndarray, labels: np.ndarray, k: int, seeds: Seeds) -> xr.Dataset:
    """Computes label agreement and downstream accuracy of each row, the posterior mean and some draws."""
    few = thinned(draws, N_DRAWS // 2)
    fixed = folds(labels, seeds.child("folds").numpy())
    tasks = {
        "label_agreement": partial(label_agreement, labels=labels, n_neighbors=k),
        "downstream_accuracy": partial(downstream_accuracy, labels=labels, folds=fixed, n_neighbors=k),
    }
    arrays: dict[str, Any] = {}
    for name, score in tasks.items():
        arrays[name] = (("embedding",), np.array([score(Positions(row.values)) for row in rows]))
        arrays[f"{name}_posterior_mean"] = ((), score(Positions(draws.mean(axis=(0, 1)))))
        of_draws = [[score(Positions(draw)) for draw in chain] for chain in few]
        arrays[f"{name}_draws"] = (("chain", "label_draw"), np.array(of_draws))
    arrays["largest_class"] = ((), largest_class(labels))
    return xr.Dataset(arrays, coords={"embedding": [row.label for row in rows]})
