r"""Frequencies of the verdicts on clusterings, for mixtures whose posterior is exact or sampled by Gibbs steps.

The data are x = m_z + e from a mixture of three Gaussians with equal weights and variance 1, in one or two dimensions.
Neighbouring means m are `separation` apart. In the designs `known` the means are known: the labels are independent given the
data, P(z_i = k | x) = N(x_i; m_k, 1) / sum_l N(x_i; m_l, 1), and draws are exact. In the designs `unknown` the means have the
prior N(0, 5^2), and four chains of a Gibbs sampler alternate z | m and m | z from different starts. Verdicts are given to
clusterings whose relation to this posterior is known. The column `unguarded` is the share of data sets in which a clustering is
nearer to the posterior than draws are, regardless of the guard.

Example:
    python experiments/partition_verdict_table.py --n-datasets 60 --seed 0
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from latentlab.compare.clustering import minimum_binder, minimum_vi
from latentlab.compare.partition_verdict import PartitionReference
from latentlab.seeds import Seeds

N_UNITS, N_CLUSTERS = 100, 3
N_CHAINS, N_DRAWS, N_WARMUP = 4, 200, 100
PRIOR_SD = 5.0
LABELS = ("summary-like", "draw-like", "distinct", "undetermined")


@dataclass(frozen=True)
class Design:
    """Design of a mixture: number of features, distance between means, and whether the means are known."""

    name: str
    n_features: int
    separation: float
    known: bool

    @property
    def means(self) -> np.ndarray:
        """Means of the clusters `(cluster, feature)`: on a line, or at the corners of an equilateral triangle."""
        places = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(0.75)]]) if self.n_features == 2 else np.arange(3.0)[:, None]
        return self.separation * (places - places.mean(axis=0))


DESIGNS = (
    Design("known, 1 d, 2 sd apart", 1, 2.0, True),
    Design("known, 1 d, 3 sd apart", 1, 3.0, True),
    Design("known, 2 d, 2.5 sd apart", 2, 2.5, True),
    Design("unknown, 1 d, 3 sd apart", 1, 3.0, False),
    Design("unknown, 2 d, 2.5 sd apart", 2, 2.5, False),
)


def probabilities(x: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Compute P(z_i = k | x_i, means), `(unit, cluster)`."""
    logs = -0.5 * ((x[:, None] - means) ** 2).sum(axis=2)
    weights = np.exp(logs - logs.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def draw_labels(p: np.ndarray, rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Draw independent labels `(*shape, unit)` with probabilities `(unit, cluster)`."""
    return (rng.random((*shape, len(p), 1)) > p.cumsum(axis=1)[:, :-1]).sum(axis=-1)


def gibbs(x: np.ndarray, rng: np.random.Generator, n_draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Sample a chain of labels `(draw, unit)` and means `(draw, cluster, feature)`; the first means are distinct units."""
    means = x[rng.choice(len(x), N_CLUSTERS, replace=False)]
    labels = np.empty((n_draws, len(x)), dtype=np.int64)
    kept = np.empty((n_draws, *means.shape))
    for t in range(-N_WARMUP, n_draws):
        z = draw_labels(probabilities(x, means), rng)
        member = np.eye(N_CLUSTERS)[z]
        precision = member.sum(axis=0)[:, None] + PRIOR_SD**-2
        means = (member.T @ x) / precision + rng.normal(size=means.shape) / np.sqrt(precision)
        if t >= 0:
            labels[t], kept[t] = z, means
    return labels, kept


@dataclass(frozen=True)
class Case:
    """A data set, true labels, draws `(chain, draw, unit)`, an additional draw, the MAP labels, and the reference."""

    x: np.ndarray
    truth: np.ndarray
    draws: np.ndarray
    fresh: np.ndarray
    map: np.ndarray
    reference: PartitionReference
    rng: np.random.Generator


def simulate(design: Design, rng: np.random.Generator) -> Case:
    """Simulate a data set of a design."""
    truth = rng.integers(N_CLUSTERS, size=N_UNITS)
    x = design.means[truth] + rng.normal(size=(N_UNITS, design.n_features))
    if design.known:
        p = probabilities(x, design.means)
        draws, fresh, best = draw_labels(p, rng, N_CHAINS, N_DRAWS), draw_labels(p, rng), p.argmax(axis=1)
    else:
        chains = [gibbs(x, rng, N_DRAWS) for _ in range(N_CHAINS)]
        draws = np.stack([labels for labels, _ in chains])
        fresh = gibbs(x, rng, 1)[0][-1]
        best = most_probable(x, draws.reshape(-1, N_UNITS))
    return Case(x, truth, draws, fresh, best, PartitionReference(draws, rng), rng)


def most_probable(x: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Maximise p(z | x), with the means integrated out, by changes of single labels from the best draw."""

    def log_density(member: np.ndarray) -> float:
        precision = member.sum(axis=0)[:, None] + PRIOR_SD**-2
        return float(0.5 * ((member.T @ x) ** 2 / precision).sum() - 0.5 * x.shape[1] * np.log(precision).sum())

    indicators = np.eye(N_CLUSTERS)
    z = max(draws, key=lambda labels: log_density(indicators[labels])).copy()
    best, moved = log_density(indicators[z]), True
    while moved:
        moved = False
        for i in range(len(z)):
            for k in range(N_CLUSTERS):
                old, z[i] = z[i], k
                found = log_density(indicators[z])
                if found > best + 1e-9:
                    best, moved = found, True
                else:
                    z[i] = old
    return z


def k_means(case: Case) -> np.ndarray:
    """Compute the labels of k-means."""
    from sklearn.cluster import KMeans

    return KMeans(N_CLUSTERS, n_init=5, random_state=0).fit_predict(case.x)


def merged(case: Case) -> np.ndarray:
    """Return the least-Binder draw c* with its two largest clusters merged."""
    y = case.reference.blocks.copy()
    first, second = np.argsort(-np.bincount(y), kind="stable")[:2]
    y[y == second] = first
    return y


def split(case: Case) -> np.ndarray:
    """Return c* with its largest cluster split at the median of the first feature."""
    y = case.reference.blocks.copy()
    units = np.flatnonzero(y == np.bincount(y).argmax())
    y[units[np.argsort(case.x[units, 0])][: len(units) // 2]] = y.max() + 1
    return y


def moved(case: Case, share: float) -> np.ndarray:
    """Return c* with a random share of the units moved to another cluster."""
    y = case.reference.blocks.copy()
    units = case.rng.choice(N_UNITS, round(share * N_UNITS), replace=False)
    y[units] = (y[units] + case.rng.integers(1, N_CLUSTERS, size=len(units))) % N_CLUSTERS
    return y


def moved_certain(case: Case) -> np.ndarray:
    """Return c* with the 3% most certain units moved to another cluster."""
    y, pi = case.reference.blocks.copy(), case.reference.co_assignment
    units = np.argsort((pi * (1 - pi)).sum(axis=1), kind="stable")[: round(0.03 * N_UNITS)]
    y[units] = (y[units] + 1) % (y.max() + 1)
    return y


@dataclass(frozen=True)
class Row:
    """A clustering and the verdict that its definition implies; empty if the verdict depends on the design."""

    name: str
    cluster: Callable[[Case], np.ndarray]
    stated: str = ""


ROWS = (
    Row("least-Binder draw", lambda case: case.reference.blocks, "summary-like"),
    Row("min-Binder estimate", lambda case: minimum_binder(case.draws), "summary-like"),
    Row("min-VI estimate", lambda case: minimum_vi(case.draws[:, ::4])),
    Row("MAP", lambda case: case.map, "summary-like"),
    Row("fresh draw", lambda case: case.fresh, "draw-like"),
    Row("truth", lambda case: case.truth, "draw-like"),
    Row("k-means", k_means),
    Row("one cluster", lambda case: np.zeros(N_UNITS, dtype=int), "distinct"),
    Row("singletons", lambda case: np.arange(N_UNITS), "distinct"),
    Row("two clusters merged", merged, "distinct"),
    Row("one cluster split", split, "distinct"),
    Row("c*, 3% moved", lambda case: moved(case, 0.03)),
    Row("c*, 3% certain moved", moved_certain),
    Row("c*, 10% moved", lambda case: moved(case, 0.1)),
    Row("c* shuffled", lambda case: case.rng.permutation(case.reference.blocks), "distinct"),
)


def simulate_verdicts(
    n_datasets: int, seed: int, designs: Sequence[Design] = DESIGNS, rows: Sequence[Row] = ROWS
) -> pd.DataFrame:
    """Return all verdicts on `n_datasets` data sets of each design, one per row."""
    every = []
    for design in designs:
        for k in tqdm(range(n_datasets), desc=design.name, disable=None):
            case = simulate(design, Seeds(seed).child("partition_verdict_table", design.name, k).numpy())
            for row in rows:
                v = case.reference.judge(row.cluster(case))
                found = {"verdict": v.verdict, "delta": v.delta, "p_low": v.p_low, "p_guard": v.p_guard, "ess": v.ess}
                every.append({"design": design.name, "row": row.name, "dataset": k, **found})
    return pd.DataFrame(every)


def shares(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Compute the percentage of each verdict by design and row, median delta, and the percentage nearer than draws."""
    groups = verdicts.groupby(["design", "row"], sort=False)
    table = groups["verdict"].value_counts(normalize=True).unstack(fill_value=0.0).reindex(columns=list(LABELS), fill_value=0.0)
    nearer = verdicts.assign(nearer=verdicts["p_low"] <= 0.025).groupby(["design", "row"], sort=False)["nearer"].mean()
    return (100 * table.assign(unguarded=nearer)).assign(delta=groups["delta"].median())


def printed(table: pd.DataFrame, n_datasets: int) -> str:
    """Format the table: % summary/draw/distinct (undetermined), the largest standard error, and % nearer without the guard."""
    stated = {row.name: row.stated for row in ROWS}
    lines = [f"{'design':<28}{'clustering':<26}{'%':<18}{'+-':<6}{'unguarded':<11}{'delta':<7}stated"]
    for (design, row), line in table.iterrows():
        text = "/".join(f"{line[label]:.0f}" for label in LABELS[:3])
        text += f" (u {line['undetermined']:.0f})" if line["undetermined"] else ""
        p = line[list(LABELS)].to_numpy(dtype=float) / 100
        error = 100 * np.sqrt((p * (1 - p)).max() / n_datasets)
        lines.append(f"{design:<28}{row:<26}{text:<18}{error:<6.1f}{line['unguarded']:<11.0f}{line['delta']:<7.2f}{stated[row]}")
    return "\n".join(lines)


def figure(table: pd.DataFrame, path: Path) -> None:
    """Plot stacked bars of the verdicts by row, with a panel for each design."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    designs = list(table.index.unique("design"))
    colors = dict(zip(LABELS, ("#2a6f97", "#89c2d9", "#c1440e", "#bbbbbb"), strict=True))
    with mpl.rc_context({"font.size": 9}):
        picture = Figure(figsize=(2.6 * len(designs) + 1.6, 4.2), layout="constrained")
        panels = np.atleast_1d(picture.subplots(1, len(designs), sharey=True))
        for axes, design in zip(panels, designs, strict=True):
            part = table.loc[design]
            left = np.zeros(len(part))
            for label in LABELS:
                axes.barh(part.index, part[label], left=left, color=colors[label], label=label)
                left += part[label].to_numpy()
            axes.set(title=design.replace(", ", "\n", 1), xlim=(0, 100), xlabel="% of data sets")
        panels[0].invert_yaxis()
        picture.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(LABELS), frameon=False)
        picture.savefig(path, dpi=150)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the experiment, print its table, and save its figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-datasets", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "figures" / "partition_verdict_table.png")
    options = parser.parse_args(arguments)
    table = shares(simulate_verdicts(options.n_datasets, options.seed))
    print(printed(table, options.n_datasets))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure(table, options.out)
    print(f"figure: {options.out}")


if __name__ == "__main__":
    main()
