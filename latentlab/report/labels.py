"""Section 3 if the positions are labels: the component or state of each unit, and its parameters."""

from typing import Any

import numpy as np

from latentlab.compare.clustering import credible_ball
from latentlab.report.co_assignment import known_label_items, pair_figure
from latentlab.report.components import LEVEL, draws_of, ellipse, gaussians, histogram_figure, profiles
from latentlab.report.figure import HEAVY, draw_figure, feature
from latentlab.report.items import Item, Table, Text, count, shown
from latentlab.report.parts import Parts, occupied, opacity, rgba_of
from latentlab.report.source import POINT, Source

TITLE = "Posterior of the labels"
CERTAIN = 0.95
"""Probability from which a unit's label counts as certain."""
MOST_LISTED = 300
LEAST_CERTAIN = 50


def summary(source: Source, parts: Parts) -> list[Item]:
    """Return a summary of the labels and their certainty, and the posterior of the number of occupied labels."""
    return [Text((_sentence(source, parts),)), *_occupied(source)]


def components(source: Source, parts: Parts) -> list[Item]:
    """Return a map of the components, a table of their sizes, and profiles of their features."""
    return [*_map(source, parts), _table(source, parts), *profiles(source, parts)]


def co_assignment_items(source: Source, parts: Parts) -> list[Item]:
    """Return the co-assignment, the comparison with known labels, and the labels of each unit."""
    return [pair_figure(source, parts), *known_label_items(source, parts), _units(source, parts)]


def _sentence(source: Source, parts: Parts) -> str:
    n, certainty = len(source.units), source.probabilities.max(axis=1)
    least = int(np.argmin(certainty))
    n_certain = int((certainty >= CERTAIN).sum())
    sentences = [
        f"The model assigns each of {count(n, 'unit')} to one of {count(source.n_labels, parts.dim)}.",
        f"For {count(n_certain, 'unit')}, the most probable {parts.dim} has probability {CERTAIN:g} or more.",
        f"The least certain unit is {source.units[least]}, with probability {shown(float(certainty[least]), 2)}.",
        _number_occupied(source, parts),
        _ball(source, parts),
    ]
    group = None if source.model is None else source.model.exchanges
    if group is not None and not group.is_trivial():
        sentences.append(
            f"The order of the {parts.dim}s is not identified (symmetry group {type(group).__name__}). The {parts.dim}s of all draws were "
            "relabelled to a common order."
        )
    return " ".join(sentences)


def _number_occupied(source: Source, parts: Parts) -> str:
    values, share = occupied(source)
    if len(values) == 1:
        return (
            f"In every draw, {values[0]} {parts.dim}s are occupied."
            if values[0] > 1
            else f"In every draw, one {parts.dim} contains all units."
        )
    most = int(share.argmax())
    return (
        f"The number of occupied {parts.dim}s ranges from {values[0]} to {values[-1]} over the draws. The most frequent number "
        f"is {values[most]} ({share[most]:.0%} of the draws)."
    )


def _ball(source: Source, parts: Parts) -> str:
    ball = credible_ball(source.label_draws, source.estimate)
    return (
        f"The point estimate is the partition with the smallest expected Binder loss. It has {count(len(np.unique(source.estimate)), parts.dim)}. "
        f"The credible ball around it contains {ball.mass:.0%} of the draws and has radius {shown(ball.radius, 2)} nats (variation of information)."
    )


def _occupied(source: Source) -> list[Item]:
    values, share = occupied(source)
    if len(values) == 1:
        return []
    rows = [{f"occupied {source.label_dim}s": int(v), "probability": float(s)} for v, s in zip(values, share, strict=True)]
    return [Table.of("occupied", f"Posterior distribution of the number of occupied {source.label_dim}s", rows)]


def plane(source: Source) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]] | None:
    """Project the units onto a plane: coordinates `(unit, 2)`, centre, axes `(2, feature)`, names of the axes.

    The axes are the two features, or the first two principal axes of the data. Missing entries are replaced by the column's mean.
    None if the data are not a table with at least two features.
    """
    if not source.is_table or len(source.features) < 2:
        return None
    x = source.observed.values.astype(np.float64)
    centre = np.nanmean(x, axis=0)
    filled = np.where(np.isnan(x), centre, x)
    if x.shape[1] == 2:
        return filled, np.zeros(2), np.eye(2), [feature(name) for name in source.features]
    centre = filled.mean(axis=0)
    _, values, axes = np.linalg.svd(filled - centre, full_matrices=False)
    axes = axes[:2] * np.sign(axes[np.arange(2), np.abs(axes[:2]).argmax(axis=1)])[:, None]
    share = values**2 / max(float((values**2).sum()), 1e-300)
    names = [f"principal axis {k + 1} of the data ({share[k]:.0%} of the variance)" for k in range(2)]
    return (filled - centre) @ axes.T, centre, axes, names


def _map(source: Source, parts: Parts) -> list[Item]:
    found = plane(source)
    if found is None:
        return [histogram_figure(source, parts)] if source.is_table and len(source.features) == 1 else []
    at, centre, axes_of, names = found
    shapes = gaussians(source)

    def draw(canvas: Any) -> None:
        axes = canvas.subplots()
        for k in np.intersect1d(parts.kept, source.estimate).tolist():
            chosen = source.estimate == k
            rgba = rgba_of(parts.color(k), opacity(source.certainty[chosen]))
            axes.scatter(*at[chosen].T, s=18, c=rgba, marker=parts.marker(k), linewidths=0, rasterized=len(at) > HEAVY)
            axes.scatter([], [], s=18, c=parts.color(k), marker=parts.marker(k), label=parts.name(k))
            if shapes is not None:
                ellipse(axes, axes_of @ (shapes[0][k] - centre), axes_of @ shapes[1][k] @ axes_of.T, parts.color(k))
        if len(source.features) > 2:
            axes.set_aspect("equal", adjustable="datalim")
        axes.set_xlabel(names[0])
        axes.set_ylabel(names[1])
        axes.grid()
        canvas.legend(*axes.get_legend_handles_labels(), loc="outside right upper", markerscale=1.5)

    axes_text = "the two features" if len(source.features) == 2 else "the first two principal axes of the data"
    imputed = " Missing entries are replaced by the mean of their column." if np.isnan(source.observed.values).any() else ""
    ellipses = (
        ""
        if shapes is None
        else f" Each ellipse contains {LEVEL:.0%} of the probability of a {parts.dim}, at the posterior mean of its mean and covariance."
    )
    caption = (
        f"The units on {axes_text}. Colours and shapes show the {parts.dim} in the point estimate. Paler units have a lower probability "
        f"of that {parts.dim} (full colour at 1, palest at 0.5 or less).{ellipses}{imputed}"
    )
    return [draw_figure("map", caption, f"Scatter of {len(at)} units coloured by {parts.dim}.", (10, 6.0), draw)]


def _table(source: Source, parts: Parts) -> Table:
    weights = draws_of(source, "weights")
    records = []
    for k in parts.kept:
        size = parts.sizes[:, k]
        record: dict[str, Any] = {parts.dim: k, "units in the point estimate": int((source.estimate == k).sum())}
        record |= {"units, mean": float(size.mean())}
        record |= {f"units, q{q:02}": float(np.quantile(size, q / 100)) for q in (5, 95)}
        record["certain units"] = int((source.probabilities[:, k] >= CERTAIN).sum())
        if weights is not None and weights.ndim == 2:
            record["weight, mean"] = float(weights[:, k].mean())
            if source.kind != POINT:
                low, high = np.quantile(weights[:, k], (0.05, 0.95))
                record |= {"weight, q05": float(low), "weight, q95": float(high)}
        records.append(record)
    n_omitted = source.n_labels - len(parts.kept)
    omitted = f". {count(n_omitted, f'{parts.dim} is', f'{parts.dim}s are')} almost empty and omitted" if n_omitted else ""
    caption = f"Number of units in each {parts.dim} over the draws (mean and 90% interval)"
    caption += ". " if weights is None else f", and weight of the {parts.dim} in the model. "
    caption += f"Certain units have probability {CERTAIN:g} or more{omitted}"
    return Table.of("components", caption, records)


def _units(source: Source, parts: Parts) -> Table:
    order = np.argsort(-source.probabilities, axis=1, kind="stable")
    records = []
    for i, unit in enumerate(source.units):
        record: dict[str, Any] = {"unit": unit}
        if source.labels is not None:
            record["label"] = str(source.labels[i])
        record |= {"point estimate": int(source.estimate[i]), f"most probable {parts.dim}": int(order[i, 0])}
        record["probability"] = float(source.probabilities[i, order[i, 0]])
        if source.n_labels > 1:
            record |= {f"second {parts.dim}": int(order[i, 1]), "second probability": float(source.probabilities[i, order[i, 1]])}
        records.append(record)
    caption = f"Posterior probabilities of the {parts.dim}s of each unit, from {count(source.label_draws[..., 0].size, 'draw')}"
    if len(records) > MOST_LISTED:
        least = np.argsort(source.probabilities.max(axis=1), kind="stable")[:LEAST_CERTAIN]
        return Table.of(
            "positions",
            f"{caption}. The {LEAST_CERTAIN} least certain units are listed",
            [records[i] for i in least],
            folded=True,
        )
    return Table.of("positions", caption, records, folded=True)
