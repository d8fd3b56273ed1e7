"""Geweke's joint-distribution test of program, simulator and sampler."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import t as student

from latentlab.calibration.simulated import (
    LEVEL,
    MOMENTS,
    check_simulated,
    data_moments,
    moments,
    select_entries,
    simulated,
    stacked_truth,
)
from latentlab.data.dataset import Dataset
from latentlab.errors import ModelError
from latentlab.inference.lift import constrain_draws
from latentlab.inference.nuts import NUTS, drive_active
from latentlab.inference.replications import Chains, Replications
from latentlab.inference.trajectory import State, Tuning, transition
from latentlab.models.base import LatentModel
from latentlab.progress import tqdm
from latentlab.results.quantities import identified
from latentlab.seeds import Seeds, isolated, one_thread
from latentlab.settings import Count, Fraction, Several, checked, keyword_types

N_PILOTS = 8
"""Number of pilot data sets, each with its own tuning; a chain uses one of these tunings, chosen at random, in each sweep."""
GEWEKE_DEPTH = 6
"""Largest depth of a NUTS tree in Geweke's test, unless `max_tree_depth` of the method is smaller."""
N_REFERENCE = 4000
"""Size of the reference sample of independent draws of `simulate`."""


@dataclass(frozen=True, repr=False)
class Geweke:
    """Result of Geweke's joint-distribution test.

    Attributes:
        table: One row per test function: quantity, simulated (its mean under `simulate`), chain (its mean over the chains), z,
            p, verdict (pass or fail).
        level: False-alarm rate of the table.
    """

    table: pd.DataFrame
    level: float

    @property
    def passed(self) -> bool:
        """Whether every test function passed."""
        return bool((self.table["verdict"] == "pass").all())

    def __repr__(self) -> str:
        return f"Geweke({len(self.table)} test functions: {'passed' if self.passed else 'FAILED'})"


def geweke(  # one keyword for each user option
    model: LatentModel,
    method: NUTS,
    *,
    n_chains: Several = 200,
    n_sweeps: Several = 50,
    n_units: Count = 5,
    seed: int = 0,
    level: Fraction = LEVEL,
    progress: bool = True,
) -> Geweke:
    """Runs Geweke's joint-distribution test of the program, its simulator and the NUTS transition.

    The method's warm-up on `N_PILOTS` data sets gives the tuning, which is then fixed. Only the second half of the sweeps is
    used: the chains start in the joint distribution, and an error takes several sweeps to show.

    Args:
        model: The model; its `simulate` must return data sets of one shape.
        method: NUTS; its warm-up and target acceptance determine the tuning.
        n_chains: Independent chains; standard errors are estimated across them, and 100 are few.
        n_sweeps: Sweeps of each chain; a sweep is one NUTS transition and one new data set.
        n_units: Units of each data set; with fewer, the parameters move further in a sweep.
        seed: Root of the seed tree.
        level: False-alarm rate of the whole table.
        progress: Whether to show a progress bar on a terminal.

    Raises:
        ModelError: The method is not NUTS, the model cannot simulate, or an observed site is not an array of the data set.
        ConfigError: A number is out of range.
        DataError: `simulate` returns data sets of different shapes.
    """
    if not isinstance(method, NUTS):
        raise ModelError(f"Geweke's test: `method` must be NUTS, whose tuning can be fixed; got {method!r:.60}.")
    numbers = {"n_chains": n_chains, "n_sweeps": n_sweeps, "n_units": n_units, "level": level}
    checked("geweke", keyword_types(geweke), numbers)
    check_simulated(model, method)  # type: ignore[arg-type]
    seeds = Seeds(seed).child("geweke")
    datasets = simulated(model, n_chains, n_units, seeds.child("data"))
    reference = simulated(model, N_REFERENCE, n_units, seeds.child("reference"))
    with one_thread():
        tunings = _tunings(model, method, simulated(model, N_PILOTS, n_units, seeds.child("pilots")), seeds.child("pilots"))
        replications = Replications(model, datasets)
        names = observed_arrays(replications, datasets[0])
        depth = min(method.max_tree_depth, GEWEKE_DEPTH)
        u, s = _sweeps(replications, names, stacked_truth(model, datasets), tunings, depth, n_sweeps, seeds, progress=progress)
        sites = {site.name for site in replications.density.sites}
        truth = {name: value[None] for name, value in stacked_truth(model, reference).items() if name in sites}
        values = constrain_draws(replications.density, u)
    dims = {name: tuple(model.dims[name]) for name in values}
    both = {name: _joined(truth[name], value) for name, value in values.items()}
    entries, columns = select_entries(identified(both, dims, model.exchanges, model.position.site), both)
    columns += [*_joined(moments(reference)[None], s).T[..., None].swapaxes(1, 2)]
    return Geweke(_compared([*entries, *MOMENTS], np.stack([c.reshape(-1) for c in columns]), n_chains, level), level)


def _joined(reference: np.ndarray, chains: np.ndarray) -> np.ndarray:
    """Concatenates draws of `simulate` and of all chains to `(1, draw, ...)`, from which the same entries are selected."""
    return np.concatenate([reference, chains.reshape(1, -1, *chains.shape[2:])], axis=1)


def _compared(names: list[str], columns: np.ndarray, n_chains: int, level: float) -> pd.DataFrame:
    """Computes the table of the test.

    Args:
        names: Names of the quantities; the last `len(MOMENTS)` are the moments of the data.
        columns: Values `(quantity, draw)`: the `N_REFERENCE` reference draws, then the draws of all chains.
        n_chains: Number of chains.
        level: False-alarm rate of the whole table.
    """
    first, n_data = columns[:, : N_REFERENCE // 4], len(MOMENTS)
    center = np.median(first, axis=1, keepdims=True)
    spread = np.median(np.abs(first - center), axis=1, keepdims=True)
    v = (columns - center) / np.where(spread > 0, spread, 1.0)
    v /= np.sqrt(1 + v**2)
    functions = dict(zip(names, v, strict=True)) | {f"{name}, squared": row**2 for name, row in zip(names, v, strict=True)}
    for name, row in zip(names[:-n_data], v[:-n_data], strict=True):
        functions |= {f"{name} x {moment}": row * other for moment, other in zip(MOMENTS, v[-n_data:], strict=True)}
    rows = []
    for name, values in functions.items():
        reference, chains = values[N_REFERENCE // 4 : N_REFERENCE], values[N_REFERENCE:].reshape(n_chains, -1).mean(axis=1)
        a, b = reference.var(ddof=1) / len(reference), chains.var(ddof=1) / n_chains
        if a + b == 0:
            continue
        z = (chains.mean() - reference.mean()) / np.sqrt(a + b)
        dof = (a + b) ** 2 / (a**2 / (len(reference) - 1) + b**2 / (n_chains - 1))
        rows.append((name, reference.mean(), chains.mean(), z, 2 * student.sf(abs(z), dof)))
    table = pd.DataFrame(rows, columns=["quantity", "simulated", "chain", "z", "p"])
    return table.assign(verdict=np.where(table["p"] >= level / len(table), "pass", "fail"))


def _tunings(model: LatentModel, method: NUTS, datasets: Sequence[Dataset], seeds: Seeds) -> list[Tuning]:
    chains = Chains(Replications(model, datasets), method, seeds)
    chains.draws(1, what="Geweke, tuning", progress=False)
    return [chains.latest[i].tuning for i in range(len(datasets))]


def _sweeps(  # one loop over the state of all chains, with the fixed settings of their transitions
    replications: Replications,
    names: Mapping[str, str],
    truth: Mapping[str, np.ndarray],
    tunings: Sequence[Tuning],
    depth: int,
    n_sweeps: int,
    seeds: Seeds,
    *,
    progress: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Runs the sweeps.

    Returns:
        Unconstrained draws `(chain, sweep, size)` and moments of the data `(chain, sweep, moment)` of the second half.
    """
    density, n_chains = replications.density, len(replications)
    rngs = [seeds.child("chain", i).numpy() for i in range(n_chains)]
    u = [density.unconstrain({s.name: truth[s.name][i] for s in density.sites}).numpy() for i in range(n_chains)]
    kept_u, kept_moments = [], []
    with isolated(seeds.child("predictive")):
        for sweep in tqdm(range(n_sweeps), desc="Geweke", disable=None if progress else True, leave=False):
            u = drive_active(
                [_move(at, tunings, depth, rng) for at, rng in zip(u, rngs, strict=True)], replications.value_and_grad
            )
            if sweep >= n_sweeps // 2:
                kept_u.append(np.stack(u))
                kept_moments.append(data_moments(_observed(replications, next(iter(names.values())))))
            new = replications.lifted(density.predict, constrain_draws(density, np.stack(u)[:, None]))
            for site, name in names.items():
                replications.data[name] = _shaped(new[site][:, 0], replications.data[name], name)
    return np.stack(kept_u, axis=1), np.stack(kept_moments, axis=1)


def _move(u: np.ndarray, tunings: Sequence[Tuning], depth: int, rng: np.random.Generator) -> Any:
    """Makes a NUTS transition; its tuning is drawn independently of the state, so that the density stays invariant."""
    log_prob, gradient = yield u
    state = State(u, np.zeros_like(u), gradient, log_prob)
    new = yield from transition(state, tunings[int(rng.integers(len(tunings)))], depth, rng)
    return new.state.u


def _observed(replications: Replications, name: str) -> np.ndarray:
    """Returns an observed array of all data sets, with NaN for missing entries."""
    x = replications.data[name].numpy()
    return np.where(replications.data["mask"].numpy(), x, np.nan) if "mask" in replications.data else x


def _shaped(new: np.ndarray, old: torch.Tensor, name: str) -> torch.Tensor:
    """Reshapes new data to the array's shape; they may differ by axes of size 1 (a program that observes a column)."""
    if [n for n in new.shape if n > 1] != [n for n in old.shape if n > 1]:
        raise ModelError(
            f"Geweke's test draws new data: the site {name!r} must have the shape {tuple(old.shape[1:])} of its array; got "
            f"{new.shape[1:]}. Observe the whole array."
        )
    return torch.from_numpy(new.reshape(tuple(old.shape))).to(old.dtype)


def observed_arrays(replications: Replications, dataset: Dataset) -> dict[str, str]:
    """Maps each observed site to the array of the same name, the data set's own observed array first.

    Raises:
        ModelError: An observed site is not an array of the data set.
    """
    unknown = next((name for name in replications.density.observed if name not in replications.data), None)
    if unknown is not None or dataset.observed not in replications.density.observed:
        raise ModelError(
            f"Geweke's test draws new data: each observed site must have the name of an array ({', '.join(dataset.arrays)}), "
            f"and one must be {dataset.observed!r}; got {', '.join(replications.density.observed)}."
        )
    others = [name for name in replications.density.observed if name != dataset.observed]
    return {name: name for name in (dataset.observed, *others)}
