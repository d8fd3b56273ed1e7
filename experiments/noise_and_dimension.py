"""Distance of PCA from PPCA's posterior mean by noise and number of latent dimensions: a sweep that ends in a figure.

Data are drawn from PPCA with as many latent dimensions as the model has, and are fitted by maximum likelihood.

Example:
    python experiments/noise_and_dimension.py --workers 2
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

import latentlab as ll

DELTAS = {"raw scores": "pca.similarity.delta", "after the exact map": "pca (mapped).orthogonal.delta"}


def figure(table: pd.DataFrame, path: Path) -> None:
    """Plot the mean delta over data sets against the noise, a line for each number of dimensions."""
    picture = Figure(figsize=(7.0, 3.4), layout="constrained")
    for axes, (title, column) in zip(picture.subplots(1, 2), DELTAS.items(), strict=True):
        for n_latent, rows in table.groupby("model.n_latent"):
            delta = rows.groupby("dataset.noise")[column].agg(["mean", "sem"])
            axes.errorbar(delta.index, delta["mean"], 2 * delta["sem"], marker="o", ms=4, label=f"{n_latent}")
        axes.axhline(1, color="black", lw=0.6, ls=":")
        axes.set(title=title, xscale="log", xlabel="standard deviation of the noise", ylim=(0, None))
        axes.set_ylabel("delta (0: posterior mean, 1: typical draw)")
    axes.legend(title="latent dimensions", frameon=False)
    picture.savefig(path, dpi=150)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--noises", type=float, nargs="+", default=[0.2, 0.5, 1.0, 2.0])
    parser.add_argument("--dimensions", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--n-datasets", type=int, default=3, help="data sets per cell")
    parser.add_argument("--executor", default="process")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "figures" / "noise_and_dimension.png")
    options = parser.parse_args(arguments)
    config = {
        "name": "noise-and-dimension",
        "dataset": {"name": "linear_gaussian", "n_units": 100, "standardize": False},
        "model": {"name": "ppca"},
        "inference": {"name": "exact", "n_draws": 400},
        "embeddings": [{"name": "pca"}],
        "compare": {"metrics": ["procrustes_similarity"]},
        "sweep": {
            "grid": {"dataset.noise": options.noises, "dataset.seed": list(range(options.n_datasets))},
            "zip": dict.fromkeys(("dataset.n_latent", "model.n_latent"), options.dimensions),
        },
    }
    table = ll.sweep(config, executor=options.executor, n_workers=options.workers).to_dataframe()
    print(table.groupby(["model.n_latent", "dataset.noise"])[[*DELTAS.values()]].agg(["mean", "sem"]).round(3).to_string())
    figure(table, options.out)
    shown = ["dataset.noise", "model.n_latent", "dataset.seed", "status", *DELTAS.values()]
    table[shown].to_csv(options.out.with_suffix(".csv"), index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
