"""Comparison of several runs: scores, positions and verdicts, with notes on parts that cannot be compared."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from latentlab.compare.clustering import minimum_binder
from latentlab.compare.lift import ceiling
from latentlab.compare.metric import Metric, missing_invariances
from latentlab.comparison.rows import fewest_units
from latentlab.comparison.same_data import data_difference
from latentlab.comparison.selection import loo_of, loo_table
from latentlab.errors import ConfigError, LatentLabError
from latentlab.registry import METRICS
from latentlab.report.source import Source
from latentlab.seeds import Seeds
from latentlab.store.directory import COMPLETE
from latentlab.store.read import read
from latentlab.study.rows import candidate
from latentlab.symmetry.labels import indicators

N_PAIRS = 200
"""Number of pairs of draws for the comparison of positions."""
OF_POSITIONS = ("procrustes_similarity", "cka")
OF_LINEAR = ("cca",)
"""Metrics for models whose symmetry includes linear maps."""
POSITIONS = ("run", "other", "units", "metric", "of_points", "of_draws", "within_run", "within_other")


@dataclass(frozen=True)
class Several:
    """Comparison of several runs.

    Args:
        runs: One row for each run: run, model, method, dataset, units (the number of each kind), status.
        loo: Table of `loo_table` for each data set that two or more runs share.
        positions: One row for each pair of runs, kind of units and metric. `of_points` compares their point estimates (posterior
            means; for labels the partitions of least expected Binder loss). `of_draws` is the mean between a draw of one run and
            a draw of the other. `within_run` and `within_other` are the mean between draws of one run, the best value that can be
            expected of `of_draws`.
        verdicts: Rows of verdicts.csv of all runs.
        notes: Parts that could not be compared, with the reasons.
    """

    runs: pd.DataFrame
    loo: tuple[pd.DataFrame, ...]
    positions: pd.DataFrame
    verdicts: pd.DataFrame
    notes: tuple[str, ...]


def compare_runs(paths: Sequence[str | Path]) -> Several:
    """Compare run directories; parts that cannot be compared are listed in the notes.

    Raises:
        ConfigError: There are fewer than two directories, one is given twice, or a run is not complete.
        StoreError: A directory is not a run, or is damaged.
    """
    folders = [Path(path) for path in paths]
    if len({folder.resolve() for folder in folders}) < max(2, len(folders)):
        raise ConfigError(f"compare requires at least two different runs; got {', '.join(map(str, folders)) or 'none'}.")
    labels = [folder.name for folder in folders]
    names = labels if len(set(labels)) == len(labels) and all(labels) else [str(folder) for folder in folders]
    sources = {name: Source(read(folder)) for name, folder in zip(names, folders, strict=True)}
    for name, source in sources.items():
        if source.run.info["status"] not in COMPLETE:
            raise ConfigError(f"{name}: the run is {source.run.info['status']}; --resume continues it.")
    notes: list[str] = []
    tables = _loo(sources, notes)
    rows = [row for pair in itertools.combinations(sources, 2) for row in _pairs(sources, *pair, notes)]
    verdicts = [source.run.verdicts.assign(run=name) for name, source in sources.items() if source.compared]
    without = [name for name, source in sources.items() if not source.compared]
    if without:
        notes.append(f"verdicts: no embedding was compared in {', '.join(without)}")
    several = pd.concat(verdicts, ignore_index=True) if verdicts else pd.DataFrame(columns=["run"])
    several = several[["run", *(column for column in several if column != "run")]]
    return Several(_runs(sources), tuple(tables), pd.DataFrame(rows, columns=list(POSITIONS)), several, tuple(notes))


def _runs(sources: dict[str, Source]) -> pd.DataFrame:
    rows = []
    for name, source in sources.items():
        config, info = source.config, source.run.info
        options = ", ".join(f"{k}={v}" for k, v in config["model"].items() if k.startswith("n_"))
        model = config["model"]["name"] + (f" ({options})" if options else "")
        rows.append(
            {
                "run": name,
                "model": model,
                "method": config["inference"]["name"],
                "dataset": config["dataset"]["name"],
                "units": ", ".join(f"{len(source.of(kind).units)} {kind}s" for kind in source.kinds),
                "status": info["status"].replace("_", " "),
            }
        )
    return pd.DataFrame(rows)


# -- scores


def _loo(sources: dict[str, Source], notes: list[str]) -> list[pd.DataFrame]:
    """Return a table for each data set that runs share; add notes on runs without LOO and on differences between data sets."""
    candidates = {name: candidate(source.run) for name, source in sources.items()}
    groups: list[list[str]] = []
    for name, one in candidates.items():
        try:
            loo_of(name, one)
        except LatentLabError as error:
            notes.append(f"LOO: {error}")
            continue
        group = next((group for group in groups if not data_difference(candidates[group[0]].data, one.data)), None)
        if group is None:
            groups.append([name])
        else:
            group.append(name)
    for group, other in itertools.combinations(groups, 2):
        why = data_difference(candidates[group[0]].data, candidates[other[0]].data)
        notes.append(f"LOO: {', '.join(group)} and {', '.join(other)} cannot be compared: {why}")
    tables = []
    for group in groups:
        if len(group) > 1:
            try:
                tables.append(loo_table({name: candidates[name] for name in group}))
            except LatentLabError as error:
                notes.append(f"LOO: {error}")
    return tables


# -- positions


def _pairs(sources: dict[str, Source], name: str, other: str, notes: list[str]) -> list[dict[str, object]]:
    """Return the rows of two runs for each kind of units that has positions in both."""
    common = [kind for kind in sources[name].kinds if kind in sources[other].kinds]
    if not common:
        kinds = (", ".join(sources[one].kinds) for one in (name, other))
        notes.append(f"positions: {name} and {other} have units of different kinds ({' and '.join(kinds)})")
    rows = []
    for kind in common:
        of_kind = {one: sources[one].of(kind) for one in (name, other)}
        rows += [{"units": kind, **row} for row in _pair(of_kind, name, other, notes)]
    return rows


def _pair(sources: dict[str, Source], name: str, other: str, notes: list[str]) -> list[dict[str, object]]:
    a, b = sources[name], sources[other]
    order = pd.Index(b.units).get_indexer(pd.Index(a.units))
    if len(a.units) != len(b.units) or (order < 0).any() or len(set(a.units)) < len(a.units):
        n_shared = len(set(a.units) & set(b.units))
        notes.append(
            f"positions: {name} and {other} have different units ({len(a.units)} and {len(b.units)}, {n_shared} of them common)"
        )
        return []
    if a.model is not None and len(a.units) < fewest_units(a.model):
        notes.append(f"positions: {name} and {other} have {len(a.units)} {a.unit}s, too few to compare their positions")
        return []
    rng = Seeds(0).child("several", name, other).numpy()
    discrete = [source.is_discrete for source in (a, b)]
    draws = [source.positions.values for source in (a, b)]
    draws[1] = draws[1][:, :, order]
    metrics = _metrics(a, b, discrete)
    if all(discrete):
        draws = [array[..., 0] for array in draws]
        points = [minimum_binder(array) for array in draws]
    else:
        draws = [indicators(x[..., 0], int(x.max()) + 1) if labels else x for x, labels in zip(draws, discrete, strict=True)]
        points = [array.mean(axis=(0, 1)) for array in draws]
        note = "positions: labels are converted to one-hot indicators for the comparison with continuous positions"
        if any(discrete) and note not in notes:
            notes.append(note)
    rows = []
    for metric in metrics:
        flat = [array.reshape(-1, *array.shape[2:]) for array in draws]
        pairs = zip(*(rng.integers(len(array), size=N_PAIRS) for array in flat), strict=True)
        row = {"run": name, "other": other, "metric": metric.name, "of_points": metric(*points)}
        row["of_draws"] = float(np.mean([metric(flat[0][i], flat[1][j]) for i, j in pairs]))
        for column, array in zip(("within_run", "within_other"), draws, strict=True):
            row[column] = float(np.mean(ceiling(metric, array, rng, N_PAIRS))) if array[..., 0].size > len(points[0]) else np.nan
        rows.append(row)
    return rows


def _metrics(a: Source, b: Source, discrete: list[bool]) -> list[Metric]:
    """Return the metrics that are invariant under the symmetries of both models.

    If there are none, or a model is not available, metrics that are invariant under all linear maps are returned.
    """
    if all(discrete):
        return [METRICS.load("adjusted_rand")]
    models = [one.model for one, labels in zip((a, b), discrete, strict=True) if not labels]
    found = [METRICS.load(name) for name in (OF_POSITIONS if not any(discrete) else ("cka",))]

    def fits(metric: Metric) -> bool:
        return all(m is not None and not missing_invariances(metric, m.exchanges, m.dims[m.position.site]) for m in models)

    return [metric for metric in found if fits(metric)] or [METRICS.load(name) for name in OF_LINEAR]
