"""Costs of a sweep beyond its runs: checks of all points, tasks of processes, rows, one table, and proposals of a search."""

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.harness import Row, timed
from latentlab.executors.engines import opened
from latentlab.store.points import Points, write_points
from latentlab.study.rows import row_of
from latentlab.study.run import run
from latentlab.sweeps import work
from latentlab.sweeps.display import Display
from latentlab.sweeps.points import Plan, plan_of
from latentlab.sweeps.search import search_of
from latentlab.sweeps.sweep import load_sweep, sweep

NAME = "Sweep"
SIZES = {"tiny": (10, 10, 2), "small": (100, 500, 3), "full": (1000, 10_000, 3)}
"""Number of checked points, of loaded points, and of rounds."""
N_TASKS = 20
CONFIG = {
    "name": "sweep",
    "dataset": {"name": "wine"},
    "model": {"name": "ppca", "n_latent": 1},
    "inference": {"name": "exact", "n_draws": 100},
    "embeddings": [{"name": "pca"}],
}


def nothing(*_: Any) -> dict[str, Any]:
    """A task that ends at once."""
    return {"status": "done", "error": "", "headline": ""}


def plan(n_points: int) -> Plan:
    return plan_of({**CONFIG, "sweep": {"grid": {"inference.n_draws": list(range(10, 10 + n_points))}}})


def tasks(n_rounds: int) -> np.ndarray:
    """Measure the wall-clock seconds of a point on a warm process, without its run."""
    points, found, task = plan(N_TASKS), [], work.run_point
    work.run_point = nothing
    try:
        with tempfile.TemporaryDirectory() as folder, opened("process", Path(folder), n_workers=1) as engine:
            for _ in range(n_rounds + 1):
                shown = Display(points, {}, Path(folder), progress=False)
                begin = time.perf_counter()
                work.Work(engine, Path(folder), NAME, shown, 1, None).run(points.points)
                found.append((time.perf_counter() - begin) / N_TASKS)
    finally:
        work.run_point = task
    return np.array(found[1:])  # the first begins with the imports of the worker


def row(n_rounds: int, folder: Path) -> np.ndarray:
    """Measure the CPU seconds of the row of a finished run."""
    done = run(CONFIG, out=folder / "run", progress=False)
    found = []
    for _ in range(n_rounds):
        (done.path / "summary.json").unlink(missing_ok=True)
        found.append(timed(lambda: row_of(done.path)))
    return np.array(found)


def table(n_points: int, n_rounds: int, folder: Path) -> np.ndarray:
    """Measure the CPU seconds of reading finished points into one table."""
    few = sweep({**CONFIG, "sweep": {"seeds": 1}}, executor="serial", out=folder / "few", progress=False)
    names = [f"point-{number:04d}" for number in range(n_points)]
    for name in names:
        (folder / "many" / name).mkdir(parents=True)
        for file in ("run.json", "summary.json"):
            shutil.copy(few.path / "point-0000" / file, folder / "many" / name / file)
    write_points(folder / "many", Points(NAME, {name: {"seed": number} for number, name in enumerate(names)}, {}, {}))
    return np.array([timed(lambda: load_sweep(folder / "many").to_dataframe()) for _ in range(n_rounds)])


def proposals(n_rounds: int) -> np.ndarray:
    """Measure the CPU seconds of four proposals after 100 points."""
    values = {"model.n_latent": {"integer": [1, 9]}, "inference.learning_rate": {"log_uniform": [1e-4, 1.0]}}
    search = search_of({"n": 104, "values": values}, "search")
    rng = np.random.default_rng(0)
    earlier = [{"model.n_latent": 1 + i % 9, "inference.learning_rate": float(10 ** rng.uniform(-4, 0))} for i in range(100)]
    scores = rng.standard_normal(100).tolist()
    return np.array([timed(lambda: search.proposals(25, earlier, scores)) for _ in range(n_rounds + 1)][1:])


def rows(size: str) -> list[Row]:
    n_checked, n_loaded, n_rounds = SIZES[size]
    with tempfile.TemporaryDirectory() as folder:
        found = {
            "a point on a process, without its run": tasks(n_rounds),
            "the row of a run": row(n_rounds, Path(folder)),
            f"checks of {n_checked} points": np.array([timed(lambda: plan(n_checked)) for _ in range(n_rounds)]),
            f"one table of {n_loaded} points": table(n_loaded, n_rounds, Path(folder)),
            "four proposals after 100 points": proposals(n_rounds),
        }
    return [
        Row(NAME, "latentlab", what, float(np.median(taken)), "s", f"{taken.min():.3g} to {taken.max():.3g}")
        for what, taken in found.items()
    ]
