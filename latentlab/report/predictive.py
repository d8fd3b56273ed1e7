"""Posterior predictive checks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from latentlab.report.figure import BLUE, HEAVY, INK, RED, draw_figure, feature, panels
from latentlab.report.items import Figure, Item, Table, Text, listed
from latentlab.report.source import Source

FEW = 4
"""Largest number of entries with an axis tick each."""


@dataclass(frozen=True)
class Statistic:
    """A statistic of data sets: a function of an observed or replicated array, with noun and names of its entries."""

    function: Callable[[np.ndarray], np.ndarray]
    noun: str
    names: Sequence[str]


def _statistics(source: Source) -> dict[str, Statistic]:
    """Return the statistics of the predictive check: by feature of a table; otherwise over all points, and by unit."""
    x = source.observed.values
    if not source.is_table:
        return _statistics_of_points(source)
    features = [feature(name) for name in source.features]
    if source.n_categories is not None:
        codes = range(source.n_categories)
        return {
            "share": Statistic(lambda a: shares(a, len(codes)), "level", [f"{name} = {c}" for name in features for c in codes])
        }
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
        ends = [source.observed[name].values.astype(str) for name, unit_kind in source.index.items() if unit_kind == kind]
        names, codes = np.unique(np.concatenate(ends), return_inverse=True)
        counts = np.bincount(codes)

        def means(a: np.ndarray, codes: np.ndarray = codes, counts: np.ndarray = counts, n: int = len(ends)) -> np.ndarray:
            return np.bincount(codes, weights=np.tile(a, n)) / counts

        found[f"mean by {kind}"] = Statistic(means, kind, names.tolist())
    return found


def predictive_items(source: Source) -> list[Item]:
    group = source.group("posterior_predictive")
    name = str(source.observed.name)
    if group is None or name not in group or not (source.is_table or (source.index and source.observed.ndim == 1)):
        reason = "no predictive draws were stored" if group is None else "the data are not a numeric table"
        return [Text((f"The posterior predictive check is not available: {reason}.",))]
    x = source.observed.values
    replicated = group[name].values.reshape(-1, *x.shape)
    replicated = np.where(np.isnan(x), np.nan, replicated)
    statistics = _statistics(source)
    found = {k: (s.function(x), np.stack([s.function(one) for one in replicated])) for k, s in statistics.items()}
    n = len(replicated)
    rows = []
    for key, (observed, replicated_values) in found.items():
        p = tail(observed, replicated_values)
        worst = int(np.nanargmin(p)) if np.isfinite(p).any() else 0
        rows.append(
            {
                "statistic": f"{key} of each {statistics[key].noun}" if source.is_table else key,
                "number": len(p),
                "outside 95%": float(np.mean(p <= 0.05)),
                "largest deviation": statistics[key].names[worst],
                "observed": float(observed[worst]),
                "replicated": float(replicated_values[:, worst].mean()),
                "predictive p": float(p[worst]),
            }
        )
    nouns_of_share = "units" if not source.is_table else "features (or pairs)" if source.n_categories is None else "levels"
    caption = (
        f"Posterior predictive check: statistics of the data compared with {n} replicated data sets. “Outside 95%” is the share of {nouns_of_share} outside the "
        f"95% interval of the replicates. It is about 0.05 or less if the model fits. The predictive p-value is two-sided and at least {2 / (n + 1):.2g}"
    )
    shown_of = {k: v for k, v in found.items() if source.is_table or len(v[0]) > 1}
    nouns = {k: statistics[k].noun for k in shown_of}
    return [_predictive_figure(shown_of, nouns), Table.of("predictive", caption, rows)]


def tail(observed: np.ndarray, replicated_values: np.ndarray) -> np.ndarray:
    r"""Compute the two-sided tail p of each observed statistic among its replicates.

    $$ p = \min\{1, 2 \min(r, R + 2 - r') / (R + 1)\} $$ Of the $R$ replicates, $r - 1$ are at most the observed value and
    $r' - 1$ are below it, so that ties favour neither side. NaN where the observed statistic is NaN.

    Args:
        observed: Observed statistics, `(n,)`.
        replicated_values: Replicated statistics, `(replicate, n)`.

    Example:
        >>> tail(np.array([0.0, 5.0]), np.arange(9.0)[:, None] + [1.0, 0.0]).tolist()
        [0.2, 1.0]
    """
    above, below = (replicated_values >= observed).sum(axis=0), (replicated_values <= observed).sum(axis=0)
    p = np.minimum(1.0, 2 * (1 + np.minimum(above, below)) / (1 + len(replicated_values)))
    return np.where(np.isnan(observed), np.nan, p)


def autocorrelation(x: np.ndarray, sequences: Sequence[np.ndarray]) -> np.ndarray:
    """Compute the lag-1 autocorrelation of each column, `(feature,)`.

    Pairs of steps are within one sequence; pairs with a missing value are left out. NaN for a constant column.

    Example:
        >>> autocorrelation(np.array([[1.0], [2.0], [3.0], [9.0], [1.0]]), [np.arange(3), np.arange(3, 5)]).round(3).tolist()
        [-0.803]
    """
    before = np.concatenate([steps[:-1] for steps in sequences])
    found = np.full(x.shape[1], np.nan)
    for d in range(x.shape[1]):
        pair = np.column_stack([x[before, d], x[before + 1, d]])
        pair = pair[~np.isnan(pair).any(axis=1)]
        if len(pair) > 1 and (np.ptp(pair, axis=0) > 0).all():
            found[d] = np.corrcoef(pair, rowvar=False)[0, 1]
    return found


def shares(x: np.ndarray, n_categories: int) -> np.ndarray:
    """Compute the share of each category among the observed codes of each column, `(feature * category,)`.

    Example:
        >>> shares(np.array([[0.0, 1.0], [2.0, np.nan]]), 3).tolist()
        [0.5, 0.0, 0.5, 0.0, 1.0, 0.0]
    """
    counts = (x[..., None] == np.arange(n_categories)).sum(axis=0)
    return np.asarray(counts / counts.sum(axis=1, keepdims=True)).ravel()


def _correlations(x: np.ndarray) -> np.ndarray:
    upper = np.triu_indices(x.shape[1], 1)
    if not np.isnan(x).any():
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.corrcoef(x, rowvar=False)[upper]
    return pd.DataFrame(x).corr().to_numpy()[upper]


def _predictive_figure(found: dict[str, tuple[np.ndarray, np.ndarray]], nouns: dict[str, str]) -> Figure:
    def draw(canvas: Any) -> None:
        for axes, (name, (observed, replicated_values)) in zip(panels(canvas, len(found), 5), found.items(), strict=True):
            low, middle, high = np.quantile(replicated_values - observed, (0.025, 0.5, 0.975), axis=0)
            out = (low > 0) | (high < 0)
            rank = np.argsort(np.argsort(middle, kind="stable"), kind="stable")
            axes.axhline(0, color=INK, lw=0.8)
            for chosen, color, marker in ((~out, BLUE, "o"), (out, RED, "X")):
                heavy = len(observed) > HEAVY
                axes.vlines(rank[chosen], low[chosen], high[chosen], color=color, lw=0.8, alpha=0.5, rasterized=heavy)
                axes.scatter(rank[chosen], middle[chosen], s=12, color=color, marker=marker, lw=0, rasterized=heavy)
            axes.set_title(name)
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.set_xlim(-0.05 * len(observed) - 0.5, 1.05 * len(observed) - 0.5)
            if len(observed) <= FEW:
                axes.set_xticks(np.arange(len(observed)))
            axes.set_xlabel(f"{nouns[name]}s, in increasing order")
        canvas.axes[0].set_ylabel("replicated − observed")

    noun = (
        "level"
        if "share" in found
        else "feature (or pair)"
        if {*nouns.values()} <= {"feature", "pair"}
        else " and ".join(dict.fromkeys(nouns.values()))
    )
    caption = (
        f"Posterior predictive check: statistic of each {noun} in the replicated data minus its observed value (median and 95% interval). "
        "Values above 0 mean that the model overestimates the statistic. Crosses mark intervals that exclude 0."
    )
    if "share" in found:
        caption += " A level is a category of a feature."
    if "autocorrelation" in found:
        caption += " The autocorrelation is at lag 1 within a sequence."
    return draw_figure(
        "predictive", caption, f"Replicated minus observed {listed(list(found))}, by {noun.partition(' (')[0]}.", (10, 2.9), draw
    )
