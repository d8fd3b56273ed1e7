r"""Recovery of hidden states by embeddings of a series: agreement with the true path and the posterior, by separation.

Data are drawn from a hidden Markov model with three states in the plane and probability 0.9 of remaining in a state, as one
sequence of 250 steps. The nearest means are `separation` standard deviations apart. For each separation the model is fitted and
compared with

* the Viterbi path at maximum likelihood, which models transitions;
* k-means of windows of 5 steps, and k-means of the first two principal components of such windows, which smooth the series;
* k-means of single steps, which ignores their order.

Each clustering is compared with the true path and with posterior draws. So are the point estimate (the partition of least
expected Binder loss) and other draws; the agreement between draws is the ceiling.

    python experiments/hmm_states.py                   # the figure in figures/, many short chains, several minutes
    python experiments/hmm_states.py --method nuts     # takes longer
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from tqdm.auto import tqdm

import latentlab as ll
from latentlab.compare.agreement import adjusted_rand
from latentlab.compare.partition_verdict import PartitionReference
from latentlab.data.dataset import Dataset
from latentlab.data.markov import SIGMA, hidden_markov
from latentlab.embeddings.clusters import kmeans
from latentlab.errors import LatentLabError
from latentlab.seeds import Seeds

SEPARATIONS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
N_STATES = 3
N_STEPS = 250
WINDOW = 5
METHODS: dict[str, Any] = {
    "chees": ll.ChEES(n_chains=32, n_superchains=8, n_warmup=300, n_draws=200),
    "nuts": ll.NUTS(n_chains=4, n_warmup=300, n_draws=400),
    "svi": ll.SVI(guide="full_rank", n_steps=1500, n_draws=1600),
    "exact": ll.Exact(n_draws=1600, n_restarts=5),
}
N_PAIRS = 100
"""Draws, and pairs of draws, over which agreement is averaged."""
VERDICTS = ("summary-like", "draw-like", "distinct", "undetermined")
STYLES = {
    "posterior estimate": ("black", "D"),
    "posterior draws": ("black", ""),
    "viterbi": ("#0072B2", "o"),
    "window k-means": ("#009E73", "^"),
    "window PCA, k-means": ("#CC79A7", "v"),
    "k-means": ("#D55E00", "s"),
}
DRAWS = "posterior draws"


def clusterings(dataset: Dataset, seed: int) -> dict[str, np.ndarray]:
    """Return labels `(unit,)` by method."""

    def labels(name: str, **options: int) -> np.ndarray:
        return ll.embed(name, dataset, n_latent=N_STATES, n_seeds=1, seed=seed, **options).values[0].argmax(axis=1)

    plane = ll.embed("window_pca", dataset, n_latent=2, window=WINDOW).values
    return {
        "viterbi": labels("viterbi"),
        "window k-means": labels("window_kmeans", window=WINDOW),
        "window PCA, k-means": kmeans(plane, N_STATES, seed=seed).argmax(axis=1),
        "k-means": labels("kmeans"),
    }


def model(separation: float) -> ll.models.GaussianHMM:
    """Return a model with persistent states, and priors as wide as the distance of the means, which keep all states occupied."""
    return ll.models.GaussianHMM(
        N_STATES, sticky=10.0, transition_concentration=2.0, mu_scale=SIGMA * separation, sigma_scale=SIGMA, sigma_spread=0.25
    )


def converged_fit(prior: ll.models.GaussianHMM, dataset: Dataset, method: str, seed: int) -> ll.Fit:
    """Return the fit; with `chees`, it is repeated with 4 and 16 times the draws while a diagnostic fails."""
    fit = ll.fit(prior, dataset, METHODS[method], seed=seed, progress=False)
    for factor in (4, 16) if method == "chees" else ():
        if not fit.converged:
            longer = replace(METHODS[method], n_warmup=2 * METHODS[method].n_warmup, n_draws=factor * METHODS[method].n_draws)
            fit = ll.fit(prior, dataset, longer, seed=seed, progress=False)
    return fit


def one(separation: float, method: str, seed: int) -> list[dict[str, object]]:
    """Return the rows of a data set: each clustering, the point estimate, and the draws."""
    dataset = hidden_markov(1, N_STEPS, N_STATES, 2, separation, 0.9, seed)
    fit = converged_fit(model(separation), dataset, method, seed)
    draws, truth = fit.latents().values[..., 0], dataset.truth["z"]
    reference = PartitionReference(draws, Seeds(seed).child("verdict").numpy())
    flat = draws.reshape(-1, draws.shape[-1])
    thinned_draws = flat[np.linspace(0, len(flat) - 1, 2 * N_PAIRS).astype(int)]
    design = {"separation": separation, "seed": seed, "converged": fit.converged}
    rows: list[dict[str, object]] = []
    for name, labels in {"posterior estimate": reference.centre, **clusterings(dataset, seed)}.items():
        verdict = reference.judge(labels)
        with_draws = np.mean([adjusted_rand(labels, draw) for draw in thinned_draws[:N_PAIRS]])
        scores = {"ari_truth": adjusted_rand(labels, truth), "ari_draws": with_draws}
        rows.append({**design, "labels": name, **scores, "verdict": verdict.verdict, "delta": verdict.delta})
    of_truth = np.mean([adjusted_rand(draw, truth) for draw in thinned_draws[:N_PAIRS]])
    ceiling = np.mean([adjusted_rand(a, b) for a, b in zip(thinned_draws, thinned_draws[N_PAIRS:], strict=False)])
    return [*rows, {**design, "labels": DRAWS, "ari_truth": of_truth, "ari_draws": ceiling, "verdict": "", "delta": np.nan}]


def run(
    *, separations: tuple[float, ...] = SEPARATIONS, n_datasets: int = 5, method: str = "chees", seed: int = 0
) -> pd.DataFrame:
    """Return all rows of the grid; a data set whose fit fails is reported and omitted."""
    rows = []
    for separation, i in tqdm([(s, i) for i in range(n_datasets) for s in separations], desc="hmm_states", disable=None):
        try:
            rows += one(separation, method, seed + 1000 * i)
        except LatentLabError as error:
            print(f"omitted: separation {separation:g}, data set {i}: {error}")
    return pd.DataFrame(rows)


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Compute means over data sets with standard errors, the median delta, and the share of each verdict."""
    grouped = rows.groupby(["labels", "separation"], sort=False)
    found = grouped.agg(
        n=("ari_truth", "size"),
        ari_truth=("ari_truth", "mean"),
        ari_truth_se=("ari_truth", "sem"),
        ari_draws=("ari_draws", "mean"),
        ari_draws_se=("ari_draws", "sem"),
        delta=("delta", "median"),
        converged=("converged", "mean"),
    )
    for label in VERDICTS:
        found[label] = grouped["verdict"].agg(lambda x, label=label: (x == label).mean())
    return found.reset_index()


def figure(found: pd.DataFrame, path: Path) -> None:
    """Plot the agreement with the true path and with posterior draws, and the share of distinct verdicts."""
    with matplotlib.rc_context({"backend": "Agg", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        from matplotlib.figure import Figure

        picture = Figure(figsize=(10, 3.9), layout="constrained")
        axes = picture.subplots(1, 3)
        for name, (color, marker) in STYLES.items():
            line = found[found.labels == name]
            style = {"color": color, "marker": marker, "ms": 4, "lw": 1.2, "ls": "--" if name == DRAWS else "-"}
            axes[0].errorbar(line.separation, line.ari_truth, 2 * line.ari_truth_se, **style)
            axes[1].errorbar(line.separation, line.ari_draws, 2 * line.ari_draws_se, **style)
            if name != DRAWS:
                axes[2].plot(line.separation, line.distinct, **style)
        axes[0].set(title="agreement with the true path", ylabel="adjusted Rand index with the true path", ylim=(0, 1.03))
        axes[1].set(title="agreement with the posterior", ylabel="adjusted Rand index with posterior draws", ylim=(0, 1.03))
        axes[2].set(title="verdict", ylabel="share of data sets with verdict distinct", ylim=(-0.03, 1.03))
        for axis in axes:
            axis.set_xlabel("separation (standard deviations)")
            separations = sorted(found.separation.unique())
            axis.set_xticks(separations, [f"{separation:g}" for separation in separations])
        handles = [
            axes[0].plot([], [], color=color, marker=marker, ms=4, ls="--" if name == DRAWS else "-", label=name)[0]
            for name, (color, marker) in STYLES.items()
        ]
        picture.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.savefig(path, dpi=150)


def main(arguments: list[str] | None = None) -> None:
    """Print the table, and save figure and table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--method", choices=sorted(METHODS), default="chees")
    parser.add_argument("--n-datasets", type=int, default=5, help="data sets per cell")
    parser.add_argument("--separations", type=float, nargs="+", default=list(SEPARATIONS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "figures" / "hmm_states.png")
    options = parser.parse_args(arguments)
    separations = tuple(options.separations)
    found = table(run(separations=separations, n_datasets=options.n_datasets, method=options.method, seed=options.seed))
    with pd.option_context("display.width", 200, "display.max_columns", 30, "display.max_rows", 200, "display.precision", 2):
        print(found.to_string(index=False))
    figure(found, options.out)
    found.to_csv(options.out.with_suffix(".csv"), index=False, float_format="%.4g")
    print(f"figure: {options.out}")


if __name__ == "__main__":
    main()
