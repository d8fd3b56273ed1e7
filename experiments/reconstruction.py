r"""Held-out reconstruction and neighbours' labels of two-dimensional positions: GPLVM, PCA, VAE, Isomap and UMAP.

Data are images of handwritten digits, with the digit as label, and simulated three-phase flow in a pipe, labelled by its
configuration. For each seed a fifth of the units is held out, and every method is fitted to the others:

* `reconstruction`: root mean square error of the held-out units' data at their inferred positions, for methods with a map from
  positions to data;
* `by neighbours`: the same for units of the fit, each reconstructed by the mean of its 5 nearest units' data, for all methods;
* `label error`: share of units of the fit whose nearest unit has another label.

All data are divided by one number, so that their overall variance is 1. Means and standard errors are over seeds.

    python experiments/reconstruction.py    # about fifteen minutes on two cores
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.neighbors import NearestNeighbors

import latentlab as ll
from latentlab.data.dataset import Dataset
from latentlab.data.pipe import three_phase_flow
from latentlab.seeds import Seeds

N_NEIGHBORS = 5
HELD_OUT = 0.2
SEEDS = (0, 1, 2, 3, 4)
DATA: Mapping[str, Callable[[int], Dataset]] = {
    "digits": lambda seed: ll.load_dataset("digits", standardize=False),
    "three_phase_flow": lambda seed: three_phase_flow(seed=seed),
}


def scaled(dataset: Dataset) -> Dataset:
    """Centre the columns, drop constant ones, and divide by one number."""
    x = dataset.x - dataset.x.mean(0)
    varies = x.std(0) > 0
    x = x[:, varies] / x[:, varies].std()
    return replace(dataset, arrays={"x": x}, coords={**dataset.coords, "feature": dataset.features[varies]})


def fitted(name: str, n_steps: int) -> tuple[Any, ll.SVI]:
    """Model and method of inference, by name."""
    steps: dict[str, Any] = {"guide": "model", "n_steps": n_steps, "batch_size": 100, "n_particles": 1, "n_draws": 50}
    if name == "VAE":
        return ll.models.VAE(n_latent=2, hidden=(128,)), ll.SVI(**steps, learning_rate=0.003)
    return ll.models.SparseGPLVM(n_latent=2, n_inducing=50), ll.SVI(**steps, learning_rate=0.01)


def of_model(name: str, training: Dataset, held_out: Dataset, n_steps: int, seed: int) -> tuple[np.ndarray, float]:
    """Mean positions of the units of a fit, and the error of held-out units at their mean positions."""
    model, svi = fitted(name, n_steps)
    fit = ll.fit(model, training, svi, seed=seed, progress=False)
    values = {key: torch.tensor(value) for key, value in fit.parameters.items()}
    new = {"x": torch.tensor(held_out.x), "mask": None, "row": None}
    with torch.no_grad():
        z = model.latents(new, **values).mean  # in the axes of the parameters; those of `fit.latents` are aligned
        mean = model.imputation(new, z=z, **values).mean.numpy()
    return fit.latents().values.mean((0, 1)), rms(mean - held_out.x)


def of_pca(training: Dataset, held_out: Dataset) -> tuple[np.ndarray, float]:
    """Scores of the first two components, and the error of held-out units at theirs."""
    centre = training.x.mean(0)
    axes = np.linalg.svd(training.x - centre, full_matrices=False)[2][:2]
    return (training.x - centre) @ axes.T, rms((held_out.x - centre) @ (axes.T @ axes) + centre - held_out.x)


def rms(errors: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt((errors**2).mean()))


def by_neighbours(z: np.ndarray, dataset: Dataset) -> dict[str, float]:
    """Errors of data and labels by the units with the nearest positions."""
    nearest = NearestNeighbors(n_neighbors=N_NEIGHBORS).fit(z).kneighbors(return_distance=False)
    labels = np.asarray(dataset.labels)
    return {
        "by neighbours": rms(dataset.x[nearest].mean(1) - dataset.x),
        "label error": float((labels[nearest[:, 0]] != labels).mean()),
    }


def run(data: Sequence[str] = tuple(DATA), *, seeds: Sequence[int] = SEEDS, n_steps: int = 5000) -> pd.DataFrame:
    """Return the scores of each method, data set and seed."""
    rows = []
    for name in data:
        for seed in seeds:
            training, held_out = scaled(DATA[name](seed)).split(HELD_OUT, Seeds(seed).child("reconstruction").numpy())
            found = {"PCA": of_pca(training, held_out)}
            for model in ("GPLVM", "VAE"):
                found[model] = of_model(model, training, held_out, n_steps, seed)
            for embedding in ("isomap", "umap"):
                values = ll.embed(embedding, training, **({"n_seeds": 1} if embedding == "umap" else {})).values
                found[embedding] = values.reshape(-1, *values.shape[-2:])[0], float("nan")
            for method, (z, error) in found.items():
                rows.append({"data": name, "method": method, "seed": seed, "reconstruction": error, **by_neighbours(z, training)})
                print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    return pd.DataFrame(rows)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Return mean and standard error over seeds of each score."""
    grouped = table.drop(columns="seed").groupby(["data", "method"], sort=False)
    return grouped.mean().join(grouped.sem().add_suffix(" (se)")).reset_index()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the experiment, print its table, and save the rows of all seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--n-steps", type=int, default=5000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "figures" / "reconstruction.csv")
    options = parser.parse_args(arguments)
    table = run(options.data, seeds=options.seeds, n_steps=options.n_steps)
    print(summary(table).round(3).to_string(index=False))
    table.to_csv(options.out, index=False, float_format="%.6g")


if __name__ == "__main__":
    main()
