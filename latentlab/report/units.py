"""Section 6: disagreement of units with the posterior, and its relation to the posterior spread."""

from typing import Any

import numpy as np

from latentlab.report.figure import HEAVY, Classes, drawn, panels, shortened
from latentlab.report.items import Figure, Item, Section, Table, Text, listed, shown
from latentlab.report.scores import nothing
from latentlab.report.source import Source

TOP = 10
MOST_FEATURES = 15
CORRELATED = 0.05
"""Largest p-value at which a positive rank correlation of disagreement and posterior spread counts."""


def section(source: Source) -> Section:
    """Build the section: units by disagreement, with their raw values if there are few features."""
    title = "Which units disagree?"
    if not source.compared:
        return Section("units", title, (Text((nothing(source),)),))
    if not source.judged:
        said = "No clustering was compared, and units can be compared with labels by their clusters only."
        return Section("units", title, (Text((said,)),))
    items: list[Item] = [Text((_overall(source),)), _top(source), *_raw(source), _by_embedding(source), _scatter(source)]
    items.append(_uncertainty(source))
    return Section("units", title, tuple(items))


def _what(source: Source) -> str:
    return "clustering" if source.is_discrete else "embedding"


def _others(source: Source) -> str:
    return "companions" if source.is_discrete else "neighbours"


def _spread(source: Source) -> str:
    return "doubt of the posterior" if source.is_discrete else "posterior sd"


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
            "A unit's disagreement is the share of the other units that a clustering puts together with it where draws do not, or apart "
            "where draws do not, over the same share between a draw and the others: about 1 for a draw, 0 where the posterior is sure and the "
            f"clustering agrees. Over all clusterings the units that disagree most are {listed(names)}."
        )
    return (
        "A unit's disagreement is its distance from the posterior mean, after the embedding was turned, moved and, where that was "
        "allowed, scaled onto it, in the posterior's own units and per dimension: 0 at the mean, "
        f"about 1 for a draw. Over all embeddings the units that disagree most are {listed(names)}."
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
        f"The {len(records)} units that disagree most over all {_what(source)}s (mean rank: 1 is the most disagreeing unit), with their "
        f"disagreement by {_what(source)}"
    )
    return Table.of("worst-units", caption, records)


def _raw(source: Source) -> list[Item]:
    if not source.is_table or len(source.features) > MOST_FEATURES:
        return []
    raw = source.raw
    values = source.observed.values
    what = "as they were fitted"
    if raw is not None and set(source.features) <= set(raw.features.astype(str)):
        values, what = raw.x[:, [raw.features.astype(str).tolist().index(f) for f in source.features]], "raw"
    records = [{"unit": source.units[i]} | dict(zip(source.features, values[i].tolist(), strict=True)) for i in _order(source)]
    return [Table.of("worst-units-values", f"What was observed of them ({what})", records, folded=True)]


def _by_embedding(source: Source) -> Table:
    data = source.comparison
    records = []
    for row in source.judged_rows:
        of = data.sel(embedding=row.label)
        for i in np.argsort(-of["mahalanobis"].values, kind="stable")[:5]:
            records.append(
                {
                    "embedding": row.title,
                    "unit": source.units[i],
                    "label": "" if source.labels is None else str(source.labels[i]),
                    "disagreement": float(of["mahalanobis"].values[i]),
                    f"lost {_others(source)}": float(of["lost_neighbors"].values[i]),
                    "lost between draws": float(data["own_lost_neighbors"].values[i]),
                    _spread(source): float(data["spread"].values[i]),
                }
            )
    caption = "The five units of each embedding that disagree most; lost neighbours are the share of a draw's nearest units that are not the "
    caption += "embedding's, beside the same share between two draws"
    if source.is_discrete:
        caption = (
            "The five units of each clustering that disagree most; lost companions are the share of the units that are together with it in a "
            "draw and not in the clustering, beside the same share between two draws"
        )
    return Table.of("units-by-embedding", caption, records, folded=True)


def _scatter(source: Source) -> Figure:
    data = source.comparison
    rows = source.judged_rows
    classes = Classes(source.labels, len(source.units))
    spread = data["spread"].values

    def draw(canvas: Any) -> None:
        axes = panels(canvas, len(rows), 4, sharex=True)
        for one, row in zip(axes, rows, strict=True):
            of = data.sel(embedding=row.label)
            classes.scatter(one, spread, of["distance"].values, size=7 if len(spread) < HEAVY else 4, alpha=0.7)
            one.set_title(shortened(row.title))
            one.set_ylim(0, None)
            value = float(of["uncertainty_correlation"])
            one.text(0.98, 0.95, f"ρ = {value:.2f}", transform=one.transAxes, ha="right", va="top", fontsize=8.5)
            one.grid()
        across = "the posterior's doubt about the unit" if source.is_discrete else "posterior standard deviation of the unit"
        canvas.supxlabel(across, fontsize=9)
        canvas.supylabel("disagreement" if source.is_discrete else "distance from the posterior mean", fontsize=9)

    caption = (
        "Each unit's disagreement (the share of the other units about which the clustering differs from a draw) against the posterior's own "
        "doubt (the same share between draws), by clustering; ρ is their rank correlation. If it is large, the clustering goes wrong where "
        "the posterior is unsure."
        if source.is_discrete
        else "Each unit's distance from the posterior mean against the posterior's own spread, by embedding; ρ is their rank correlation. "
        "If it is large, the embedding goes wrong where the posterior is unsure."
    )
    height = 0.5 + 2.3 * -(-len(rows) // 4)
    return drawn("disagreement", caption, f"Scatters of distance against spread for {len(rows)} arrays.", (10, height), draw)


def _uncertainty(source: Source) -> Table:
    data = source.comparison
    records = []
    for row in source.judged_rows:
        of = data.sel(embedding=row.label)
        value, p = float(of["uncertainty_correlation"]), float(of["uncertainty_correlation_p"])
        word = "yes" if p < CORRELATED and value > 0 else "no evidence"
        records.append({"embedding": row.title, "larger uncertainty?": word, "rank correlation": value, "p": p})
    own = shown(float(data["own_lost_neighbors"].mean()))
    caption = (
        f"Posterior uncertainty and disagreement: is the uncertainty larger for the units that the {_what(source)} places elsewhere? "
        f"One-sided p-values for exchangeable units. Between two posterior draws, units lose {own} of their {_others(source)} on average"
    )
    return Table.of("uncertainty", caption, records)
