"""Peak memory and time of a fit with and without a limit on the memory.

PPCA by `Exact`, from the fit to the written result. With the limit, large arrays of draws are in temporary files. Each side is a
separate process, and the results must be equal. Peak memory is the largest resident set of the process, with the pages of files
that happened to be in it; own memory is without them.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

import latentlab as ll
from experiments.benchmarks.harness import ROOT, Row, agreed
from latentlab.results.netcdf import save

NAME = "draws on disk"
N_FEATURES, N_LATENT = 10, 2
SIZES = {"tiny": (3000, 150), "small": (5000, 2000), "full": (20_000, 4000)}
"""Units and draws."""


def memory_in(kind: str) -> int:
    """Return a kind of this process's memory in kB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind))


def one_fit(n_units: int, n_draws: int, limit: str | None) -> dict[str, float | str]:
    """Measure CPU and wall seconds of a fit and its file in this process, and its peak memory in GiB."""
    rng, own, ended = np.random.default_rng(0), [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            own[0] = max(own[0], memory_in("RssAnon"))

    x = rng.normal(size=(n_units, N_LATENT)) @ rng.normal(size=(N_LATENT, N_FEATURES)) + rng.normal(size=(n_units, N_FEATURES))
    dataset = ll.Dataset({"x": x}, dims={"x": ("unit", "feature")})
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    with tempfile.TemporaryDirectory() as folder:
        cpu, wall = time.process_time(), time.perf_counter()
        options = {"memory": limit, "checkpoint": folder, "progress": False}
        fit = ll.fit(ll.models.PPCA(N_LATENT), dataset, ll.Exact(n_draws=n_draws), **options)
        save(fit.data, Path(folder) / "posterior.nc")
        found = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
        digest = hashlib.sha256((Path(folder) / "posterior.nc").read_bytes()).hexdigest()
    ended.set()
    watcher.join()
    return {**found, "own": own[0] / 2**20, "peak": memory_in("VmHWM") / 2**20, "digest": digest}


def in_a_process(n_units: int, n_draws: int, limit: str | None) -> dict[str, float | str]:
    """Run `one_fit` in a separate process."""
    call = f"one_fit({n_units}, {n_draws}, {limit!r})"
    code = f"import json; from experiments.benchmarks.draws_on_disk import one_fit; print(json.dumps({call}))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"A benchmark process ended with exit code {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def rows(size: str) -> list[Row]:
    n_units, n_draws = SIZES[size]
    sides = {"no limit": None, "at most 1.8 GB": "1.8 GB"}
    found = {side: in_a_process(n_units, n_draws, limit) for side, limit in sides.items()}
    differ = float(len({one["digest"] for one in found.values()}) - 1)
    result = [agreed(NAME, "latentlab", "check: bytes of the results with and without a limit", differ, 0.0, "files")]
    of = f"{n_units:,} units, {n_draws:,} draws"
    for side, one in found.items():
        result += [
            Row(NAME, "latentlab", f"own memory, {of}, {side}", one["own"], "GiB"),
            Row(NAME, "latentlab", f"peak memory, {of}, {side}", one["peak"], "GiB"),
            Row(NAME, "latentlab", f"fit and file, CPU, {of}, {side}", one["cpu"], "s"),
            Row(NAME, "latentlab", f"fit and file, wall, {of}, {side}", one["wall"], "s"),
        ]
    return result
