r"""Agreement of k-means with the posterior assignments of a Gaussian mixture, by separation of the clusters.

Data are drawn from three spherical Gaussians at the corners of an equilateral triangle in the plane. Its sides are `separation`
standard deviations long; they are fixed, so the variance tends to 0 as the separation grows. There are three cases:

* `equal`: equal weights and one variance, both fixed in the model; k-means is the limit of this case;
* `unequal sizes`: weights 0.7, 0.2 and 0.1; weights and variances are inferred;
* `unequal widths`: standard deviations of 1/2, 1 and 2 times a common value; the same model.

For each case, the labels of k-means receive a verdict against the posterior of the assignments. The mean distance between the
centres is compared with its posterior mean; this distance does not depend on the order of the clusters.

    python experiments/kmeans_is_gmm.py                   # the figure in figures/, many short chains, several minutes
    python experiments/kmeans_is_gmm.py --method nuts     # takes longer
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from scipy.spatial.distance import pdist
from tqdm.auto import tqdm

import latentlab as ll
from latentlab.compare.agreement import adjusted_rand
from latentlab.compare.partition_verdict import PartitionReference
from latentlab.data.dataset import Dataset
from latentlab.errors import LatentLabError
from latentlab.seeds import Seeds

SEPARATIONS = (1.5, 2.0, 3.0, 4.0, 6.0)
N_UNITS = 150
TRIANGLE = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(0.75)]])
SIDE = 2.0
CASES = {
    "equal": (np.full(3, 1 / 3), np.ones(3)),
    "unequal sizes": (np.array([0.7, 0.2, 0.1]), np.ones(3)),
    "unequal widths": (np.full(3, 1 / 3), np.array([0.5, 1.0, 2.0])),
}
"""Weights, and widths in units of sigma."""
PRIORS = {"equal": (1e4, 0.0), "unequal sizes": (10.0, 0.12), "unequal widths": (10.0, 0.25)}
"""Concentration of the weights, and spread of the log standard deviations about the common one."""
METHODS: dict[str, Any] = {
    "chees": ll.ChEES(n_chains=32, n_superchains=8, n_warmup=300, n_draws=200),
    "nuts": ll.NUTS(n_chains=4, n_warmup=300, n_draws=400),
    "svi": ll.SVI(guide="full_rank", n_steps=2000, n_draws=1600),
    "exact": ll.Exact(n_draws=1600, n_restarts=5),
}
N_PAIRS = 100
"""Draws, and pairs of draws, over which agreement is averaged."""
VERDICTS = ("summary-like", "draw-like", "distinct", "undetermined")
COLOURS = {"equal": "#0072B2", "unequal sizes": "#D55E00", "unequal widths": "#009E73"}
MARKERS = {"equal": "o", "unequal sizes": "s", "unequal widths": "^"}


def simulate(case: str, separation: float, seed: int) -> Dataset:
    """Simulate units of three clusters, with their true labels and the means of the clusters."""
    rng = Seeds(seed).child("kmeans_is_gmm", case).numpy()
    weights, widths = CASES[case]
    z = rng.choice(3, N_UNITS, p=weights)
    mu = SIDE * TRIANGLE
    x = mu[z] + SIDE / separation * widths[z, None] * rng.standard_normal((N_UNITS, 2))
    truth = {"z": z, "mu": mu}
    truth_dims = {"z": ("unit",), "mu": ("component", "feature")}
    return Dataset({"x": x}, dims={"x": ("unit", "feature")}, truth=truth, truth_dims=truth_dims, name=case)


def model(case: str, separation: float) -> ll.models.GaussianMixture:
    """Return the mixture that generates the data, with fixed weights and variance in the equal case.

    In the other cases the priors keep every component occupied: the heavy-tailed prior of an empty one needs very long chains.
    """
    sigma = SIDE / separation
    concentration, spread = PRIORS[case]
    options = {"weights_concentration": concentration, "sigma_spread": spread}
    return ll.models.GaussianMixture(3, "spherical", mu_loc=SIDE / 2, mu_scale=SIDE / 2, sigma_scale=sigma, **options)


def agreement(draws: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Compute the mean adjusted Rand index of labels with draws `(chain, draw, unit)`, and between distant draws."""
    flat = draws.reshape(-1, draws.shape[-1])
    thinned_draws = flat[np.linspace(0, len(flat) - 1, 2 * N_PAIRS).astype(int)]
    with_draws = [adjusted_rand(labels, draw) for draw in thinned_draws[:N_PAIRS]]
    return float(np.mean(with_draws)), float(
        np.mean([adjusted_rand(a, b) for a, b in zip(thinned_draws, thinned_draws[N_PAIRS:], strict=False)])
    )


def converged_fit(prior: ll.models.GaussianMixture, dataset: Dataset, method: str, seed: int) -> ll.Fit:
    """Return the fit; with `chees`, it is repeated with longer chains from other starts while a diagnostic fails.

    A chain can remain in a mode of negligible mass after its warm-up.
    """
    fit = ll.fit(prior, dataset, METHODS[method], seed=seed, progress=False)
    for attempt, factor in enumerate((4, 16, 16), 1) if method == "chees" else ():
        if not fit.converged:
            longer = replace(METHODS[method], n_warmup=2 * METHODS[method].n_warmup, n_draws=factor * METHODS[method].n_draws)
            fit = ll.fit(prior, dataset, longer, seed=seed + attempt, progress=False)
    return fit


def one(case: str, separation: float, method: str, seed: int) -> dict[str, object]:
    """Return the row of a data set."""
    dataset = simulate(case, separation, seed)
    fit = converged_fit(model(case, separation), dataset, method, seed)
    draws = fit.latents().values[..., 0]
    reference = PartitionReference(draws, Seeds(seed).child("verdict").numpy())
    labels = ll.embed("kmeans", dataset, n_latent=3, n_seeds=1).values[0].argmax(axis=1)
    verdict = reference.judge(labels)
    with_draws, ceiling = agreement(draws, labels)
    centres = np.stack([dataset.x[labels == k].mean(axis=0) for k in range(3)])
    true_distance = pdist(dataset.truth["mu"]).mean()
    means = fit.sites()["mu"].reshape(-1, 3, 2)
    return {
        "case": case,
        "separation": separation,
        "seed": seed,
        "ari_truth": adjusted_rand(labels, dataset.truth["z"]),
        "posterior_truth": adjusted_rand(reference.centre, dataset.truth["z"]),
        "ari_draws": with_draws,
        "ceiling": ceiling,
        "spread": pdist(centres).mean() / true_distance,
        "posterior_spread": np.mean([pdist(mu).mean() for mu in means[:: max(1, len(means) // 200)]]) / true_distance,
        "verdict": verdict.verdict,
        "delta": verdict.delta,
        "converged": fit.converged,
    }


def run(
    *, separations: tuple[float, ...] = SEPARATIONS, n_datasets: int = 6, method: str = "chees", seed: int = 0
) -> pd.DataFrame:
    """Return all rows of the grid; a data set whose fit fails is reported and omitted."""
    cells = [(case, s, i) for i in range(n_datasets) for case in CASES for s in separations]
    rows = []
    for case, separation, i in tqdm(cells, desc="kmeans_is_gmm", disable=None):
        try:
            rows.append(one(case, separation, method, seed + 1000 * i))
        except LatentLabError as error:
            print(f"omitted: {case}, separation {separation:g}, data set {i}: {error}")
    return pd.DataFrame(rows)


MEANS = ("ari_truth", "posterior_truth", "ari_draws", "ceiling", "spread", "posterior_spread")


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Compute means over data sets with standard errors, the median delta, and the share of each verdict."""
    grouped = rows.groupby(["case", "separation"], sort=False)
    found = grouped.agg(
        n=("delta", "size"),
        **{name: (name, "mean") for name in MEANS},
        **{f"{name}_se": (name, "sem") for name in MEANS},
        delta=("delta", "median"),
        converged=("converged", "mean"),
    )
    for label in VERDICTS:
        found[label] = grouped["verdict"].agg(lambda x, label=label: (x == label).mean())
    return found.reset_index()


def figure(found: pd.DataFrame, path: Path) -> None:
    """Plot the agreement with draws and its ceiling, the distance between centres, and delta (hollow marks: mostly distinct)."""
    with matplotlib.rc_context({"backend": "Agg", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        from matplotlib.figure import Figure

        picture = Figure(figsize=(10, 3.9), layout="constrained")
        axes = picture.subplots(1, 3)
        for case, line in found.groupby("case", sort=False):
            color, marker = COLOURS[case], MARKERS[case]
            style = {"color": color, "marker": marker, "ms": 4, "lw": 1.2}
            axes[0].errorbar(line.separation, line.ari_draws, 2 * line.ari_draws_se, **style)
            axes[0].plot(line.separation, line.ceiling, color=color, ls="--", lw=0.9)
            axes[1].errorbar(line.separation, line.spread, 2 * line.spread_se, **style)
            axes[1].plot(line.separation, line.posterior_spread, color=color, ls="--", lw=0.9)
            axes[2].plot(line.separation, line.delta, color=color, lw=1.2)
            faces = ["white" if share > 0.5 else color for share in line.distinct]
            axes[2].scatter(line.separation, line.delta, s=24, c=faces, edgecolors=color, marker=marker, zorder=3)
        axes[1].axhline(1, color="black", lw=0.6, ls=":")
        axes[0].set(title="agreement of the labels", ylabel="adjusted Rand index with posterior draws", ylim=(0, 1.03))
        axes[1].set(title="distance between the centres", ylabel="mean distance / true mean distance")
        axes[2].axhline(1, color="black", lw=0.6, ls=":")
        axes[2].set(
            title="labels of k-means (hollow: distinct)", ylabel="delta (0: point estimate, 1: typical draw)", ylim=(-0.05, None)
        )
        for axis in axes:
            axis.set_xlabel("separation (standard deviations)")
            axis.set_xticks(sorted(found.separation.unique()))
        handles = [axes[0].plot([], [], color=COLOURS[c], marker=MARKERS[c], ms=4, label=c)[0] for c in CASES]
        handles.append(axes[0].plot([], [], color="black", label="k-means")[0])
        handles.append(axes[0].plot([], [], color="black", ls="--", lw=0.9, label="posterior draws")[0])
        picture.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.savefig(path, dpi=150)


def main(arguments: list[str] | None = None) -> None:
    """Print the table, and save figure and table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--method", choices=sorted(METHODS), default="chees")
    parser.add_argument("--n-datasets", type=int, default=6, help="data sets per cell")
    parser.add_argument("--separations", type=float, nargs="+", default=list(SEPARATIONS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "figures" / "kmeans_is_gmm.png")
    options = parser.parse_args(arguments)
    separations = tuple(options.separations)
    found = table(run(separations=separations, n_datasets=options.n_datasets, method=options.method, seed=options.seed))
    with pd.option_context("display.width", 220, "display.max_columns", 30, "display.max_rows", 200, "display.precision", 2):
        print(found[[c for c in found if not c.endswith("_se")]].to_string(index=False))
    figure(found, options.out)
    found.to_csv(options.out.with_suffix(".csv"), index=False, float_format="%.4g")
    print(f"figure: {options.out}")


if __name__ == "__main__":
    main()
