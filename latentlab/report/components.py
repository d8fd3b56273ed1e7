"""Parameters of components and states: ellipses, histograms and profiles of features."""

from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator
from scipy.stats import chi2, norm

from latentlab.report.figure import INK, draw_figure, feature
from latentlab.report.items import Figure, Item, Table
from latentlab.report.parts import Parts
from latentlab.report.source import POINT, Source

LEVEL = 0.8
"""Probability content of the ellipses of components."""
MOST_ROWS = 40
"""Largest number of features with a profile."""
MOST_INTERVALS = 120
"""Largest number of intervals in a plot of profiles; above it a heat map is drawn."""
MOST_BARS = 40
LOCATIONS = ("mu", "rate", "probability")
"""Sites with a location parameter of each feature by component; the first one present is used."""


def gaussians(source: Source) -> tuple[np.ndarray, np.ndarray] | None:
    """Return posterior means of the means `(label, feature)` and covariances `(label, feature, feature)`, if there are any."""
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
    """Return the aligned draws of a site `(draw, ...)`; None without such a site."""
    groups = (source.tree[group].to_dataset() for group in ("latents", "posterior"))
    array = next((group[name] for group in groups if name in group), None)
    return None if array is None else np.asarray(array.values.reshape(-1, *array.shape[2:]))


def ellipse(axes: Any, centre: np.ndarray, covariance: np.ndarray, color: str) -> None:
    values, vectors = np.linalg.eigh(covariance)
    turn = np.linspace(0, 2 * np.pi, 91)
    ring = np.sqrt(np.maximum(values, 0) * chi2.ppf(LEVEL, 2)) * np.column_stack([np.cos(turn), np.sin(turn)])
    axes.plot(*(centre + ring @ vectors.T).T, color=color, lw=1.6)
    axes.plot(*centre, "+", color=color, ms=9, mew=1.8)


def histogram_figure(source: Source, parts: Parts) -> Figure:
    """Draw the histogram of a single feature, each bar split by the units' label probabilities."""
    x = source.observed.values[:, 0]
    observed = ~np.isnan(x)
    values = np.unique(x[observed])
    whole = np.ptp(values) <= MOST_BARS and (values == np.floor(values)).all()
    bins = min(MOST_BARS, max(len(np.histogram_bin_edges(x[observed], bins="fd")) - 1, int(observed.sum()) // 6, 1))
    edges = np.arange(values[0] - 0.5, values[-1] + 1) if whole else np.histogram_bin_edges(x[observed], bins=bins)
    shapes = gaussians(source)

    def draw(canvas: Any) -> None:
        axes = canvas.subplots()
        middle, wide, base = (edges[1:] + edges[:-1]) / 2, np.diff(edges), np.zeros(len(edges) - 1)
        for k in parts.kept:
            height = np.histogram(x[observed], edges, weights=source.probabilities[observed, k])[0]
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

    curves = (
        ""
        if shapes is None
        else f" Each line is the Gaussian density of a {parts.dim} at the posterior mean, multiplied by its expected number of units."
    )
    caption = f"Histogram of the data. Each bar is split by the posterior probabilities of the {parts.dim}s of its units.{curves}"
    return draw_figure("map", caption, f"Histogram of {int(observed.sum())} values, split by {parts.dim}.", (10, 3.4), draw)


def _scale(source: Source) -> str:
    return ", standardised" if _transform(source) is not None else ""


def _transform(source: Source) -> tuple[np.ndarray, np.ndarray] | None:
    """Return location and scale of the standardisation of each feature; None for data in raw values."""
    params = source.run.params
    if "transform.loc" not in params or "feature" not in source.observed.dims:
        return None
    loc, scale = (np.ravel(params[f"transform.{name}"]) for name in ("loc", "scale"))
    return (loc, scale) if len(loc) == len(source.features) else None


def location(source: Source) -> tuple[str, np.ndarray, list[str]] | None:
    """Return the location parameters: name of the site, draws `(draw, label, feature)`, names of the features."""
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
    """Return a figure and a table of the location parameters of each component."""
    found = location(source)
    if found is None:
        return []
    name, draws, features = found
    draws, kept = draws[:, parts.kept], parts.kept
    transform = _transform(source)
    original = draws if name != "mu" or transform is None else draws * transform[1] + transform[0]
    comparable, unit = _comparable(source, name, draws)
    mean = comparable.mean(axis=0)
    order = np.arange(len(features))
    if len(features) > MOST_ROWS:
        order = np.sort(np.argsort(-np.ptp(mean, axis=0), kind="stable")[:MOST_ROWS])
    selection = (
        "" if len(order) == len(features) else f" (the {len(order)} of {len(features)} features with the largest differences)"
    )
    what = "Means" if name == "mu" else "Rates" if name == "rate" else "Probabilities"
    draw_them = _intervals if len(order) * len(kept) <= MOST_INTERVALS else _heat_map
    figure = draw_them(
        parts, comparable[..., order], [features[i] for i in order], f"{what} of the features by {parts.dim}{selection}", unit
    )
    records = []
    for j in order.tolist():
        for i, k in enumerate(kept):
            record = {"feature": features[j], parts.dim: k, "mean": float(original[:, i, j].mean())}
            if source.kind != POINT:
                low, high = np.quantile(original[:, i, j], (0.05, 0.95))
                record |= {"q05": float(low), "q95": float(high)}
            records.append(record)
    listed_as = f"{what} of the features by {parts.dim}{selection}" + (", in the original scale" if name != "probability" else "")
    return [
        figure,
        Table.of("profiles", listed_as + (", with 90% credible intervals" if source.kind != POINT else ""), records, folded=True),
    ]


def _comparable(source: Source, name: str, draws: np.ndarray) -> tuple[np.ndarray, str]:
    """Return draws on a scale common to all features, and the label of its axis."""
    if name == "probability":
        return draws, "probability"
    if draws.shape[2] == 1 or not source.is_table:
        return draws, f"{name}{_scale(source)}"
    x = source.observed.values
    sd = np.nanstd(x, axis=0)
    return (draws - np.nanmean(x, axis=0)) / np.where(
        sd > 0, sd, 1.0
    ), "difference from the mean of the data, in standard deviations"


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

    caption = (
        f"{what}: posterior mean and 90% credible interval." if np.ptp(draws, axis=0).any() else f"{what}, at the point estimate."
    )
    return draw_figure("profiles", caption, f"Interval plot of {len(features)} features.", (10, 0.9 + wide * len(features)), draw)


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

    caption = f"{what}: posterior means. The table below contains the values."
    return draw_figure("profiles", caption, f"Heat map of {len(features)} features.", (10, 1.2 + 0.17 * len(features)), draw)
