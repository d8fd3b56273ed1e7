r"""Agreement of PCA with the posterior positions of PPCA, by noise and number of units.

Data are drawn from PPCA, $x_n = W z_n + \mu + \sigma \varepsilon_n$ with $W_{dk}, \mu_d \sim N(0, 1)$, so the true positions
are known. For each noise and number of units the model is fitted, and its posterior is compared with

* PCA scores, raw and mapped by the known correspondence: verdict and delta (0 at the posterior mean, 1 at a typical draw);
* the true positions: verdict, and the share of them in their 50%, 80% and 95% credible regions.

    python experiments/pca_is_ppca.py --method svi --n-datasets 6     # the figure in figures/, about fifteen minutes
    python experiments/pca_is_ppca.py                                 # by NUTS, more than an hour; small noise is slow
"""

import argparse
from pathlib import Path

import matplotlib
import pandas as pd
from tqdm.auto import tqdm

import latentlab as ll
from latentlab.compare.verdict import Reference
from latentlab.correspondences.maps import shrunk_axes
from latentlab.data.simulators import linear_gaussian
from latentlab.errors import LatentLabError
from latentlab.seeds import Seeds

NOISES = (0.1, 0.3, 1.0, 2.0, 4.0)
SIZES = (30, 100, 300)
N_FEATURES = 10
LEVELS = (50, 80, 95)
METHODS = {
    "nuts": ll.NUTS(n_chains=4, n_warmup=300, n_draws=400),
    "svi": ll.SVI(guide="full_rank", n_steps=2000, n_draws=1600),
    "exact": ll.Exact(n_draws=1600),
}
COLOURS = {30: "#0072B2", 100: "#D55E00", 300: "#009E73"}
MARKERS = {30: "o", 100: "s", 300: "^"}


def one(n_units: int, noise: float, method: str, seed: int) -> list[dict[str, object]]:
    """Return the rows of a data set: PCA raw and mapped, and the true positions, each under both alignments."""
    dataset = linear_gaussian(n_units=n_units, n_features=N_FEATURES, n_latent=2, noise=noise, seed=seed)
    fit = ll.fit(ll.models.PPCA(n_latent=2, sigma_scale=2.0), dataset, METHODS[method], seed=seed, progress=False)
    draws = fit.latents().values
    pca = ll.embed("pca", dataset, n_latent=2)
    mapped = shrunk_axes(pca.values, dataset)
    rows: list[dict[str, object]] = []
    for alignment in ("orthogonal", "similarity"):
        reference = Reference(draws, alignment, Seeds(seed).child("verdict").numpy())
        for name, y in (("PCA", pca.values), ("PCA, mapped", mapped), ("truth", dataset.truth["z"])):
            v = reference.judge(y)
            shares = {f"coverage_{level}": getattr(v, f"coverage_{level}") for level in LEVELS}
            design = {"n_units": n_units, "noise": noise, "seed": seed, "positions": name, "alignment": alignment}
            rows.append({**design, "verdict": v.verdict, "delta": v.delta, **shares, "converged": fit.converged})
    return rows


def run(
    *,
    noises: tuple[float, ...] = NOISES,
    sizes: tuple[int, ...] = SIZES,
    n_datasets: int = 6,
    method: str = "nuts",
    seed: int = 0,
) -> pd.DataFrame:
    """Return all rows of the grid; a data set whose fit fails is reported and omitted."""
    cells = [(n, s, i) for n in sizes for s in noises for i in range(n_datasets)]
    rows = []
    for n_units, noise, i in tqdm(cells, desc="pca_is_ppca", disable=None):
        try:
            rows += one(n_units, noise, method, seed + 1000 * i + n_units)
        except LatentLabError as error:
            print(f"omitted: {n_units} units, noise {noise}, data set {i}: {error}")
    return pd.DataFrame(rows)


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Compute means over data sets, the share of each verdict, and standard errors of delta and coverage."""
    keys = ["positions", "alignment", "n_units", "noise"]
    grouped = rows.groupby(keys, sort=False)
    found = grouped.agg(
        n=("delta", "size"),
        delta=("delta", "mean"),
        delta_se=("delta", "sem"),
        **{f"coverage_{level}": (f"coverage_{level}", "mean") for level in LEVELS},
        **{f"coverage_{level}_se": (f"coverage_{level}", "sem") for level in LEVELS},
        converged=("converged", "mean"),
    )
    for label in ("summary-like", "draw-like", "distinct", "undetermined"):
        found[label] = grouped["verdict"].agg(lambda x, label=label: (x == label).mean())
    return found.reset_index()


def figure(found: pd.DataFrame, path: Path) -> None:
    """Plot delta of PCA by noise (hollow marks: most verdicts are `distinct`), and the coverage of the true positions."""
    with matplotlib.rc_context({"backend": "Agg", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        from matplotlib.figure import Figure

        picture = Figure(figsize=(10, 3.9), layout="constrained")
        axes = picture.subplots(1, 3)
        at = found[found.alignment == "orthogonal"]
        for axis, name in zip(axes[:2], ("PCA", "PCA, mapped"), strict=True):
            for n, line in at[at.positions == name].groupby("n_units"):
                color, marker = COLOURS.get(n), MARKERS.get(n)
                axis.errorbar(line.noise, line.delta, 2 * line.delta_se, color=color, label=f"{n} units")
                faces = ["white" if share > 0.5 else color for share in line["distinct"]]
                axis.scatter(line.noise, line.delta, c=faces, edgecolors=color, marker=marker, zorder=3)
            axis.axhline(1, color="black", lw=0.8, ls="--")
            axis.annotate("typical draw", (1, 1), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
            axis.set(xscale="log", yscale="log", title=name)
            axis.set_ylabel("delta (0: posterior mean, 1: typical draw)")
        for n, line in at[at.positions == "truth"].groupby("n_units"):
            for level in LEVELS:
                axes[2].axhline(level / 100, color="black", lw=0.6, ls=":")
                errors = 2 * line[f"coverage_{level}_se"]
                axes[2].errorbar(
                    line.noise, line[f"coverage_{level}"], errors, color=COLOURS.get(n), marker=MARKERS.get(n), ms=4, lw=1
                )
        axes[2].set(xscale="log", ylim=(0, 1.02), title="coverage of the true positions")
        axes[2].set_yticks([level / 100 for level in LEVELS], [f"{level}%" for level in LEVELS])
        axes[2].set_ylabel("share of true positions in their credible region")
        for axis in axes:
            axis.set_xlabel("standard deviation of the noise")
            noises = sorted(found.noise.unique())
            axis.set_xticks(noises, [f"{noise:g}" for noise in noises])
            axis.minorticks_off()
        sizes = sorted(found.n_units.unique())
        handles = [axes[0].plot([], [], color=COLOURS.get(n), marker=MARKERS.get(n), label=f"{n} units")[0] for n in sizes]
        picture.legend(handles=handles, loc="outside lower center", ncols=len(sizes), frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.savefig(path, dpi=150)


def main(arguments: list[str] | None = None) -> None:
    """Print the table, and save figure and table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--method", choices=sorted(METHODS), default="nuts")
    parser.add_argument("--n-datasets", type=int, default=6, help="data sets per cell")
    parser.add_argument("--noises", type=float, nargs="+", default=list(NOISES))
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "figures" / "pca_is_ppca.png")
    options = parser.parse_args(arguments)
    rows = run(
        noises=tuple(options.noises),
        sizes=tuple(options.sizes),
        n_datasets=options.n_datasets,
        method=options.method,
        seed=options.seed,
    )
    found = table(rows)
    with pd.option_context("display.width", 200, "display.max_columns", 30, "display.max_rows", 200, "display.precision", 2):
        print(found.to_string(index=False))
    figure(found, options.out)
    found.to_csv(options.out.with_suffix(".csv"), index=False, float_format="%.4g")
    print(f"figure: {options.out}")


if __name__ == "__main__":
    main()
