"""Section 3: positions with their uncertainty, and the fit of the model to the data."""

from typing import Any

import numpy as np
from scipy.stats import chi2

from latentlab.errors import ModelError
from latentlab.report import autoencoder, labels, series
from latentlab.report.figure import COLORS, GREY, HEAVY, Classes, draw_figure, feature, panels
from latentlab.report.imputations import imputed_items
from latentlab.report.items import Figure, Item, Section, Table, Text, count, shown
from latentlab.report.parts import Parts
from latentlab.report.predictive import predictive_items
from latentlab.report.series import LEVEL
from latentlab.report.source import POINT, Source
from latentlab.results.diagnostics import sensitivity
from latentlab.results.sensitivity import SENSITIVE

MOST_AXES = 4
MOST_ELLIPSES = 200
MOST_LOADINGS = 30
MOST_SENSITIVE = 10


def section(source: Source) -> Section:
    """Build the section: positions and loadings, or labels and components; predictive checks, sensitivity, imputations."""
    title = "Posterior of the positions"
    items: list[Item] = []
    if source.is_discrete:
        parts = Parts(source)
        title = labels.TITLE
        items += [*labels.summary(source, parts), *series.course_of_states(source, parts), *labels.components(source, parts)]
        items += [*series.transitions(source, parts), *labels.co_assignment_items(source, parts)]
    else:
        classes = Classes(source.labels, len(source.units))
        items += [Text((_sentence(source),)), *series.course_of_positions(source), _positions(source, classes), _table(source)]
        items += [*_loadings(source), *autoencoder.autoencoder_items(source)]
    if source.unit == source.kinds[0]:  # results about the points, shown once
        items += [*predictive_items(source), *_sensitivity(source), *_held_out(source), *imputed_items(source)]
    return Section("positions", title, tuple(items))


def _sentence(source: Source) -> str:
    n, q = source.mean.shape
    sd_of_means = float(np.sqrt(source.mean.var(axis=0).mean()))
    posterior_sd = float(np.sqrt((source.spread**2).mean()))
    alignment = (
        ""
        if source.model is None or source.model.symmetry.is_trivial()
        else (
            f" The positions are identified up to the model's symmetry ({type(source.model.symmetry).__name__}). Before means and standard "
            "deviations were computed, all draws were aligned to the principal axes of their consensus."
        )
    )
    return (
        f"{count(n, source.unit)} {'has' if n == 1 else 'have'} positions in {count(q, 'dimension')}. The standard deviation of the posterior means over "
        f"{source.unit}s is {shown(sd_of_means)}. The posterior standard deviation of a position is {shown(posterior_sd)} (root mean square over "
        f"{source.unit}s and dimensions).{alignment}"
    )


def _positions(source: Source, classes: Classes) -> Figure:
    q = source.mean.shape[1]
    if q == 1:
        return _line(source, classes)
    return _plane(source, classes) if q == 2 else _pairs(source, classes)


def _line(source: Source, classes: Classes) -> Figure:
    low, high = (end[:, 0] for end in series.interval(source))
    mean = source.mean[:, 0]
    rank = np.argsort(np.argsort(mean, kind="stable"), kind="stable")

    def draw(canvas: Any) -> None:
        axes = canvas.subplots()
        colors = [classes.color(code) for code in classes.codes.tolist()]
        axes.vlines(rank, low, high, colors=colors, lw=1, alpha=0.5, rasterized=len(mean) > HEAVY)
        classes.scatter(axes, rank, mean)
        axes.set_xlabel("units, ordered by posterior mean")
        axes.set_ylabel("position")
        axes.grid(axis="y")
        classes.legend(canvas, axes)

    caption = f"Posterior mean of each unit's position with its {LEVEL:.0%} credible interval{_by_label(source, classes)}."
    return draw_figure("positions", caption, f"Interval plot of {len(mean)} positions on a line.", (10, 4.2), draw)


def _plane(source: Source, classes: Classes) -> Figure:
    def draw(canvas: Any) -> None:
        axes = canvas.subplots()
        _ellipses(axes, source, classes)
        classes.scatter(axes, source.mean[:, 0], source.mean[:, 1])
        axes.set_aspect("equal", adjustable="datalim")
        axes.set_xlabel("latent axis 1")
        axes.set_ylabel("latent axis 2")
        axes.grid()
        classes.legend(canvas, axes)

    caption = (
        f"Posterior mean of each unit's position with its {LEVEL:.0%} credible ellipse (of a Gaussian with the covariance of the draws)"
        f"{_by_label(source, classes)}.{_ellipse_text(len(source.units))} Interpret only quantities that are invariant under the model's symmetry."
    )
    return draw_figure(
        "positions", caption, f"Scatter of {len(source.units)} positions on a plane with ellipses.", (10, 6.6), draw
    )


def _ellipses(axes: Any, source: Source, classes: Classes, *, pair: tuple[int, int] = (0, 1)) -> None:
    from matplotlib.collections import EllipseCollection

    shown_units = np.unique(np.linspace(0, len(source.mean) - 1, min(len(source.mean), MOST_ELLIPSES)).astype(int))
    mean, covariance = source.mean[shown_units][:, pair], source.covariance[shown_units][:, pair][:, :, pair]
    values, vectors = np.linalg.eigh(covariance)
    axis = 2 * np.sqrt(np.maximum(values, 0) * chi2.ppf(LEVEL, 2))
    angle = np.degrees(np.arctan2(vectors[:, 1, 1], vectors[:, 0, 1]))
    colors = [classes.color(code) for code in classes.codes[shown_units].tolist()]
    options: dict[str, Any] = {"units": "x", "offsets": mean, "offset_transform": axes.transData, "linewidths": 0.7}
    options |= {"alpha": float(np.clip(40 / len(shown_units), 0.2, 0.5)), "edgecolors": colors, "facecolors": "none"}
    axes.add_collection(EllipseCollection(axis[:, 1], axis[:, 0], angle, **options))
    reach = np.sqrt(np.einsum("nkk->nk", covariance) * chi2.ppf(LEVEL, 2))
    axes.update_datalim(np.vstack([mean - reach, mean + reach]))


def _pairs(source: Source, classes: Classes) -> Figure:
    q = min(source.mean.shape[1], MOST_AXES)

    def draw(canvas: Any) -> None:
        axes = canvas.subplots(q - 1, q - 1, squeeze=False, sharex="col", sharey="row")
        for i in range(q - 1):
            for j in range(q - 1):
                if j > i:
                    axes[i, j].set_axis_off()
                    continue
                _ellipses(axes[i, j], source, classes, pair=(j, i + 1))
                classes.scatter(axes[i, j], source.mean[:, j], source.mean[:, i + 1], size=7)
                axes[i, j].grid()
                if j == 0:
                    axes[i, j].set_ylabel(f"axis {i + 2}")
                if i == q - 2:
                    axes[i, j].set_xlabel(f"axis {j + 1}")
        classes.legend(canvas, axes[0, 0])

    selection = "" if q == source.mean.shape[1] else f" The first {q} of {source.mean.shape[1]} axes are shown."
    sds = np.sqrt(np.einsum("nkk->nk", source.covariance)[:, :q].mean(axis=0))
    caption = (
        f"Posterior means of the units' positions with {LEVEL:.0%} credible ellipses, for each pair of "
        f"axes{_by_label(source, classes)}.{_ellipse_text(len(source.units))}{selection} The posterior standard deviations of the axes are "
        f"{', '.join(f'{sd:.2g}' for sd in sds)} (root mean square over units)."
    )
    return draw_figure(
        "positions", caption, f"Matrix of scatters of {len(source.units)} positions.", (10, 2.6 * (q - 1) + 0.6), draw
    )


def _ellipse_text(n_units: int) -> str:
    return "" if n_units <= MOST_ELLIPSES else f" Ellipses are shown for {MOST_ELLIPSES} units, evenly spaced in the data."


def _by_label(source: Source, classes: Classes) -> str:
    used = source.model is not None and source.model.takes("labels")
    return f". Colours and shapes show the labels, which the model {'used' if used else 'did not use'}" if classes.names else ""


def _table(source: Source) -> Table:
    sd = np.sqrt(np.einsum("nkk->nk", source.covariance))
    records = []
    for i, unit in enumerate(source.units):
        record: dict[str, Any] = {"unit": unit}
        if source.labels is not None:
            record["label"] = str(source.labels[i])
        for k in range(min(MOST_AXES, sd.shape[1])):
            record |= {f"mean {k + 1}": float(source.mean[i, k]), f"sd {k + 1}": float(sd[i, k])}
        records.append(record)
    least, most = np.argsort(source.spread, kind="stable")[[0, -1]]
    caption = (
        "Posterior means and standard deviations of the positions. "
        f"The most certain {source.unit} is {source.units[least]}, and the least certain is {source.units[most]}"
    )
    if len(records) > 300:
        order = np.argsort(-source.spread, kind="stable")[:50]
        return Table.of(
            "positions", f"{caption}. The 50 least certain {source.unit}s are listed", [records[i] for i in order], folded=True
        )
    return Table.of("positions", caption, records, folded=True)


def _loadings(source: Source) -> list[Item]:
    sites = source.tree["latents"].data_vars
    found = next((a for n, a in sites.items() if n != source.site and a.dims[2:] == ("feature", "latent")), None)
    if found is None:
        return []
    values = found.values.reshape(-1, *found.shape[2:])
    mean, (low, high) = values.mean(axis=0), np.quantile(values, (0.05, 0.95), axis=0)
    order = np.argsort(-np.linalg.norm(mean, axis=1), kind="stable")[:MOST_LOADINGS][::-1]
    q = min(mean.shape[1], MOST_AXES)

    def draw(canvas: Any) -> None:
        for k, axes in enumerate(panels(canvas, q, MOST_AXES, sharey=True)):
            y = np.arange(len(order))
            axes.axvline(0, color=GREY, lw=0.8)
            axes.hlines(y, low[order, k], high[order, k], color=COLORS[k], lw=2)
            axes.plot(mean[order, k], y, "o", color=COLORS[k], ms=4)
            axes.set_yticks(y, [feature(source.features[i]) for i in order])
            axes.set_title(f"{found.name}, latent axis {k + 1}")
            axes.set_xlabel("loading")
            axes.grid(axis="x")

    selection = (
        "" if len(order) == len(mean) else f" The {len(order)} features with the largest norms, of {len(mean)}, are shown."
    )
    estimate = "at the point estimate" if source.kind == POINT else "posterior mean and 90% credible interval"
    caption = f"Aligned loadings of the features: {estimate}. The signs and the rotation of the axes are a convention.{selection}"
    records = [
        {"feature": source.features[i]} | {f"{e} {k + 1}": float(v[i, k]) for k in range(q) for e, v in _ends(mean, low, high)}
        for i in range(len(mean))
    ]
    figure = draw_figure("loadings", caption, "Interval plot of loadings by feature.", (10, 0.8 + 0.2 * len(order)), draw)
    return [figure, Table.of("loadings", "Aligned loadings of the features", records, folded=True)]


def _ends(mean: np.ndarray, low: np.ndarray, high: np.ndarray) -> list[tuple[str, np.ndarray]]:
    return [("mean", mean), ("q05", low), ("q95", high)]


def _sensitivity(source: Source) -> list[Item]:
    if source.kind == POINT or source.model is None or source.group("log_prior") is None:
        return []
    model = source.model
    try:
        table = sensitivity(source.tree, group=model.exchanges, dims=model.dims, position=source.site)
    except ModelError as error:
        return [Text((f"The prior sensitivity is not available: {error}",))]
    n = int((table["prior"] >= SENSITIVE).sum())
    text = (
        f"The prior sensitivity is {SENSITIVE:g} or more for {n} of {count(len(table), 'quantity', 'quantities')}. It is the rate of "
        "change of the posterior as the prior is raised to a power near 1. A quantity that is sensitive only to the likelihood is "
        "determined by the data."
    )
    rows = table.head(MOST_SENSITIVE).to_dict("records")
    caption = "Power-scaling sensitivity to the prior and to the likelihood, ordered by prior sensitivity"
    return [Text((text,)), Table.of("sensitivity", caption, rows, folded=True)]


def _held_out(source: Source) -> list[Item]:
    score = source.run.info.get("held_out")
    if not score:
        return []
    noun = "sequence" if source.model is not None and "leave_one_out" in source.model.offers else source.points
    n = int(score["n_units" if "n_units" in score else "n_points"])
    total, what = (float(score["elpd"]), "The") if "elpd" in score else (float(score["bound"]), "A lower bound on the")
    text = (
        f"{count(n, noun)} {'was' if n == 1 else 'were'} held out of the fit. {what} held-out log predictive density is "
        f"{shown(total)} nats (standard error {shown(score['se'])}), or {shown(total / n)} nats per {noun}. Larger is better."
    )
    return [Text((text,))]
