"""Leave-one-out comparison of models on several data sets: a sweep over both, and one table of differences.

Example:
    python experiments/models_on_datasets.py --workers 2
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

import latentlab as ll

MODELS = [
    {"name": "ppca", "n_latent": 2},
    {"name": "factor_analysis", "n_latent": 2},
    {"name": "gaussian_mixture", "n_components": 3, "covariance": "full"},
]


def differences(found: ll.RunComparison) -> pd.DataFrame:
    """One table of the differences from the best model of each data set, with standard errors."""
    about = found.to_dataframe().set_index("run")[["dataset", "model"]].rename(columns={"model": "of"})
    table = pd.concat([table.join(about, on="model") for table in found.loo]).rename(columns={"of": "model", "model": "run"})
    return table[["dataset", "model", "elpd_loo", "se", "elpd_diff", "se_diff", "bad_khat", "converged", "note"]]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", nargs="+", default=["iris", "wine"])
    parser.add_argument("--method", choices=("chees", "nuts", "svi"), default="chees")
    parser.add_argument("--n-draws", type=int, default=125)
    parser.add_argument("--executor", default="process")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "figures" / "models_on_datasets.csv")
    options = parser.parse_args(arguments)
    sweep = ll.sweep(
        {
            "name": "models-on-datasets",
            "dataset": {"name": "iris"},
            "model": MODELS[0],
            "inference": {"name": options.method, "n_draws": options.n_draws},
            "sweep": {"grid": {"dataset.name": options.datasets, "model": MODELS}},
        },
        executor=options.executor,
        n_workers=options.workers,
    )
    table = differences(ll.compare_runs([sweep.path]))
    print(table.drop(columns="note").round(2).to_string(index=False))
    table.to_csv(options.out, index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
