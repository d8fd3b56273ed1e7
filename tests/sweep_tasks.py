"""Tasks in place of the points of a sweep; workers import this file, which imports nothing slow."""

import os
import signal
import time
from pathlib import Path

FAILED = {"status": "failed", "error": "no reason", "headline": ""}


def done(config, folder, about, n_threads):
    return {"status": "done", "error": "", "headline": f"{about['values']['seed']}, {n_threads} threads"}


def fails_or_runs_on(config, folder, about, n_threads):
    """Fail at once at seed 0; at the others, run for a while and write a file at the end."""
    if about["values"]["seed"] > 0:
        time.sleep(60)
        Path(folder).write_text("the end")
    return FAILED


def dies(config, folder, about, n_threads):
    """Kill the worker at each start of seed 1."""
    if about["values"]["seed"] == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return done(config, folder, about, n_threads)
