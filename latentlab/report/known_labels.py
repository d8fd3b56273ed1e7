"""Scores of embeddings and draws by known labels, which were not used in fitting."""

from typing import Any

import numpy as np

from latentlab.report.figure import BAND, BLUE, EDGE, ORANGE, PURPLE, draw_figure, panels, shortened
from latentlab.report.items import Figure, Item, Table, Text, shown
from latentlab.report.source import Source

LABEL_SCORES = {
    "label_agreement": "label agreement of neighbours",
    "downstream_accuracy": "accuracy of a nearest-neighbour classifier",
}
CLUSTER_SCORES = {
    "label_adjusted_rand": "adjusted Rand index with known labels",
    "label_matched_accuracy": "accuracy with clusters matched to labels",
}
"""Scores by known labels, if the positions are discrete."""
HEIGHT = 0.2
"""Height of a row of a plot, in inches."""


def label_items(source: Source) -> list[Item]:
    data, scored = source.comparison, _label_scores(source)
    if not all(name in data for name in scored):
        return [Text(("The units have no known labels.",))]
    centre = _centre(source)
    records = []
    for name, title in scored.items():
        of_draws = data[f"{name}_draws"].values.ravel()
        q05, q95 = np.quantile(of_draws, (0.05, 0.95))
        draw_scores = {"draws, median": float(np.median(of_draws)), "draws, q05": float(q05), "draws, q95": float(q95)}
        mean = float(data[f"{name}_posterior_mean"])
        for label, score in zip(data["embedding"].values, data[name].values, strict=True):
            if np.isnan(score):
                continue
            record = {"score": title, "embedding": source.titles[str(label)], "value": float(score), centre: mean}
            records.append(record | draw_scores)
    chance = float(data["largest_class"])
    text = (
        "Neither the model nor the embeddings used the known labels. The accuracy of always predicting the largest class is "
        f"{shown(chance)}."
    )
    text += (
        " Only clusterings are compared with the known labels."
        if source.is_discrete
        else " The classifier uses the same cross-validation folds in all rows."
    )
    noun = "clustering" if source.is_discrete else "embedding"
    caption = f"Scores by known labels of each {noun}, the {centre} and the posterior draws (90% interval)"
    return [Text((text,)), _label_figure(source), Table.of("labels", caption, records, folded=True)]


def _label_figure(source: Source) -> Figure:
    data, scored = source.comparison, _label_scores(source)
    data = data.isel(embedding=np.flatnonzero(~np.isnan(data[next(iter(scored))].values)))
    noun = "clustering" if source.is_discrete else "embedding"
    labels = [*(source.titles[str(label)] for label in data["embedding"].values), _centre(source), "posterior draws"]

    def draw(canvas: Any) -> None:
        y = np.arange(len(labels))[::-1]
        chances = {"downstream_accuracy": float(data["largest_class"]), **_agreement_by_chance(source)}
        chances |= {"label_adjusted_rand": 0.0, "label_matched_accuracy": float(data["largest_class"])}
        for axes, (name, title) in zip(panels(canvas, 2, 2, sharey=True), scored.items(), strict=True):
            values = [*data[name].values.tolist(), float(data[f"{name}_posterior_mean"])]
            low, middle, high = np.quantile(data[f"{name}_draws"].values, (0.05, 0.5, 0.95))
            axes.axvspan(low, high, facecolor=BAND, edgecolor=EDGE, lw=0.8)
            axes.plot(values[:-1], y[: len(values) - 1], "o", color=ORANGE, ms=6)
            axes.plot(values[-1], y[-2], "s", color=BLUE, ms=6)
            axes.hlines(y[-1], low, high, color=BLUE, lw=2.5)
            axes.plot(middle, y[-1], "D", color=BLUE, ms=5)
            chance = chances.get(name)
            if chance is not None:
                axes.axvline(chance, color=PURPLE, ls="--", lw=1.2)
                axes.annotate(
                    "chance", (chance, 0), xycoords=("data", "axes fraction"), xytext=(3, 3), textcoords="offset points"
                )
            axes.set_title(title)
            axes.set_xlabel("better →")
            axes.set_yticks(y, [shortened(label) for label in labels])
            axes.grid(axis="x")

    chance_level = "an index of 0" if source.is_discrete else "random neighbours"
    caption = (
        f"Scores by known labels of each {noun} (dots), the {_centre(source)} (square) and the posterior draws (diamond and band, 90% "
        f"interval). The dashed lines are the chance levels: {chance_level} (left), and always predicting the largest class (right)."
    )
    return draw_figure("labels", caption, "Dot plots of agreement with the known labels.", (10, 1.1 + HEIGHT * len(labels)), draw)


def _label_scores(source: Source) -> dict[str, str]:
    return CLUSTER_SCORES if source.is_discrete else LABEL_SCORES


def _centre(source: Source) -> str:
    return "point estimate" if source.is_discrete else "posterior mean"


def _agreement_by_chance(source: Source) -> dict[str, float]:
    """Return the chance level of label agreement, the sum of squared class shares; empty without labels."""
    if source.labels is None:
        return {}
    counts = np.unique(source.labels, return_counts=True)[1]
    return {"label_agreement": float(((counts / counts.sum()) ** 2).sum())}
