"""PPCA on wine, whole process: from the start of Python to draws with R-hat < 1.01 and bulk and tail ESS > 400.

The criterion applies to all entries of W W^T and sigma. Each library uses its default threads and four chains; latentlab's
ChEES also uses 16 chains, with the density in TorchScript or in machine code that an earlier process compiled. The number of
draws is the smallest in a ladder for which every round meets the criterion. The seconds are measured with this number.
One function computes the criterion outside the measured processes. Each process reads the data from a file and writes its draws
to a file. The process of latentlab is a complete `ll.fit`, with diagnostics, predictions and positions.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks import ppca
from experiments.benchmarks.harness import Row, absent, compared, is_here, process

NAME = "PPCA on wine, whole process"
RHAT, ESS = 1.01, 400.0
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"n_warmup": 5, "ladder": (5,), "n_rounds": 1},
    "small": {"n_warmup": 10, "ladder": (10,), "n_rounds": 1},
    "full": {"n_warmup": 300, "ladder": (250, 500, 1000, 2000), "n_rounds": 2},
}
READ = """
import sys
import numpy as np
data, out, n_warmup, n_draws, seed = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
x = np.load(data)
"""
OURS = """
import latentlab as ll
dataset = ll.Dataset({"x": x}, dims={"x": ("unit", "feature")})
method = METHOD
fit = ll.fit(ll.models.PPCA(2), dataset, method, seed=seed, progress=False)
np.savez(out, **{name: fit.sites()[name] for name in ("W", "mu", "sigma")})
"""
NUTS = "ll.NUTS(n_chains=4, n_warmup=n_warmup, n_draws=n_draws)"
CHEES = "ll.ChEES(n_chains=16, n_superchains=4, n_warmup=n_warmup, n_draws=n_draws, compiled=False)"
NUMPYRO = """
import jax
from numpyro.infer import MCMC, NUTS
from experiments.benchmarks.ppca import numpyro_model
mcmc = MCMC(NUTS(numpyro_model), num_warmup=n_warmup, num_samples=n_draws, num_chains=4, chain_method="vectorized",
            progress_bar=False)
mcmc.run(jax.random.PRNGKey(seed), jax.numpy.asarray(x))
np.savez(out, **{name: np.asarray(value) for name, value in mcmc.get_samples(group_by_chain=True).items()})
"""
NUTPIE = """
import nutpie
from experiments.benchmarks.ppca import pymc_model
compiled = nutpie.compile_pymc_model(pymc_model(x))
trace = nutpie.sample(compiled, chains=4, tune=n_warmup, draws=n_draws, seed=seed, progress_bar=False)
np.savez(out, **{name: trace.posterior[name].values for name in ("W", "mu", "sigma")})
"""
DOUBLE = "import jax; jax.config.update('jax_enable_x64', True)\n"
COMPILED = "latentlab ChEES, code cached"
SIDES = {
    "latentlab NUTS": (READ + OURS.replace("METHOD", NUTS), ()),
    "latentlab ChEES": (READ + OURS.replace("METHOD", CHEES), ()),
    COMPILED: (READ + OURS.replace("METHOD", CHEES.replace("False", "True")), ()),
    "NumPyro NUTS, float64": (READ + DOUBLE + NUMPYRO, ("numpyro",)),
    "NumPyro NUTS, float32": (READ + NUMPYRO, ("numpyro",)),
    "PyMC with nutpie": (READ + NUTPIE, ("pymc", "nutpie")),
}


def is_enough(values: dict[str, np.ndarray]) -> bool:
    """Whether the draws meet the criterion."""
    from latentlab.results.convergence import ess_bulk, ess_tail, rhat

    quantities = ppca.identified(values)
    return bool(rhat(quantities).max() < RHAT and min(ess_bulk(quantities).min(), ess_tail(quantities).min()) > ESS)


def rows(size: str) -> list[Row]:
    options = SIZES[size]
    n_rounds, ladder = options["n_rounds"], options["ladder"]
    found = [absent(NAME, side, *needs) for side, (_, needs) in SIDES.items() if not is_here(*needs)]
    sides = {side: code for side, (code, needs) in SIDES.items() if is_here(*needs)}
    if size == "tiny":
        del sides[COMPILED]  # the compilation would take longer than all other sides
    spent: dict[str, dict[int, np.ndarray]] = {side: {} for side in sides}
    enough: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder) / "x.npy", Path(folder) / "draws.npz"
        np.save(data, ppca.wine().x)

        def once(side: str, n_draws: int, seed: int) -> tuple[float, bool]:
            given = (str(data), str(out), str(options["n_warmup"]), str(n_draws), str(seed))
            taken = process(sides[side], *given)
            with np.load(out) as values:
                return taken, is_enough(dict(values))

        if COMPILED in sides:
            spent_at_first, _ = once(COMPILED, ladder[0], n_rounds)
            found.append(
                Row(NAME, COMPILED, f"first process, {ladder[0]} draws: compiles or loads the code", spent_at_first, "s")
            )
        for n_draws in ladder:
            left = [side for side in sides if side not in enough]
            taken = {side: np.full(n_rounds, np.nan) for side in left}
            met = dict.fromkeys(left, True)
            for i in range(n_rounds):
                for side in left:
                    if met[side]:  # after one round that does not meet the criterion, more draws are tried
                        taken[side][i], met[side] = once(side, n_draws, i)
            for side in left:
                spent[side][n_draws] = taken[side]
                if met[side] or n_draws == ladder[-1]:
                    enough[side] = n_draws if met[side] else 0
    done = {side: spent[side][n] for side, n in enough.items() if n}
    found += [Row(NAME, side, "sufficient draws per chain", float(enough[side]), "draws") for side in done]
    if any(side.startswith("latentlab") for side in done):
        found += compared(NAME, "until R-hat and ESS suffice", "s", done)
    for side in sides:
        if side not in done:
            last = spent[side][ladder[-1]]
            found.append(Row(NAME, side, f"criterion not met with {ladder[-1]} draws per chain", float(np.nanmax(last)), "s"))
    return found
