"""Sweeps: a config is run at every point of its `sweep` block, by an executor, and the results are one table.

A sweep's directory has a run directory for each point (`point-0007`), `sweep.json` (the points), and after each call `sweep.csv`
(`sweep.parquet` too, if pyarrow is installed) with a row for each point and `times.csv` with the elapsed times. A second call
skips complete and failed points and resumes interrupted ones.
"""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from latentlab.errors import ConfigError, InferenceError, LatentLabError, StoreError
from latentlab.executors.engines import opened, parsed
from latentlab.files import Lock, make_folder, write
from latentlab.notebook import Displayed
from latentlab.store.directory import COMPLETE, RUN_JSON, place, read_info
from latentlab.store.points import Points, failures, is_sweep, read_points, write_points
from latentlab.store.read import differences
from latentlab.study.rows import RunRow, cells, csv, frame, row_of, text_of, write_table
from latentlab.study.run import FittedRun, load_run
from latentlab.sweeps.display import display
from latentlab.sweeps.points import Plan, Point, Values, plan_of
from latentlab.sweeps.ranking import differences as score_differences
from latentlab.sweeps.ranking import text_of_best
from latentlab.sweeps.search import METRICS
from latentlab.sweeps.work import Work

TABLE, PARQUET, TIMES = "sweep.csv", "sweep.parquet", "times.csv"
DEFAULT = "process"
RESULTS = ("seed", "dataset", "model", "inference", "embeddings", "compare", "held_out")
"""Keys of a config that affect results."""


@dataclass(frozen=True, repr=False)
class Sweep(Displayed):
    """A sweep, read from its directory.

    Args:
        path: The directory.
        name: Name of the sweep.
        points: Values of the swept keys by name of the point.
        search: Block `sweep.search` without its number of points; empty if the sweep is no search.
    """

    path: Path
    name: str
    points: Mapping[str, Values]
    search: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        first = f"Sweep({str(self.path)!r}: {len(self.points)} points, {', '.join(self._counts())})"
        return "\n".join([first, *(f"  {line}" for line in self.best())])

    def best(self, metric: str | None = None) -> list[str]:
        """Sentences on the best point and its uncertainty; none if no point has the score.

        Args:
            metric: `held_out` or `elpd_loo`; if None, that of the search, and no sentences for a sweep that is no search.
        """
        metric = metric or self.search.get("metric")
        if metric is None:
            return []
        texts = {name: text_of(values) for name, values in self.points.items()}
        try:
            return text_of_best(self.ranking(metric), texts, metric)
        except LatentLabError as error:
            return [f"no ranking: {error}"]

    def _counts(self) -> list[str]:
        counts = self.to_dataframe()["status"].value_counts(sort=False)
        return [f"{n} {str(status).replace('_', ' ')}" for status, n in counts.items()]

    @cached_property
    def _rows(self) -> dict[str, RunRow]:
        failed = failures(self.path)
        return {name: _row(self.path / name, failed.get(name)) for name in self.points}

    def to_dataframe(self) -> pd.DataFrame:
        """Table with a row for each point: its name, swept values and results (`latentlab.study.rows.RunRow.results`).

        It is the same for every executor, number of workers and order of the points. A search has further columns: `difference`
        of the score from the best point, `difference_se`, and `near_best` (`latentlab.sweeps.ranking`).
        """
        more: Mapping[str, Mapping[str, Any]] = {}
        if self.search:
            with contextlib.suppress(LatentLabError):  # `best` has the reason
                more = self._differences
        rows = {name: {**cells(values), **self._rows[name].results, **more.get(name, {})} for name, values in self.points.items()}
        return frame(rows)

    @cached_property
    def _differences(self) -> dict[str, dict[str, Any]]:
        return score_differences(self.path, self._rows, self.search["metric"])

    def ranking(self, metric: str | None = None) -> pd.DataFrame:
        """Table of the points by score, the best first; points without a score come last.

        Args:
            metric: `held_out` or `elpd_loo`; if None, that of the search.

        Returns:
            One row for each point: its name, swept values, status, whether it converged, the score with its standard error, and
            `difference` from the best, `difference_se` and `near_best` (`latentlab.sweeps.ranking`).

        Raises:
            ConfigError: There is no metric, or the points were scored on different data.
        """
        chosen = metric or self.search.get("metric")
        if chosen not in METRICS:
            raise ConfigError(f"metric: must be one of {', '.join(METRICS)}; got {chosen!r}.")
        own = chosen == self.search.get("metric")
        more = self._differences if own else score_differences(self.path, self._rows, chosen)
        kept = ("status", "converged", chosen, f"{chosen}_se")
        rows = {}
        for name, values in self.points.items():
            results = self._rows[name].results
            rows[name] = {**cells(values), **{key: results.get(key) for key in kept}, **more.get(name, {})}
        return frame(rows).sort_values(chosen, ascending=False, kind="stable", ignore_index=True)

    def times(self) -> pd.DataFrame:
        """Table with a row for each point: its elapsed times in seconds, and the effective draws per second of the fit."""
        return frame({name: {**cells(values), **self._rows[name].times} for name, values in self.points.items()})

    def is_complete(self) -> bool:
        """Whether every point has been run without an error."""
        return all(row.results["status"] in COMPLETE for row in self._rows.values())

    def written(self) -> list[Path]:
        """Paths of the tables."""
        return [self.path / name for name in (TABLE, PARQUET, TIMES) if (self.path / name).is_file()]

    def run(self, point: str | int) -> FittedRun:
        """Read the run of a point, given by its name or number.

        Raises:
            ConfigError: There is no such point.
            StoreError: It has not been run, or its directory is damaged.
        """
        names = list(self.points)
        name = names[point] if isinstance(point, int) and 0 <= point < len(names) else point
        if name not in self.points:
            raise ConfigError(f"point: must be one of {names[0]} to {names[-1]}, or a number below {len(names)}; got {point!r}.")
        return load_run(self.path / str(name))


def sweep(  # one keyword for each user option
    config: str | Path | Mapping[str, Any] | Plan,
    overrides: Sequence[str] = (),
    *,
    executor: str | None = None,
    n_workers: int | None = None,
    n_threads: int = 1,
    out: str | Path | None = None,
    retry_failed: bool = False,
    max_failures: int | None = None,
    plugins: Sequence[str | Path] = (),
    progress: bool = True,
) -> Sweep:
    """Run a config at every point of its `sweep` block (`latentlab.sweeps.points`).

    The configs of all points are checked before the first starts. A point is an ordinary run directory. Complete points are
    skipped, and interrupted ones are resumed. The results depend neither on the executor nor on the number of workers.

    Args:
        config: A YAML file or a mapping, with a `sweep` block; or its points, from `plan_of`.
        overrides: Dotted overrides for all points, such as `inference.n_draws=500`; `sweep.seeds=2` changes the sweep itself.
        executor: `serial`, `process`, `dask:local`, `dask:ADDRESS`, `ray:local`, `ray:ADDRESS`, `submitit` (Slurm) or
            `submitit:local`; if None, the config's `executor`, or else `process`.
        n_workers: Number of workers on this machine; the number of CPUs divided by `n_threads` if None.
        n_threads: Threads of torch and BLAS in each worker; the results are reproduced only with the same number.
        out: The sweep's directory; `runs/NAME` if None.
        retry_failed: Run points again that failed in an earlier call.
        max_failures: Number of failed points after which no further point is started; None for no limit.
        plugins: Files that define models, datasets, embeddings, metrics or trackers.
        progress: Whether to show a table of the points on a terminal, or a line for each finished point elsewhere.

    Returns:
        The sweep. Failed points have their error in the table.

    Raises:
        ConfigError: The config of a point, or an option, is invalid; nothing was started.
        StoreError: The directory contains another sweep or other files, another process is writing it, or it cannot be written.
        InferenceError: `max_failures` points failed, or the executor was lost; finished points are kept.
        KeyboardInterrupt: On SIGINT or SIGTERM; the same call resumes the sweep.
    """
    plan = config if isinstance(config, Plan) else plan_of(config, overrides, plugins)
    name = executor or plan.executor or DEFAULT
    parsed(name, n_workers)
    for option, value in (("n_threads", n_threads), ("max_failures", max_failures)):
        if value is not None and value < 1:
            raise ConfigError(f"{option}: must be at least 1; got {value}.")
    folder = folder_of(plan, out)
    _make(folder)
    with Lock(folder / ".sweep.lock"):
        plan = _recorded(folder, plan)
        states = _states(folder, plan)
        ended = COMPLETE if retry_failed else (*COMPLETE, "failed")
        n_ended = sum(state in ended for state in states.values())
        with display(plan, states, folder, progress=progress) as shown:
            try:
                if n_ended < plan.n_points:
                    with opened(name, folder / ".jobs", n_workers=n_workers, n_threads=n_threads) as engine:
                        shown.log(f"{plan.name}: {plan.n_points} points, of which {n_ended} have ended before; {engine.text}")
                        work = Work(engine, folder, plan.name, shown, n_threads, max_failures)
                        for batch in _batches(folder, plan):
                            work.run([point for point in batch if shown.add(point) not in ended])
            finally:
                found = load_sweep(folder)
                _write_tables(found)
    return found


def load_sweep(path: str | Path) -> Sweep:
    """Read a sweep's directory; its table is made from the points that are there.

    Raises:
        StoreError: There is no sweep, a newer latentlab wrote it, or `sweep.json` is damaged.
    """
    folder = Path(path)
    found = read_points(folder)
    return Sweep(folder, found.name, found.values, found.search)


def folder_of(plan: Plan, out: str | Path | None = None) -> Path:
    """Directory of a sweep: `out`, or `runs/NAME`."""
    return place(plan.name) if out is None else Path(out)


def dry_run(plan: Plan, folder: Path) -> tuple[pd.DataFrame, str]:
    """Table of the points with their states, and an estimate of the remaining time from the complete points."""
    if plan.search is not None and is_sweep(folder):
        plan = plan.proposed(list(read_points(folder).values.values()))
    states = _states(folder, plan)
    table = frame({point.name: {**cells(point.values), "status": states[point.name]} for point in plan.points})
    seconds = [sum(read_info(folder / name)["seconds"].values()) for name, state in states.items() if state in COMPLETE]
    n_open = plan.n_points - len(seconds)
    if not n_open:
        return table, f"all {plan.n_points} points are complete"
    if not seconds:
        return table, f"{plan.n_points} points; the cost is estimated once a point is complete"
    mean = float(np.mean(seconds))
    text = f"{plan.n_points} points, of which {len(seconds)} are complete ({mean:.1f} s each). "
    cost = f"The other {n_open} need about {mean * n_open:.0f} s of one worker if they are like these"
    if len(seconds) == 1:
        return table, f"{text}{cost}."
    return table, f"{text}{cost} (standard error {np.std(seconds, ddof=1) / np.sqrt(len(seconds)) * n_open:.0f} s)."


# -- states and files


def _states(folder: Path, plan: Plan) -> dict[str, str]:
    """State of each point: the status of its run, or `damaged`, `failed` or `not run`."""
    failed = failures(folder)

    def state(name: str) -> str:
        if not (folder / name / RUN_JSON).is_file():
            return "failed" if name in failed else "not run"
        try:
            return str(read_info(folder / name)["status"])
        except StoreError:
            return "damaged"

    return {point.name: state(point.name) for point in plan.points}


def _row(folder: Path, failure: str | None) -> RunRow:
    """Row of a point: of a damaged run, of one that failed before its directory existed, and of one that was not run too."""
    if not (folder / RUN_JSON).is_file():
        return RunRow({"status": "not run"} if failure is None else {"status": "failed", "error": failure})
    try:
        return row_of(folder)
    except StoreError as error:
        return RunRow({"status": "damaged", "error": str(error)})


def _make(folder: Path) -> None:
    make_folder(folder)
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if names and not is_sweep(folder):
        raise StoreError(f"{folder} is not empty and contains no sweep ({names[0]!r} is there); choose another --out.")


def _recorded(folder: Path, plan: Plan) -> Plan:
    """Write `sweep.json`; of a search, return the plan with the points that were proposed before.

    Raises:
        StoreError: The directory has a sweep of another config, or other points, unless the new ones are added at the end.
    """
    if is_sweep(folder):
        old = read_points(folder)
        if plan.search is not None:
            plan = plan.proposed(list(old.values.values()))
        _check_same(folder, old, _points_of(plan), plan.n_points)
    write_points(folder, _points_of(plan))
    return plan


def _points_of(plan: Plan) -> Points:
    values = {point.name: point.values for point in plan.points}
    config = json.loads(json.dumps({key: plan.config[key] for key in RESULTS if key in plan.config}, default=str))
    return Points(plan.name, values, config, plan.search.to_dict() if plan.search is not None else {})


def _check_same(folder: Path, old: Points, new: Points, n_points: int) -> None:
    for number, (before, after) in enumerate(zip(old.values.values(), new.values.values(), strict=False)):
        if json.dumps(before, sort_keys=True) != json.dumps(after, sort_keys=True):
            raise StoreError(
                f"{folder} contains another sweep: point {number} has {text_of(before)}, and now {text_of(after)}; "
                "choose another --out."
            )
    if len(old.values) > n_points or list(old.values) != list(new.values)[: len(old.values)]:
        raise StoreError(
            f"{folder} contains a sweep of {len(old.values)} points, and now there are {n_points}; choose another --out."
        )
    lines = differences({"search": old.search}, {"search": new.search})
    lines += differences(old.config, new.config) if old.config else []  # older sweeps have none
    if lines:
        raise StoreError(f"{folder} contains another sweep, since settings differ: {'; '.join(lines)}. Choose another --out.")


def _batches(folder: Path, plan: Plan) -> Iterator[Sequence[Point]]:
    """The points of the plan; of a search, then each further batch, which is proposed after the work on those before.

    Raises:
        InferenceError: Points are complete, and none of them has a score.
    """
    yield plan.points
    while (search := plan.search) is not None and len(plan.points) < search.n:
        begin = len(plan.points) // search.batch * search.batch
        rows = [_row(folder / point.name, failures(folder).get(point.name)).results for point in plan.points[:begin]]
        scores = [float(row.get(search.metric, math.nan)) for row in rows]
        if any(row["status"] in COMPLETE for row in rows) and not np.isfinite(scores).any():
            raise InferenceError(f"{folder}: none of the {begin} first points has a finite {search.metric}; use another metric.")
        values = search.proposals(begin // search.batch, [point.values for point in plan.points[:begin]], scores)
        n_known = len(plan.points)
        plan = plan.proposed(values[n_known - begin :])
        write_points(folder, _points_of(plan))
        yield plan.points[n_known:]


def _write_tables(found: Sweep) -> None:
    """Write the tables; a CSV file has exact numbers."""
    write_table(found.path / TABLE, found.to_dataframe())
    write(found.path / TIMES, csv(found.times()))
