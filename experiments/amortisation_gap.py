r"""Amortisation and approximation gap of a variational autoencoder by image, and its positions against MCMC and quadrature.

A variational autoencoder with two latent dimensions and a small decoder is fitted to images. Its parameters are then fixed. The
posterior of the position is computed for some training images and some held-out images, in four ways:

* by the encoder, N(m(x), diag s(x)^2);
* by the optimal Gaussian of this form for each image, from variational inference with the decoder fixed;
* by MCMC with the decoder fixed, from dispersed starting values. If R-hat shows that the four chains are in different modes,
  the pooled moments are not an estimate, and the image is counted and omitted;
* on a fine grid in the plane, which gives the evidence log p(x) and the posterior mean and standard deviation to high accuracy.

The inference gap is the evidence minus the ELBO of the encoder. It is the sum of the amortisation gap (ELBO of the optimal
Gaussian minus ELBO of the encoder) and the approximation gap (evidence minus ELBO of the optimal Gaussian). The approximation
gap is due to the Gaussian form and not to the encoder.

    python experiments/amortisation_gap.py           # the figure in figures/, two minutes

References:
    Cremer, Li & Duvenaud (2018), Inference Suboptimality in Variational Autoencoders, ICML.
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch
from scipy.special import logsumexp

import latentlab as ll
from latentlab.data.dataset import Dataset
from latentlab.fit import Fit
from latentlab.inference.arrays import parameter_tensors, tensors
from latentlab.results.convergence import rhat
from latentlab.seeds import Seeds, double

HALF_WIDTH, STEP, BLOCK = 6.0, 0.02, 20_000
RHAT = 1.05
N_NODES = 40
"""Nodes of Gauss-Hermite quadrature in each direction."""
COLORS = {"training": "#0072B2", "held out": "#D55E00"}


def fitted(*, n_steps: int, hidden: int, seed: int) -> tuple[Fit, Dataset]:
    """Return the fit of the autoencoder to nine tenths of the digits, and the remaining tenth."""
    digits = ll.load_dataset("digits", standardize=False, dequantize=True)
    training, held_out = digits.split(0.1, Seeds(seed).child("held_out").numpy())
    model = ll.models.VAE(n_latent=2, hidden=(hidden,), encoder_hidden=(128,), activation="tanh")
    method = ll.SVI(guide="model", n_steps=n_steps, learning_rate=0.005, n_particles=1, batch_size=128, n_draws=100)
    return ll.fit(model, training, method, seed=seed), held_out


class Decoder:
    """Gaussian decoder with fixed parameters, as a function of positions."""

    def __init__(self, fit: Fit) -> None:
        self.fit = fit
        self.parameters = parameter_tensors(fit.parameters)
        self.sigma = float(fit.parameters["sigma"])

    def log_joint(self, x: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Compute log p(x_n, z_g) `(unit, position)` for all pairs."""
        with torch.no_grad(), double():
            loc = self.fit.model.imputation({"x": torch.tensor(x)}, z=torch.from_numpy(z), **self.parameters).mean.numpy()
        squares = (x**2).sum(1)[:, None] - 2 * x @ loc.T + (loc**2).sum(1)
        constant = x.shape[1] * np.log(2 * np.pi * self.sigma**2) + z.shape[1] * np.log(2 * np.pi)
        return -0.5 * (squares / self.sigma**2 + (z**2).sum(1) + constant)

    def posterior(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Compute the evidence `(unit,)`, and mean and sd of the positions `(unit, 2)`, on a grid in the plane."""
        axis = np.arange(-HALF_WIDTH, HALF_WIDTH + STEP / 2, STEP)
        grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
        levels = np.concatenate([self.log_joint(x, grid[i : i + BLOCK]) for i in range(0, len(grid), BLOCK)], axis=1)
        total = logsumexp(levels, axis=1, keepdims=True)
        weights = np.exp(levels - total)
        mean = weights @ grid
        return total[:, 0] + 2 * np.log(STEP), mean, np.sqrt(weights @ grid**2 - mean**2)

    def elbo(self, x: np.ndarray, mean: np.ndarray, sd: np.ndarray) -> np.ndarray:
        """Compute the ELBO `(unit,)` of independent normals by quadrature."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(N_NODES)
        plane = np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2)
        mass = np.outer(weights, weights).ravel() / weights.sum() ** 2
        level = np.array([self.log_joint(row[None], m + s * plane)[0] @ mass for row, m, s in zip(x, mean, sd, strict=True)])
        return level + (np.log(sd) + 0.5 * np.log(2 * np.pi * np.e)).sum(1)


def run(*, n_units: int, n_steps: int = 3000, hidden: int = 32, n_draws: int = 500, seed: int = 0) -> pd.DataFrame:
    """Return a row per unit: evidence, ELBOs, gaps, and mean and sd of the position by each method."""
    fit, held_out = fitted(n_steps=n_steps, hidden=hidden, seed=seed)
    decoder, rows = Decoder(fit), []
    for kind, dataset in (("training", fit.dataset), ("held out", held_out)):
        chosen = Seeds(seed).child("units", kind).numpy().choice(dataset.n_units, n_units, replace=False)
        subset = dataset.subset(np.sort(chosen))
        frozen = fit.frozen()
        mcmc = ll.fit(frozen, subset, ll.NUTS(n_chains=4, n_warmup=300, n_draws=n_draws), seed=seed)
        best = ll.fit(frozen, subset, ll.SVI(guide="mean_field", n_steps=2000, n_particles=16, n_draws=4000), seed=seed)
        with torch.no_grad(), double():
            q = fit.model.latents(tensors(fit.model, subset), **decoder.parameters)
            encoder = (q.mean.numpy(), q.stddev.numpy())
        evidence, *exact = decoder.posterior(subset.x)
        by = {"encoder": encoder, "best": moments(best), "mcmc": moments(mcmc), "exact": tuple(exact)}
        elbo = {name: decoder.elbo(subset.x, *by[name]) for name in ("encoder", "best")}
        bound = fit.log_likelihood(subset, n_samples=5000).values[0, 0]
        table = {
            "units": kind, "unit": subset.units, "label": subset.labels, "evidence": evidence, "bound": bound,
            "elbo": elbo["encoder"], "gap": evidence - elbo["encoder"], "amortisation": elbo["best"] - elbo["encoder"],
            "approximation": evidence - elbo["best"], "rhat": rhat(mcmc.sites()["z"]).max(-1),
        }  # fmt: skip
        for name, (mean, sd) in by.items():
            for k in range(2):
                table |= {f"{name}_mean_{k}": mean[:, k], f"{name}_sd_{k}": sd[:, k]}
        rows.append(pd.DataFrame(table))
    return pd.concat(rows, ignore_index=True)


def moments(fit: Fit) -> tuple[np.ndarray, np.ndarray]:
    """Compute mean and sd of the positions over draws, in the axes of the decoder."""
    z = fit.sites()["z"]
    return z.mean((0, 1)), z.std((0, 1))


def summary(found: pd.DataFrame) -> pd.DataFrame:
    """Compute means of the gaps over units, and median errors of the positions in sds of the exact posterior."""
    rows = []
    for kind, part in found.groupby("units", sort=False):
        row: dict[str, object] = {"units": kind, "n": len(part)}
        for column in ("gap", "amortisation", "approximation"):
            row |= {column: part[column].mean(), f"{column}_se": part[column].std(ddof=1) / np.sqrt(len(part))}
        row["evidence_less_bound"] = (part["evidence"] - part["bound"]).median()
        agree = part[part["rhat"] < RHAT]
        row["mcmc_agrees"] = len(agree)
        for name in ("encoder", "best", "mcmc"):
            part = agree if name == "mcmc" else part
            errors = [(part[f"{name}_mean_{k}"] - part[f"exact_mean_{k}"]).abs() / part[f"exact_sd_{k}"] for k in range(2)]
            ratio = [part[f"{name}_sd_{k}"] / part[f"exact_sd_{k}"] for k in range(2)]
            row |= {f"{name}_off": np.median(np.concatenate(errors)), f"{name}_sd_ratio": np.median(np.concatenate(ratio))}
        rows.append(row)
    return pd.DataFrame(rows)


def figure(found: pd.DataFrame, path: Path) -> None:
    """Plot the two gaps of each unit, and means and sds by the encoder and by MCMC against the exact values."""
    with matplotlib.rc_context({"backend": "Agg", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        from matplotlib.figure import Figure

        picture = Figure(figsize=(10, 3.5), layout="constrained")
        gaps, means, sds = picture.subplots(1, 3)
        for kind, part in found.groupby("units", sort=False):
            style = {"color": COLORS[kind], "s": 16, "alpha": 0.8, "lw": 0}
            x, y = part["approximation"].clip(lower=1e-3), part["amortisation"].clip(lower=1e-3)
            gaps.scatter(x, y, label=kind, **style)
            for k in range(2):
                for axes, what in ((means, "mean"), (sds, "sd")):
                    exact = part[f"exact_{what}_{k}"]
                    axes.scatter(exact, part[f"encoder_{what}_{k}"], label="encoder" if not k else None, **style)
                    agree = part["rhat"] < RHAT
                    axes.scatter(exact[agree], part[f"mcmc_{what}_{k}"][agree], marker="x", color="black", s=12, lw=0.7)
        gaps.set(
            xscale="log", yscale="log", xlabel="approximation gap, nats", ylabel="amortisation gap, nats", title="gaps by image"
        )
        low, high = gaps.get_xlim()[0], max(gaps.get_xlim()[1], gaps.get_ylim()[1])
        gaps.plot([low, high], [low, high], color="black", lw=0.6, ls=":")
        gaps.legend(frameon=False)
        for axes, what in ((means, "mean"), (sds, "sd")):
            low, high = axes.get_xlim()
            axes.plot([low, high], [low, high], color="black", lw=0.6, ls=":")
            axes.set(
                xlabel=f"{what} by quadrature", ylabel=f"{what} by the encoder (crosses: MCMC)", title=f"{what} of the positions"
            )
        sds.set(xscale="log", yscale="log")
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.savefig(path, dpi=150)


def main(arguments: list[str] | None = None) -> None:
    """Print the summary, and save the figure and the table by unit."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--n-units", type=int, default=30, help="number of training images, and of held-out images")
    parser.add_argument("--n-steps", type=int, default=3000)
    parser.add_argument("--hidden", type=int, default=32, help="size of the decoder's hidden layer")
    parser.add_argument("--n-draws", type=int, default=500, help="draws of each of the four chains")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "figures" / "amortisation_gap.png")
    options = parser.parse_args(arguments)
    found = run(
        n_units=options.n_units, n_steps=options.n_steps, hidden=options.hidden, n_draws=options.n_draws, seed=options.seed
    )
    with pd.option_context("display.width", 200, "display.max_columns", 30, "display.precision", 3):
        print(summary(found).T.to_string(header=False))
    figure(found, options.out)
    found.to_csv(options.out.with_suffix(".csv"), index=False, float_format="%.5g")
    print(f"figure: {options.out}")


if __name__ == "__main__":
    main()
