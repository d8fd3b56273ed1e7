r"""Which methods unroll the Swiss roll, over noise, number of units and a hole, and how well a posterior covers the true sheet.

The true coordinates of each unit are lengths on the sheet. A Gaussian process latent variable model (`sparse_gplvm`, RBF kernel
with a lengthscale for each dimension, collapsed bound) is fitted from several embeddings as starts, and the start with the best
bound is the result. Its positions are in units of their lengthscales. Nine embeddings of the same data are compared with it. For
each set of positions:

* `similarity`: R^2 of the true coordinates given the positions after rotation, reflection, shift and one scale;
* `smooth`: R^2 after a smooth map from positions to coordinates, by predictions for left-out units; low for a folded sheet;
* `geodesic`: correlation of distances along the neighbour graphs of positions and true coordinates;
* `isometry`: share of the neighbourhoods' sum of squares that rotations and one scale explain;
* `verdict` and `delta` of the embedding under the posterior, after a similarity transformation;
* for the model, the share of true coordinates in the 50%, 80% and 95% ellipses of the units, after a smooth map.

    python experiments/swiss_roll.py            # tables and figure in figures/, about an hour on two cores
    python experiments/swiss_roll.py --figure   # the figure only, about five minutes
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from tqdm.auto import tqdm

import latentlab as ll
from latentlab.compare.geodesic import geodesic_distance_correlation
from latentlab.compare.isometry import local_isometry
from latentlab.compare.smooth_map import smooth_map_coverage
from latentlab.compare.verdict import Reference
from latentlab.data.dataset import Dataset
from latentlab.data.manifolds import swiss_roll
from latentlab.seeds import Seeds

BASE: Mapping[str, Any] = {"n_units": 1000, "noise": 0.05, "hole": 0.0}
CELLS: Sequence[Mapping[str, Any]] = (
    BASE,
    {**BASE, "noise": 0.3},
    {**BASE, "n_units": 300},
    {**BASE, "hole": 0.5},
)
"""The base case, and cases that differ from it in one respect."""
EMBEDDINGS = ("pca", "mds", "kernel_pca", "isomap", "lle", "spectral", "tsne", "umap")
DRAWN = {"pca": "PCA", "isomap": "Isomap", "lle": "LLE", "spectral": "Laplacian eigenmap", "tsne": "t-SNE", "umap": "UMAP"}
STARTS = ("isomap", "spectral", "pca")
LEVELS = (50, 80, 95)
MODEL = "GPLVM"


def posterior(dataset: Dataset, start: str, n_inducing: int, n_steps: int, seed: int) -> tuple[float, np.ndarray]:
    """Return the bound of a fit, and draws `(chain, draw, unit, latent)` of the positions in units of their lengthscales."""
    model = ll.models.SparseGPLVM(n_latent=2, n_inducing=n_inducing, ard=True, posterior="full", elbo="collapsed", start=start)
    svi = ll.SVI(guide="model", n_steps=n_steps, n_draws=400)
    fit = ll.fit(model, dataset, svi, seed=seed, progress=False)
    return float(fit.data["optimization"]["elbo"].max()), fit.data["posterior"]["z"].values / fit.parameters["lengthscale"]


def scores(positions: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Compare positions `(unit, latent)` with the true coordinates."""
    spread = (
        1e-3 * truth.std() * np.random.default_rng(0).standard_normal((1, 20, *truth.shape))
    )  # a map needs draws of its target
    found = smooth_map_coverage(truth + spread - spread.mean(1), positions, alignment="fixed")
    return {
        "similarity": found.similarity_r2,
        "smooth": found.smooth_r2,
        "geodesic": geodesic_distance_correlation(positions, truth),
        "isometry": local_isometry(positions, truth),
    }


def one(
    cell: Mapping[str, Any], seed: int, starts: Sequence[str] = STARTS, n_inducing: int = 60, n_steps: int = 1500
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the rows of a data set, and its arrays for the figure."""
    dataset = swiss_roll(**cell, seed=seed)
    dataset = replace(dataset, arrays={"x": dataset.x - dataset.x.mean(0)})
    truth = dataset.truth["z"]
    fits = {start: posterior(dataset, start, n_inducing, n_steps, seed) for start in starts}
    rows: list[dict[str, Any]] = []
    for start, (bound, draws) in fits.items():
        found = smooth_map_coverage(draws, truth, alignment="fixed")
        covered = {f"covered_{level}": share for level, share in zip(LEVELS, found.coverage.pointwise, strict=True)}
        errors = {f"se_{level}": share for level, share in zip(LEVELS, found.standard_errors, strict=True)}
        rows.append(
            {"positions": f"{MODEL} from {start}", "bound": bound, **scores(draws.mean((0, 1)), truth), **covered, **errors}
        )
    best = max(fits, key=lambda start: fits[start][0])
    rows.append({**rows[list(fits).index(best)], "positions": MODEL, "start": best})
    draws = fits[best][1]
    reference = Reference(draws, "similarity", Seeds(seed).child("verdict").numpy())
    arrays: dict[str, Any] = {"dataset": dataset, "draws": draws, "embeddings": {}}
    for name in EMBEDDINGS:
        values = ll.embed(name, dataset, **({"n_seeds": 1} if name in ("tsne", "umap") else {})).values
        values = values[0] if values.ndim == 3 else values
        judged = reference.judge(values)
        rows.append({"positions": name, **scores(values, truth), "verdict": judged.verdict, "delta": judged.delta})
        arrays["embeddings"][name] = values, judged
    return [{**cell, "seed": seed, **row} for row in rows], arrays


def run(cells: Sequence[Mapping[str, Any]] = CELLS, seeds: Sequence[int] = (0, 1), **settings: Any) -> pd.DataFrame:
    """Return the rows of all data sets."""
    rows: list[dict[str, Any]] = []
    for cell, seed in tqdm([(cell, seed) for seed in seeds for cell in cells], desc="swiss_roll", disable=None):
        rows += one(cell, seed, **settings)[0]
        print(pd.DataFrame(rows[-len(EMBEDDINGS) - len(STARTS) - 1 :]).to_csv(index=False, header=False), flush=True)
    return pd.DataFrame(rows)


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Compute mean and standard error over data sets of each score, and the most frequent verdict."""
    keys = ["n_units", "noise", "hole", "positions"]
    numbers = [c for c in rows.columns if c not in (*keys, "seed", "verdict", "start") and not c.startswith("se_")]
    grouped = rows.groupby(keys, sort=False)
    found = grouped[numbers].mean()
    errors = grouped[numbers].sem().add_suffix("_sem")
    verdicts = grouped["verdict"].agg(lambda v: v.mode().iloc[0] if v.notna().any() else "")
    return found.join(errors).join(verdicts).reset_index()


def figure(arrays: Mapping[str, Any], path: Path) -> None:
    """Draw the roll, the true sheet, the posterior with its 80% ellipses, and six embeddings with their verdicts.

    In the enlarged part, crosses are the true coordinates after the smooth map.
    """
    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    from matplotlib.collections import EllipseCollection

    dataset, draws = arrays["dataset"], arrays["draws"]
    truth, x = dataset.truth["z"], dataset.x
    found = smooth_map_coverage(draws, truth, alignment="fixed")
    colours = {"c": truth[:, 0], "cmap": "turbo", "s": 4, "linewidths": 0}
    canvas = plt.figure(figsize=(10, 9.6), layout="constrained")
    roll = canvas.add_subplot(3, 3, 1, projection="3d")
    roll.scatter(*x.T, **colours)
    roll.view_init(12, -72)
    roll.set_box_aspect((1, 1, 1), zoom=1.35)
    roll.set_axis_off()
    roll.set_title("data: a rolled sheet", fontsize=10)

    def panel(i: int, positions: np.ndarray, title: str, text: str) -> Any:
        axes = canvas.add_subplot(3, 3, i)
        axes.scatter(*positions.T, **colours)
        axes.set_aspect("equal", adjustable="datalim")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(text, fontsize=9)
        return axes

    panel(2, truth, "truth: lengths on the sheet", "")
    mean, covariance = draws.mean((0, 1)), np.stack([np.cov(unit.reshape(-1, 2).T) for unit in draws.transpose(2, 0, 1, 3)])
    turned, turn = _turned(mean, truth)
    r2 = scores(mean, truth)
    share = f"80% ellipses hold {found.coverage.pointwise[1]:.0%} of the true coordinates"
    axes = panel(
        3, turned, "posterior of the GPLVM", f"{share}\n$R^2$ {r2['similarity']:.3f}, after a smooth map {r2['smooth']:.3f}"
    )
    values, vectors = np.linalg.eigh(turn.T @ covariance @ turn)
    widths = 2 * np.sqrt(values * -2 * np.log(0.2))
    angles = np.degrees(np.arctan2(vectors[:, 1, 1], vectors[:, 0, 1]))
    mapped = (found.mapped - mean.mean(0)) @ turn
    inset = axes.inset_axes((0.3, 0.02, 0.4, 0.28))
    for each in (axes, inset):
        ellipses = EllipseCollection(
            widths[:, 1], widths[:, 0], angles, units="xy", offsets=turned, offset_transform=each.transData,
            facecolors="none", edgecolors="black", linewidths=0.3 if each is axes else 0.8,
        )  # fmt: skip
        each.add_collection(ellipses)
    inset.scatter(*turned.T, **{**colours, "s": 12})
    inset.scatter(*mapped.T, marker="x", c="black", s=14, linewidths=0.8)
    middle, half = np.median(turned, axis=0), 0.015 * np.ptp(turned[:, 0]) * np.array([1.0, 0.7])
    (left, low), (right, high) = middle - half, middle + half
    inset.set(xlim=(left, right), ylim=(low, high), xticks=[], yticks=[])
    axes.indicate_inset_zoom(inset, edgecolor="black")
    for i, (name, title) in enumerate(DRAWN.items(), 4):
        values, judged = arrays["embeddings"][name]
        r2 = scores(values, truth)
        text = f"{judged.verdict}, delta {judged.delta:.0f}\n$R^2$ {r2['similarity']:.3f}, after a smooth map {r2['smooth']:.3f}"
        panel(i, _turned(values, truth)[0], title, text)
    canvas.savefig(path, dpi=120)
    plt.close(canvas)


def _turned(positions: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotate or reflect centred positions towards the true coordinates; return them and the rotation."""
    centred = positions - positions.mean(0)
    u, _, v = np.linalg.svd(centred.T @ (truth - truth.mean(0)))
    return centred @ (u @ v), u @ v


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the experiment, print its table, and save the rows and the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figure", action="store_true", help="draw the figure only")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--n-units", type=int, help="number of units in all cells")
    parser.add_argument("--n-inducing", type=int, default=60)
    parser.add_argument("--n-steps", type=int, default=1500)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "figures")
    options = parser.parse_args(arguments)
    settings = {"n_inducing": options.n_inducing, "n_steps": options.n_steps}
    base = {**BASE, "n_units": options.n_units or BASE["n_units"]}
    figure(one(base, options.seeds[0], starts=STARTS[:1], **settings)[1], options.out / "swiss_roll.png")
    if options.figure:
        return
    cells = CELLS if options.n_units is None else [{**cell, "n_units": options.n_units} for cell in CELLS[:2]]
    rows = run(cells, options.seeds, **settings)
    rows.to_csv(options.out / "swiss_roll.csv", index=False, float_format="%.6g")
    print(table(rows).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
