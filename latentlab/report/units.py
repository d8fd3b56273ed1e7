"""Section 6: disagreement of units with the posterior, and its relation to the posterior spread."""

from typing import Any

import numpy as np

from latentlab.report.figure import HEAVY, Classes, draw_figure, panels, shortened
from latentlab.report.items import Figure, Item, Section, Table, Text, listed, shown
from latentlab.report.scores import no_comparison
from latentlab.report.source import Source

TOP = 10
MOST_FEATURES = 15
CORRELATED = 0.05
"""Largest p-value at which a positive rank correlation of disagreement and posterior spread counts."""


def section(source: Source) -> Section:
    """Build the section: units by disagreement, with their raw values if there are few features."""
    title = "Units with the largest disagreement"
    if not source.compared:
        return Section("units", title, (Text((no_comparison(source),)),))
    if not source.judged:
        text = "No clustering was compared. The disagreement of units is defined for clusterings only."
        return Section("units", title, (Text((text,)),))
    items: list[Item] = [Text((_overall(source),)), _top(source), *_raw(source), _by_embedding(source), _scatter(source)]
    items.append(_uncertainty(source))
    return Section("units", title, tuple(items))


def _noun(source: Source) -> str:
    return "clustering" if source.is_discrete else "embedding"


def _others(source: Source) -> str:
    return "companions" if source.is_discrete else "neighbours"


def _spread(source: Source) -> str:
    return "posterior uncertainty" if source.is_discrete else "posterior sd"


def _ranks(source: Source) -> np.ndarray:
    """Compute the mean rank of each unit's disagreement over the embeddings, from 0 (least) to 1, `(unit,)`."""
    labels = [row.label for row in source.judged_rows]
    found = source.comparison["mahalanobis"].sel(embedding=labels).values
    return np.asarray(np.argsort(np.argsort(found, axis=1), axis=1).mean(axis=0) / max(1, found.shape[1] - 1))


def _order(source: Source) -> np.ndarray:
    return np.argsort(-_ranks(source), kind="stable")[:TOP]


def _overall(source: Source) -> str:
    names = [source.units[i] for i in _order(source)[:5]]
    if source.is_discrete:
        return (
            "The disagreement of a unit is the share of other units whose co-assignment with it differs between the clustering and a draw. "
            "It is divided by the same share between a draw and the other draws. It is about 1 for a draw, and 0 if the posterior is certain "
            f"and the clustering agrees with it. The units with the largest disagreement over all clusterings are {listed(names)}."
        )
    return (
        "The disagreement of a unit is the Mahalanobis distance of its aligned position from the posterior mean, per dimension. It is 0 at "
        "the mean and about 1 for a posterior draw. The units with the largest disagreement over all embeddings are "
        f"{listed(names)}."
    )


def _top(source: Source) -> Table:
    data, ranks = source.comparison, _ranks(source)
    records = []
    for i in _order(source):
        record: dict[str, Any] = {"unit": source.units[i]}
        if source.labels is not None:
            record["label"] = str(source.labels[i])
        record |= {"mean rank": float(ranks[i]), _spread(source): float(data["spread"].values[i])}
        for row in source.judged_rows:
            record[row.title] = float(data["mahalanobis"].sel(embedding=row.label).values[i])
        records.append(record)
    caption = (
        f"The {len(records)} units with the largest disagreement over all {_noun(source)}s, with their disagreement by {_noun(source)}. A "
        "mean rank of 1 means the largest disagreement in all of them"
    )
    return Table.of("worst-units", caption, records)


def _raw(source: Source) -> list[Item]:
    if not source.is_table or len(source.features) > MOST_FEATURES:
        return []
    raw = source.raw
    values = source.observed.values
    scale = "in the scale of the fit"
    if raw is not None and set(source.features) <= set(raw.features.astype(str)):
        values, scale = raw.x[:, [raw.features.astype(str).tolist().index(f) for f in source.features]], "in raw values"
    records = [{"unit": source.units[i]} | dict(zip(source.features, values[i].tolist(), strict=True)) for i in _order(source)]
    return [Table.of("worst-units-values", f"Data of these units, {scale}", records, folded=True)]


def _by_embedding(source: Source) -> Table:
    data = source.comparison
    records = []
    for row in source.judged_rows:
        selected = data.sel(embedding=row.label)
        for i in np.argsort(-selected["mahalanobis"].values, kind="stable")[:5]:
            records.append(
                {
                    "embedding": row.title,
                    "unit": source.units[i],
                    "label": "" if source.labels is None else str(source.labels[i]),
                    "disagreement": float(selected["mahalanobis"].values[i]),
                    f"lost {_others(source)}": float(selected["lost_neighbors"].values[i]),
                    "lost between draws": float(data["own_lost_neighbors"].values[i]),
                    _spread(source): float(data["spread"].values[i]),
                }
            )
    caption = "The five units with the largest disagreement, by embedding. “Lost neighbours” is the share of a unit's nearest neighbours in "
    caption += "a draw that are not among its nearest neighbours in the embedding"
    if source.is_discrete:
        caption = (
            "The five units with the largest disagreement, by clustering. “Lost companions” is, of the units in the same cluster in a "
            "draw, the share that the clustering places in another cluster"
        )
    caption += ". “Lost between draws” is the same share between two draws"
    return Table.of("units-by-embedding", caption, records, folded=True)


def _scatter(source: Source) -> Figure:
    data = source.comparison
    rows = source.judged_rows
    classes = Classes(source.labels, len(source.units))
    spread = data["spread"].values

    def draw(canvas: Any) -> None:
        for axes, row in zip(panels(canvas, len(rows), 4, sharex=True), rows, strict=True):
            selected = data.sel(embedding=row.label)
            classes.scatter(axes, spread, selected["distance"].values, size=7 if len(spread) < HEAVY else 4, alpha=0.7)
            axes.set_title(shortened(row.title))
            axes.set_ylim(0, None)
            value = float(selected["uncertainty_correlation"])
            axes.text(0.98, 0.95, f"ρ = {value:.2f}", transform=axes.transAxes, ha="right", va="top", fontsize=8.5)
            axes.grid()
        across = "posterior uncertainty of the unit" if source.is_discrete else "posterior standard deviation of the unit"
        canvas.supxlabel(across, fontsize=9)
        canvas.supylabel("disagreement" if source.is_discrete else "distance from the posterior mean", fontsize=9)

    caption = (
        "Disagreement of each unit against its posterior uncertainty, by clustering. The disagreement is the share of other units whose "
        "co-assignment differs between the clustering and a draw; the uncertainty is the same share between draws. The rank correlation is ρ. "
        "If ρ is large, units with a large posterior uncertainty disagree most."
        if source.is_discrete
        else "Distance of each unit from the posterior mean against its posterior standard deviation, by embedding. The rank correlation is "
        "ρ. If ρ is large, units with a large posterior uncertainty are farthest from the posterior mean."
    )
    height = 0.5 + 2.3 * -(-len(rows) // 4)
    return draw_figure(
        "disagreement",
        caption,
        f"Scatter plots of distance against posterior spread for {len(rows)} embeddings.",
        (10, height),
        draw,
    )


def _uncertainty(source: Source) -> Table:
    data = source.comparison
    records = []
    for row in source.judged_rows:
        selected = data.sel(embedding=row.label)
        value, p = float(selected["uncertainty_correlation"]), float(selected["uncertainty_correlation_p"])
        word = "yes" if p < CORRELATED and value > 0 else "no evidence"
        records.append({"embedding": row.title, "larger for uncertain units": word, "rank correlation": value, "p": p})
    between_draws = shown(float(data["own_lost_neighbors"].mean()))
    caption = (
        f"Rank correlation of disagreement and posterior uncertainty over units, by {_noun(source)}. The p-values are one-sided and assume "
        f"exchangeable units. Between two posterior draws, the mean share of lost {_others(source)} is {between_draws}"
    )
    return Table.of("uncertainty", caption, records)
