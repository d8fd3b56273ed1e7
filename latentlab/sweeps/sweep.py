"""Sweeps: a config is run at every point of its `sweep` block, by an executor, and the results are one table.

A sweep's directory has a run directory for each point (`point-0007`), `sweep.json` (the points), and after each call `sweep.csv`
(`sweep.parquet` too, if pyarrow is installed) with a row for each point and `times.csv` with the elapsed times. A second call
skips complete and failed points and resumes interrupted ones.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from latentlab.errors import ConfigError, InferenceError, StoreError
from latentlab.executors.engines import opened, parsed
from latentlab.executors.tasks import work
from latentlab.files import Lock, explained, write
from latentlab.notebook import Displayed
from latentlab.store.directory import COMPLETE, RUN_JSON, place, read_info
from latentlab.study.rows import RunRow, row_of
from latentlab.study.run import FittedRun, load_run
from latentlab.sweeps.display import Display, display
from latentlab.sweeps.points import Plan, Point, Values, plan_of, text_of, value_text
from latentlab.sweeps.worker import run_point

SWEEP_JSON, TABLE, PARQUET, TIMES = "sweep.json", "sweep.csv", "sweep.parquet", "times.csv"
FAILED = "failed.json"
"""File with the error of each point that failed, by its name; a point can fail before its directory exists."""
FORMAT = 1
DEFAULT = "process"


@dataclass(frozen=True, repr=False)
class Sweep(Displayed):
    """A sweep, read from its directory.

    Args:
        path: The directory.
        name: Name of the sweep.
        points: Values of the swept keys by name of the point.
    """

    path: Path
    name: str
    points: Mapping[str, Values]

    def __repr__(self) -> str:
        return f"Sweep({str(self.path)!r}: {len(self.points)} points, {', '.join(self._counts())})"

    def _counts(self) -> list[str]:
        counts = self.to_dataframe()["status"].value_counts(sort=False)
        return [f"{n} {str(status).replace('_', ' ')}" for status, n in counts.items()]

    @cached_property
    def _rows(self) -> dict[str, RunRow]:
        failures = _failures(self.path)
        return {name: _row(self.path / name, failures.get(name)) for name in self.points}

    def to_dataframe(self) -> pd.DataFrame:
        """Table with a row for each point: its name, swept values and results (`latentlab.study.rows.RunRow.results`).

        It is the same for every executor, number of workers and order of the points.
        """
        return _frame({name: {**_cells(values), **self._rows[name].results} for name, values in self.points.items()})

    def times(self) -> pd.DataFrame:
        """Table with a row for each point: its elapsed times in seconds, and the effective draws per second of the fit."""
        return _frame({name: {**_cells(values), **self._rows[name].times} for name, values in self.points.items()})

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
        plugins: Files that define models, datasets, embeddings or metrics.
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
        _record(folder, plan)
        states = _states(folder, plan)
        ended = COMPLETE if retry_failed else (*COMPLETE, "failed")
        open_points = [point for point in plan.points if states[point.name] not in ended]
        n_ended = len(plan.points) - len(open_points)
        tasks = {point.name: _arguments(point, plan, folder, n_threads) for point in open_points}
        with display(plan, states, folder, progress=progress) as shown:
            try:
                if open_points:
                    with opened(name, folder / ".jobs", n_workers=n_workers, n_threads=n_threads) as engine:
                        shown.log(f"{plan.name}: {len(plan.points)} points, of which {n_ended} have ended before; {engine.text}")
                        work(engine, run_point, tasks, _Results(shown, folder, len(tasks), max_failures))
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
    return Sweep(folder, *_recorded(folder))


def is_sweep(path: str | Path) -> bool:
    """Whether the folder holds a sweep."""
    return (Path(path) / SWEEP_JSON).is_file()


def folder_of(plan: Plan, out: str | Path | None = None) -> Path:
    """Directory of a sweep: `out`, or `runs/NAME`."""
    return place(plan.name) if out is None else Path(out)


def dry_run(plan: Plan, folder: Path) -> tuple[pd.DataFrame, str]:
    """Table of the points with their states, and an estimate of the remaining time from the complete points."""
    states = _states(folder, plan)
    frame = _frame({point.name: {**_cells(point.values), "status": states[point.name]} for point in plan.points})
    seconds = [sum(read_info(folder / name)["seconds"].values()) for name, state in states.items() if state in COMPLETE]
    n_open = len(states) - len(seconds)
    if not n_open:
        return frame, f"all {len(states)} points are complete"
    if not seconds:
        return frame, f"{len(states)} points; the cost is estimated once a point is complete"
    mean = float(np.mean(seconds))
    text = f"{len(states)} points, of which {len(seconds)} are complete ({mean:.1f} s each). "
    cost = f"The other {n_open} need about {mean * n_open:.0f} s of one worker if they are like these"
    if len(seconds) == 1:
        return frame, f"{text}{cost}."
    return frame, f"{text}{cost} (standard error {np.std(seconds, ddof=1) / np.sqrt(len(seconds)) * n_open:.0f} s)."


def _arguments(point: Point, plan: Plan, folder: Path, n_threads: int) -> tuple[Any, ...]:
    """Arguments of `run_point`."""
    about = {"name": plan.name, "point": point.name, "values": point.values}
    return point.config.to_dict(), str((folder / point.name).absolute()), about, n_threads


class _Results:
    """Shows and records the results of points; raises an error after `max_failures` failures."""

    def __init__(self, shown: Display, folder: Path, n_points: int, max_failures: int | None) -> None:
        self._shown, self._folder, self._max_failures = shown, folder, max_failures
        self._n_open, self._n_failed = n_points, 0
        self.interval, self.start, self.refresh, self.log = shown.interval, shown.start, shown.refresh, shown.log

    def finish(self, name: str, result: Mapping[str, Any]) -> None:
        failed = result["status"] == "failed"
        self._shown.finish(name, result)
        _record_failure(self._folder, name, result["error"] if failed else None)
        self._n_open -= 1
        self._n_failed += failed
        if self._n_failed == self._max_failures:
            raise InferenceError(
                f"{self._folder}: {self._n_failed} points failed, as many as `max_failures` allows; {self._n_open} points are "
                f"unfinished. The last failure, of {name}: {result['error']}"
            )


def _states(folder: Path, plan: Plan) -> dict[str, str]:
    """State of each point: the status of its run, or `damaged`, `failed` or `not run`."""
    failures = _failures(folder)

    def state(name: str) -> str:
        if not (folder / name / RUN_JSON).is_file():
            return "failed" if name in failures else "not run"
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


# -- files


def _make(folder: Path) -> None:
    if folder.is_file():
        raise StoreError(f"{folder} is a file; a sweep needs a directory.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explained(folder, error) from error
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if names and not is_sweep(folder):
        raise StoreError(f"{folder} is not empty and contains no sweep ({names[0]!r} is there); choose another --out.")


def _recorded(folder: Path) -> tuple[str, dict[str, Values]]:
    """Name and points of `sweep.json`."""
    path = folder / SWEEP_JSON
    if not path.is_file():
        raise StoreError(f"{folder} contains no sweep: {SWEEP_JSON} is missing.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        name, points, version = str(found["name"]), dict(found["points"]), int(found["format"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{path} is damaged: {' '.join(str(error).split())[:200]}; remove it, and call the sweep again."
        ) from error
    if version > FORMAT:
        raise StoreError(f"{path} has format {version}; this latentlab reads up to {FORMAT}. Use a newer one.")
    return name, points


def _record(folder: Path, plan: Plan) -> None:
    """Write `sweep.json`, unless the directory has a sweep whose points are not the first points of this plan."""
    points = {point.name: point.values for point in plan.points}
    if is_sweep(folder):
        _, old = _recorded(folder)
        for number, (before, after) in enumerate(zip(old.values(), points.values(), strict=False)):
            if json.dumps(before, sort_keys=True) != json.dumps(after, sort_keys=True):
                raise StoreError(
                    f"{folder} contains another sweep: point {number} has {text_of(before)}, and now {text_of(after)}; "
                    "choose another --out."
                )
        if len(old) > len(points) or list(old) != list(points)[: len(old)]:
            raise StoreError(
                f"{folder} contains a sweep of {len(old)} points, and now there are {len(points)}; choose another --out."
            )
    content = {"format": FORMAT, "name": plan.name, "points": points}
    write(folder / SWEEP_JSON, (json.dumps(content, indent=1) + "\n").encode())


def _failures(folder: Path) -> dict[str, str]:
    """Errors of the failed points by name."""
    with contextlib.suppress(FileNotFoundError, ValueError):  # without the file, a failed point is run again
        return dict(json.loads((folder / FAILED).read_text(encoding="utf-8")))
    return {}


def _record_failure(folder: Path, name: str, error: str | None) -> None:
    """Record the error of a point, or that it has none."""
    failures = _failures(folder)
    if failures.pop(name, None) != error:
        content = failures if error is None else {**failures, name: error}
        write(folder / FAILED, (json.dumps(content, indent=1) + "\n").encode())


def _write_tables(found: Sweep) -> None:
    """Write the tables; a CSV file has exact numbers."""
    table = found.to_dataframe()
    write(found.path / TABLE, table.to_csv(index=False, lineterminator="\n").encode())
    write(found.path / TIMES, found.times().to_csv(index=False, lineterminator="\n").encode())
    try:
        data = table.to_parquet(index=False)
    except ImportError:
        return
    write(found.path / PARQUET, data)


def _cells(values: Values) -> dict[str, Any]:
    """Values of the swept keys as cells of a table: numbers and truth values as they are, all else as text."""
    return {key: value if isinstance(value, int | float) else value_text(value) for key, value in values.items()}


def _frame(rows: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    columns = ["point", *dict.fromkeys(key for row in rows.values() for key in row)]
    frame = pd.DataFrame([{"point": name, **row} for name, row in rows.items()], columns=columns)
    return frame.replace({None: np.nan}).infer_objects()
