r"""Held-out log density of a deep variational autoencoder and of PPCA with the same latent dimensions and form of noise.

The data are dequantised images of handwritten digits, a tenth of them held out. For PPCA at maximum likelihood the log density
of the held-out images is exact. For the autoencoder, trained on the same images, it is a lower bound: the log mean of the
importance weights of its encoder. Both models have Gaussian noise with the same variance in all pixels. If the bound exceeds
the exact density, the nonlinear decoder predicts better.

Example:
    python experiments/deep_vae.py --n-latent 2 8 16
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

import latentlab as ll
from latentlab.seeds import Seeds

N_LATENT = (2, 8, 16)
HELD_OUT = 0.1
HIDDEN = (128,)
N_SAMPLES = 1000
"""Importance samples per image."""


def run(
    n_latent: Sequence[int] = N_LATENT,
    *,
    n_steps: int = 6000,
    hidden: Sequence[int] = HIDDEN,
    n_samples: int = N_SAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Return held-out log densities of both models and their difference, in nats per image, by number of latent dimensions."""
    dataset = ll.load_dataset("digits", dequantize=True, standardize=False)
    training, held_out = dataset.split(HELD_OUT, Seeds(seed).child("deep_vae").numpy())
    svi = ll.SVI(guide="model", n_steps=n_steps, learning_rate=0.002, n_particles=1, batch_size=128, n_draws=20)
    rows = []
    for q in n_latent:
        deep = ll.fit(ll.models.VAE(n_latent=q, hidden=tuple(hidden)), training, svi, seed=seed)
        flat = ll.fit(ll.models.PPCA(n_latent=q), training, ll.Exact(n_draws=2), seed=seed)
        bound = deep.log_likelihood(held_out, n_samples=n_samples).values[0, 0]
        elbo = deep.log_likelihood(held_out, n_samples=1).values[0, 0]
        exact = flat.log_likelihood(held_out).values[0, 0]
        row: dict[str, float] = {"n_latent": q, "active": int(deep.activity()["active"].sum())}
        for name, values in (("vae", bound), ("ppca", exact), ("difference", bound - exact), ("vae, one sample", elbo)):
            row |= {name: values.mean(), f"{name} se": values.std(ddof=1) / np.sqrt(len(values))}
        rows.append(row)
    return pd.DataFrame(rows)


def figure(table: pd.DataFrame, path: Path) -> None:
    """Plot the log densities of both models by number of latent dimensions."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(5.0, 3.6), layout="constrained")
    axes = picture.subplots()
    for name, color, marker, label in (("vae", "#0072B2", "o", "VAE (lower bound)"), ("ppca", "#D55E00", "s", "PPCA (exact)")):
        error = 2 * table[f"{name} se"]
        axes.errorbar(table["n_latent"], table[name], yerr=error, color=color, marker=marker, label=label)
    axes.set(xlabel="latent dimensions", ylabel="held-out log density, nats per image", xticks=table["n_latent"])
    axes.grid(color="#e4e4e4")
    axes.legend(frameon=False)
    picture.savefig(path, dpi=150)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the experiment, print its table, and save table and figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-latent", type=int, nargs="+", default=list(N_LATENT))
    parser.add_argument("--n-steps", type=int, default=6000)
    parser.add_argument("--hidden", type=int, nargs="+", default=list(HIDDEN))
    parser.add_argument("--n-samples", type=int, default=N_SAMPLES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "figures" / "deep_vae.png")
    options = parser.parse_args(arguments)
    table = run(options.n_latent, n_steps=options.n_steps, hidden=options.hidden, n_samples=options.n_samples, seed=options.seed)
    print(table.round(2).to_string(index=False))
    table.to_csv(options.out.with_suffix(".csv"), index=False, float_format="%.4g")
    figure(table, options.out)


if __name__ == "__main__":
    main()
