"""PPCA with missing entries: CPU time as a ratio to complete data of the same size."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

import latentlab as ll
from experiments.benchmarks import own
from experiments.benchmarks.harness import Row, agreed, seconds, timed
from latentlab.data.simulators import linear_gaussian
from latentlab.inference.arrays import tensors
from latentlab.inference.density import Density
from latentlab.results.prepare import prepared
from latentlab.seeds import one_thread

NAME = "PPCA, missing cells"
SIZES: dict[str, tuple[int, dict[str, Any], int]] = {
    "tiny": (60, {"SVI": ll.SVI("mean_field", n_steps=20, n_draws=10)}, 1),
    "small": (
        300,
        {
            "SVI": ll.SVI(n_steps=200, n_draws=100),
            "SVI, batches of 100": ll.SVI(n_steps=200, n_draws=100, batch_size=100),
            "ChEES": ll.ChEES(n_warmup=10, n_draws=10, compiled=False),
        },
        1,
    ),
    "full": (
        300,
        {
            "SVI": ll.SVI(),
            "SVI, batches of 100": ll.SVI(batch_size=100),
            "ChEES": ll.ChEES(compiled=False),
        },
        3,
    ),
}


def with_missing(dataset: ll.Dataset, n_missing: int) -> ll.Dataset:
    """Return the data with missing values in cells chosen at random."""
    x = dataset.x.copy()
    x.ravel()[np.random.default_rng(0).permutation(x.size)[:n_missing]] = np.nan
    return replace(dataset, arrays={"x": x}, truth={}, truth_dims={}) if n_missing else dataset


def plain(dataset: ll.Dataset, values: own.Values) -> float:
    """Compute the log joint density by numpy, row by row, for the check."""
    W, mu, sigma = (values[name] for name in ("W", "mu", "sigma"))
    total = -0.5 * (W**2).sum() - 0.5 * (mu**2).sum() / 100 - 0.5 * sigma**2
    for row in dataset.x:
        seen = ~np.isnan(row)
        covariance = W[seen] @ W[seen].T + sigma**2 * np.eye(seen.sum())
        residual = (row - mu)[seen]
        log_det = np.linalg.slogdet(covariance)[1]
        total -= 0.5 * (residual @ np.linalg.solve(covariance, residual) + log_det + seen.sum() * np.log(2 * np.pi))
    return float(total)


def rows(size: str) -> list[Row]:
    n_units, methods, n_rounds = SIZES[size]
    model, complete = ll.models.PPCA(2), linear_gaussian(n_units=n_units, n_features=6)
    datasets = {n: with_missing(complete, n) for n in (0, 1, n_units // 10, complete.x.size // 2)}
    found, sides = [], {}
    for n, dataset in datasets.items():
        density = Density(model, tensors(model, dataset), dataset.array_dims)
        gap = [own.log_joint(density, values) - plain(dataset, values) for values in own.points(density, 4)]
        level = max(1.0, abs(plain(dataset, own.points(density, 1)[0])))
        what = f"check: {n} cells missing, numpy's log density, relative"
        found.append(agreed(NAME, "latentlab", what, float(np.ptp(gap)) / level, 1e-10, "nats"))
        starts = np.stack([density.unconstrain(values).numpy() for values in own.points(density, 64)])
        density.batch_value_and_grad(starts)
        sides["gradient of 64 chains", n] = partial(_calls, density, starts)
        for name, method in methods.items():
            problem = prepared(model, dataset, method, progress=False)
            with one_thread():
                replace(method, **_short(method)).run(problem)  # records the graph
            sides[name, n] = partial(_run, method, problem)
    times = {side: np.empty(n_rounds) for side in sides}
    with one_thread():
        for i in range(n_rounds):
            for side, measure in sides.items():
                times[side][i] = measure()
    for (what, n), taken in times.items():
        ratio = taken / times[what, 0]
        text = f"{what}: {n} of {complete.x.size} cells missing, over none"
        found.append(Row(NAME, "latentlab", text, float(np.median(ratio)), "times", f"{ratio.min():.3g} to {ratio.max():.3g}"))
    return found


def _short(method: Any) -> dict[str, int]:
    return {"n_warmup": 1, "n_draws": 1} if isinstance(method, ll.ChEES) else {"n_steps": 2}


def _calls(density: Density, points: np.ndarray) -> float:
    return seconds(lambda: density.batch_value_and_grad(points))


def _run(method: Any, problem: Any) -> float:
    return timed(lambda: method.run(problem))
