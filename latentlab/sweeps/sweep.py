"""Sweeps: a config is run at every point of its `sweep` block, by an executor, and the results are one table.

A sweep's directory has a run directory for each point (`point-0007`), `sweep.json` (the points), and after each call `sweep.csv`
(`sweep.parquet` too, if pyarrow is installed) with a row for each point and `times.csv` with the elapsed times. A second call
skips complete points and resumes the others.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from latentlab.errors import ConfigError, InferenceError, LatentLabError, StoreError
from latentlab.files import Lock, explained, write
from latentlab.store.directory import COMPLETE, place, read_info
from latentlab.study.rows import Row, is_run, row_of
from latentlab.study.run import FittedRun, load_run
from latentlab.sweeps.display import Display, display
from latentlab.sweeps.executors import Engine, opened, parsed
from latentlab.sweeps.points import Plan, Point, Values, plan_of, text_of, value_text
from latentlab.sweeps.worker import run_point

SWEEP_JSON, TABLE, PARQUET, TIMES = "sweep.json", "sweep.csv", "sweep.parquet", "times.csv"
FAILED = "failed.json"
"""File with the error of each point that failed, by its name; a point can fail before its directory exists."""
FORMAT = 1
DEFAULT = "process"
TRIES = 2
"""Number of times that a point is started whose worker dies."""


@dataclass(frozen=True, repr=False)
class Sweep:
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
    def _rows(self) -> dict[str, Row]:
        failed, folders = _failed(self.path), {name: self.path / name for name in self.points}

        def without(name: str) -> Row:
            return Row({"status": "failed", "error": failed[name]} if name in failed else {"status": "not run"})

        return {name: row_of(folder) if is_run(folder) else without(name) for name, folder in folders.items()}

    def to_dataframe(self) -> pd.DataFrame:
        """Table with a row for each point: its name, swept values and results (`latentlab.study.rows.Row.results`).

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
        StoreError: The directory holds another sweep or anything else, another process is writing it, or it cannot be written.
        InferenceError: More than `max_failures` points failed, or the executor was lost; finished points are kept.
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
        states = {point.name: _status(folder, point.name) for point in plan.points}
        ended = COMPLETE if retry_failed else (*COMPLETE, "failed")
        todo = [point for point in plan.points if states[point.name] not in ended]
        begun = len(plan.points) - len(todo)
        with display(plan, states, folder, progress=progress) as shown:
            try:
                if todo:
                    with opened(name, folder / ".jobs", n_workers=n_workers, n_threads=n_threads) as engine:
                        shown.log(f"{plan.name}: {len(plan.points)} points, {begun} complete or failed before; {engine.text}")
                        _work(engine, todo, folder, plan, n_threads, max_failures, shown)
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
    states = {point.name: _status(folder, point.name) for point in plan.points}
    frame = _frame({point.name: {**_cells(point.values), "status": states[point.name]} for point in plan.points})
    seconds = [sum(read_info(folder / name)["seconds"].values()) for name, state in states.items() if state in COMPLETE]
    n_open = len(states) - len(seconds)
    if not n_open:
        return frame, f"all {len(states)} points are complete"
    if not seconds:
        return frame, f"{len(states)} points; the cost is estimated once a point is complete"
    mean, error = np.mean(seconds), np.std(seconds) / np.sqrt(len(seconds))
    text = (
        f"{len(states)} points, {len(seconds)} complete in {mean:.1f} s each; the other {n_open} need about {mean * n_open:.0f} s"
    )
    return frame, f"{text} of one worker (standard error {error * n_open:.0f} s, if they are like the complete ones)"


# -- the work


def _work(  # one argument for each part of a call
    engine: Engine,
    todo: Sequence[Point],
    folder: Path,
    plan: Plan,
    n_threads: int,
    max_failures: int | None,
    shown: Display,
) -> None:
    """Submit the points, a limited number at once, and collect their results."""
    waiting, tries, failures = list(todo), dict.fromkeys((point.name for point in todo), 0), 0
    active: dict[Future, Point] = {}
    try:
        while waiting or active:
            while waiting and len(active) < engine.at_once:
                point = waiting.pop(0)
                tries[point.name] += 1
                about = {"name": plan.name, "point": point.name, "values": point.values}
                shown.start(point.name)
                arguments = (point.config.to_dict(), str((folder / point.name).absolute()), about, n_threads)
                active[engine.executor.submit(run_point, *arguments)] = point
            done, _ = wait(active, timeout=shown.interval, return_when=FIRST_COMPLETED)
            shown.refresh()
            for future in done:
                point = active.pop(future)
                result = _result(future, point, tries[point.name])
                if result is None:
                    shown.log(f"{point.name}: its worker died; it is started once more")
                    waiting.insert(0, point)
                    continue
                shown.finish(point.name, result)
                _note(folder, point.name, result["error"] if result["status"] == "failed" else None)
                if result["status"] == "interrupted":
                    raise KeyboardInterrupt(point.name)
                failures += result["status"] == "failed"
                if max_failures is not None and failures >= max_failures:
                    left = len(waiting) + len(active)
                    raise InferenceError(
                        f"{folder}: {failures} points failed (max_failures {max_failures}), the last of them {point.name}: "
                        f"{result['error']} {left} points were not run; finished ones are kept."
                    )
    except BaseException:
        for future in active:
            future.cancel()
        engine.executor.shutdown(wait=False, cancel_futures=True)
        raise


def _result(future: Future, point: Point, tries: int) -> dict[str, Any] | None:
    """Result of a point; None if its worker died and it is to be started once more.

    Raises:
        InferenceError: The executor cancelled the point, as after the loss of its scheduler.
    """
    try:
        found: dict[str, Any] = future.result()
        return found
    except CancelledError as error:
        raise InferenceError(
            f"{point.name}: the executor cancelled it, and its scheduler may be lost. Finished points are kept; the same call "
            "resumes the sweep."
        ) from error
    except LatentLabError:
        raise
    except Exception as error:
        if tries < TRIES:
            return None
        text = f"the worker died {tries} times: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return {"status": "failed", "error": text, "headline": ""}


def _status(folder: Path, name: str) -> str:
    if is_run(folder / name):
        return str(read_info(folder / name)["status"])
    return "failed" if name in _failed(folder) else "not run"


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
        raise StoreError(f"{folder} is not empty and holds no sweep ({names[0]!r} is there); choose another --out.")


def _recorded(folder: Path) -> tuple[str, dict[str, Values]]:
    """Name and points of `sweep.json`."""
    path = folder / SWEEP_JSON
    if not path.is_file():
        raise StoreError(f"{folder} holds no sweep: it has no {SWEEP_JSON}.")
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
    """Write `sweep.json`; refuse a directory with other points, unless these are added at the end."""
    points = {point.name: point.values for point in plan.points}
    if is_sweep(folder):
        _, old = _recorded(folder)
        for number, (before, after) in enumerate(zip(old.values(), points.values(), strict=False)):
            if json.dumps(before, sort_keys=True) != json.dumps(after, sort_keys=True):
                raise StoreError(
                    f"{folder} holds another sweep: point {number} has {text_of(before)}, and now {text_of(after)}; "
                    "choose another --out."
                )
        if len(old) > len(points) or list(old) != list(points)[: len(old)]:
            raise StoreError(
                f"{folder} holds a sweep of {len(old)} points, and now there are {len(points)}; choose another --out."
            )
    content = {"format": FORMAT, "name": plan.name, "points": points}
    write(folder / SWEEP_JSON, (json.dumps(content, indent=1) + "\n").encode())


def _failed(folder: Path) -> dict[str, str]:
    """Errors of the failed points by name."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        return dict(json.loads((folder / FAILED).read_text(encoding="utf-8")))
    return {}


def _note(folder: Path, name: str, error: str | None) -> None:
    """Note the error of a point, or that it has none."""
    failed = _failed(folder)
    if failed.pop(name, None) != error:
        content = failed if error is None else {**failed, name: error}
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
