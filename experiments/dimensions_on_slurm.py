"""Held-out score of factor analysis by number of dimensions, with a Slurm job for each of many splits of the data.

The script runs on a login node and waits for the jobs; the file system must be shared. If it is interrupted, the same command
continues. Without Slurm, `--executor submitit:local` runs the jobs as processes of this machine.

Example:
    python experiments/dimensions_on_slurm.py --executor submitit --n-seeds 20
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import latentlab as ll


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="wine")
    parser.add_argument("--dimensions", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--n-seeds", type=int, default=20, help="splits of the data")
    parser.add_argument("--executor", default="submitit")
    parser.add_argument("--workers", type=int, help="processes of this machine")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "figures" / "dimensions_on_slurm.csv")
    options = parser.parse_args(arguments)
    sweep = ll.sweep(
        {
            "name": "dimensions-on-slurm",
            "dataset": {"name": options.dataset},
            "model": {"name": "factor_analysis"},
            "inference": {"name": "exact", "n_draws": 100},
            "held_out": 0.2,
            "sweep": {"grid": {"model.n_latent": options.dimensions}, "seeds": options.n_seeds},
        },
        executor=options.executor,
        n_workers=options.workers,
    )
    table = sweep.to_dataframe()
    scores = table.pivot(index="seed", columns="model.n_latent", values="held_out")
    differences = scores.sub(scores[scores.mean().idxmax()], axis=0)  # on the same units: the split depends on the seed only
    summary = scores.agg(["mean"]).T.join(differences.agg(["mean", "std"]).T, rsuffix=" of differences")
    ratio = 0.2 / 0.8  # held-out over training units; the splits overlap (Nadeau & Bengio 2003)
    summary["se"] = summary.pop("std") * (1 / len(scores) + ratio) ** 0.5
    print(summary.round(2).to_string())
    summary.to_csv(options.out, float_format="%.4g")


if __name__ == "__main__":
    main()
