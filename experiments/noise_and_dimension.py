"""Distance of PCA from PPCA's posterior mean by noise and number of latent dimensions: a sweep that ends in a figure.

Data are drawn from PPCA with as many latent dimensions as the model has, and are fitted by maximum likelihood.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

import latentlab as ll

CONFIG = {
    "name": "noise-and-dimension",
    "dataset": {"name": "linear_gaussian", "n_units": 100, "standardize": False},
    "model": {"name": "ppca"},
    "inference": {"name": "exact", "n_draws": 400},
    "embeddings": [{"name": "pca"}],
    "compare": {"metrics": ["procrustes_similarity"]},
}
DELTAS = {"raw scores": "pca.similarity.delta", "after the exact map": "pca (mapped).orthogonal.delta"}


def figure(table: pd.DataFrame, path: Path) -> None:
    """Plot the mean delta over data sets against the noise, two lines for each number of dimensions."""
    axes = Figure(figsize=(5.4, 3.6), layout="constrained").subplots()
    for i, (n_latent, rows) in enumerate(table.groupby("model.n_latent")):
        for (name, column), line, marker in zip(DELTAS.items(), ("-", "--"), ("o", "s"), strict=True):
            delta = rows.groupby("dataset.noise")[column].agg(["mean", "sem"])
            look = {"color": f"C{i}", "ls": line, "marker": marker, "ms": 4, "label": f"{n_latent}, {name}"}
            axes.errorbar(delta.index, delta["mean"], 2 * delta["sem"], **look)
    axes.set(xscale="log", xlabel="standard deviation of the noise", ylabel="delta (0: posterior mean, 1: typical draw)")
    axes.set_xticks(delta.index, [f"{noise:g}" for noise in delta.index], minor=False)
    axes.set_xticks([], minor=True)
    axes.legend(title="latent dimensions", frameon=False, fontsize=8)
    axes.figure.savefig(path, dpi=150)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--noises", type=float, nargs="+", default=[0.2, 0.5, 1.0, 2.0])
    parser.add_argument("--dimensions", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--n-datasets", type=int, default=3, help="data sets per cell")
    parser.add_argument("--executor", default="process")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "figures" / "noise_and_dimension.png")
    options = parser.parse_args(arguments)
    sweep = {"grid": {"dataset.noise": options.noises, "dataset.seed": list(range(options.n_datasets))}}
    sweep["zip"] = dict.fromkeys(("dataset.n_latent", "model.n_latent"), options.dimensions)
    table = ll.sweep({**CONFIG, "sweep": sweep}, executor=options.executor).to_dataframe()
    print(table.groupby(["model.n_latent", "dataset.noise"])[[*DELTAS.values()]].agg(["mean", "sem"]).round(3).to_string())
    figure(table, options.out)
    columns = ["dataset.noise", "model.n_latent", "dataset.seed", "status", *DELTAS.values()]
    table.to_csv(options.out.with_suffix(".csv"), columns=columns, index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
