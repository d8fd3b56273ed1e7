r"""Frequencies of the verdicts on embeddings, for PPCA with known parameters, whose posterior is exact.

The data are x = W z + e with z ~ N(0, I_2), e ~ N(0, I_10), and known loadings W with two orthogonal columns of length
sqrt(SIGNAL). The posterior of each unit's position is Gaussian in closed form, z_i | x_i ~ N(m_i, V) with V = I / (1 + SIGNAL)
and m_i = V W^T x_i. Draws are exact: independent, or AR(1) series with this stationary distribution in the rows with correlated
chains. Verdicts are given to embeddings whose relation to this posterior is known, under two alignments. The column `stated`
has the frequencies of the verdict's specification. They were measured in another design, whose noise, bend and Isomap settings
differ, so those rows agree only qualitatively.

Example:
    python experiments/verdict_table.py --n-datasets 400 --seed 0
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from tqdm import tqdm

from latentlab.compare.align import principal_axes
from latentlab.compare.verdict import Reference
from latentlab.seeds import Seeds

N_UNITS, N_LATENT, N_FEATURES, SIGNAL = 100, 2, 10, 4.0
N_CHAINS, N_DRAWS = 4, 100
AUTOCORRELATION, N_DRAWS_CORRELATED = 0.9, 1000
N_DRAWS_TOO_FEW = 15
ALIGNMENTS = ("orthogonal", "similarity")
LABELS = ("summary-like", "draw-like", "distinct", "undetermined")


@dataclass(frozen=True)
class Case:
    """A data set, true positions `(unit, latent)`, and the exact posterior: means `(unit, latent)` and a common sd."""

    x: np.ndarray
    truth: np.ndarray
    mean: np.ndarray
    sd: float
    rng: np.random.Generator

    def draw(self) -> np.ndarray:
        """Draw from the posterior, independently of the chains."""
        return self.mean + self.sd * self.rng.normal(size=self.mean.shape)

    def chains(self, n_draws: int, autocorrelation: float = 0.0) -> np.ndarray:
        """Draw stationary AR(1) chains `(chain, draw, unit, latent)`."""
        noise = self.rng.normal(size=(n_draws, N_CHAINS, *self.mean.shape))
        for t in range(1, n_draws if autocorrelation else 0):
            noise[t] = autocorrelation * noise[t - 1] + np.sqrt(1 - autocorrelation**2) * noise[t]
        return self.mean + self.sd * noise.swapaxes(0, 1)


def simulate(rng: np.random.Generator) -> Case:
    """Simulate a data set of the design."""
    truth = rng.normal(size=(N_UNITS, N_LATENT))
    loadings = np.sqrt(SIGNAL) * np.linalg.qr(rng.normal(size=(N_FEATURES, N_LATENT)))[0]
    x = truth @ loadings.T + rng.normal(size=(N_UNITS, N_FEATURES))
    return Case(x, truth, x @ loadings / (1 + SIGNAL), 1 / np.sqrt(1 + SIGNAL), rng)


def pca(case: Case) -> np.ndarray:
    """Compute principal component scores."""
    return principal_axes(case.x)[:, :N_LATENT]


def mapped_pca(case: Case) -> np.ndarray:
    """Compute t_j sqrt(lambda_j - s2) / lambda_j, the posterior mean at maximum likelihood (Tipping and Bishop, 1999)."""
    variances = principal_axes(case.x).var(axis=0)
    leading, noise = variances[:N_LATENT], variances[N_LATENT:].mean()
    return pca(case) * np.sqrt(leading - noise) / leading


def isomap(case: Case) -> np.ndarray:
    """Compute Isomap with 5 neighbours."""
    from sklearn.manifold import Isomap

    return Isomap(n_neighbors=5, n_components=N_LATENT).fit_transform(case.x)


def stretched(y: np.ndarray, factor: float) -> np.ndarray:
    """Stretch the first axis of positions."""
    return y * np.array([factor, *[1.0] * (N_LATENT - 1)])


def bent(case: Case, by: float) -> np.ndarray:
    """Add `by` times the square of axis 1, divided by sqrt(2) (sd 1 for a standard normal), to axis 2 of the posterior mean."""
    square = case.mean[:, 0] ** 2 / np.sqrt(2)
    return case.mean + by * np.outer(square, np.eye(N_LATENT)[1])


def with_outliers(case: Case) -> np.ndarray:
    """Move 3% of the units of the posterior mean by 6 posterior sd in independent directions."""
    y = case.mean.copy()
    moved = case.rng.choice(N_UNITS, round(0.03 * N_UNITS), replace=False)
    step = case.rng.normal(size=(len(moved), N_LATENT))
    y[moved] += 6 * case.sd * step / np.linalg.norm(step, axis=1, keepdims=True)
    return y


@dataclass(frozen=True)
class Row:
    """An embedding, the draws it is compared with, and the stated % summary/draw/distinct for each alignment."""

    name: str
    embed: Callable[[Case], np.ndarray]
    orthogonal: str = ""
    similarity: str = ""
    draws: str = "independent"


def mean(case: Case) -> np.ndarray:
    """Return the exact posterior mean."""
    return case.mean


def truth(case: Case) -> np.ndarray:
    """Return the true positions."""
    return case.truth


ROWS = (
    Row("posterior mean", mean, "100/0/0", "100/0/0"),
    Row("fresh draw", Case.draw, "3/97/0", "3/95/2"),
    Row("truth", truth, "3/97/0", "5/95/0"),
    Row("posterior mean; chains rho 0.9", mean, draws="correlated"),
    Row("fresh draw; chains rho 0.9", Case.draw, draws="correlated"),
    Row("truth; chains rho 0.9", truth, draws="correlated"),
    Row("PCA mapped", mapped_pca, "98/0/2", "100/0/0"),
    Row("PCA raw", pca, "0/0/100", "100/0/0"),
    Row("Isomap", isomap, "0/0/100", "70/0/30"),
    Row("shuffled", lambda case: case.rng.permutation(case.mean), "0/0/100", "0/0/100"),
    Row("constant", lambda case: np.full_like(case.mean, 1.7), "0/0/100", "0/0/100"),
    Row("mean x 0.5", lambda case: 0.5 * case.mean, "0/0/100", "100/0/0"),
    Row("mean, axis stretched 1.1", lambda case: stretched(case.mean, 1.1), "100/0/0", "100/0/0"),
    Row("mean, axis stretched 1.3", lambda case: stretched(case.mean, 1.3), "0/0/100", "98/0/2"),
    Row("mean, axis stretched 2", lambda case: stretched(case.mean, 2.0), "0/0/100", "0/0/100"),
    Row("mean bent by 0.3", lambda case: bent(case, 0.3), "27/0/73", "28/0/72"),
    Row("mean bent by 0.6", lambda case: bent(case, 0.6), "0/0/100", "0/0/100"),
    Row("mean with 3% outliers", with_outliers, "0/0/100", "0/0/100"),
    Row("draw stretched 1.3", lambda case: stretched(case.draw(), 1.3), "0/2/98", "0/53/47"),
    Row("posterior mean; too few draws", mean, draws="few"),
    Row("shuffled; too few draws", lambda case: case.rng.permutation(case.mean), draws="few"),
)


def judge(case: Case, rows: Sequence[Row]) -> list[dict[str, object]]:
    """Return the verdicts on one data set: row, alignment, verdict, delta, p_low and coverage."""
    shapes = {"independent": (N_DRAWS, 0.0), "correlated": (N_DRAWS_CORRELATED, AUTOCORRELATION), "few": (N_DRAWS_TOO_FEW, 0.0)}
    draws = {kind: case.chains(*shapes[kind]) for kind in {row.draws for row in rows}}
    found = []
    for alignment in ALIGNMENTS:
        references = {kind: Reference(chains, alignment, case.rng) for kind, chains in draws.items()}
        for row in rows:
            v = references[row.draws].judge(row.embed(case))
            kept = {key: getattr(v, key) for key in ("verdict", "delta", "p_low", "coverage_50", "coverage_80", "coverage_95")}
            found.append({"row": row.name, "alignment": alignment, **kept})
    return found


def simulate_verdicts(n_datasets: int, seed: int, rows: Sequence[Row] = ROWS) -> pd.DataFrame:
    """Return all verdicts on `n_datasets` data sets, one per row."""
    every = []
    for k in tqdm(range(n_datasets), desc="data sets", disable=None):
        case = simulate(Seeds(seed).child("verdict_table", k).numpy())
        every += [{"dataset": k, **line} for line in judge(case, rows)]
    return pd.DataFrame(every)


def shares(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Compute the percentage of each verdict by row and alignment, and the median delta."""
    groups = verdicts.groupby(["row", "alignment"], sort=False)
    table = groups["verdict"].value_counts(normalize=True).unstack(fill_value=0.0).reindex(columns=list(LABELS), fill_value=0.0)
    return 100 * table.assign(delta=groups["delta"].median() / 100)


def printed(table: pd.DataFrame, n_datasets: int) -> str:
    """Format the table: % summary/draw/distinct (undetermined), the largest standard error, the stated values, and delta."""
    stated = {(row.name, alignment): getattr(row, alignment) for row in ROWS for alignment in ALIGNMENTS}
    lines = [f"{'embedding':<32}{'alignment':<12}{'%':<16}{'+-':<7}{'stated':<12}delta"]
    for (row, alignment), line in table.iterrows():
        text = "/".join(f"{line[label]:.0f}" for label in LABELS[:3])
        text += f" (u {line['undetermined']:.0f})" if line["undetermined"] else ""
        p = line[list(LABELS)].to_numpy(dtype=float) / 100
        error = 100 * np.sqrt((p * (1 - p)).max() / n_datasets)
        lines.append(f"{row:<32}{alignment:<12}{text:<16}{error:<7.1f}{stated[row, alignment]:<12}{line['delta']:.2f}")
    return "\n".join(lines)


def covered(verdicts: pd.DataFrame) -> str:
    """Compute the coverage of the true positions, and a Kolmogorov-Smirnov test of uniform ranks of their distance."""
    from scipy.stats import kstest

    lines = []
    for alignment in ALIGNMENTS:
        rows = verdicts[(verdicts["row"] == "truth") & (verdicts["alignment"] == alignment)]
        text = []
        for level in (50, 80, 95):
            x = rows[f"coverage_{level}"]
            text.append(f"{level}%: {x.mean():.4f} +- {x.std() / np.sqrt(len(x)):.4f}")
        p = kstest(rows["p_low"], "uniform").pvalue
        lines.append(f"coverage of the truth, {alignment:<11} {'  '.join(text)}  ranks uniform: p = {p:.2f}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the experiment and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-datasets", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    verdicts = simulate_verdicts(options.n_datasets, options.seed)
    print(printed(shares(verdicts), options.n_datasets))
    print(covered(verdicts))


if __name__ == "__main__":
    main()
