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
from latentlab.files import make_folder, write
from latentlab.registry import METRICS
from latentlab.report.source import Source
from latentlab.seeds import Seeds
from latentlab.store.directory import COMPLETE, RUN_JSON, read_info
from latentlab.store.points import is_sweep, read_points
from latentlab.store.read import read
from latentlab.study.console import table_lines
from latentlab.study.rows import candidate, cells, frame, row_of, write_table
from latentlab.symmetry.labels import indicators

N_PAIRS = 200
"""Number of pairs of draws for the comparison of positions."""
OF_POSITIONS = ("procrustes_similarity", "cka")
OF_LINEAR = ("cca",)
"""Metrics for models whose symmetry includes linear maps."""
POSITIONS = ("run", "other", "units", "metric", "of_points", "of_draws", "within_run", "within_other")
MOST_PAIRS = 100
"""Largest number of pairs of runs whose positions are compared."""
MOST_NAMED = 5
SHORT = (
    *("run", "model", "method", "dataset", "units", "status", "rhat_max", "ess_min"),
    *("elpd_loo", "held_out", "seconds", "ess_per_second"),
)
"""Columns of the table of runs on a terminal."""


@dataclass(frozen=True, repr=False)
class RunComparison:
    """Comparison of several runs.

    Args:
        rows: One row for each run: run, model, method, dataset, units (the number of each kind), seed, the swept values of a
            point of a sweep, and the results and times of `latentlab.study.rows.RunRow`.
        loo: Table of `loo_table` for each data set that two or more runs share.
        positions: One row for each pair of runs, kind of units and metric. `of_points` compares their point estimates (posterior
            means; for labels the partitions of least expected Binder loss). `of_draws` is the mean between a draw of one run and
            a draw of the other. `within_run` and `within_other` are the mean between draws of one run, the best value that can be
            expected of `of_draws`.
        verdicts: Rows of verdicts.csv of all runs.
        notes: Parts that could not be compared, with the reasons.
    """

    rows: pd.DataFrame
    loo: tuple[pd.DataFrame, ...]
    positions: pd.DataFrame
    verdicts: pd.DataFrame
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        tables = [("runs", self._short()), *(("leave-one-out", table) for table in self.loo)]
        tables += [("agreement of positions", self.positions), ("verdicts on embeddings", self.verdicts)]
        parts = ["\n".join([title, *table_lines(table)]) for title, table in tables if len(table)]
        return "\n\n".join([*parts, *(["\n  ".join(["notes", *self.notes])] if self.notes else [])])

    def _short(self) -> pd.DataFrame:
        """The columns of the rows that fit on a terminal, scores with their standard errors."""
        table = self.rows.copy()
        for score in ("elpd_loo", "held_out"):
            pairs = zip(table[score], table[f"{score}_se"], strict=True)
            table[score] = ["" if np.isnan(value) else f"{value:.1f} ± {se:.1f}" for value, se in pairs]
        shown = table[[name for name in SHORT if name in table and not table[name].isin(["", np.nan]).all()]]
        return shown.assign(status=shown["status"].str.replace("_", " "))

    def to_dataframe(self) -> pd.DataFrame:
        """Table with a row for each run (`rows`)."""
        return self.rows.copy()

    def save(self, folder: str | Path) -> list[Path]:
        """Write `runs.csv`, `loo.csv` (or `loo-0.csv`, ... for several data sets), `positions.csv`, `verdicts.csv`, and notes.

        Tables are also written as Parquet if pyarrow is installed. Returns the paths.

        Raises:
            StoreError: A file cannot be written.
        """
        folder = Path(folder)
        make_folder(folder)
        several = len(self.loo) > 1
        tables = {"runs": self.rows, "positions": self.positions, "verdicts": self.verdicts}
        tables |= {f"loo-{i}" if several else "loo": table for i, table in enumerate(self.loo)}
        paths = [path for name, table in tables.items() if len(table) for path in write_table(folder / f"{name}.csv", table)]
        if self.notes:
            write(folder / "notes.txt", "".join(f"{note}\n" for note in self.notes).encode())
            paths.append(folder / "notes.txt")
        return paths


def compare_runs(paths: Sequence[str | Path]) -> RunComparison:
    """Compare complete runs; parts that cannot be compared are listed in the notes.

    Args:
        paths: Run directories. The directory of a sweep stands for its complete points.

    Raises:
        ConfigError: There are fewer than two runs, one is given twice, or a run is not complete.
        StoreError: A directory is neither a run nor a sweep, or is damaged.
    """
    notes: list[str] = []
    folders = [folder for path in paths for folder in _expanded(Path(path), notes)]
    if len({folder.resolve() for folder in folders}) < max(2, len(folders)):
        raise ConfigError(f"compare requires at least two different runs; got {', '.join(map(str, folders)) or 'none'}.")
    labels = [folder.name for folder in folders]
    names = labels if len(set(labels)) == len(labels) and all(labels) else [str(folder) for folder in folders]
    sources = {name: Source(read(folder)) for name, folder in zip(names, folders, strict=True)}
    for name, source in sources.items():
        if source.run.info["status"] not in COMPLETE:
            raise ConfigError(f"{name}: the run is {source.run.info['status']}; --resume continues it.")
    tables = _loo(sources, notes)
    pairs = list(itertools.combinations(sources, 2))
    if len(pairs) > MOST_PAIRS:
        notes.append(f"positions: {len(sources)} runs have {len(pairs)} pairs, more than {MOST_PAIRS}; compare fewer runs")
        pairs = []
    rows = [row for pair in pairs for row in _pairs(sources, *pair, notes)]
    verdicts = [source.run.verdicts.assign(run=name) for name, source in sources.items() if source.compared]
    without = [name for name, source in sources.items() if not source.compared]
    if without:
        notes.append(f"verdicts: no embedding was compared in {', '.join(without)}")
    several = pd.concat(verdicts, ignore_index=True) if verdicts else pd.DataFrame(columns=["run"])
    several = several[["run", *(column for column in several if column != "run")]]
    return RunComparison(_rows(sources), tuple(tables), pd.DataFrame(rows, columns=list(POSITIONS)), several, tuple(notes))


def _expanded(folder: Path, notes: list[str]) -> list[Path]:
    """The run directories of a path: itself, or the complete points of a sweep; a note names the others."""
    if not is_sweep(folder):
        return [folder]
    points = [folder / name for name in read_points(folder).values]
    complete = [path for path in points if (path / RUN_JSON).is_file() and read_info(path)["status"] in COMPLETE]
    if len(complete) < len(points):
        rest = [path.name for path in points if path not in complete]
        more = f" and {len(rest) - MOST_NAMED} more" if len(rest) > MOST_NAMED else ""
        notes.append(f"{folder}: {', '.join(rest[:MOST_NAMED])}{more} omitted, since they are not complete")
    return complete


def _rows(sources: dict[str, Source]) -> pd.DataFrame:
    rows = {}
    for name, source in sources.items():
        config, info = source.config, source.run.info
        options = ", ".join(f"{k}={v}" for k, v in config["model"].items() if k.startswith("n_"))
        about = {
            "model": config["model"]["name"] + (f" ({options})" if options else ""),
            "method": config["inference"]["name"],
            "dataset": config["dataset"]["name"],
            "units": ", ".join(f"{len(source.of(kind).units)} {kind}s" for kind in source.kinds),
            "seed": info["seed"],
        }
        swept = {key: value for key, value in cells(info.get("sweep", {}).get("values", {})).items() if key not in about}
        row = row_of(source.run.path)
        rows[name] = {**about, **swept, **row.results, **row.times}
    return frame(rows, "run")


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
