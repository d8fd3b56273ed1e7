"""Time and memory of a comparison over many draws of many units, against a plain loop over the draws.

* scores over posterior draws: neighbour overlap and debiased CKA of an embedding with every draw, against a loop with
  scikit-learn's `NearestNeighbors` and numpy, whose CKA is computed from two n x n Gram matrices or from products of columns;
* neighbours in more columns, exact and approximate, with the recall of the approximate search;
* a whole comparison: metrics, ceiling, floor, verdicts and units of PCA against draws of PPCA.

The results of the loops must agree to 1e-10 before anything is timed. Times are the smallest of several alternating rounds.
Memory is the growth of the peak memory of the process (`ru_maxrss`; on Linux since the start of the comparison).

    python experiments/benchmarks/metrics_at_scale.py --size small
    python experiments/benchmarks/metrics_at_scale.py --size full      # several minutes
"""

import argparse
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.neighbors import NearestNeighbors

import latentlab as ll
from latentlab.compare.kernel import cka
from latentlab.compare.lift import score_table
from latentlab.compare.neighbors import neighbor_overlap, neighbors, recall
from latentlab.compare.positions import Positions
from latentlab.data.dataset import Dataset
from latentlab.errors import LatentLabError, MissingDependencyError

K = 10
AGREE = 1e-10
ROUNDS = 3


@dataclass(frozen=True)
class Size:
    """Numbers of units and draws: of the two scores (the loop is timed on a subset of draws), and of the whole comparison."""

    n_units: int
    n_draws: int
    n_timed: int
    n_columns: int
    whole_units: int
    whole_draws: int


SIZES = {
    "small": Size(n_units=300, n_draws=20, n_timed=10, n_columns=8, whole_units=200, whole_draws=150),
    "full": Size(n_units=2000, n_draws=1000, n_timed=50, n_columns=10, whole_units=10_000, whole_draws=1000),
}
Cka = Callable[[np.ndarray, np.ndarray], float]


def posterior(n_units: int, n_draws: int, n_latent: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Simulate an embedding `(unit, latent)` and draws `(chain, draw, unit, latent)` of positions that it estimates."""
    rng = np.random.default_rng(seed)
    embedding = rng.normal(size=(n_units, n_latent))
    return embedding, embedding + 0.1 * rng.normal(size=(1, n_draws, n_units, n_latent))


def textbook_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Compute debiased CKA from Gram matrices `(unit, unit)` by its definition (Song et al. 2012, HSIC_1)."""
    n = len(x)
    K, L = x @ x.T, y @ y.T
    np.fill_diagonal(K, 0.0)
    np.fill_diagonal(L, 0.0)

    def hsic(a: np.ndarray, b: np.ndarray) -> float:
        first, second = a.sum(axis=0), b.sum(axis=0)
        return float((a * b).sum() + first.sum() * second.sum() / ((n - 1) * (n - 2)) - 2 * first @ second / (n - 2))

    return hsic(K, L) / np.sqrt(hsic(K, K) * hsic(L, L))


def columns_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Compute debiased CKA from products of centred columns."""
    n = len(x)
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)

    def hsic(a: np.ndarray, b: np.ndarray) -> float:
        first, second = (a**2).sum(axis=1), (b**2).sum(axis=1)
        total = first.sum() * second.sum() / ((n - 1) * (n - 2))
        return float(((a.T @ b) ** 2).sum() - n * first @ second / (n - 2) + total)

    return hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))


def loop(embedding: np.ndarray, draws: np.ndarray, cka_of: Cka) -> np.ndarray:
    """Compute overlap and CKA `(2, draw)` by a plain loop over draws `(draw, unit, latent)`."""

    def near(x: np.ndarray) -> np.ndarray:
        return np.asarray(NearestNeighbors(n_neighbors=K).fit(x).kneighbors(return_distance=False))

    neighbors_in_embedding, rows = near(embedding), []
    for draw in draws:
        shared = (neighbors_in_embedding[:, :, None] == near(draw)[:, None, :]).sum() / neighbors_in_embedding.size
        rows.append((shared, cka_of(embedding, draw)))
    return np.array(rows).T


def lifted(embedding: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Compute overlap and CKA by latentlab, of draws `(chain, draw, unit, latent)`."""
    return score_table([neighbor_overlap, cka], [embedding], draws, n_neighbors=K)[:, 0, 0]


def least(functions: dict[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """Measure the smallest seconds of each function over alternating rounds."""
    found = dict.fromkeys(functions, np.inf)
    for _ in range(rounds):
        for name, function in functions.items():
            begin = time.perf_counter()
            function()
            found[name] = min(found[name], time.perf_counter() - begin)
    return found


def scores(size: Size) -> dict[str, float]:
    """Measure milliseconds per draw of both scores, after checking that the loops and latentlab agree.

    Raises:
        LatentLabError: The results of a loop and of latentlab differ.
    """
    embedding, draws = posterior(size.n_units, size.n_draws, 2)
    timed_draws = draws[:, : size.n_timed]
    ours = lifted(embedding, timed_draws)
    for cka_of in (textbook_cka, columns_cka):
        apart = float(np.abs(loop(embedding, timed_draws[0], cka_of) - ours).max())
        if not apart <= AGREE:
            raise LatentLabError(f"The loop with {cka_of.__name__} and latentlab differ by {apart:.1e}.")
    spent = least(
        {
            "latentlab": lambda: lifted(embedding, timed_draws),
            "loop, n x n CKA": lambda: loop(embedding, timed_draws[0], textbook_cka),
            "loop, CKA by columns": lambda: loop(embedding, timed_draws[0], columns_cka),
        }
    )
    begin = time.perf_counter()
    lifted(embedding, draws)
    all_draws = {f"latentlab, all {size.n_draws} draws": (time.perf_counter() - begin) / size.n_draws}
    return {name: 1e3 * seconds for name, seconds in {**{n: s / size.n_timed for n, s in spent.items()}, **all_draws}.items()}


def searches(size: Size) -> tuple[dict[str, float], float]:
    """Measure exact and approximate neighbours in more columns, in ms per draw, and the recall (NaN without pynndescent)."""
    draw = posterior(size.whole_units, 1, size.n_columns)[1][0, 0]
    functions: dict[str, Callable[[], object]] = {"exact": lambda: neighbors(Positions(draw), K)}
    try:
        share = recall(Positions(draw), K)
        functions["approximate"] = lambda: neighbors(Positions(draw), K, "approximate")
    except MissingDependencyError:
        share = float("nan")
    return {name: 1e3 * seconds for name, seconds in least(functions).items()}, share


def whole(size: Size, n_latent: int = 2) -> tuple[ll.Comparison, float, float, float]:
    """Compare PCA with all draws of PPCA; return the comparison, its seconds and additional MB, and the MB of the draws."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(size.whole_units, n_latent)) @ rng.normal(size=(n_latent, 20)) + rng.normal(size=(size.whole_units, 20))
    dataset = Dataset({"x": x}, dims={"x": ("unit", "feature")}, name="simulated")
    fit = ll.fit(ll.models.PPCA(n_latent), dataset, ll.Exact(n_draws=size.whole_draws), seed=0, progress=False)
    draws = fit.latents().values.nbytes / 2**20
    pca = ll.embed("pca", dataset, n_latent=n_latent)
    _forget_peak()
    before, begin = peak(), time.perf_counter()
    comparison = ll.compare(fit, [pca], n_draws=size.whole_draws, progress=False)
    return comparison, time.perf_counter() - begin, peak() - before, draws


def peak() -> float:
    """Return the peak memory of the process in MB; Linux counts in kB, macOS in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM"))) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _forget_peak() -> None:
    """Reset the peak memory if the system allows it; otherwise the peak of the fit could hide the peak of the comparison."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=tuple(SIZES), default="small")
    parser.add_argument("--n-latent", type=int, default=2, help="latent columns of the whole comparison")
    options = parser.parse_args(arguments)
    size = SIZES[options.size]
    found = scores(size)
    print(f"{K}-neighbour overlap and CKA, {size.n_units} units, 2 columns; results agree to {AGREE:g}; time per draw:")
    for name, each in found.items():
        print(f"  {name:28s}{each:10.2f} ms   {each / found['latentlab']:6.1f} x")
    spent, share = searches(size)
    print(f"{K} neighbours of {size.whole_units} units in {size.n_columns} columns; recall {share:.3f}:")
    for name, each in spent.items():
        print(f"  {name:28s}{each:10.2f} ms")
    comparison, seconds, extra, held = whole(size, options.n_latent)
    n_lifted = comparison.data.sizes["draw"]
    print(f"ll.compare, {size.whole_units} units, {n_lifted} draws of {options.n_latent} columns ({held:.0f} MB):")
    print(f"  {seconds:.1f} s, {extra:.0f} MB additional memory")
    for note in comparison.notes:
        print(f"  {note}")


if __name__ == "__main__":
    main()
