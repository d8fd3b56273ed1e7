"""One point of a sweep, as a task of an executor: arguments and result are small plain values; everything else is in files."""

import contextlib
import io
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentlab.executors.tasks import limited_threads

SECONDS_OF_LOCK = 10
"""Longest time for which a point waits for the lock of its directory, which a previous worker may still hold."""


def run_point(config: Mapping[str, Any], folder: str, sweep: Mapping[str, Any], n_threads: int = 1) -> dict[str, Any]:
    """Run one point in its directory, resume it if it was begun, and write its summary.

    Errors do not end the sweep: they are returned.

    Args:
        config: The resolved config.
        folder: The run directory.
        sweep: Entry `sweep` of `run.json`.
        n_threads: Threads of torch and BLAS.

    Returns:
        `status` (of the run, `failed` or `interrupted`), `error` (one line) and `headline` (text for the live table).
    """
    from latentlab.study.rows import row_of

    try:
        with limited_threads(n_threads), contextlib.redirect_stderr(io.StringIO()):  # warnings are in the run's log
            _run(config, Path(folder), sweep)
            row = row_of(Path(folder))
        return {"status": row.results["status"], "error": "", "headline": headline(row.results)}
    except KeyboardInterrupt:
        return {"status": "interrupted", "error": "interrupted", "headline": ""}
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        return {"status": "failed", "error": text, "headline": ""}


def _run(config: Mapping[str, Any], folder: Path, sweep: Mapping[str, Any]) -> None:
    from latentlab.errors import LockError
    from latentlab.study.run import run

    begin = time.monotonic()
    while True:
        try:
            run(config, out=folder, resume=folder.exists(), progress=False, sweep=sweep)
            return
        except LockError:
            if time.monotonic() - begin > SECONDS_OF_LOCK:
                raise
            time.sleep(0.2)


def headline(results: Mapping[str, Any]) -> str:
    """Format the main number of a run: its held-out score, or its LOO score, or its largest R-hat if it has neither."""
    for score, name in (("held_out", "held-out score"), ("elpd_loo", "elpd_loo")):
        if math.isfinite(results[score]):
            return f"{name} {results[score]:.1f} ± {results[f'{score}_se']:.1f}"
    return "" if math.isnan(results["rhat_max"]) else f"largest R-hat {results['rhat_max']:.3f}"
