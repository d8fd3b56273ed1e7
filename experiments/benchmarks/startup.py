"""Whole processes: importing latentlab, and a maximum likelihood fit of PPCA to wine, beyond importing torch and Pyro."""

import numpy as np

from experiments.benchmarks.harness import Row, process

NAME = "Startup, whole process"
SIZES = {"tiny": 1, "small": 2, "full": 7}
FIT = """
import latentlab as ll
fit = ll.fit(ll.models.PPCA(2), ll.load_dataset("wine", drop_constant=True), ll.Exact(), progress=False)
"""
CODES = {
    "python": "pass",
    "import latentlab": "import latentlab",
    "import torch and pyro": "import torch, pyro",
    "PPCA on wine by Exact": FIT,
}
DIFFERENCES = {
    "import latentlab, beyond Python": ("import latentlab", "python"),
    "PPCA on wine by Exact, beyond importing torch and pyro": ("PPCA on wine by Exact", "import torch and pyro"),
}


def rows(size: str) -> list[Row]:
    n_rounds = SIZES[size]
    for code in CODES.values():  # so that all rounds find bytecode files and a filled disk cache
        process(code)
    times = {what: np.empty(n_rounds) for what in CODES}
    for i in range(n_rounds):
        for what, code in CODES.items():
            times[what][i] = process(code)
    found = dict(times) | {what: times[more] - times[less] for what, (more, less) in DIFFERENCES.items()}
    return [
        Row(NAME, "latentlab", what, float(np.median(taken)), "s", f"{taken.min():.3g} to {taken.max():.3g}")
        for what, taken in found.items()
    ]
