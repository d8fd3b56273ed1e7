r"""The optimal ELBO of the linear VAE equals PPCA's log likelihood; posterior collapse at fixed noise variances.

For each data set the ELBO is maximised from random starts and compared with PPCA's log likelihood in closed form. The script
reports the difference, and the distance of W from the principal axes up to order and signs of the columns. The noise variance
sigma^2 is then fixed at a sequence of values. The encoder uses the dimensions whose eigenvalue of the data's covariance exceeds
sigma^2, as does the maximum of the likelihood. Posterior collapse is therefore a property of the likelihood and not of the
ELBO.

    python experiments/linear_vae_is_ppca.py           # the figure in figures/, a minute

References:
    Lucas, Tucker, Grosse & Norouzi (2019), Don't Blame the ELBO! A Linear VAE Perspective on Posterior Collapse, NeurIPS.
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment
from tqdm.auto import tqdm

import latentlab as ll
from latentlab.data.dataset import Dataset
from latentlab.inference.arrays import tensors
from latentlab.seeds import Seeds

DATASETS = ("iris", "wine", "breast_cancer")
N_LATENT = {"iris": 2, "wine": 4, "breast_cancer": 4}
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


def starts(name: str, *, n_starts: int, seed: int) -> list[dict[str, object]]:
    """Return a row per start: the ELBO minus PPCA's log likelihood, and the distance of W from the principal axes."""
    dataset, q = ll.load_dataset(name), N_LATENT[name]
    ppca = ll.fit(ll.models.PPCA(n_latent=q), dataset, ll.Exact(n_draws=1), seed=seed)
    W, level = ppca.sites()["W"][0, 0], float(ppca.data["log_likelihood"]["log_likelihood"].values.sum())
    model, rows = ll.models.LinearVAE(n_latent=q), []
    for start in tqdm(range(n_starts), desc=name, disable=None):
        found = model.maximum_likelihood(tensors(model, dataset), Seeds(seed).child("start", start).numpy())
        row = {"dataset": name, "n_latent": q, "start": start, "bound": float(found.trace[-1]), "log_likelihood": level}
        rows.append({**row, "difference": found.trace[-1] - level, "W": distance(found.values["W"], W)})
    return rows


def distance(loadings: np.ndarray, reference: np.ndarray) -> float:
    """Compute the relative distance of loadings up to order and signs of the columns."""
    products = loadings.T @ reference
    i, j = linear_sum_assignment(-np.abs(products))
    aligned = loadings[:, i] * np.sign(products[i, j])
    return float(np.linalg.norm(aligned - reference[:, j]) / np.linalg.norm(reference))


def collapse(dataset: Dataset, q: int, *, n_noises: int, seed: int) -> pd.DataFrame:
    """Return activity, KL and the number of eigenvalues above sigma^2, by noise variance and dimension (most active first)."""
    eigenvalues = np.linalg.eigvalsh(np.cov(dataset.x.T, ddof=0))[::-1]
    middle = np.sqrt(
        eigenvalues[:q] * eigenvalues[1 : q + 1]
    )  # between neighbouring eigenvalues, where the expected number is certain
    grid = np.geomspace(eigenvalues[q] * 0.7, eigenvalues[0] * 1.3, n_noises)
    rows = []
    for sigma2 in tqdm(np.sort([*grid, *middle]), desc="collapse", disable=None):
        model = ll.models.LinearVAE(n_latent=q, sigma=float(np.sqrt(sigma2)))
        fit = ll.fit(model, dataset, ll.Exact(n_restarts=1, n_draws=2), seed=seed)
        table = fit.activity().sort_values("activity", ascending=False, ignore_index=True)
        expected = int((eigenvalues[:q] > sigma2).sum())
        rows += [
            {"sigma2": sigma2, "dimension": k, "activity": row.activity, "kl": row.kl, "active": row.active, "expected": expected}
            for k, row in enumerate(table.itertuples())
        ]
    return pd.DataFrame(rows)


def figure(found: pd.DataFrame, used: pd.DataFrame, eigenvalues: np.ndarray, path: Path) -> None:
    """Plot the differences by start, and the KL divergence of each dimension by noise variance."""
    with matplotlib.rc_context({"backend": "Agg", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        from matplotlib.figure import Figure

        picture = Figure(figsize=(9, 3.6), layout="constrained")
        left, right = picture.subplots(1, 2)
        for color, (name, rows) in zip(COLORS, found.groupby("dataset", sort=False), strict=False):
            left.semilogy(rows["start"], rows["difference"].abs().clip(lower=1e-13), "o-", color=color, lw=0.8, label=name)
        left.axhline(1e-6, color="black", lw=0.8, ls="--")
        left.set(xlabel="random start", ylabel="|ELBO − PPCA's log likelihood|, nats", title="ELBO at its maximum")
        left.legend(frameon=False, loc="upper right", bbox_to_anchor=(1.0, 0.92))
        for k, rows in used.groupby("dimension"):
            right.semilogx(
                rows["sigma2"], rows["kl"], "o-", ms=3, lw=1, color=COLORS[k % len(COLORS)], label=f"dimension {k + 1}"
            )
            right.axvline(eigenvalues[k], color=COLORS[k % len(COLORS)], lw=0.8, ls=":")
        shown = [value for value in (0.5, 1, 2, 4, 8, 16, 32) if used["sigma2"].min() <= value <= used["sigma2"].max()]
        right.set_xticks(shown, [f"{value:g}" for value in shown])
        right.minorticks_off()
        right.set(
            xlabel="fixed noise variance", ylabel="KL from the prior, nats per unit", title="collapse at the eigenvalues (dotted)"
        )
        right.legend(frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.savefig(path, dpi=150)


def main(arguments: list[str] | None = None) -> None:
    """Print both tables, and save the figure and the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=list(DATASETS))
    parser.add_argument("--n-starts", type=int, default=8)
    parser.add_argument("--n-noises", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "figures" / "linear_vae_is_ppca.png")
    options = parser.parse_args(arguments)
    found = pd.DataFrame([r for name in options.datasets for r in starts(name, n_starts=options.n_starts, seed=options.seed)])
    last = ll.load_dataset(options.datasets[-1])
    used = collapse(last, N_LATENT[options.datasets[-1]], n_noises=options.n_noises, seed=options.seed)
    with pd.option_context("display.width", 200, "display.max_rows", 200):
        print(found.to_string(index=False, float_format=lambda value: f"{value:.10g}"))
    for name, rows in found.groupby("dataset", sort=False):
        reached = (rows["difference"].abs() < 1e-6) & (rows["W"] < 1e-3)
        print(
            f"{name}: {int(reached.sum())} of {len(rows)} starts reach PPCA's maximum; largest relative distance of W "
            f"{rows['W'].max():.1e}"
        )
    counts = used.groupby("sigma2").agg(active=("active", "sum"), expected=("expected", "first"))
    same = int((counts["active"] == counts["expected"]).sum())
    print(
        f"{last.name}: at {same} of {len(counts)} noise variances, the active dimensions are as many as the eigenvalues above it"
    )
    eigenvalues = np.linalg.eigvalsh(np.cov(last.x.T, ddof=0))[::-1]
    figure(found, used, eigenvalues, options.out)
    found.to_csv(options.out.with_suffix(".csv"), index=False, float_format="%.10g")
    used.to_csv(options.out.with_name(f"{options.out.stem}_collapse.csv"), index=False, float_format="%.6g")
    print(f"figure: {options.out}")


if __name__ == "__main__":
    main()
