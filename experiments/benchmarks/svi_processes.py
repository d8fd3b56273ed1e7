"""Minibatch SVI of a wide VAE by one process and by two, started by `torchrun`: wall-clock time of an epoch.

A VAE with a hidden layer of 1024 on a table of 784 features, with batches of 2048 and one draw, in float64 without compilation.
The time of a step is that of all steps divided by their number, in the first process. The sides alternate. The aim is that two
processes on two idle cores are 1.6 times as fast as one. On a busy machine the ratio of CPU times is an upper bound on it: a
process that waits for another one uses no CPU time.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import latentlab as ll
from experiments.benchmarks.harness import ONE_THREAD, ROOT, Row, agreed
from latentlab.data.dataset import Dataset
from latentlab.inference.adam import Adam
from latentlab.processes import together
from latentlab.results.prepare import prepared
from latentlab.seeds import one_thread

NAME = "VAE by several processes"
SIZES = {"tiny": (60, 6, 8, 20, 3, 1), "small": (4096, 784, 512, 512, 8, 3), "full": (8192, 784, 1024, 2048, 12, 5)}
"""Units, features, hidden units, batch size, steps, rounds."""
LEAST = 1.6
"""Aim of the ratio."""


def measured(out: str, size: str) -> None:
    """Measure a step in this process, and write it with the last loss; run in each of the processes."""
    n_units, n_features, n_hidden, batch_size, n_steps, _ = SIZES[size]
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n_units, 8)) @ rng.standard_normal((8, n_features)) + rng.standard_normal((n_units, n_features))
    dataset = Dataset({"x": x / x.std()}, dims={"x": ("unit", "feature")})
    spent, descend = [], Adam.descend

    def timed(self: Adam, *arguments: object, **options: object) -> object:
        begin, begin_cpu = time.perf_counter(), time.process_time()
        result = descend(self, *arguments, **options)  # type: ignore[arg-type]
        spent.append((time.perf_counter() - begin, time.process_time() - begin_cpu))
        return result

    Adam.descend = timed  # type: ignore[method-assign, assignment]
    with together() as processes, one_thread():
        processes.meet({})
        method = ll.SVI("model", n_steps, 1e-4, n_particles=1, batch_size=batch_size, n_draws=1, compiled=False)
        problem = prepared(ll.models.VAE(8, hidden=(n_hidden,)), dataset, method, progress=False)
        draws = method.run(problem)
    if processes.rank == 0:
        wall, cpu = (total / n_steps for total in spent[0])
        found = {"wall": wall, "CPU": cpu, "loss": float(draws.optimization["loss"][0, -1])}
        Path(out).write_text(json.dumps(found))


def by(n: int, size: str) -> dict[str, float]:
    """Run `measured` by n processes."""
    with tempfile.TemporaryDirectory() as folder:
        out, script = Path(folder) / "found.json", Path(folder) / "script.py"
        script.write_text(f"from experiments.benchmarks.svi_processes import measured\nmeasured({str(out)!r}, {size!r})\n")
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)] if n > 1 else []
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": path}
        command = [sys.executable, *launch, str(script)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"A benchmark process ended with exit code {done.returncode}: {done.stderr[-2000:]}")
        found: dict[str, float] = json.loads(out.read_text())
        return found


def rows(size: str) -> list[Row]:
    n_units, _, _, batch_size, _, n_rounds = SIZES[size]
    found = [(by(1, size), by(2, size)) for _ in range(n_rounds)]
    gap = max(abs(one["loss"] - two["loss"]) / abs(one["loss"]) for one, two in found)
    result = [agreed(NAME, "latentlab", "check: last losses of one and two processes, relative", gap, 1e-10, "nats")]
    n_steps = n_units // batch_size
    for kind in ("wall", "CPU"):
        what, ratios = f"epoch of {n_steps} steps, {kind}", np.array([one[kind] / two[kind] for one, two in found])
        for k, side in enumerate(("latentlab, one process", "latentlab, first of two processes")):
            epochs = np.array([round_[k][kind] for round_ in found]) * n_steps
            result.append(Row(NAME, side, what, float(np.median(epochs)), "s", f"{epochs.min():.3g} to {epochs.max():.3g}"))
        spread = f"{ratios.min():.3g} to {ratios.max():.3g}; aim: {LEAST}"
        result.append(Row(NAME, "latentlab", f"{what}: one process over two", float(np.median(ratios)), "times", spread))
    return result
