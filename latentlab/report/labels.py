"""Section 3 where the positions are labels: which component or state each unit is in, and what those are."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator
from scipy.stats import chi2, norm

from latentlab.compare.clustering import co_assignment, credible_ball, n_clusters
from latentlab.report.figure import COLORS, GREY, HEAVY, INK, MARKERS, Classes, drawn, feature, shortened
from latentlab.report.items import Figure, Item, Table, Text, count, shown
from latentlab.report.source import POINT, Source, matched

SURE = 0.95
"""Probability from which on a unit is said to be sure of its label."""
LEVEL = 0.8
"""Of the ellipses of components."""
MOST_PAIRED = 400
"""Units that the drawing of the co-assignment holds."""
MOST_ROWS = 40
"""Features that profiles are drawn for."""
MOST_INTERVALS = 120
"""Intervals that a drawing of profiles holds; more are drawn as a heat map."""
MOST_BARS = 40
MOST_LISTED = 300
LEAST_SURE = 50
ALMOST_EMPTY = 0.5
"""Units that a label holds on average, below which it is left out."""
FAINT = 0.25
"""Opacity of a unit that may as well have another label."""
LOCATIONS = ("mu", "rate", "probability")
"""Sites that say what a feature is like within a component, the first that there is."""


class Parts:
    """The labels that are shown, with names, colours and shapes.

    Args:
        source: The run.

    Attributes:
        kept: Labels that hold half a unit or more on average, or are in the point estimate.
        sizes: Units with each label in each draw, `(draw, label)`.
    """

    def __init__(self, source: Source) -> None:
        self.dim, self.n_labels = source.label_dim, source.n_labels
        flat = source.label_draws.reshape(-1, len(source.units))
        self.sizes = np.stack([(flat == k).sum(axis=1) for k in range(source.n_labels)], axis=1)
        used = (self.sizes.mean(axis=0) >= ALMOST_EMPTY) | np.isin(np.arange(source.n_labels), source.estimate)
        self.kept: list[int] = np.flatnonzero(used).tolist()

    def name(self, label: int) -> str:
        """`component 2`, say."""
        return f"{self.dim} {label}"

    def color(self, label: int) -> str:
        """Its colour in every drawing of the page."""
        return COLORS[self._rank(label) % len(COLORS)]

    def marker(self, label: int) -> str:
        """Its shape."""
        return MARKERS[self._rank(label) % len(MARKERS)]

    def _rank(self, label: int) -> int:
        """Its place among those shown; beyond them for others."""
        return self.kept.index(label) if label in self.kept else len(self.kept) + max(0, label - self.n_labels)


def section_title(source: Source) -> str:
    """The section's."""
    unit = "step" if source.sequences is not None else "unit"
    return f"Which {source.label_dim} is each {unit} in?"


def overview(source: Source, parts: Parts) -> list[Item]:
    """How many labels, how sure the units are of theirs, how many labels are in use."""
    return [Text((_sentence(source, parts),)), *_occupied(source)]


def components(source: Source, parts: Parts) -> list[Item]:
    """Where the components are, how large, and what their features are like."""
    return [*_map(source, parts), _table(source, parts), *profiles(source, parts)]


def who_is_with_whom(source: Source, parts: Parts) -> list[Item]:
    """Co-assignment, known labels, and the labels of each unit."""
    return [_pairs(source, parts), *_known(source, parts), _units(source, parts)]


# -- in words


def _sentence(source: Source, parts: Parts) -> str:
    n, certainty = len(source.units), source.probabilities.max(axis=1)
    least = int(np.argmin(certainty))
    n_sure = int((certainty >= SURE).sum())
    said = [
        f"Each of {count(n, 'unit')} has one of {count(source.n_labels, 'label')}, the {parts.dim}s of the model.",
        f"{count(n_sure, 'unit is', 'units are')} sure of {'its' if n_sure == 1 else 'theirs'}, with a probability of {SURE:g} or more; the least "
        f"sure, {source.units[least]}, has {shown(float(certainty[least]), 2)} for its most probable {parts.dim}.",
        _number_occupied(source, parts),
        _ball(source, parts),
    ]
    group = None if source.model is None else source.model.exchanges
    if group is not None and not group.is_trivial():
        said.append(
            f"The order of the {parts.dim}s means nothing (symmetry {type(group).__name__}): the {parts.dim}s of every draw were "
            "renamed to agree with those of the others as to who is in which."
        )
    return " ".join(said)


def _number_occupied(source: Source, parts: Parts) -> str:
    values, share = occupied(source)
    if len(values) == 1:
        return (
            f"In every draw {values[0]} of the {parts.dim}s hold units." if values[0] > 1 else f"One {parts.dim} holds all units."
        )
    most = int(share.argmax())
    return (
        f"How many of the {parts.dim}s hold units is not certain: from {values[0]} to {values[-1]}, most often {values[most]} "
        f"({share[most]:.0%} of the draws)."
    )


def _ball(source: Source, parts: Parts) -> str:
    ball = credible_ball(source.label_draws, source.estimate)
    return (
        f"The point estimate is the partition into {count(len(np.unique(source.estimate)), parts.dim)} of least expected Binder loss, the share of pairs "
        f"of units about which it and a draw differ; {ball.mass:.0%} of the draws lie within {shown(ball.radius, 2)} nats of it (variation "
        "of information)."
    )


def occupied(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """How many labels are in use, and in which share of the draws."""
    values, times = np.unique(n_clusters(source.label_draws), return_counts=True)
    return values, times / times.sum()


def _occupied(source: Source) -> list[Item]:
    values, share = occupied(source)
    if len(values) == 1:
        return []
    rows = [{f"{source.label_dim}s that hold units": int(v), "probability": float(s)} for v, s in zip(values, share, strict=True)]
    return [Table.of("occupied", f"Posterior of the number of {source.label_dim}s that hold units", rows)]


# -- the map


def plane(source: Source) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]] | None:
    """Where the units are on a plane: coordinates `(unit, 2)`, centre, axes `(2, feature)`, names of the axes.

    The two features, or the first two principal axes of the data; entries that are missing are put at their column's mean.
    None where the data are no table of two features or more.
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


def opacity(certainty: np.ndarray) -> np.ndarray:
    """From faint, where another label is as probable, to full."""
    return FAINT + (0.9 - FAINT) * np.clip(2 * certainty - 1, 0, 1)


def _map(source: Source, parts: Parts) -> list[Item]:
    found = plane(source)
    if found is None:
        return [_histogram(source, parts)] if source.is_table and len(source.features) == 1 else []
    at, centre, axes_of, names = found
    shapes = _gaussians(source)

    def draw(canvas: Any) -> None:
        axes = canvas.subplots()
        for k in np.intersect1d(parts.kept, source.estimate).tolist():
            chosen = source.estimate == k
            rgba = _rgba(parts.color(k), opacity(source.certainty[chosen]))
            axes.scatter(*at[chosen].T, s=18, c=rgba, marker=parts.marker(k), linewidths=0, rasterized=len(at) > HEAVY)
            axes.scatter([], [], s=18, c=parts.color(k), marker=parts.marker(k), label=parts.name(k))
            if shapes is not None:
                _ellipse(axes, axes_of @ (shapes[0][k] - centre), axes_of @ shapes[1][k] @ axes_of.T, parts.color(k))
        if len(source.features) > 2:
            axes.set_aspect("equal", adjustable="datalim")
        axes.set_xlabel(names[0])
        axes.set_ylabel(names[1])
        axes.grid()
        canvas.legend(*axes.get_legend_handles_labels(), loc="outside right upper", markerscale=1.5)

    what = "their two features" if len(source.features) == 2 else "the first two principal axes of the data"
    gaps = ", missing entries put at their column's mean" if np.isnan(source.observed.values).any() else ""
    rings = (
        ""
        if shapes is None
        else f" Ellipses hold {LEVEL:.0%} of a {parts.dim}, at the posterior mean of its mean and covariance."
    )
    caption = (
        f"The units on {what}{gaps}, coloured and shaped by the {parts.dim} that the point estimate gives them; the paler a unit, the less "
        f"probable that {parts.dim} is (full from 1, palest from 0.5 down).{rings}"
    )
    return [drawn("map", caption, f"Scatter of {len(at)} units coloured by {parts.dim}.", (10, 6.0), draw)]


def _rgba(color: str, alpha: np.ndarray) -> np.ndarray:
    red, green, blue = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return np.column_stack([np.full(len(alpha), red), np.full(len(alpha), green), np.full(len(alpha), blue), alpha])


def _gaussians(source: Source) -> tuple[np.ndarray, np.ndarray] | None:
    """Posterior means of the means `(label, feature)` and covariances `(label, feature, feature)`; None of other models."""
    mu, sigma = draws_of(source, "mu"), draws_of(source, "sigma")
    if mu is None or sigma is None or source.model is None or mu.shape[1:] != (source.n_labels, len(source.features)):
        return None
    n_features = mu.shape[2]
    if "feature" not in source.model.dims["sigma"]:
        sigma = np.repeat(sigma[..., None], n_features, axis=-1)
    corr = draws_of(source, "corr")
    factor = np.eye(n_features) if corr is None else corr
    lower = sigma[..., None] * factor
    covariance = (lower @ np.swapaxes(lower, -1, -2)).mean(axis=0)
    return mu.mean(axis=0), np.broadcast_to(covariance, (mu.shape[1], n_features, n_features))


def draws_of(source: Source, name: str) -> np.ndarray | None:
    """Aligned draws of a site `(draw, ...)`."""
    groups = (source.tree[group].to_dataset() for group in ("latents", "posterior"))
    array = next((group[name] for group in groups if name in group), None)
    return None if array is None else np.asarray(array.values.reshape(-1, *array.shape[2:]))


def _ellipse(axes: Any, centre: np.ndarray, covariance: np.ndarray, color: str) -> None:
    values, vectors = np.linalg.eigh(covariance)
    turn = np.linspace(0, 2 * np.pi, 91)
    ring = np.sqrt(np.maximum(values, 0) * chi2.ppf(LEVEL, 2)) * np.column_stack([np.cos(turn), np.sin(turn)])
    axes.plot(*(centre + ring @ vectors.T).T, color=color, lw=1.6)
    axes.plot(*centre, "+", color=color, ms=9, mew=1.8)


def _histogram(source: Source, parts: Parts) -> Figure:
    """Of a single feature, each bar split by the units' probabilities."""
    x = source.observed.values[:, 0]
    seen = ~np.isnan(x)
    values = np.unique(x[seen])
    whole = np.ptp(values) <= MOST_BARS and (values == np.floor(values)).all()
    bins = min(MOST_BARS, max(len(np.histogram_bin_edges(x[seen], bins="fd")) - 1, int(seen.sum()) // 6, 1))
    edges = np.arange(values[0] - 0.5, values[-1] + 1) if whole else np.histogram_bin_edges(x[seen], bins=bins)
    shapes = _gaussians(source)

    def draw(canvas: Any) -> None:
        axes = canvas.subplots()
        middle, wide, base = (edges[1:] + edges[:-1]) / 2, np.diff(edges), np.zeros(len(edges) - 1)
        for k in parts.kept:
            height = np.histogram(x[seen], edges, weights=source.probabilities[seen, k])[0]
            axes.bar(middle, height, 0.96 * wide, bottom=base, color=parts.color(k), alpha=0.75, label=parts.name(k))
            base = base + height
        if shapes is not None:
            at = np.linspace(edges[0], edges[-1], 200)
            for k in parts.kept:
                sd = float(np.sqrt(shapes[1][k][0, 0]))
                scale = parts.sizes[:, k].mean() * wide[0]
                axes.plot(at, scale * norm.pdf(at, shapes[0][k][0], sd), color=INK, lw=2.4)
                axes.plot(at, scale * norm.pdf(at, shapes[0][k][0], sd), color=parts.color(k), lw=1.6)
        if whole:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel(f"{feature(source.features[0])}{_scale(source)}")
        axes.set_ylabel("units")
        canvas.legend(*axes.get_legend_handles_labels(), loc="outside right upper")

    curves = "" if shapes is None else f" Lines: each {parts.dim}'s Gaussian at the posterior mean, times its size."
    caption = f"Histogram of the data, each bar split by the probabilities that its units are in each {parts.dim}.{curves}"
    return drawn("map", caption, f"Histogram of {int(seen.sum())} values, split by {parts.dim}.", (10, 3.4), draw)


def _scale(source: Source) -> str:
    return ", standardised" if _transform(source) is not None else ""


def _transform(source: Source) -> tuple[np.ndarray, np.ndarray] | None:
    """Location and scale of each feature by which the data were standardised; None where they were not."""
    params = source.run.params
    if "transform.loc" not in params or "feature" not in source.observed.dims:
        return None
    loc, scale = (np.ravel(params[f"transform.{name}"]) for name in ("loc", "scale"))
    return (loc, scale) if len(loc) == len(source.features) else None


# -- the components


def _table(source: Source, parts: Parts) -> Table:
    weights = draws_of(source, "weights")
    records = []
    for k in parts.kept:
        size = parts.sizes[:, k]
        record: dict[str, Any] = {parts.dim: k, "in the estimate": int((source.estimate == k).sum())}
        record |= {"units, mean": float(size.mean())}
        record |= {f"units, q{q:02}": float(np.quantile(size, q / 100)) for q in (5, 95)}
        record["sure units"] = int((source.probabilities[:, k] >= SURE).sum())
        if weights is not None and weights.ndim == 2:
            record["weight, mean"] = float(weights[:, k].mean())
            if source.kind != POINT:
                low, high = np.quantile(weights[:, k], (0.05, 0.95))
                record |= {"weight, q05": float(low), "weight, q95": float(high)}
        records.append(record)
    left = source.n_labels - len(parts.kept)
    out = "" if not left else f"; {left} that hold next to no unit are left out"
    said = f"The {parts.dim}s: units in each, over draws (mean and 90 % interval), of which sure (probability {SURE:g} or more)"
    return Table.of("components", said + ("" if weights is None else ", and its weight in the model") + out, records)


def location(source: Source) -> tuple[str, np.ndarray, list[str]] | None:
    """What features are like by label: name of the site, draws `(draw, label, feature)`, names of the features."""
    for name in LOCATIONS:
        groups = (source.tree[group].to_dataset() for group in ("latents", "posterior"))
        array = next((group[name] for group in groups if name in group), None)
        if array is None or array.dims[2:4] != (source.label_dim, "feature"):
            continue
        values = array.values.reshape(-1, *array.shape[2:])
        names = [str(name) for name in array["feature"].values]
        if values.ndim == 4:
            names = [f"{name} = {category}" for name in names for category in range(values.shape[3])]
        return name, values.reshape(*values.shape[:2], -1), names
    return None


def profiles(source: Source, parts: Parts) -> list[Item]:
    """The features of each component, drawn and listed."""
    found = location(source)
    if found is None:
        return []
    name, draws, features = found
    draws, kept = draws[:, parts.kept], parts.kept
    transform = _transform(source)
    own = draws if name != "mu" or transform is None else draws * transform[1] + transform[0]
    told, unit = _comparable(source, name, draws)
    mean = told.mean(axis=0)
    order = np.arange(len(features))
    if len(features) > MOST_ROWS:
        order = np.sort(np.argsort(-np.ptp(mean, axis=0), kind="stable")[:MOST_ROWS])
    some = "" if len(order) == len(features) else f", the {len(order)} of {len(features)} features in which they differ most"
    what = "Means" if name == "mu" else "Rates" if name == "rate" else "Probabilities"
    draw_them = _intervals if len(order) * len(kept) <= MOST_INTERVALS else _heat_map
    figure = draw_them(
        parts, told[..., order], [features[i] for i in order], f"{what} of the features by {parts.dim}{some}", unit
    )
    records = []
    for j in order.tolist():
        for i, k in enumerate(kept):
            record = {"feature": features[j], parts.dim: k, "mean": float(own[:, i, j].mean())}
            if source.kind != POINT:
                low, high = np.quantile(own[:, i, j], (0.05, 0.95))
                record |= {"q05": float(low), "q95": float(high)}
            records.append(record)
    listed_as = f"{what} of the features by {parts.dim}{some}" + (", in the data's own values" if name != "probability" else "")
    return [figure, Table.of("profiles", listed_as + (", 90 % intervals" if source.kind != POINT else ""), records, folded=True)]


def _comparable(source: Source, name: str, draws: np.ndarray) -> tuple[np.ndarray, str]:
    """Draws such that features can be drawn on one axis, and what the axis is."""
    if name == "probability":
        return draws, "probability"
    if draws.shape[2] == 1 or not source.is_table:
        return draws, f"{name}{_scale(source)}"
    x = source.observed.values
    sd = np.nanstd(x, axis=0)
    return (draws - np.nanmean(x, axis=0)) / np.where(sd > 0, sd, 1.0), "standard deviations of the data from their mean"


def _intervals(parts: Parts, draws: np.ndarray, features: list[str], what: str, unit: str) -> Figure:
    mean, (low, high) = draws.mean(axis=0), np.quantile(draws, (0.05, 0.95), axis=0)
    wide = max(0.2, 0.085 * len(parts.kept) + 0.06)

    def draw(canvas: Any) -> None:
        axes = canvas.subplots()
        y = np.arange(len(features))[::-1]
        step = 0.7 / max(1, len(parts.kept))
        for i, k in enumerate(parts.kept):
            at = y + (0.35 - step * (i + 0.5))
            axes.hlines(at, low[i], high[i], color=parts.color(k), lw=2)
            axes.plot(mean[i], at, parts.marker(k), color=parts.color(k), ms=4, label=parts.name(k))
        axes.hlines(y[1:] + 0.5, 0, 1, transform=axes.get_yaxis_transform(), color="#e4e4e4", lw=0.8)
        axes.set_yticks(y, [feature(name) for name in features])
        axes.set_ylim(-0.6, len(features) - 0.4)
        axes.set_xlabel(unit)
        axes.grid(axis="x")
        canvas.legend(*axes.get_legend_handles_labels(), loc="outside right upper")

    caption = f"{what}, posterior mean and 90 % interval." if np.ptp(draws, axis=0).any() else f"{what}, at the point estimate."
    return drawn("profiles", caption, f"Interval plot of {len(features)} features.", (10, 0.9 + wide * len(features)), draw)


def _heat_map(parts: Parts, draws: np.ndarray, features: list[str], what: str, unit: str) -> Figure:
    mean = draws.mean(axis=0)
    signed = unit != "probability" and float(mean.min()) < 0
    limits = (-float(np.abs(mean).max()), float(np.abs(mean).max())) if signed else (0.0, max(1e-12, float(mean.max())))

    def draw(canvas: Any) -> None:
        axes = canvas.subplots()
        drawing = axes.imshow(mean.T, aspect="auto", cmap="RdBu_r" if signed else "Blues", vmin=limits[0], vmax=limits[1])
        axes.set_yticks(np.arange(len(features)), [feature(name) for name in features])
        axes.set_xticks(
            np.arange(len(parts.kept)), [parts.name(k) for k in parts.kept], rotation=45 if len(parts.kept) > 8 else 0
        )
        canvas.colorbar(drawing, ax=axes, label=unit, shrink=0.7)

    caption = f"{what}, posterior means; the table below has the numbers."
    return drawn("profiles", caption, f"Heat map of {len(features)} features.", (10, 1.2 + 0.17 * len(features)), draw)


# -- who is with whom


def ordered(source: Source) -> np.ndarray:
    """Units by their label in the point estimate, within a label the surest first; many are thinned evenly."""
    order = np.lexsort((-source.certainty, source.estimate))
    return order[np.unique(np.linspace(0, len(order) - 1, min(len(order), MOST_PAIRED)).astype(int))]


def _pairs(source: Source, parts: Parts) -> Figure:
    order = ordered(source)
    found = co_assignment(source.label_draws[..., order])
    estimate = source.estimate[order]
    cuts = np.flatnonzero(np.diff(estimate)) + 0.5
    strips: list[tuple[str, list[str], Mapping[str, str]]] = [
        (parts.dim, [str(k) for k in estimate], {str(k): parts.color(k) for k in parts.kept})
    ]
    classes = Classes(source.labels, len(source.units))
    if source.labels is not None:
        colors = {classes.names[i]: parts.color(k) for i, k in known_as(source, classes).items()}
        strips.append(("label", [classes.names[i] for i in classes.codes[order]], colors))

    def draw(canvas: Any) -> None:
        grid = canvas.add_gridspec(1, len(strips) + 1, width_ratios=[*[0.035] * len(strips), 1], wspace=0.02)
        axes = canvas.add_subplot(grid[0, len(strips)])
        drawing = axes.imshow(found.mean, cmap="Blues", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
        for cut in cuts:
            axes.axhline(cut, color=GREY, lw=0.7)
            axes.axvline(cut, color=GREY, lw=0.7)
        axes.set_yticks([])
        ends = [-0.5, *cuts, len(order) - 0.5]
        middle = [(a + b) / 2 for a, b in pairwise(ends)]
        axes.set_xticks(middle, [str(estimate[int(np.ceil(a))]) for a in ends[:-1]])
        axes.set_xlabel(f"units, by {parts.dim}")
        canvas.colorbar(drawing, ax=axes, label="probability of being together", shrink=0.75)
        for i, (name, values, colors) in enumerate(strips):
            strip = canvas.add_subplot(grid[0, i])
            picture = np.array([_rgba(colors[value], np.ones(1))[0] for value in values])[:, None]
            strip.imshow(picture, aspect="auto", interpolation="nearest")
            strip.set_xticks([0], [name], rotation=60, ha="right")
            strip.set_yticks([])
        if source.labels is not None:
            marks = [_patch(color, name) for name, color in strips[1][2].items()]
            canvas.legend(handles=marks, loc="outside right upper", title="label")

    known = (
        f" The second strip is the label, which the model was not shown, in the colour of the {parts.dim} that suits it best."
        if source.labels is not None
        else ""
    )
    some = (
        ""
        if len(order) == len(source.units)
        else f" {len(order)} of {len(source.units)} units are drawn, spread evenly over this order."
    )
    error = found.standard_error
    off = ~np.eye(len(error), dtype=bool)
    precise = (
        f" Monte Carlo standard error: {shown(float(error[off].mean()), 2)} on average, {shown(float(error[off].max()), 2)} at most."
        if len(order) > 1 and np.isfinite(error).all()
        else ""
    )
    caption = (
        f"Co-assignment: the share of draws in which two units are in the same {parts.dim}, whatever it is called. Units by their {parts.dim} in the "
        f"point estimate (coloured strip, lines), within each the surest first: blocks are sure, pale margins are not.{known}{some}{precise}"
    )
    return drawn(
        "co-assignment", caption, f"Heat map of how often {len(order)} units are together.", (7.6 + 0.9 * len(strips), 6.2), draw
    )


def known_as(source: Source, classes: Classes) -> dict[int, int]:
    """The label that suits each class of known labels best, one to one; classes beyond them have numbers of their own."""
    names = matched(classes.codes, source.probabilities)
    return {code: int(names[classes.codes == code][0]) for code in np.unique(classes.codes).tolist()}


def _patch(color: str, name: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=color, label=shortened(name))


def _known(source: Source, parts: Parts) -> list[Item]:
    """The point estimate against labels that nobody was shown."""
    if source.labels is None:
        return []
    classes = Classes(source.labels, len(source.units))
    records = [
        {parts.dim: k}
        | {name: int(((source.estimate == k) & (classes.codes == i)).sum()) for i, name in enumerate(classes.names)}
        for k in parts.kept
    ]
    return [
        Table.of(
            "known-labels", f"Units by {parts.dim} in the point estimate and by label, which the model was not shown", records
        )
    ]


def _units(source: Source, parts: Parts) -> Table:
    order = np.argsort(-source.probabilities, axis=1, kind="stable")
    records = []
    for i, unit in enumerate(source.units):
        record: dict[str, Any] = {"unit": unit}
        if source.labels is not None:
            record["label"] = str(source.labels[i])
        record |= {"in the estimate": int(source.estimate[i]), f"most probable {parts.dim}": int(order[i, 0])}
        record["probability"] = float(source.probabilities[i, order[i, 0]])
        if source.n_labels > 1:
            record |= {"next": int(order[i, 1]), "probability of the next": float(source.probabilities[i, order[i, 1]])}
        records.append(record)
    caption = f"The units' {parts.dim}s; probabilities are shares of {count(source.label_draws[..., 0].size, 'draw')}"
    if len(records) > MOST_LISTED:
        least = np.argsort(source.probabilities.max(axis=1), kind="stable")[:LEAST_SURE]
        return Table.of("positions", f"{caption}. The {LEAST_SURE} least sure", [records[i] for i in least], folded=True)
    return Table.of("positions", caption, records, folded=True)
