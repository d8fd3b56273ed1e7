r"""Held-out bounds of variational autoencoders with different networks and the same latent dimension, over several seeds.

The data are dequantised images of handwritten digits. For each seed, a tenth of the images is held out, and all networks are
trained on the others. The score is the importance-weighted bound of the held-out images, in nats per image. Differences from the
multilayer network are paired by image; their standard error is over seeds, which differ in split, starting values and batches.

Example:
    python experiments/networks_of_vae.py --networks multilayer residual --seeds 3 4
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import latentlab as ll
from latentlab.seeds import Seeds

N_LATENT = 2
SEEDS = tuple(range(5))
HELD_OUT = 0.1
N_SAMPLES = 500
"""Importance samples per image."""
NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "multilayer": {"hidden": (128,)},
    "wide multilayer": {"hidden": (197,)},
    "convolutional": {side: {"name": "convolutional", "channels": [32, 64]} for side in ("encoder", "decoder")},
    "residual": {"encoder": "residual", "decoder": "residual"},
}


def run(
    names: Sequence[str] = tuple(NETWORKS),
    *,
    seeds: Sequence[int] = SEEDS,
    n_steps: int = 3000,
    n_latent: int = N_LATENT,
    n_samples: int = N_SAMPLES,
) -> pd.DataFrame:
    """Return the bound of each network and seed, its difference from that of the first network, and the number of parameters."""
    dataset = ll.load_dataset("digits", dequantize=True, standardize=False)
    steps: dict[str, Any] = {"n_steps": n_steps, "learning_rate": 0.002, "n_particles": 1, "batch_size": 128}
    svi = ll.SVI(guide="model", **steps, n_draws=2, precision="single", compiled=False)
    rows = []
    for seed in seeds:
        training, held_out = dataset.split(HELD_OUT, Seeds(seed).child("networks").numpy())
        first: np.ndarray | None = None
        for name in names:
            found = ll.fit(ll.models.VAE(n_latent=n_latent, **NETWORKS[name]), training, svi, seed=seed, progress=False)
            bound = found.log_likelihood(held_out, n_samples=n_samples).values[0, 0]
            first = bound if first is None else first
            size = sum(value.size for value in found.parameters.values())
            rows.append(
                {"network": name, "seed": seed, "bound": bound.mean(), "difference": (bound - first).mean(), "size": size}
            )
            print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    return pd.DataFrame(rows)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Return mean and standard error over seeds of each network's bound and difference."""

    def se(values: pd.Series) -> float:
        return float(values.std(ddof=1) / np.sqrt(len(values)))

    found = table.groupby("network", sort=False).agg(
        parameters=("size", "first"),
        bound=("bound", "mean"),
        bound_se=("bound", se),
        difference=("difference", "mean"),
        difference_se=("difference", se),
    )
    return found.reset_index()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the experiment, print its table, and save the rows of all seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--n-steps", type=int, default=3000)
    parser.add_argument("--n-latent", type=int, default=N_LATENT)
    parser.add_argument("--n-samples", type=int, default=N_SAMPLES)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "figures" / "networks_of_vae.csv")
    options = parser.parse_args(arguments)
    table = run(
        options.networks,
        seeds=options.seeds,
        n_steps=options.n_steps,
        n_latent=options.n_latent,
        n_samples=options.n_samples,
    )
    print(summary(table).round(3).to_string(index=False))
    table.to_csv(options.out, index=False, float_format="%.6g")


if __name__ == "__main__":
    main()
