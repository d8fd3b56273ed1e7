"""A fit against embeddings of the same data: scores with ceiling and floor, verdicts, coverage, units, labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from tqdm.auto import tqdm

from latentlab.compare.align import ALIGNMENTS, Alignment
from latentlab.compare.chains import split
from latentlab.compare.clustering import co_assignment, credible_ball, minimum_binder, n_clusters, unsettled
from latentlab.compare.coverage import LEVELS, Coverage
from latentlab.compare.label_units import UnitsOfLabels, as_labels
from latentlab.compare.labels import downstream_accuracy, folds, label_agreement, largest_class
from latentlab.compare.lift import ceiling_table, floor_table, score_table
from latentlab.compare.metric import Metric, check_symmetry, minds, needed
from latentlab.compare.neighbors import N_RECALLED, Search, recall
from latentlab.compare.partition_verdict import PartitionReference
from latentlab.compare.positions import Positions
from latentlab.compare.units import Disagreement, UnitsOfPositions
from latentlab.compare.verdict import Reference, Verdict, holm
from latentlab.correspondence import find
from latentlab.embeddings.embedding import Embedding
from latentlab.errors import ConfigError, ModelError, unknown
from latentlab.fit import Fit
from latentlab.inference.draws import Method
from latentlab.models.base import LatentModel
from latentlab.registry import METHODS, METRICS
from latentlab.seeds import Seeds, one_thread
from latentlab.settings import Count, Fraction, Several, checked, keyword_types
from latentlab.symmetry.labels import indicators

SCORE_COLUMNS = (
    *("metric", "embedding", "seed", "map", "mean", "sd", "q05", "q50", "q95"),
    *("ceiling_mean", "ceiling_q05", "ceiling_q95", "floor_mean", "floor_q05", "floor_q95", "direction"),
)
VERDICT_COLUMNS = (
    *("embedding", "seed", "map", "alignment", "verdict", "delta", "p_low", "p_guard", "component", "scale"),
    *("coverage_50", "coverage_80", "coverage_95", "draw_coverage_50", "draw_coverage_80", "draw_coverage_95"),
    *("ess", "worst_units"),
)
MOST_NUMBERS = 2**24
"""Probabilities of labels that metrics are lifted over are at most so many numbers (128 MB)."""
SOFT_METRICS = ("cka", "distance_correlation", "procrustes_similarity")
"""Metrics that compare any embedding with the probabilities of labels, unless others are named."""
LABEL_METRICS = ("adjusted_rand", "matched_accuracy")
"""Metrics by which clusterings are held against labels that nobody was shown."""
MOST_PAIRED = 2000
"""Units up to which the co-assignment of each pair is kept (32 MB)."""
N_NAMED = 5
"""Units that a note names."""
N_UNIT_DRAWS = 100
"""Draws by which units' neighbours are judged."""
N_RECALL_DRAWS = 5
"""Draws whose approximate neighbours are held against exact ones."""
RECALLS = {"neighbor_recall": "embeddings", "neighbor_recall_draws": "draws"}
"""The variables of the dataset that tell it."""


@dataclass(frozen=True)
class Row:
    """One array of positions that is compared: an embedding, one of its seeds, raw or carried by a correspondence's map."""

    embedding: str
    seed: str
    map: str
    values: np.ndarray

    @property
    def labels(self) -> np.ndarray | None:
        """Labels `(unit,)`, if it is a clustering."""
        return as_labels(self.values)

    @property
    def columns(self) -> np.ndarray:
        """Its values; of a clustering given as numbers a column for each cluster: the numbers are names."""
        labels = self.labels if self.values.shape[1] == 1 else None
        return self.values if labels is None else indicators(labels, int(labels.max()) + 1)

    @property
    def label(self) -> str:
        """Its name in tables and plots."""
        seed = f" #{self.seed}" if self.seed else ""
        return f"{self.embedding}{seed}{' (mapped)' if self.map == 'mapped' else ''}"


@dataclass(frozen=True, repr=False)
class Comparison:
    """What was found; `to_dataframe`, `verdicts` and `to_dataset` are the run directory's three files.

    Args:
        scores: A row for each metric and compared array, as in comparison.csv.
        verdicts: A row for each compared array and alignment, as in verdicts.csv.
        data: All of it by dims (metric, embedding, alignment, chain, draw, unit), as in comparison.nc.
    """

    scores: pd.DataFrame
    verdicts: pd.DataFrame
    data: xr.Dataset

    def to_dataframe(self) -> pd.DataFrame:
        """The scores: metric, embedding, seed, map, quantiles over draws, ceiling, floor, direction."""
        return self.scores.copy()

    def to_dataset(self) -> xr.Dataset:
        """Scores over draws, ceilings, floors, coverage, units' disagreement, labels' scores."""
        return self.data

    @property
    def ceiling(self) -> xr.DataArray:
        """Each metric between draws of different chains `(metric, pair)`."""
        return self.data["ceiling"]

    @property
    def floor(self) -> xr.DataArray:
        """Each metric with the units permuted `(metric, embedding, permutation)`."""
        return self.data["floor"]

    @property
    def coverage(self) -> xr.Dataset:
        """Shares of units inside their credible regions, the embeddings' and held-out draws'."""
        return self.data[["coverage", "draw_coverage", "simultaneous"]]

    @property
    def units(self) -> xr.Dataset:
        """Per unit: distance, Mahalanobis distance, lost neighbours, the posterior's spread; and whether it knew."""
        return self.data[["mahalanobis", "distance", "lost_neighbors", "own_lost_neighbors", "spread", "knew", "knew_p"]]

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on the comparison: a fit that did not converge, ties, subsamples and approximations."""
        parts = [part for name in ("ties", "notes") for part in str(self.data.attrs.get(name, "")).split("; ")]
        return tuple(filter(None, [not_converged(self.data), *parts]))

    def sentences(self) -> dict[str, str]:
        """The verdict on each compared array under the first alignment that takes it, in words; none for what gets no verdict."""
        said = self.data["sentence"]
        every = {str(label): said.sel(embedding=label).values.astype(str).tolist() for label in said["embedding"].values}
        doubt = not_converged(self.data)
        return {label: " ".join(filter(None, [next(filter(None, ways)), doubt])) for label, ways in every.items() if any(ways)}

    def __repr__(self) -> str:
        n_arrays, n_metrics = self.data.sizes["embedding"], self.data.sizes["metric"]
        words = (self.verdicts["alignment"] + ": " + self.verdicts["verdict"]).value_counts(sort=False)
        said = "; ".join(f"{n} {word}" for word, n in words.items())
        state = "; the fit did NOT converge" if not_converged(self.data) else ""
        return f"Comparison({n_arrays} arrays, {n_metrics} metrics; verdicts {said}{state})"


@one_thread()
def compare(
    fit: Fit,
    embeddings: Sequence[Embedding],
    *,
    n_neighbors: Count = 15,
    alignments: tuple[Alignment, ...] | None = None,
    metrics: tuple[str, ...] | None = None,
    alpha: Fraction = 0.05,
    n_draws: Several = 200,
    n_pairs: Count = 200,
    n_permutations: Count = 50,
    neighbor_search: Search = "exact",
    progress: bool = True,
) -> Comparison:
    """Compares a fit's positions with embeddings of the same units.

    Each embedding is compared raw, and again under the map of its correspondence with the model, where there is one. Where the
    positions are labels, clusterings are compared with the draws of them and get a verdict, and every embedding is compared with
    their probabilities (distances against soft assignments), by metrics without a verdict.

    Args:
        fit: The fit.
        embeddings: Embeddings, joined with the fit by unit.
        n_neighbors: Neighbours for the metrics about them; at most fewer than half of the units are taken.
        alignments: What may be done to an embedding of positions before the verdict: `fixed` (nothing), `orthogonal`,
            `similarity`, `affine`. Where None, rotation and centring, and these with scale; a linear map where the model's
            symmetry leaves one free; nothing where the positions have no symmetry.
        metrics: Names of metrics; where None all that ignore what the symmetry ignores, but for the slow `gromov_wasserstein`.
            Where the positions are labels, those of labels and a few of positions.
        alpha: Level of the verdicts, Holm's over all compared arrays.
        n_draws: Posterior draws that metrics are lifted over, spread evenly over the chains; verdicts use all.
        n_pairs: Pairs of draws for the ceiling.
        n_permutations: Permutations of the units for the floor.
        neighbor_search: Whether nearest neighbours are `exact` or, sooner for many units in many columns, `approximate`: then
            `notes` and the dataset say how many of them are true ones.
        progress: A bar on a terminal.

    Raises:
        DataError: An embedding lacks units of the fit, or is not finite.
        ModelError: The fit gives positions no spread.
        ConfigError: No such metric or alignment, or one that minds what the symmetry leaves free and was not asked for.
    """
    numbers = {"n_neighbors": n_neighbors, "n_draws": n_draws, "n_pairs": n_pairs, "n_permutations": n_permutations}
    checked("compare", keyword_types(compare), {**numbers, "alpha": alpha, "neighbor_search": neighbor_search})
    chosen = _metrics(metrics, fit)
    ways = _alignments(alignments, fit)
    if isinstance(embeddings, Embedding) or not all(isinstance(one, Embedding) for one in embeddings):
        single = isinstance(embeddings, Embedding)
        odd = embeddings if single else next(one for one in embeddings if not isinstance(one, Embedding))
        raise ConfigError(
            "`embeddings` must be a list of `Embedding`s, such as `[embed('pca', dataset), Embedding(name, values, units)]`; "
            f"got {'' if single else 'a list with '}{type(odd).__name__}."
        )
    if not embeddings:
        raise ConfigError("`embeddings` is empty: there is nothing to compare with.")
    check_spread(fit.model, fit.method)
    units = fit.dataset.units
    rows = _rows(fit, embeddings)
    draws = np.ascontiguousarray(fit.latents().values)
    some = _lifted_over(fit, draws, n_draws)
    k = min(n_neighbors, max(1, (len(units) - 1) // 2))
    near = {"n_neighbors": k, "neighbor_search": neighbor_search}
    seeds = Seeds(fit.seed).child("comparison")
    bar = tqdm(
        total=len(some) * next(iter(some.values()))[..., 0].size // len(units) + 3 * len(rows),
        desc="compare",
        disable=None if progress else True,
        leave=False,
    )
    with bar:
        table = _scored(rows, chosen, some, near, (n_pairs, n_permutations), seeds, bar)
        data = _dataset(rows, chosen, units, *table)
        if _is_discrete(fit):
            verdicts, more = _judged_labels(fit, rows, draws[..., 0], alpha, seeds, bar)
        else:
            verdicts, more = _judged_positions(fit, rows, draws, some["positions"], ways, alpha, near, seeds, bar)
    data = data.merge(more, compat="override")
    notes = _in_part(chosen, len(units))
    ties = [*_unsettled(data, units), *_borderline(rows, verdicts)]
    if neighbor_search == "approximate":
        recalls = _recalls(rows, some["positions"], k)
        data = data.merge(recalls)
        shares = (f"{float(recalls[name].mean()):.3f} in {of}" for name, of in RECALLS.items())
        notes.append(f"approximate neighbours: share of true ones {', '.join(shares)}, at {min(N_RECALLED, len(units))} units")
    if fit.dataset.labels is not None and len(np.unique(fit.dataset.labels)) > 1:
        known = fit.dataset.labels
        told = (
            _labels_by_labels(rows, draws[..., 0], data["point_estimate"].values, known)
            if _is_discrete(fit)
            else _label_data(rows, draws, known, k, seeds)
        )
        data = data.merge(told)
    group, dims = fit.model.exchanges, fit.model.dims[fit.model.position.site]
    data.attrs = {
        "n_neighbors": k,
        "alpha": alpha,
        "symmetry": type(group).__name__,
        "ignores": "the names of labels" if _is_discrete(fit) else ", ".join(sorted(needed(group, dims))) or "nothing",
        "alignments": ", ".join(verdicts),
        "notes": "; ".join(notes),
        "ties": "; ".join(ties),
        "failed_checks": _failed_checks(fit),
    }
    return Comparison(_score_frame(rows, chosen, *table), _verdict_frame(rows, verdicts), data)


def _unsettled(data: xr.Dataset, units: np.ndarray) -> list[str]:
    """A note where the point estimate of the partition places units by less than the Monte Carlo error."""
    if "unsettled" not in data or not data["unsettled"].values.any():
        return []
    which = units[data["unsettled"].values]
    names = ", ".join(str(unit).replace(";", ",") for unit in which[:N_NAMED]) + (", ..." if len(which) > N_NAMED else "")
    return [
        f"tie: for {len(which)} of {len(units)} units another cluster of the point estimate is as good within Monte Carlo error "
        f"({names}), and other draws, or another CPU, may place them there"
    ]


def _borderline(rows: list[Row], verdicts: dict[str, list[Verdict | None]]) -> list[str]:
    """A note for each verdict that other draws may change."""
    return [
        f"{row.label}, {way}: {note}"
        for way, judged in verdicts.items()
        for row, v in zip(rows, judged, strict=True)
        for note in (() if v is None else v.notes)
        if note.startswith("borderline")
    ]


def _failed_checks(fit: Fit) -> str:
    """The names of the fit's failed checks; empty where it converged."""
    table = fit.diagnostics()
    names = dict.fromkeys(table.loc[table["verdict"] == "fail", "check"])
    return "" if fit.converged else ", ".join(names) or "a check without a number"


def not_converged(data: xr.Dataset) -> str:
    """A sentence that qualifies the verdicts of a comparison whose fit did not converge; empty where it did."""
    failed = str(data.attrs.get("failed_checks", ""))
    return failed and f"The fit did not converge (failed: {failed}): the draws, and so the verdicts, may not be the posterior's."


def _is_discrete(fit: Fit) -> bool:
    return fit.model.position.kind == "discrete"


def _lifted_over(fit: Fit, draws: np.ndarray, n_draws: int) -> dict[str, np.ndarray]:
    """What metrics are lifted over, by what they compare: positions, or labels and their probabilities given each draw."""
    if not _is_discrete(fit):
        return {"positions": _thinned(draws, n_draws)}
    n_draws = min(n_draws, max(2, MOST_NUMBERS // (draws[0, 0].size * fit.model.n_labels())))
    soft = fit.probabilities(n_draws=n_draws).values
    return {"positions": soft, "labels": _thinned(draws[..., 0], n_draws)}


def _in_part(chosen: list[Metric], n_units: int) -> list[str]:
    """What metrics look at in part only."""
    notes = []
    for n_used in sorted({metric.n_used(n_units) for metric in chosen} - {n_units}):
        names = ", ".join(metric.name for metric in chosen if metric.n_used(n_units) == n_used)
        notes.append(f"{names}: at {n_used} of {n_units} units")
    return notes


def _recalls(rows: list[Row], draws: np.ndarray, k: int) -> xr.Dataset:
    """Shares of true neighbours among the approximate ones, of each row and of some draws."""
    few = _thinned(draws, N_RECALL_DRAWS)
    flat = few.reshape(-1, *few.shape[2:])
    arrays = {
        "neighbor_recall": (("embedding",), np.array([recall(Positions(row.values), k) for row in rows])),
        "neighbor_recall_draws": (("recall_draw",), np.array([recall(Positions(draw), k) for draw in flat])),
    }
    return xr.Dataset(arrays, coords={"embedding": [row.label for row in rows]})


def _scored(
    rows: list[Row],
    chosen: list[Metric],
    some: dict[str, np.ndarray],
    near: dict[str, Any],
    sizes: tuple[int, int],
    seeds: Seeds,
    bar: Any,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores `(metric, embedding, chain, draw)`, ceilings `(metric, pair)`, floors `(metric, embedding, permutation)`.

    NaN where a metric of labels meets an embedding that is no clustering.
    """
    n_pairs, n_permutations = sizes
    lead = next(iter(some.values())).shape[:2]
    scores = np.full((len(chosen), len(rows), *lead), np.nan)
    ceiling = np.full((len(chosen), n_pairs), np.nan)
    floor = np.full((len(chosen), len(rows), n_permutations), np.nan)
    for kind, draws in some.items():
        which = [i for i, metric in enumerate(chosen) if metric.of == kind]
        those = [chosen[i] for i in which]
        if kind == "labels":
            usable = {j: row.labels for j, row in enumerate(rows)}
        else:
            usable = {j: row.columns if "labels" in some else row.values for j, row in enumerate(rows)}
        arrays = {j: array for j, array in usable.items() if array is not None}
        if not those:
            continue
        options = {name: value for name, value in near.items() if any(name in m.options for m in those)}
        at = np.ix_(which, list(arrays))
        scores[at] = score_table(those, list(arrays.values()), draws, tick=bar.update, **options)
        ceiling[which] = ceiling_table(those, draws, seeds.child("ceiling").numpy(), n_pairs, **options)
        for j, array in arrays.items():
            floor[which, j] = floor_table(those, array, draws, seeds.child("floor").numpy(), n_permutations, **options)
            bar.update()
    return scores, ceiling, floor


# -- what is compared, and by what


def _rows(fit: Fit, embeddings: Sequence[Embedding]) -> list[Row]:
    labels = [embedding.label for embedding in embeddings]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise ConfigError(f"two embeddings have the label {twice!r}; give each its own.")
    rows = []
    for embedding in embeddings:
        joined = embedding.reindexed(fit.dataset.units)
        claim = find(embedding.name, fit.model.name, embedding.options)
        stack = joined.values if joined.values.ndim == 3 else joined.values[None]
        seeds = [str(seed) for seed in joined.seeds] if joined.values.ndim == 3 else [""]
        for seed, values in zip(seeds, stack, strict=True):
            rows.append(Row(embedding.label, seed, "raw", values))
            if claim is not None and claim.map is not None:
                rows.append(Row(embedding.label, seed, "mapped", claim.map(values, fit.dataset)))
    return rows


def check_spread(model: LatentModel, method: Method) -> None:
    """Refuses positions that have no spread, or too few draws of it: nothing can be said to lie inside.

    Raises:
        ModelError: A point estimate of the positions themselves; names model and method.
        ConfigError: Too few draws.
    """
    n_chains, columns = getattr(method, "n_chains", 1), model.position_columns() or 1
    half = n_chains // 2 * method.n_draws if n_chains > 1 else method.n_draws // 3
    if half < columns + 2:
        raise ConfigError(
            f"inference: {n_chains} x {method.n_draws} draws are too few to compare embeddings with: a half must hold at least "
            f"{columns + 2}, and for a verdict hundreds; raise `n_draws`."
        )
    if method.kind == "point" and not model.integrates_positions():
        others = ", ".join(name for name in model.methods if METHODS.load(name).kind != "point")
        raise ModelError(
            f"method {method.name!r} gives the positions of {model.name!r} no spread (it has no `latents`), so that no embedding "
            f"can be compared with them; methods that do: {others or 'none'}."
        )


def _distinct(option: str, names: Sequence[str]) -> None:
    """Refuses a list of names that is empty or names something twice."""
    twice = next((name for name in names if list(names).count(name) > 1), None)
    if not names or twice is not None:
        raise ConfigError(f"compare: `{option}` " + ("is empty." if twice is None else f"names {twice!r} twice."))


def _metrics(names: Sequence[str] | None, fit: Fit) -> list[Metric]:
    group, dims = fit.model.exchanges, fit.model.dims[fit.model.position.site]
    discrete = _is_discrete(fit)
    if names is None:
        every = [METRICS.load(name) for name in METRICS]
        kept = [m for m in every if m.by_default and not minds(m, group, dims)]
        return [m for m in kept if m.of == ("labels" if discrete else "positions") or (discrete and m.name in SOFT_METRICS)]
    _distinct("metrics", names)
    for name in names:
        if name not in METRICS:
            raise ConfigError(unknown("metric", name, METRICS))
    found = [METRICS.load(name) for name in names]
    for metric in found:
        if metric.of == "labels" and not discrete:
            raise ConfigError(f"metric {metric.name!r} compares labels; the positions of {fit.model.name!r} are not discrete.")
        check_symmetry(metric, group, dims, by_name=True)
    return found


def _alignments(names: Sequence[str] | None, fit: Fit) -> tuple[Alignment, ...]:
    free = needed(fit.model.exchanges, fit.model.dims[fit.model.position.site])
    if _is_discrete(fit) and names is not None:
        raise ConfigError(f"compare: `alignments` are of positions; those of {fit.model.name!r} are labels, which have none.")
    if names is None:
        return ("fixed",) if not free else ("affine",) if "linear" in free else ("orthogonal", "similarity")
    _distinct("alignments", names)
    for name in names:
        if name not in ALIGNMENTS:
            raise ConfigError(unknown("alignment", name, ALIGNMENTS))
    return tuple(way for way in ALIGNMENTS if way in names)


def _thinned(draws: np.ndarray, n: int) -> np.ndarray:
    """About n draws `(chain, draw, unit, latent)`, evenly spaced in each chain."""
    each = max(1, min(draws.shape[1], n // draws.shape[0]))
    if each == draws.shape[1]:
        return draws
    return draws[:, np.unique(np.linspace(0, draws.shape[1] - 1, each).astype(int))]


# -- verdicts and units


def _judged_positions(
    fit: Fit,
    rows: list[Row],
    draws: np.ndarray,
    some: np.ndarray,
    ways: tuple[Alignment, ...],
    alpha: float,
    near: dict[str, Any],
    seeds: Seeds,
    bar: Any,
) -> tuple[dict[str, list[Verdict | None]], xr.Dataset]:
    units = fit.dataset.units
    references, verdicts = _verdicts(rows, draws, ways, alpha, [str(unit) for unit in units], seeds, bar)
    found = _units(rows, references, some, near, seeds, bar)
    own = [next(way for way in verdicts if verdicts[way][i] is not None) for i in range(len(rows))]
    regions: list[Coverage | None] = [references[way].regions.coverage(row.values) for way, row in zip(own, rows, strict=True)]
    return verdicts, _verdict_data(rows, verdicts, regions).merge(_unit_data(rows, found, units))


def _judged_labels(
    fit: Fit, rows: list[Row], draws: np.ndarray, alpha: float, seeds: Seeds, bar: Any
) -> tuple[dict[str, list[Verdict | None]], xr.Dataset]:
    """Verdicts on the rows that are clusterings, and what the posterior says of the partition."""
    units = fit.dataset.units
    reference = PartitionReference(draws, seeds.child("verdict", "labels").numpy())
    judged = [
        None if row.labels is None else reference.judge(row.labels, alpha=alpha, units=[str(unit) for unit in units])
        for row in rows
    ]
    adjusted = iter(holm([v for v in judged if v is not None]))
    verdicts = {"labels": [None if v is None else next(adjusted) for v in judged]}
    pairs = co_assignment(draws)
    common = UnitsOfLabels(draws, pairs.mean, fit.model.n_labels())
    found, regions = [], []
    for row in rows:
        found.append(None if row.labels is None else common.disagreement(row.labels))
        regions.append(None if row.labels is None else common.coverage(row.labels))
        bar.update()
    centre = minimum_binder(draws)
    ball = credible_ball(draws, centre)
    counts = n_clusters(draws)
    partition: dict[str, Any] = {
        "point_estimate": (("unit",), centre),
        "unsettled": (("unit",), np.isin(np.arange(len(centre)), unsettled(draws, centre))),
        "label_probability": (("unit", "label"), common.probabilities),
        "n_clusters": (("clusters_chain", "clusters_draw"), counts),
        "ball_radius": ((), ball.radius),
        "ball_mass": ((), ball.mass),
    }
    if len(units) <= MOST_PAIRED:
        partition |= {
            "co_assignment": (("unit", "other_unit"), pairs.mean),
            "co_assignment_se": (("unit", "other_unit"), pairs.standard_error),
        }
    said = xr.Dataset(partition, coords={"unit": units})
    return verdicts, _verdict_data(rows, verdicts, regions).merge(_unit_data(rows, found, units)).merge(said)


def _verdicts(
    rows: list[Row], draws: np.ndarray, ways: tuple[Alignment, ...], alpha: float, units: list[str], seeds: Seeds, bar: Any
) -> tuple[dict[str, Reference], dict[str, list[Verdict | None]]]:
    """By alignment: what its verdicts have in common, and a verdict for each row that can be aligned so, Holm's over them.

    Rows with more columns than the positions can be compared under `affine` only, and are, whatever was asked.
    """
    references: dict[str, Reference] = {}
    found: dict[str, list[Verdict | None]] = {}
    halves = split(draws)
    for way in ALIGNMENTS:
        those = [way == "affine" if _is_wide(row, draws) else way in ways for row in rows]
        if not any(those):
            continue
        references[way] = Reference(draws, way, seeds.child("verdict", way).numpy(), halves=halves)
        judged = []
        for row, takes in zip(rows, those, strict=True):
            if takes:
                judged.append(references[way].judge(row.values, alpha=alpha, units=units))
                bar.update()
        adjusted = iter(holm(judged))
        found[way] = [next(adjusted) if takes else None for takes in those]
    return references, found


def _is_wide(row: Row, draws: np.ndarray) -> bool:
    return bool(row.values.shape[1] > draws.shape[3])


def _units(
    rows: list[Row], references: dict[str, Reference], some: np.ndarray, near: dict[str, Any], seeds: Seeds, bar: Any
) -> list[Disagreement]:
    """The rows' disagreement with the draws by unit, both in the frame of an alignment that scales them, if any does.

    Else a unit would disagree as much as it is far out.
    """
    few = _thinned(some, N_UNIT_DRAWS)
    common: dict[Alignment, UnitsOfPositions] = {}
    found = []
    for row in rows:
        usable: tuple[Alignment, ...] = ("affine",) if _is_wide(row, some) else ("similarity", "orthogonal", "affine", "fixed")
        way = next(way for way in usable if way in references)
        if way not in common:
            common[way] = UnitsOfPositions(references[way].align(few), seeds.child("units").numpy(), **near)
        found.append(common[way].disagreement(references[way].align(row.values)))
        bar.update()
    return found


# -- as tables


def _score_frame(
    rows: list[Row], chosen: list[Metric], scores: np.ndarray, ceiling: np.ndarray, floor: np.ndarray
) -> pd.DataFrame:
    table = []
    for i, metric in enumerate(chosen):
        for j, row in enumerate(rows):
            s, f, c = scores[i, j], floor[i, j], ceiling[i]
            if np.isnan(s).all():
                continue
            q05, q50, q95 = np.quantile(s, (0.05, 0.5, 0.95))
            sd = s.std(ddof=1) if s.size > 1 else np.nan
            own = (metric.name, row.embedding, row.seed, row.map, s.mean(), sd, q05, q50, q95)
            table.append(
                (*own, c.mean(), *np.quantile(c, (0.05, 0.95)), f.mean(), *np.quantile(f, (0.05, 0.95)), metric.direction)
            )
    return pd.DataFrame(table, columns=list(SCORE_COLUMNS))


def _verdict_frame(rows: list[Row], verdicts: dict[str, list[Verdict | None]]) -> pd.DataFrame:
    table = []
    for judged in verdicts.values():
        for row, v in zip(rows, judged, strict=True):
            if v is None:
                continue
            found = {name: getattr(v, name) for name in VERDICT_COLUMNS if hasattr(v, name)}
            worst = " ".join(v.worst_units) if all(" " not in u for u in v.worst_units) else "; ".join(v.worst_units)
            table.append({**found, "embedding": row.embedding, "seed": row.seed, "map": row.map, "worst_units": worst})
    return pd.DataFrame(table, columns=list(VERDICT_COLUMNS))


def _dataset(
    rows: list[Row], chosen: list[Metric], units: np.ndarray, scores: np.ndarray, ceiling: np.ndarray, floor: np.ndarray
) -> xr.Dataset:
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


def _verdict_data(rows: list[Row], verdicts: dict[str, list[Verdict | None]], regions: Sequence[Coverage | None]) -> xr.Dataset:
    """Verdicts by alignment and row; no text and NaN where the row cannot be aligned so, or was not."""
    ways = list(verdicts)

    def text(read: Any) -> Any:
        every = [["" if v is None else read(v) for v in verdicts[way]] for way in ways]
        return ("alignment", "embedding"), np.array(every, dtype=str)

    def number(name: str) -> Any:
        every = [[np.nan if v is None else getattr(v, name) for v in verdicts[way]] for way in ways]
        return ("alignment", "embedding"), np.array(every, dtype=float)

    def share(name: str) -> Any:
        every = [[np.nan] * len(LEVELS) if c is None else getattr(c, name) for c in regions]
        return ("embedding", "level"), np.array(every, dtype=float)

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
        coords={"alignment": ways, "embedding": [row.label for row in rows], "level": list(LEVELS)},
    )


def _unit_data(rows: list[Row], found: Sequence[Disagreement | None], units: np.ndarray) -> xr.Dataset:
    """Disagreement by row and unit; NaN for a row that is not of the kind that is compared by units."""
    by_unit = ("embedding", "unit")
    nothing = np.full(len(units), np.nan)

    def each(name: str) -> np.ndarray:
        return np.stack([nothing if d is None else getattr(d, name) for d in found])

    common = next((d for d in found if d is not None), None)
    return xr.Dataset(
        {
            "mahalanobis": (by_unit, each("mahalanobis")),
            "distance": (by_unit, each("distance")),
            "lost_neighbors": (by_unit, each("neighbors")),
            "own_lost_neighbors": (("unit",), nothing if common is None else common.neighbors_own),
            "spread": (("unit",), nothing if common is None else common.spread),
            "knew": (("embedding",), np.array([np.nan if d is None else d.knew_distance.value for d in found])),
            "knew_p": (("embedding",), np.array([np.nan if d is None else d.knew_distance.p for d in found])),
        },
        coords={"embedding": [row.label for row in rows], "unit": units},
    )


def _labels_by_labels(rows: list[Row], draws: np.ndarray, centre: np.ndarray, labels: np.ndarray) -> xr.Dataset:
    """How well each clustering, the point estimate and some draws agree with labels that nobody was shown."""
    known = np.unique(labels.astype(str), return_inverse=True)[1]
    few = _thinned(draws, N_UNIT_DRAWS)
    arrays: dict[str, Any] = {"largest_class": ((), largest_class(labels))}
    for metric in (METRICS.load(name) for name in LABEL_METRICS):
        of_rows = [np.nan if row.labels is None else metric(row.labels, known) for row in rows]
        arrays[f"label_{metric.name}"] = (("embedding",), np.array(of_rows))
        arrays[f"label_{metric.name}_posterior_mean"] = ((), metric(centre, known))
        of_draws = [[metric(draw, known) for draw in chain] for chain in few]
        arrays[f"label_{metric.name}_draws"] = (("chain", "label_draw"), np.array(of_draws))
    return xr.Dataset(arrays, coords={"embedding": [row.label for row in rows]})


def _label_data(rows: list[Row], draws: np.ndarray, labels: np.ndarray, k: int, seeds: Seeds) -> xr.Dataset:
    """Label agreement and downstream accuracy of each row, of the posterior mean, and of each of some draws."""
    few = _thinned(draws, N_UNIT_DRAWS // 2)
    fixed = folds(labels, seeds.child("folds").numpy())
    tasks = {
        "label_agreement": partial(label_agreement, labels=labels, n_neighbors=k),
        "downstream_accuracy": partial(downstream_accuracy, labels=labels, folds=fixed, n_neighbors=k),
    }
    arrays: dict[str, Any] = {}
    for name, score in tasks.items():
        arrays[name] = (("embedding",), np.array([score(Positions(row.values)) for row in rows]))
        arrays[f"{name}_posterior_mean"] = ((), score(Positions(draws.mean(axis=(0, 1)))))
        of_draws = [[score(Positions(draw)) for draw in chain] for chain in few]
        arrays[f"{name}_draws"] = (("chain", "label_draw"), np.array(of_draws))
    arrays["largest_class"] = ((), largest_class(labels))
    return xr.Dataset(arrays, coords={"embedding": [row.label for row in rows]})
