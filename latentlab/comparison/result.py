"""Result of a comparison: tables of scores and verdicts, and a dataset for each kind of units."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from latentlab.compare.coverage import LEVELS, Coverage
from latentlab.compare.judgement import Verdict
from latentlab.compare.metric import Metric
from latentlab.compare.units import Disagreement
from latentlab.comparison.rows import Row
from latentlab.comparison.verdicts import Judged
from latentlab.embeddings.embedding import Embedding
from latentlab.errors import ConfigError, unknown
from latentlab.fit import Fit
from latentlab.notebook import Reported

SCORE_COLUMNS = (
    *("metric", "embedding", "units", "seed", "map", "mean", "sd", "q05", "q50", "q95"),
    *("ceiling_mean", "ceiling_q05", "ceiling_q95", "floor_mean", "floor_q05", "floor_q95", "direction"),
)
VERDICT_COLUMNS = (
    *("embedding", "units", "seed", "map", "alignment", "verdict", "delta", "p_low", "p_guard", "component", "scale"),
    *("coverage_50", "coverage_80", "coverage_95", "draw_coverage_50", "draw_coverage_80", "draw_coverage_95"),
    *("ess", "worst_units"),
)

UNCERTAINTY = ("uncertainty_correlation", "uncertainty_correlation_p")
"""Variables of a comparison: rank correlation of posterior spread with distance over units, and its one-sided p-value."""

Scores = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Scores `(metric, embedding, chain, draw)`, ceilings `(metric, pair)`, floors `(metric, embedding, permutation)`."""


@dataclass(frozen=True, repr=False)
class Comparison(Reported):
    """Result of a comparison; a run directory stores `to_dataframe`, `verdicts` and `to_tree` in one file each.

    Args:
        scores: One row for each metric and compared array, as in comparison.csv.
        verdicts: One row for each compared array and alignment, as in verdicts.csv.
        parts: Kind of units -> dataset of its results, with dims metric, embedding, alignment, chain, draw and the kind.
        fit: The fit; `report` needs it.
        embeddings: The embeddings; `report` needs them.
    """

    scores: pd.DataFrame
    verdicts: pd.DataFrame
    parts: Mapping[str, xr.Dataset]
    fit: Fit | None = None
    embeddings: tuple[Embedding, ...] = ()

    @property
    def data(self) -> xr.Dataset:
        """Dataset of the only kind of units that was compared.

        Raises:
            ConfigError: Several kinds were compared; `to_dataset` returns one of them.
        """
        return self.to_dataset()

    @property
    def _first(self) -> xr.Dataset:
        return next(iter(self.parts.values()))

    def to_dataframe(self) -> pd.DataFrame:
        """Returns the scores: metric, embedding, units, seed, map, statistics over draws, ceiling, floor, direction."""
        return self.scores.copy()

    def to_dataset(self, units: str | None = None) -> xr.Dataset:
        """Returns scores over draws, ceilings, floors, coverage, disagreement by unit, and scores against known labels.

        Args:
            units: Kind of units; may be left out if only one was compared.

        Raises:
            ConfigError: This kind was not compared, or several were and none is named.
        """
        if units is None and len(self.parts) > 1:
            kinds = ", ".join(map(repr, self.parts))
            raise ConfigError(f"several kinds of units were compared ({kinds}); choose one with `to_dataset(units)`.")
        if units is None:
            return self._first
        if units not in self.parts:
            raise ConfigError(unknown("kind of units", units, self.parts))
        return self.parts[units]

    def to_tree(self) -> xr.DataTree:
        """Returns the content of comparison.nc: the dataset at the root, or a group for each of several kinds of units."""
        if len(self.parts) == 1:
            ((kind, data),) = self.parts.items()
            return xr.DataTree(data.assign_attrs(units=kind))
        return xr.DataTree.from_dict(dict(self.parts))

    @property
    def ceiling(self) -> xr.DataArray:
        """Values of each metric between draws of different chains, `(metric, pair)`."""
        return self.data["ceiling"]

    @property
    def floor(self) -> xr.DataArray:
        """Values of each metric with the units permuted, `(metric, embedding, permutation)`."""
        return self.data["floor"]

    @property
    def coverage(self) -> xr.Dataset:
        """Shares of units inside their credible regions, for the embeddings and for held-out draws."""
        return self.data[["coverage", "draw_coverage", "simultaneous"]]

    @property
    def units(self) -> xr.Dataset:
        """Distances, lost neighbours and posterior spread by unit, and the rank correlation of spread and distance."""
        return self.data[["mahalanobis", "distance", "lost_neighbors", "own_lost_neighbors", "spread", *UNCERTAINTY]]

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on the comparison: a fit that did not converge, ties, subsamples and approximations."""
        texts = [str(data.attrs.get(name, "")) for data in self.parts.values() for name in ("ties", "notes")]
        parts = dict.fromkeys(part for text in texts for part in text.split("; "))
        return tuple(filter(None, [not_converged(self._first), *parts]))

    def sentences(self) -> dict[str, str]:
        """Returns the verdict on each compared array in words, under its first alignment; omits arrays without a verdict."""
        by_label: dict[str, list[str]] = {}
        for kind, data in self.parts.items():
            suffix = f", {kind}s" if len(self.parts) > 1 else ""
            for label in data["embedding"].values:
                by_label[f"{label}{suffix}"] = data["sentence"].sel(embedding=label).values.astype(str).tolist()
        remark = not_converged(self._first)
        return {label: " ".join(filter(None, [next(filter(None, v)), remark])) for label, v in by_label.items() if any(v)}

    def __repr__(self) -> str:
        n_arrays, n_metrics = sum(part.sizes["embedding"] for part in self.parts.values()), self._first.sizes["metric"]
        counts = (self.verdicts["alignment"] + ": " + self.verdicts["verdict"]).value_counts(sort=False)
        verdicts = "; ".join(f"{n} {verdict}" for verdict, n in counts.items())
        remark = "; the fit did not converge" if not_converged(self._first) else ""
        return f"Comparison({n_arrays} arrays, {n_metrics} metrics; verdicts {verdicts}{remark})"


def score_frame(rows: Sequence[Row], chosen: Sequence[Metric], table_of: Scores) -> pd.DataFrame:
    """Returns the scores as the table in comparison.csv."""
    table: list[tuple[Any, ...]] = []
    scores, ceiling, floor = table_of
    for i, metric in enumerate(chosen):
        for j, row in enumerate(rows):
            s, f, c = scores[i, j], floor[i, j], ceiling[i]
            if np.isnan(s).all():
                continue
            q05, q50, q95 = np.quantile(s, (0.05, 0.5, 0.95))
            sd = s.std(ddof=1) if s.size > 1 else np.nan
            start = (metric.name, row.embedding, row.units, row.seed, row.map, s.mean(), sd, q05, q50, q95)
            table.append(
                (*start, c.mean(), *np.quantile(c, (0.05, 0.95)), f.mean(), *np.quantile(f, (0.05, 0.95)), metric.direction)
            )
    return pd.DataFrame(table, columns=list(SCORE_COLUMNS))


def verdict_frame(rows: Sequence[Row], verdicts: Mapping[str, list[Verdict | None]]) -> pd.DataFrame:
    """Returns the verdicts as the table in verdicts.csv."""
    table = []
    for judged in verdicts.values():
        for row, v in zip(rows, judged, strict=True):
            if v is None:
                continue
            statistics = {name: getattr(v, name) for name in VERDICT_COLUMNS if hasattr(v, name)}
            worst = " ".join(v.worst_units) if all(" " not in u for u in v.worst_units) else "; ".join(v.worst_units)
            identity = {"embedding": row.embedding, "units": row.units, "seed": row.seed, "map": row.map}
            table.append({**statistics, **identity, "worst_units": worst})
    return pd.DataFrame(table, columns=list(VERDICT_COLUMNS))


def score_data(rows: Sequence[Row], chosen: Sequence[Metric], units: np.ndarray, table: Scores) -> xr.Dataset:
    """Returns scores, ceilings and floors as a dataset."""
    scores, ceiling, floor = table
    return xr.Dataset(
        {
            "scores": (("metric", "embedding", "chain", "draw"), scores),
            "ceiling": (("metric", "pair"), ceiling),
            "floor": (("metric", "embedding", "permutation"), floor),
            "direction": (("metric",), np.array([m.direction for m in chosen])),
            "best": (("metric",), np.array([m.best for m in chosen])),
        },
        coords={
            "metric": [m.name for m in chosen],
            "embedding": [row.label for row in rows],
            "name": ("embedding", np.array([row.embedding for row in rows])),
            "seed": ("embedding", np.array([row.seed for row in rows])),
            "map": ("embedding", np.array([row.map for row in rows])),
            "chain": np.arange(scores.shape[2]),
            "draw": np.arange(scores.shape[3]),
            "unit": units,
        },
    )


def judged_data(rows: Sequence[Row], judged: Judged, units: np.ndarray) -> xr.Dataset:
    """Returns verdicts, coverage and disagreement as a dataset."""
    return _verdict_data(rows, judged.verdicts, judged.regions).merge(_unit_data(rows, judged.units, units))


def named(data: xr.Dataset, kind: str) -> xr.Dataset:
    """Renames the dim `unit` to the kind of units, and `other_unit` likewise."""
    names = {"unit": kind, "other_unit": f"other_{kind}"}
    return data if kind == "unit" else data.rename({old: new for old, new in names.items() if old in data.dims})


def _verdict_data(
    rows: Sequence[Row], verdicts: Mapping[str, list[Verdict | None]], regions: Sequence[Coverage | None]
) -> xr.Dataset:
    """Returns verdicts by alignment and row; empty text and NaN for a row without a verdict under an alignment."""

    def text(read: Any) -> Any:
        values = [["" if v is None else read(v) for v in by_row] for by_row in verdicts.values()]
        return ("alignment", "embedding"), np.array(values, dtype=str)

    def number(name: str) -> Any:
        values = [[np.nan if v is None else getattr(v, name) for v in by_row] for by_row in verdicts.values()]
        return ("alignment", "embedding"), np.array(values, dtype=float)

    def share(name: str) -> Any:
        values = [[np.nan] * len(LEVELS) if c is None else getattr(c, name) for c in regions]
        return ("embedding", "level"), np.array(values, dtype=float)

    return xr.Dataset(
        {
            "verdict": text(lambda v: v.verdict),
            "sentence": text(lambda v: v.sentence),
            "component": text(lambda v: v.component),
            "notes": text(lambda v: "; ".join(v.notes)),
            **{name: number(name) for name in ("delta", "p_low", "p_guard", "scale", "scale_rank", "ess")},
            **{name: number(name) for name in ("gate_summary", "gate_draw")},
            "coverage": share("pointwise"),
            "draw_coverage": share("draws"),
            "simultaneous": share("simultaneous"),
        },
        coords={"alignment": list(verdicts), "embedding": [row.label for row in rows], "level": list(LEVELS)},
    )


def _unit_data(rows: Sequence[Row], disagreements: Sequence[Disagreement | None], units: np.ndarray) -> xr.Dataset:
    """Returns the disagreement by row and unit; NaN for rows without it, such as positions if the draws are labels."""
    by_unit = ("embedding", "unit")
    missing = np.full(len(units), np.nan)

    def each(name: str) -> np.ndarray:
        return np.stack([missing if d is None else getattr(d, name) for d in disagreements])

    def correlation(name: str) -> np.ndarray:
        return np.array([np.nan if d is None else getattr(d.uncertainty_correlation, name) for d in disagreements])

    common = next((d for d in disagreements if d is not None), None)
    return xr.Dataset(
        {
            "mahalanobis": (by_unit, each("mahalanobis")),
            "distance": (by_unit, each("distance")),
            "lost_neighbors": (by_unit, each("neighbors")),
            "own_lost_neighbors": (("unit",), missing if common is None else common.neighbors_own),
            "spread": (("unit",), missing if common is None else common.spread),
            UNCERTAINTY[0]: (("embedding",), correlation("value")),
            UNCERTAINTY[1]: (("embedding",), correlation("p")),
        },
        coords={"embedding": [row.label for row in rows], "unit": units},
    )


def not_converged(data: xr.Dataset) -> str:
    """Returns a sentence that qualifies the verdicts if the fit did not converge; empty if it did."""
    failed = str(data.attrs.get("failed_checks", ""))
    return failed and (
        f"The fit did not converge (failed checks: {failed}): the draws may not represent the posterior, and the verdicts may be "
        "wrong."
    )
