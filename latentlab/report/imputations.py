"""Imputation of missing entries."""

from typing import Any

import numpy as np

from latentlab.models.base import LatentModel
from latentlab.report.figure import BLUE, GREY, HEAVY, INK, RED, draw_figure
from latentlab.report.items import Figure, Item, Table, Text, count, shown
from latentlab.report.source import Source
from latentlab.results.assemble import thinned_sites
from latentlab.results.new_points import impute
from latentlab.results.tree import parameters_of
from latentlab.seeds import Seeds

N_IMPUTED = 400
"""Approximate number of posterior draws used for imputation."""


def imputed_items(source: Source) -> list[Item]:
    if not source.is_table or not np.isnan(source.observed.values).any():
        return []
    if source.model is None or "imputation" not in source.model.offers:
        return [Text(("Missing entries are marginalised. Imputation is not available for this model.",))]
    where = np.argwhere(np.isnan(source.observed.values))
    draws = imputations(source, source.model, where)
    truth = _hidden(source, where)
    if source.n_categories is not None:
        return _imputed_codes(source, source.n_categories, draws, where, truth)
    mean, sd = draws.mean(axis=0), draws.std(axis=0)
    low, high = np.quantile(draws, (0.05, 0.95), axis=0)
    order = np.argsort(-sd, kind="stable")
    records = []
    for i in order[:50] if len(order) > 300 else range(len(order)):
        u, f = where[i]
        record = {"unit": source.units[u], "feature": source.features[f], "mean": mean[i], "q05": low[i], "q95": high[i]}
        records.append(record | ({} if truth is None else {"true value": truth[i]}))
    caption = "Imputed values of the missing entries" + (" (the 50 least certain)" if len(order) > 300 else "")
    scale = "in the standardised scale" if source.config["dataset"].get("standardize") else "in the original scale"
    column_means = np.nanmean(source.observed.values, axis=0)[where[:, 1]]
    items: list[Item] = [_imputation_text(truth, column_means, mean, low, high)]
    if truth is not None and np.isfinite(truth).any():
        items.append(_imputed_figure(mean, low, high, truth, scale))
    return [*items, Table.of("imputed", f"{caption}, {scale}", records, folded=True)]


def _imputed_codes(
    source: Source, n_categories: int, draws: np.ndarray, where: np.ndarray, truth: np.ndarray | None
) -> list[Item]:
    """Return the most probable category of each missing entry."""
    probabilities = (draws[..., None] == np.arange(n_categories)).mean(axis=0)
    code, largest = probabilities.argmax(axis=1), probabilities.max(axis=1)
    order = np.argsort(largest, kind="stable")
    records = []
    for i in order[:50] if len(order) > 300 else range(len(order)):
        u, f = where[i]
        record = {"unit": source.units[u], "feature": source.features[f], "category": int(code[i]), "probability": largest[i]}
        records.append(record | ({} if truth is None else {"true category": truth[i]}))
    text = f"{count(len(code), 'entry is', 'entries are')} missing. Missing entries are marginalised in the fit and imputed afterwards."
    if truth is not None and np.isfinite(truth).any():
        right = float((code == truth)[np.isfinite(truth)].mean())
        text += f" The true categories are known: the most probable category is correct for {right:.0%} of the entries."
    caption = "Most probable categories of the missing entries" + (" (the 50 least certain)" if len(order) > 300 else "")
    return [Text((text,)), Table.of("imputed", caption, records, folded=True)]


def imputations(source: Source, model: LatentModel, where: np.ndarray) -> np.ndarray:
    """Return draws of missing entries `(draw, entry)`, in the scale of the fit."""
    sites = {str(name): array.values for name, array in source.tree["posterior"].data_vars.items()}
    seeds = Seeds(int(source.config.get("seed", 0))).child("imputations")
    parameters = parameters_of(source.tree)
    return impute(model, source.fitted, thinned_sites(sites, N_IMPUTED), seeds, where, parameters).reshape(-1, len(where))


def _hidden(source: Source, where: np.ndarray) -> np.ndarray | None:
    """Return the true values of missing entries in the scale of the fit; None if they are unknown."""
    truth = source.fitted.truth.get(source.fitted.observed)
    return None if truth is None else np.asarray(truth[tuple(where.T)])


def _imputation_text(
    truth: np.ndarray | None, column_means: np.ndarray, mean: np.ndarray, low: np.ndarray, high: np.ndarray
) -> Text:
    text = f"{count(len(mean), 'entry is', 'entries are')} missing. Missing entries are marginalised in the fit and imputed afterwards."
    if truth is None:
        return Text((text,))
    known = np.isfinite(truth)
    inside = float(((truth >= low) & (truth <= high))[known].mean())
    error, column_error = (float(np.sqrt(((truth - guess)[known] ** 2).mean())) for guess in (mean, column_means))
    return Text(
        (
            f"{text} The true values are known: {inside:.0%} of them are in their 90% credible intervals. The root mean square error is "
            f"{shown(error)} for the posterior mean and {shown(column_error)} for the column mean.",
        )
    )


def _imputed_figure(mean: np.ndarray, low: np.ndarray, high: np.ndarray, truth: np.ndarray, scale: str) -> Figure:
    def draw(canvas: Any) -> None:
        axes = canvas.subplots()
        out = (truth < low) | (truth > high)
        ends = [np.nanmin([low, truth]), np.nanmax([high, truth])]
        axes.plot(ends, ends, color=GREY, lw=1)
        for chosen, color, marker in ((~out, BLUE, "o"), (out, RED, "X")):
            heavy = len(truth) > HEAVY
            axes.vlines(truth[chosen], low[chosen], high[chosen], color=color, lw=0.6, alpha=0.35, rasterized=heavy)
            axes.scatter(truth[chosen], mean[chosen], s=10, color=color, marker=marker, lw=0, rasterized=heavy)
        axes.set_xlabel(f"true value, {scale}", color=INK)
        axes.set_ylabel("imputed value")
        axes.grid()

    caption = "Imputed values: posterior mean and 90% credible interval against the true value. Crosses mark true values outside their interval."
    return draw_figure("imputed", caption, f"Scatter of {len(truth)} imputed values against the true values.", (10, 4.0), draw)
