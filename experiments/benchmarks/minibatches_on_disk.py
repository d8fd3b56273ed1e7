"""Minibatch SVI on a table on disk: time per step with 100 times as many rows, and memory of a fit.

PPCA on float32 rows of 32 features, with batches of 256. Each fit is a separate process, from loading to `Fit`, and the tables
alternate. The time per step is the time of all steps of a fit, including reading, divided by their number; both threads count in
CPU time. The order of an epoch is drawn once for all its steps, of which only a part is run; its time has a separate row. Peak
memory is the largest resident set of the process. The file was just written and is usually in the system's cache, so the speed
of the disk is not measured.
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
from experiments.benchmarks.harness import ROOT, Row, agreed
from latentlab.inference import advi
from latentlab.inference.adam import Adam
from latentlab.inference.batches import batches, log_prob_of_draws
from latentlab.results.prepare import prepared
from latentlab.seeds import one_thread

NAME = "minibatches on disk"
N_FEATURES, N_LATENT, BATCH, N_DRAWS = 32, 4, 256, 200
SIZES = {
    "tiny": ((2_000, 20_000), 20, 1),
    "small": ((100_000, 1_000_000), 1000, 2),
    "full": ((100_000, 10_000_000), 4000, 3),
}
"""Units of the tables, steps, rounds."""
MOST_TIMES, MOST_GIB = 1.2, 1.5
BLOCK = 100_000


def write_table(path: Path, n_units: int) -> None:
    """Write float32 rows drawn from PPCA, block by block."""
    rng = np.random.default_rng(0)
    W = rng.standard_normal((N_LATENT, N_FEATURES), dtype=np.float32)
    with path.open("wb") as stream:
        header = {"descr": "<f4", "fortran_order": False, "shape": (n_units, N_FEATURES)}
        np.lib.format.write_array_header_1_0(stream, header)
        for first in range(0, n_units, BLOCK):
            n = min(BLOCK, n_units - first)
            noise = rng.standard_normal((n, N_FEATURES), dtype=np.float32)
            stream.write((rng.standard_normal((n, N_LATENT), dtype=np.float32) @ W + 0.7 * noise).tobytes())


def one_fit(path: str, n_steps: int, *, in_memory: bool) -> dict[str, float]:
    """Measure CPU and wall seconds of the parts of a fit in this process, and its peak memory in GiB.

    With a table in memory only the method is run: a `Fit` of 100 000 units in memory needs 20 GB, mostly for predictive draws.
    """
    found: dict[str, float] = {}

    def timed(name: str, function):  # noqa: ANN001, ANN202
        def wrapped(*arguments, **options):  # noqa: ANN002, ANN003, ANN202
            cpu, wall = time.process_time(), time.perf_counter()
            result = function(*arguments, **options)
            found[f"{name} cpu"], found[f"{name} wall"] = time.process_time() - cpu, time.perf_counter() - wall
            return result

        return wrapped

    Adam.descend = timed("steps", Adam.descend)
    advi.log_prob_of_draws = timed("densities", log_prob_of_draws)
    load, fit = timed("load", ll.load_dataset), timed("fit", ll.fit)
    dataset = load("file", path=path, in_memory=in_memory)
    method = ll.SVI(guide="mean_field", batch_size=BATCH, n_steps=n_steps, n_draws=N_DRAWS)
    model = ll.models.PPCA(N_LATENT)
    if in_memory:
        with one_thread():
            method.run(prepared(model, dataset, method, progress=False))
    else:
        fit(model, dataset, method, progress=False)
    numbers, rng = np.arange(dataset.n_units, dtype=np.int32), np.random.default_rng(0)
    timed("order", rng.permutation)(numbers)
    found["memory"] = most_memory() / 2**20
    return found


def most_memory() -> int:
    """Return the peak memory of this process in kB; `getrusage` would include the memory of the parent process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def largest_gap(path: Path, n_batches: int = 200) -> float:
    """Compute the largest difference between the same batches from disk and from memory."""
    method = ll.SVI(batch_size=BATCH)
    problems = [
        prepared(ll.models.PPCA(N_LATENT), ll.load_dataset("file", path=str(path), in_memory=kept), method, progress=False)
        for kept in (False, True)
    ]
    both = [batches(problem, BATCH, np.random.default_rng(0), n_steps=n_batches) for problem in problems]
    return max(float((next(both[0])[0] - next(both[1])[0]).abs().max()) for _ in range(n_batches))


def in_a_process(path: Path, n_steps: int, *, in_memory: bool) -> dict[str, float]:
    """Run `one_fit` in a separate process."""
    code = (
        "import json, sys; from experiments.benchmarks.minibatches_on_disk import one_fit; "
        f"print(json.dumps(one_fit(sys.argv[1], {n_steps}, in_memory={in_memory})))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))}
    done = subprocess.run([sys.executable, "-c", code, str(path)], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"A benchmark process ended with exit code {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def rows(size: str) -> list[Row]:
    tables, n_steps, n_rounds = SIZES[size]
    with tempfile.TemporaryDirectory() as folder:
        paths = {n: Path(folder) / f"{n}.npy" for n in tables}
        for n, path in paths.items():
            write_table(path, n)
        sides = {f"{n:,} rows on disk": (path, False) for n, path in paths.items()}
        sides[f"{tables[0]:,} rows in memory"] = (paths[tables[0]], True)
        found = {side: [] for side in sides}
        for _ in range(n_rounds):
            for side, (path, in_memory) in sides.items():
                found[side].append(in_a_process(path, n_steps, in_memory=in_memory))
        gap = largest_gap(paths[tables[0]])
    few, many = (f"{n:,} rows on disk" for n in tables)
    result = [agreed(NAME, "latentlab", "check: batches from disk and from memory", gap, 1e-12, "standard deviations")]

    def add(side: str, what: str, key: str, unit: str, factor: float) -> None:
        values = np.array([one[key] for one in found[side]]) * factor
        result.append(
            Row(NAME, "latentlab", f"{what}, {side}", float(np.median(values)), unit, f"{values.min():.3g} to {values.max():.3g}")
        )

    for side in sides:
        add(side, "a step, CPU", "steps cpu", "us", 1e6 / n_steps)
        add(side, "a step, wall", "steps wall", "us", 1e6 / n_steps)
    for side in (few, many):
        add(side, "peak memory, load to Fit", "memory", "GiB", 1.0)
        add(side, "loading, CPU", "load cpu", "s", 1.0)
        add(side, "order of an epoch, CPU", "order cpu", "s", 1.0)
        add(side, f"densities of {N_DRAWS} draws, CPU", "densities cpu", "s", 1.0)
        add(side, "the whole fit, CPU", "fit cpu", "s", 1.0)
    for kind in ("cpu", "wall"):
        times = np.array([a[f"steps {kind}"] / b[f"steps {kind}"] for a, b in zip(found[many], found[few], strict=True)])
        what = f"a step with {tables[1]:,} rows over one with {tables[0]:,}, {kind}"
        spread = f"{times.min():.3g} to {times.max():.3g}"
        result.append(Row(NAME, "latentlab", what, float(np.median(times)), "times", f"{spread}; aim: {MOST_TIMES}"))
    most = max(one["memory"] for one in found[many])
    result.append(Row(NAME, "latentlab", f"peak memory with {tables[1]:,} rows", most, "GiB", f"aim: below {MOST_GIB}"))
    return result
