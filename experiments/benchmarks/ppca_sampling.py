"""PPCA on wine: gradient, and smallest bulk ESS of W W^T and sigma per second, against NumPyro's NUTS.

With 64 vectorised chains NumPyro gives a third as many effective draws per second as with 4 and takes minutes, so it is
omitted.
"""

from typing import Any

from experiments.benchmarks import ppca
from experiments.benchmarks.harness import Row
from experiments.benchmarks.sampling import effective, gradients

NAME = "PPCA on wine"
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"n_warmup": 5, "n_draws": 10, "n_chains": (2,), "n_many": 2, "n_rounds": 1},
    "small": {"n_warmup": 10, "n_draws": 20, "n_chains": (2,), "n_many": 2, "n_rounds": 1},
    "full": {"n_warmup": 300, "n_draws": 300, "n_chains": (4,), "n_many": 64, "n_rounds": 2},
}


def rows(size: str) -> list[Row]:
    model, dataset, options = ppca.own_model(), ppca.wine(), SIZES[size]
    programs = {"NumPyro": (ppca.numpyro_model, ("numpyro",))}
    found = gradients(NAME, model, dataset, programs, n_rounds=5, compiled=size != "tiny")
    return found + effective(
        NAME,
        model,
        dataset,
        ppca.numpyro_model,
        ppca.identified,
        what="W W^T and sigma",
        check_means=size == "full",
        **options,
    )
