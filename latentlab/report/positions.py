"""Section 3: where the positions are, how sure that is, and whether the model fits what it was shown."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator
from scipy.stats import chi2

from latentlab.errors import ModelError
from latentlab.models.base import LatentModel
from latentlab.report import autoencoder, labels, series
from latentlab.report.figure import BLUE, COLORS, GREY, HEAVY, INK, RED, Classes, drawn, feature, panels
from latentlab.report.items import Figure, Item, Section, Table, Text, count, listed, shown
from latentlab.report.source import POINT, Source
from latentlab.results.assemble import thinned
from latentlab.results.diagnostics import sensitivity
from latentlab.results.new_points import impute
from latentlab.results.sensitivity import SENSITIVE
from latentlab.results.tree import arrays
from latentlab.seeds import Seeds

LEVEL = 0.8
"""Of the credible ellipses."""
MOST_AXES = 4
MOST_ELLIPSES = 200
MOST_LOADINGS = 30
MOST_SENSITIVE = 10
FEW = 4
"""Features that each have a tick of their own."""
N_IMPUTED = 400
"""Draws by which missing entries are filled in."""


def section(source: Source) -> Section:
    """Positions, loadings, or labels and what they name; predictive checks, sensitivity, imputations."""
    title = "Where are the positions?"
    items: list[Item] = []
    if source.is_discrete:
        parts = labels.Parts(source)
        title = labels.section_title(source)
        items += [*labels.overview(source, parts), *series.course_of_states(source, parts), *labels.components(source, parts)]
        items += [*series.transitions(source, parts), *labels.who_is_with_whom(source, parts)]
    else:
        classes = Classes(source.labels, len(source.units))
        items += [Text((_sentence(source),)), *series.course_of_positions(source), _positions(source, classes), _table(source)]
        items += [*_loadings(source), *autoencoder.parts(source)]
    if source.unit == source.kinds[0]:  # what is about the points, not about one kind of units
        items += [*_predictive(source), *_sensitivity(source), *_held_out(source), *_imputed(source)]
    return Section("positions", title, tuple(items))


def _sentence(source: Source) -> str:
    n, q = source.mean.shape
    between = float(np.sqrt(source.mean.var(axis=0).mean()))
    within = float(np.sqrt((source.spread**2).mean()))
    turned = (
        ""
        if source.model is None or source.model.symmetry.is_trivial()
        else (
            f" The model leaves its coordinates open (symmetry {type(source.model.symmetry).__name__}): every draw was carried to one "
            "common frame, along the principal axes of the consensus, before means and spreads were taken."
        )
    )
    return (
        f"{count(n, source.unit)} have positions in {count(q, 'dimension')}. Their posterior means are {shown(between)} apart (standard "
        f"deviation between {source.unit}s), and each is known to {shown(within)} (posterior standard deviation).{turned}"
    )


# -- positions


def _positions(source: Source, classes: Classes) -> Figure:
    q = source.mean.shape[1]
    if q == 1:
        return _line(source, classes)
    return _plane(source, classes) if q == 2 else _pairs(source, classes)


def _line(source: Source, classes: Classes) -> Figure:
    z = source.positions.values.reshape(-1, len(source.units))
    low, high = np.quantile(z, ((1 - LEVEL) / 2, (1 + LEVEL) / 2), axis=0)
    mean = source.mean[:, 0]
    rank = np.argsort(np.argsort(mean, kind="stable"), kind="stable")

    def draw(canvas: Any) -> None:
        axes = canvas.subplots()
        colors = [classes.color(code) for code in classes.codes.tolist()]
        axes.vlines(rank, low, high, colors=colors, lw=1, alpha=0.5, rasterized=len(mean) > HEAVY)
        classes.scatter(axes, rank, mean)
        axes.set_xlabel("units in the order of their means")
        axes.set_ylabel("position")
        axes.grid(axis="y")
        classes.legend(canvas, axes)

    caption = f"Posterior mean of each unit's position with its {LEVEL:.0%} credible interval{_by_label(source, classes)}."
    return drawn("positions", caption, f"Interval plot of {len(mean)} positions on a line.", (10, 4.2), draw)


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
        f"Posterior mean of each unit's position with its {LEVEL:.0%} credible ellipse{_some(len(source.units))} (of the Gaussian with the draws' covariance)"
        f"{_by_label(source, classes)}. Only what the symmetry leaves identified can be read off: distances and shapes, not the axes."
    )
    return drawn("positions", caption, f"Scatter of {len(source.units)} positions on a plane with ellipses.", (10, 6.6), draw)


def _ellipses(axes: Any, source: Source, classes: Classes, *, pair: tuple[int, int] = (0, 1)) -> None:
    from matplotlib.collections import EllipseCollection

    some = np.unique(np.linspace(0, len(source.mean) - 1, min(len(source.mean), MOST_ELLIPSES)).astype(int))
    mean, covariance = source.mean[some][:, pair], source.covariance[some][:, pair][:, :, pair]
    values, vectors = np.linalg.eigh(covariance)
    axis = 2 * np.sqrt(np.maximum(values, 0) * chi2.ppf(LEVEL, 2))
    angle = np.degrees(np.arctan2(vectors[:, 1, 1], vectors[:, 0, 1]))
    colors = [classes.color(code) for code in classes.codes[some].tolist()]
    options: dict[str, Any] = {"units": "x", "offsets": mean, "offset_transform": axes.transData, "linewidths": 0.7}
    options |= {"alpha": float(np.clip(40 / len(some), 0.2, 0.5)), "edgecolors": colors, "facecolors": "none"}
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

    some = "" if q == source.mean.shape[1] else f" The first {q} of {source.mean.shape[1]} axes."
    sds = np.sqrt(np.einsum("nkk->nk", source.covariance)[:, :q].mean(axis=0))
    caption = (
        f"Posterior means of the units' positions with {LEVEL:.0%} credible ellipses{_some(len(source.units))}, each pair of "
        f"axes{_by_label(source, classes)}.{some} Posterior standard deviations, "
        f"root mean square over units: {', '.join(f'{sd:.2g}' for sd in sds)}."
    )
    return drawn("positions", caption, f"Matrix of scatters of {len(source.units)} positions.", (10, 2.6 * (q - 1) + 0.6), draw)


def _some(n_units: int) -> str:
    return "" if n_units <= MOST_ELLIPSES else f", drawn for {MOST_ELLIPSES} units spread evenly over the data"


def _by_label(source: Source, classes: Classes) -> str:
    told = source.model is not None and source.model.takes("labels")
    return f", coloured and shaped by label, which the model was {'' if told else 'not '}shown" if classes.names else ""


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
    caption = f"The positions; the surest is {source.units[least]}, the least sure {source.units[most]}"
    if len(records) > 300:
        order = np.argsort(-source.spread, kind="stable")[:50]
        return Table.of("positions", f"{caption}. The 50 least sure", [records[i] for i in order], folded=True)
    return Table.of("positions", caption, records, folded=True)


# -- loadings


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
            axes.grid(axis="x")

    some = "" if len(order) == len(mean) else f", the {len(order)} longest of {len(mean)}"
    flat = "; a point estimate has no intervals" if source.kind == POINT else ", posterior mean and 90 % interval"
    caption = f"Loadings of the features in the common frame{some}{flat}. The sign and the turn of the axes are a convention."
    records = [
        {"feature": source.features[i]} | {f"{e} {k + 1}": float(v[i, k]) for k in range(q) for e, v in _ends(mean, low, high)}
        for i in range(len(mean))
    ]
    figure = drawn("loadings", caption, "Interval plot of loadings by feature.", (10, 0.8 + 0.2 * len(order)), draw)
    return [figure, Table.of("loadings", "Loadings", records, folded=True)]


def _ends(mean: np.ndarray, low: np.ndarray, high: np.ndarray) -> list[tuple[str, np.ndarray]]:
    return [("mean", mean), ("q05", low), ("q95", high)]


# -- posterior predictive check


@dataclass(frozen=True)
class Statistic:
    """A statistic of data sets: the function of an observed or replicated array, and what its entries are called."""

    function: Callable[[np.ndarray], np.ndarray]
    noun: str
    names: Sequence[str]


def _statistics(source: Source) -> dict[str, Statistic]:
    """The statistics of the predictive check: of each feature of a table, or of all points and those of each unit."""
    x = source.observed.values
    if not source.is_table:
        return _statistics_of_points(source)
    features = [feature(name) for name in source.features]
    pairs = [f"{features[i]} and {features[j]}" for i, j in zip(*np.triu_indices(x.shape[1], 1), strict=True)]
    found = {
        "mean": Statistic(lambda a: np.nanmean(a, axis=-2), "feature", features),
        "standard deviation": Statistic(lambda a: np.nanstd(a, axis=-2), "feature", features),
        "largest value": Statistic(lambda a: np.nanmax(a, axis=-2), "feature", features),
    }
    if x.shape[1] > 1:
        found["correlation"] = Statistic(_correlations, "pair", pairs)
    sequences = source.sequences
    if sequences is not None and len(sequences) < len(x):
        found["autocorrelation"] = Statistic(lambda a: autocorrelation(a, sequences), "feature", features)
    return found


def _statistics_of_points(source: Source) -> dict[str, Statistic]:
    whole = [f"all {source.points}s"]
    found = {
        "mean": Statistic(lambda a: np.array([a.mean()]), "data set", whole),
        "standard deviation": Statistic(lambda a: np.array([a.std()]), "data set", whole),
    }
    for kind in dict.fromkeys(source.index.values()):
        ends = [source.observed[name].values.astype(str) for name, of in source.index.items() if of == kind]
        names, codes = np.unique(np.concatenate(ends), return_inverse=True)
        counts = np.bincount(codes)

        def means(a: np.ndarray, codes: np.ndarray = codes, counts: np.ndarray = counts, n: int = len(ends)) -> np.ndarray:
            return np.bincount(codes, weights=np.tile(a, n)) / counts

        found[f"mean by {kind}"] = Statistic(means, kind, names.tolist())
    return found


def _predictive(source: Source) -> list[Item]:
    group = source.group("posterior_predictive")
    name = str(source.observed.name)
    if group is None or name not in group or not (source.is_table or (source.index and source.observed.ndim == 1)):
        why = "no predictive draws were kept" if group is None else "the data are no table of numbers"
        return [Text((f"There is no posterior predictive check: {why}.",))]
    x = source.observed.values
    replicated = group[name].values.reshape(-1, *x.shape)
    replicated = np.where(np.isnan(x), np.nan, replicated)
    statistics = _statistics(source)
    found = {k: (s.function(x), np.stack([s.function(one) for one in replicated])) for k, s in statistics.items()}
    n = len(replicated)
    rows = []
    for key, (seen, again) in found.items():
        p = tail(seen, again)
        worst = int(np.nanargmin(p)) if np.isfinite(p).any() else 0
        rows.append(
            {
                "statistic": f"{key} of each {statistics[key].noun}" if source.is_table else key,
                "how many": len(p),
                "outside 95 %": float(np.mean(p <= 0.05)),
                "farthest off": statistics[key].names[worst],
                "observed": float(seen[worst]),
                "replicated": float(again[:, worst].mean()),
                "tail p": float(p[worst]),
            }
        )
    of = "features (or pairs)" if source.is_table else "units"
    caption = (
        f"Posterior predictive check: {n} data sets drawn from the fitted model, held against the data. “Outside 95 %” is the share "
        f"of {of} that the model misses, 0.05 or less if it fits; a tail p is two-sided, and at least {2 / (n + 1):.2g}"
    )
    shown_of = {k: v for k, v in found.items() if source.is_table or len(v[0]) > 1}
    nouns = {k: statistics[k].noun for k in shown_of}
    return [_predictive_figure(shown_of, nouns), Table.of("predictive", caption, rows)]


def tail(seen: np.ndarray, again: np.ndarray) -> np.ndarray:
    r"""Two-sided tail p of each observed statistic among its replicates.

    $$ p = \min\{1, 2 \min(r, R + 2 - r') / (R + 1)\} $$ with the ranks counted so that equal values favour neither side; NaN where
    there is nothing observed to compare.

    Args:
        seen: Observed, `(n,)`.
        again: Replicated, `(replicate, n)`.

    Example:
        >>> tail(np.array([0.0, 5.0]), np.arange(9.0)[:, None] + [1.0, 0.0]).tolist()
        [0.2, 1.0]
    """
    above, below = (again >= seen).sum(axis=0), (again <= seen).sum(axis=0)
    p = np.minimum(1.0, 2 * (1 + np.minimum(above, below)) / (1 + len(again)))
    return np.where(np.isnan(seen), np.nan, p)


def autocorrelation(x: np.ndarray, sequences: Sequence[np.ndarray]) -> np.ndarray:
    """Correlation of each column with itself a step later, `(feature,)`, over pairs of steps of one sequence both of which are there.

    Example:
        >>> autocorrelation(np.array([[1.0], [2.0], [3.0], [9.0], [1.0]]), [np.arange(3), np.arange(3, 5)]).round(3).tolist()
        [-0.803]
    """
    before = np.concatenate([of[:-1] for of in sequences])
    found = np.full(x.shape[1], np.nan)
    for d in range(x.shape[1]):
        pair = np.column_stack([x[before, d], x[before + 1, d]])
        pair = pair[~np.isnan(pair).any(axis=1)]
        if len(pair) > 1 and (np.ptp(pair, axis=0) > 0).all():
            found[d] = np.corrcoef(pair, rowvar=False)[0, 1]
    return found


def _correlations(x: np.ndarray) -> np.ndarray:
    upper = np.triu_indices(x.shape[1], 1)
    if not np.isnan(x).any():
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.corrcoef(x, rowvar=False)[upper]
    return pd.DataFrame(x).corr().to_numpy()[upper]


def _predictive_figure(found: dict[str, tuple[np.ndarray, np.ndarray]], nouns: dict[str, str]) -> Figure:
    def draw(canvas: Any) -> None:
        for axes, (name, (seen, again)) in zip(panels(canvas, len(found), 5), found.items(), strict=True):
            low, middle, high = np.quantile(again - seen, (0.025, 0.5, 0.975), axis=0)
            out = (low > 0) | (high < 0)
            rank = np.argsort(np.argsort(middle, kind="stable"), kind="stable")
            axes.axhline(0, color=INK, lw=0.8)
            for chosen, color, marker in ((~out, BLUE, "o"), (out, RED, "X")):
                heavy = len(seen) > HEAVY
                axes.vlines(rank[chosen], low[chosen], high[chosen], color=color, lw=0.8, alpha=0.5, rasterized=heavy)
                axes.scatter(rank[chosen], middle[chosen], s=12, color=color, marker=marker, lw=0, rasterized=heavy)
            axes.set_title(name)
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.set_xlim(-0.05 * len(seen) - 0.5, 1.05 * len(seen) - 0.5)
            if len(seen) <= FEW:
                axes.set_xticks(np.arange(len(seen)))
            axes.set_xlabel(f"{nouns[name]}s, in order")
        canvas.axes[0].set_ylabel("replicated less observed")

    of = "feature (or pair)" if {*nouns.values()} <= {"feature", "pair"} else " and ".join(dict.fromkeys(nouns.values()))
    caption = (
        f"Posterior predictive check: a statistic of each {of} in data sets that the fitted model makes, less the same "
        "in the data; median and 95 % interval. Above 0 the model makes too much of it. Crosses mark those whose interval misses 0."
    )
    if "autocorrelation" in found:
        caption += " Autocorrelation is that with the next step of the sequence."
    return drawn(
        "predictive", caption, f"Replicated less observed {listed(list(found))}, by {of.partition(' (')[0]}.", (10, 2.9), draw
    )


# -- prior, held-out units


def _sensitivity(source: Source) -> list[Item]:
    if source.kind == POINT or source.model is None or source.group("log_prior") is None:
        return []
    model = source.model
    try:
        table = sensitivity(source.tree, group=model.exchanges, dims=model.dims, position=source.site)
    except ModelError as error:
        return [Text((f"The sensitivity to the prior cannot be told: {error}",))]
    n = int((table["prior"] >= SENSITIVE).sum())
    said = (
        f"Sensitivity to the prior: {n} of {count(len(table), 'quantity', 'quantities')} change noticeably ({SENSITIVE:g} or more) when "
        "the prior is made slightly stronger or weaker; those that change with the likelihood alone are led by the data."
    )
    rows = table.head(MOST_SENSITIVE).to_dict("records")
    caption = "Sensitivity to a power of the prior and of the likelihood, the largest first"
    return [Text((said,)), Table.of("sensitivity", caption, rows, folded=True)]


def _held_out(source: Source) -> list[Item]:
    score = source.run.info.get("held_out")
    if not score:
        return []
    noun = "sequence" if source.model is not None and source.model.is_series() else source.points
    n = int(score["n_units" if "n_units" in score else "n_points"])
    total, what = (float(score["elpd"]), "of") if "elpd" in score else (float(score["bound"]), "of at least, by a bound,")
    text = (
        f"{count(n, noun)} that {'was' if n == 1 else 'were'} kept out of the fit {'has' if n == 1 else 'have'} a log "
        f"predictive density {what} {shown(total)} nats in all (standard error {shown(score['se'])}), {shown(total / n)} a "
        f"{noun}; larger is better."
    )
    return [Text((text,))]


# -- missing entries


def _imputed(source: Source) -> list[Item]:
    if not source.is_table or not np.isnan(source.observed.values).any():
        return []
    if source.model is None or not source.model.imputes():
        return [Text(("Missing entries were integrated over; this model does not say what they were.",))]
    where = np.argwhere(np.isnan(source.observed.values))
    draws = imputations(source, source.model, where)
    mean, sd = draws.mean(axis=0), draws.std(axis=0)
    low, high = np.quantile(draws, (0.05, 0.95), axis=0)
    truth = _hidden(source, where)
    order = np.argsort(-sd, kind="stable")
    records = []
    for i in order[:50] if len(order) > 300 else range(len(order)):
        u, f = where[i]
        record = {"unit": source.units[u], "feature": source.features[f], "mean": mean[i], "q05": low[i], "q95": high[i]}
        records.append(record | ({} if truth is None else {"hidden truth": truth[i]}))
    some = "Missing entries as the model fills them in" + (", the 50 least sure" if len(order) > 300 else "")
    scale = "in standardised values" if source.config["dataset"].get("standardize") else "in the data's own values"
    naive = np.nanmean(source.observed.values, axis=0)[where[:, 1]]
    items: list[Item] = [_imputed_words(truth, naive, mean, low, high)]
    if truth is not None and np.isfinite(truth).any():
        items.append(_imputed_figure(mean, low, high, truth, scale))
    return [*items, Table.of("imputed", f"{some}, {scale}", records, folded=True)]


def imputations(source: Source, model: LatentModel, where: np.ndarray) -> np.ndarray:
    """Draws of missing entries `(draw, entry)`, in the scale of the fit."""
    sites = {str(name): array.values for name, array in source.tree["posterior"].data_vars.items()}
    seeds = Seeds(int(source.config.get("seed", 0))).child("imputations")
    parameters = arrays(source.tree, "parameters")
    return impute(model, source.given, thinned(sites, N_IMPUTED), seeds, where, parameters).reshape(-1, len(where))


def _hidden(source: Source, where: np.ndarray) -> np.ndarray | None:
    """The hidden values in the fit's scale; None where nobody knows them."""
    if source.raw is None or source.raw.observed not in source.raw.truth:
        return None
    params = source.run.params
    truth = source.raw.truth[source.raw.observed]
    index = pd.Index(source.raw.features.astype(str)).get_indexer(source.features)
    truth = truth[:, index]
    if "transform.loc" in params:
        truth = (truth - params["transform.loc"]) / params["transform.scale"]
    return np.asarray(truth[tuple(where.T)])


def _imputed_words(truth: np.ndarray | None, naive: np.ndarray, mean: np.ndarray, low: np.ndarray, high: np.ndarray) -> Text:
    said = f"{count(len(mean), 'entry was', 'entries were')} missing; the model integrates over them, and says what may have stood there."
    if truth is None:
        return Text((said,))
    known = np.isfinite(truth)
    inside = float(((truth >= low) & (truth <= high))[known].mean())
    error, of_naive = (float(np.sqrt(((truth - guess)[known] ** 2).mean())) for guess in (mean, naive))
    return Text(
        (
            f"{said} They were hidden on purpose: {inside:.0%} of the true values lie in their 90 % intervals, and the root mean square "
            f"error of the posterior mean is {shown(error)} (of the column's mean: {shown(of_naive)}).",
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
        axes.set_xlabel(f"hidden truth, {scale}", color=INK)
        axes.set_ylabel("imputed")
        axes.grid()

    caption = "Missing entries: posterior mean and 90 % interval against what was hidden; crosses are missed by their interval."
    return drawn("imputed", caption, f"Scatter of {len(truth)} imputed values against the truth.", (10, 4.0), draw)
