"""Runs of several processes: the first one runs the config, and the others take part in its fit."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from latentlab.inference.draws import finished_draws
from latentlab.processes import Processes, refuse_several, together
from latentlab.registry import plugins as plugged
from latentlab.results.prepare import prepared
from latentlab.seeds import one_thread
from latentlab.study.config import Config, load_config
from latentlab.study.job import Job

P = ParamSpec("P")
R = TypeVar("R")


def jointly(run: Callable[P, R]) -> Callable[P, R]:
    """Decorate `run` so that processes started by `torchrun` fit the config together; all but the first one then end."""

    @functools.wraps(run)
    def joint(*args: P.args, **options: P.kwargs) -> R:
        refuse_several(unless=options.get("sweep") is None)
        with together() as processes:
            part: Any = run if processes.rank == 0 else functools.partial(_take_part, processes)
            found: R = part(*args, **options)
            return found

    return joint


def _take_part(
    processes: Processes,
    config: str | Path | Mapping[str, Any] | Config,
    overrides: Sequence[str] = (),
    *,
    plugins: Sequence[str | Path] = (),
    **_: object,
) -> None:
    """Take part in the fit of the first process, and end this process; nothing is written."""
    resolved = load_config(config, overrides, plugins)
    with plugged(resolved.plugins):
        job = Job(resolved)
        processes.meet(job.identity(job.description()))
        problem = prepared(job.model, job.training, job.method, seed=resolved.seed, progress=False)
        with problem.resources, one_thread():
            finished_draws(problem, job.method)
    raise SystemExit(0)
