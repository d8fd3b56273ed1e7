"""PPCA: time of a gradient by number of complete rows, whose sum of quadratic forms depends only on their moments."""

import numpy as np

import latentlab as ll
from experiments.benchmarks import own
from experiments.benchmarks.harness import Row, agreed, seconds
from latentlab.data.simulators import linear_gaussian
from latentlab.inference.arrays import tensors
from latentlab.inference.density import Density
from latentlab.seeds import one_thread

SIZES = {"tiny": ((100, 1000), 1), "small": ((1000, 100_000), 3), "full": ((1000, 10_000, 100_000, 1_000_000), 5)}


def plain(dataset: ll.Dataset, values: own.Values) -> float:
    """Compute the log joint density by numpy with the full covariance, for the check."""
    W, mu, sigma = (values[name] for name in ("W", "mu", "sigma"))
    n, d = dataset.x.shape
    lower = np.linalg.cholesky(W @ W.T + sigma**2 * np.eye(d))
    scaled = np.linalg.solve(lower, (dataset.x - mu).T)
    fit = -0.5 * (scaled**2).sum() - n * np.log(np.diag(lower)).sum() - 0.5 * n * d * np.log(2 * np.pi)
    return float(fit - 0.5 * (W**2).sum() - 0.5 * (mu**2).sum() / 100 - 0.5 * sigma**2)


def rows(size: str) -> list[Row]:
    sizes, n_rounds = SIZES[size]
    found, gradients = [], {}
    name = "PPCA, many rows"
    for n in sizes:
        dataset, model = linear_gaussian(n_units=n), ll.models.PPCA(2)
        density = Density(model, tensors(model, dataset), dataset.array_dims)
        gap = [own.log_joint(density, values) - plain(dataset, values) for values in own.points(density, 4)]
        level = abs(plain(dataset, own.points(density, 1)[0]))
        what = f"check: N = {n:,}, numpy's log density, relative"
        found.append(agreed(name, "latentlab", what, float(np.ptp(gap)) / max(1.0, level), 1e-10, "nats"))
        gradients[n] = own.gradients(density, compiled=False)["latentlab"]
    times = {n: np.empty(n_rounds) for n in sizes}
    with one_thread():
        for i in range(n_rounds):
            for n, gradient in gradients.items():
                times[n][i] = 1e6 * seconds(gradient)
    for n, taken in times.items():
        spread = f"{taken.min():.3g} to {taken.max():.3g}"
        found.append(Row(name, "latentlab", f"value and gradient, N = {n:,}", float(np.median(taken)), "us", spread))
    cost = times[sizes[-1]] / times[sizes[0]]
    what = f"cost of N = {sizes[-1]:,} over N = {sizes[0]:,}"
    return [*found, Row(name, "latentlab", what, float(np.median(cost)), "times", f"{cost.min():.3g} to {cost.max():.3g}")]
