r"""Are a model and a method consistent with themselves: simulation-based calibration, and Geweke's joint-distribution test.

Both need no answer from elsewhere. `simulate` draws $(\theta, x)$ from the joint density; the method draws $\theta \mid x$ by the
program's density. Where the two do not belong together, or the method is wrong, one of these fails.

*Simulation-based calibration.* Given x, the truth $\theta$ and L independent draws of the posterior are exchangeable, so that the
rank of any $f(\theta, x)$ among those of the draws is uniform on 0, ..., L; ties are broken at random. What is ranked: entries
of what the model's symmetry leaves identified, positions included (raw coordinates are not); the log prior; the log
likelihood, positions integrated out; entries whose order is turned round where a moment of the data is below its median; and
$|Z' X|^2$ of positions and centred data. The last three see a posterior that ignores the data, as no function of $\theta$
alone does.

Draws of a chain are thinned until their dependence could not be seen. With $\tau$ the autocorrelation time of whether a thinned
draw is below the truth, the variance of uniform ranks grows by $2 (\tau - 1) / L$ of itself, and the variance of R ranks has a
standard error of $\sqrt{0.8 / R}$ of itself: chains are made longer until the first is below half of the second, up to
`MOST_THIN`, and a quantity does not pass where it is then above all of it. The p-value of a quantity is exact:
the statistic is the smallest two-sided binomial tail of the ranks' ECDF over its L inner points, and the ECDF is a Markov chain.

*Geweke's test.* Chains that start at $(\theta, x)$ from `simulate`, and in turn move $\theta$ by NUTS with fixed tuning and
draw x by the program's predictive, keep the joint density. Their means of test functions, over independent chains, are
compared with those of fresh draws of `simulate`. A pair is looked at after $\theta$ has moved and before x is drawn anew: a
cross moment then sees whether $\theta$ heeds x. Test functions are g, g^2, s, s^2 and g s of identified entries g and moments s
of the data, each mapped to (-1, 1) by $v / \sqrt{1 + v^2}$ with v in units of its spread: the prior needs no moments.

Bonferroni over the quantities holds the false-alarm rate of each table at `LEVEL`.

References:
    Talts, Betancourt, Simpson, Vehtari & Gelman (2018), Validating Bayesian inference algorithms with simulation-based
    calibration, arXiv:1804.06788. Modrák et al. (2023), Simulation-based calibration checking for Bayesian computation: the
    choice of test quantities shapes sensitivity, Bayesian Analysis. Säilynoja, Bürkner & Vehtari (2022), Graphical test for
    discrete uniformity and its applications, Statistics and Computing 32:32. Geweke (2004), Getting it right: joint
    distribution tests of posterior simulators, JASA 99:799.
"""

import inspect
import io
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import gammaln
from scipy.stats import binom
from scipy.stats import t as student
from tqdm.auto import tqdm

from latentlab.data.dataset import Dataset
from latentlab.errors import InferenceError, ModelError
from latentlab.files import write
from latentlab.inference.density import constrain_draws
from latentlab.inference.draws import Method, Problem
from latentlab.inference.nuts import NUTS
from latentlab.inference.replications import Chains, Replications
from latentlab.inference.trajectory import State, Tuning, drive_active, transition
from latentlab.models.base import LatentModel
from latentlab.posterior import is_constant
from latentlab.quantities import entry, identified
from latentlab.seeds import Seeds, isolated, one_thread
from latentlab.settings import Count, Several, checked, keyword_types

LEVEL = 0.001
"""False-alarm rate of a table: 1 sound model and method in 1000 fails it."""
N_FEATURES = 4
"""Of data sets, where `simulate` asks how many."""
N_RANKS = 50
"""Draws L that a truth is ranked among."""
THIN = 2
MOST_THIN = 16
"""Iterations from one ranked draw to the next: at first, and at most."""
N_ENTRIES = 6
"""Entries of the invariants that are looked at; `chosen` says which."""
N_JOINT = 2
"""Entries that are also looked at together with the data."""
N_PILOTS = 8
"""Data sets on which the tuning for Geweke's test is found: in each sweep a chain takes that of one of them, at random."""
GEWEKE_DEPTH = 6
N_REFERENCE = 4000
"""Draws of `simulate` that Geweke's chains are compared with."""
MOMENTS = ("mean of x", "mean of x^2", "mean of steps^2")
"""Moments of the data: the mean of the first column; mean squares of all entries, and of the steps from a unit to the next."""


@dataclass(frozen=True, repr=False)
class SBC:
    """What simulation-based calibration found.

    Attributes:
        table: A row a quantity: quantity, p, autocorrelation (share of the ranks' variance that it adds), verdict (pass, fail,
            or autocorrelated: the draws are too dependent for ranks to mean anything).
        ranks: Of the truths, 0 to `n_ranks`, `(replication, quantity)`.
        n_ranks: Draws L that a truth was ranked among.
        level: False-alarm rate of the table.
    """

    table: pd.DataFrame
    ranks: np.ndarray
    n_ranks: int
    level: float

    @property
    def passed(self) -> bool:
        """Whether every quantity passed."""
        return bool((self.table["verdict"] == "pass").all())

    def __repr__(self) -> str:
        return f"SBC({len(self.ranks)} replications, {len(self.table)} quantities: {'passed' if self.passed else 'FAILED'})"

    def figure(self) -> Any:
        """The ECDF of each quantity's ranks less that of uniform ones, in the band for all of it, by matplotlib."""
        from matplotlib.figure import Figure

        n, n_quantities = self.ranks.shape
        columns = min(4, n_quantities)
        rows = -(-n_quantities // columns)
        figure = Figure(figsize=(3 * columns, 2.2 * rows), layout="constrained")
        low, high = ecdf_band(n, self.n_ranks, self.level / n_quantities)
        z = np.arange(1, self.n_ranks + 1) / (self.n_ranks + 1)
        for i, row in enumerate(self.table.itertuples()):
            axes = figure.add_subplot(rows, columns, i + 1)
            axes.fill_between(z, low / n - z, high / n - z, step="mid", color="#cfe3f1")
            color = "#0072B2" if row.verdict == "pass" else "#D55E00"
            axes.step(z, _counts(self.ranks[:, i], self.n_ranks) / n - z, where="mid", color=color)
            axes.set_title(f"{row.quantity}: p = {row.p:.2g}", fontsize=8, parse_math=False)
            axes.tick_params(labelsize=7)
        title = f"ECDF of {n} ranks less uniform; by chance one table in {1 / self.level:.0f} leaves a band"
        figure.suptitle(title, fontsize=9)
        return figure


@dataclass(frozen=True, repr=False)
class Geweke:
    """What Geweke's test found.

    Attributes:
        table: A row a test function: quantity, simulated (its mean under `simulate`), chain (its mean over the chains), z, p,
            verdict.
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


@dataclass(frozen=True)
class Calibration:
    """Both checks of a model with a method; Geweke's is None where the method is no sampler."""

    sbc: SBC
    geweke: Geweke | None

    @property
    def passed(self) -> bool:
        """Whether all passed."""
        return self.sbc.passed and (self.geweke is None or self.geweke.passed)

    def __str__(self) -> str:
        n, level = len(self.sbc.ranks), self.sbc.level
        parts = [
            f"Simulation-based calibration: {n} data sets, ranks among {self.sbc.n_ranks} draws "
            f"(false-alarm rate of the table: {level:g})",
            _text(self.sbc.table),
            "",
        ]
        if self.geweke is None:
            parts.append("Geweke's joint-distribution test is for nuts: left out.")
        else:
            parts += [
                f"Geweke's joint-distribution test (false-alarm rate of the table: {self.geweke.level:g})",
                _text(self.geweke.table),
                "",
            ]
        total = level + (self.geweke.level if self.geweke else 0.0)
        verdict = "all passed" if self.passed else "FAILED: model, simulation and method do not belong together"
        return "\n".join([*parts, f"{verdict} (false-alarm rate of the whole: at most {total:g})"])

    def save(self, folder: str | Path) -> None:
        """Writes `calibration.csv`, both tables, and `calibration.png`, the figure of the ranks.

        Raises:
            StoreError: The folder cannot be written.
        """
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        tables = {"sbc": self.sbc.table} | ({"geweke": self.geweke.table} if self.geweke else {})
        both = pd.concat([table.assign(check=name) for name, table in tables.items()], ignore_index=True)
        write(path / "calibration.csv", both.set_index("check").to_csv().encode())
        image = io.BytesIO()
        self.sbc.figure().savefig(image, format="png", dpi=130, metadata={"Software": None})
        write(path / "calibration.png", image.getvalue())


def calibrate(
    model: LatentModel,
    method: Method,
    *,
    n_replications: int | None = None,
    n_units: int = 10,
    seed: int = 0,
    progress: bool = True,
) -> Calibration:
    """Both checks; Geweke's for `NUTS` only, on data sets of half as many units, whose chains move faster.

    Args:
        model: The model.
        method: The method.
        n_replications: Data sets of the first check; where None, 200 with `NUTS`, 40 with methods that are run on one at a time.
        n_units: Units of each.
        seed: Root of the seed tree.
        progress: Bars on a terminal.

    Raises:
        ModelError, ConfigError, DataError, InferenceError: As of `sbc` and `geweke`.
    """
    n_sets = n_replications if n_replications is not None else 200 if isinstance(method, NUTS) else 40
    ranks = sbc(model, method, n_replications=n_sets, n_units=n_units, seed=seed, progress=progress)
    if not isinstance(method, NUTS):
        return Calibration(ranks, None)
    return Calibration(ranks, geweke(model, method, n_units=max(n_units // 2, 1), seed=seed, progress=progress))


# -- simulation-based calibration


def sbc(
    model: LatentModel,
    method: Method,
    *,
    n_replications: Several = 200,
    n_units: Count = 10,
    n_ranks: Several = N_RANKS,
    seed: int = 0,
    level: float = LEVEL,
    progress: bool = True,
) -> SBC:
    """Simulation-based calibration: ranks of the truth among posterior draws are uniform, or something is wrong.

    With `NUTS` one chain a data set, all in lock step, with the method's warm-up, target acceptance and tree depth; it is made
    as long as thinning needs. Other methods are run on one data set after the other, and `n_ranks` of their draws are taken.

    Args:
        model: The model; its `simulate` gives data sets of one shape.
        method: The method.
        n_replications: Data sets R. Of 200, an sd that is off by a factor of 1.5 is seen as a rule.
        n_units: Units of each.
        n_ranks: Draws L that each truth is ranked among.
        seed: Root of the seed tree.
        level: False-alarm rate of the whole table.
        progress: A bar on a terminal.

    Raises:
        ModelError: The model cannot simulate, gives no truth for a site, or does not go with the method; a point estimate.
        ConfigError: A number is out of its range.
        DataError: `simulate` gives data sets of different shapes.
        InferenceError: A quantity is not finite, or the method failed.
    """
    numbers = {"n_replications": n_replications, "n_units": n_units, "n_ranks": n_ranks}
    checked("sbc", keyword_types(sbc), numbers)
    _check(model, method)
    seeds = Seeds(seed).child("sbc")
    datasets = simulated(model, n_replications, n_units, seeds.child("data"))
    truth = stacked_truth(model, datasets)
    with one_thread():
        replications = Replications(model, datasets)

        def of(draws: Mapping[str, np.ndarray]) -> tuple[list[str], np.ndarray, np.ndarray]:
            with isolated(seeds.child("quantities")):
                return _quantities(model, replications, datasets, truth, draws)

        if isinstance(method, NUTS):
            names, true, drawn = _by_chains(replications, method, seeds, n_ranks, of, progress=progress)
        else:
            names, true, drawn = of(_one_by_one(model, method, datasets, replications, seeds, n_ranks, progress=progress))
    rng = seeds.child("ties").numpy()
    less, ties = (drawn < true).sum(axis=1), (drawn == true).sum(axis=1)
    ranks = less + rng.integers(0, ties + 1)
    p = [ecdf_p_value(_counts(ranks[:, i], n_ranks), n_replications) for i in range(len(names))]
    added = added_variance(true, drawn) if isinstance(method, NUTS) else np.zeros(len(names))
    verdicts = np.where(added > 2 * _most_added(n_replications), "autocorrelated", "pass")
    verdicts = np.where(np.array(p) < level / len(names), "fail", verdicts)
    table = pd.DataFrame({"quantity": names, "p": p, "autocorrelation": added, "verdict": verdicts})
    return SBC(table, ranks, n_ranks, level)


def _by_chains(
    replications: Replications,
    method: NUTS,
    seeds: Seeds,
    n_ranks: int,
    of: Callable[[Mapping[str, np.ndarray]], tuple[list[str], np.ndarray, np.ndarray]],
    *,
    progress: bool,
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, truths and draws of the quantities, the chains made longer until thinned draws are nearly independent."""
    chains, thin = Chains(replications, method, seeds), THIN
    while True:
        u = chains.draws(n_ranks * thin, what=f"SBC, {len(replications)} chains", progress=progress)[:, thin - 1 :: thin]
        names, true, drawn = of(constrain_draws(replications.density, u))
        if thin >= MOST_THIN or (added_variance(true, drawn) <= _most_added(len(replications))).all():
            return names, true, drawn
        thin *= 2


def _one_by_one(
    model: LatentModel,
    method: Method,
    datasets: Sequence[Dataset],
    replications: Replications,
    seeds: Seeds,
    n_ranks: int,
    *,
    progress: bool,
) -> dict[str, np.ndarray]:
    rows = []
    for i in tqdm(range(len(datasets)), desc="SBC", disable=None if progress else True, leave=False):
        arrays = replications.arrays(i)
        problem = Problem(model, arrays, replications.density.on(arrays), seeds.child("fit", i), progress=False)
        if i == 0 and hasattr(method, "check"):
            method.check(problem)
        values = {name: v.reshape(-1, *v.shape[2:]) for name, v in method.run(problem).values.items()}
        n_draws = len(next(iter(values.values())))
        if n_draws < n_ranks:
            raise ModelError(f"{method.name!r} gives {n_draws} draws, fewer than the {n_ranks} that a truth is ranked among.")
        keep = np.linspace(0, n_draws - 1, n_ranks).astype(int)
        rows.append({name: array[keep] for name, array in values.items()})
    return {site.name: np.stack([row[site.name] for row in rows]) for site in replications.density.sites}


def _quantities(
    model: LatentModel,
    replications: Replications,
    datasets: Sequence[Dataset],
    truth: Mapping[str, np.ndarray],
    draws: Mapping[str, np.ndarray],
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names of what is ranked, and its values for the truths and the draws, `(replication, 1 or draw, quantity)`."""
    density, likelihood = replications.density, replications.likelihood
    values = {name: np.concatenate([truth[name][:, None], array], axis=1) for name, array in draws.items()}
    given = {site.name: values[site.name] for site in density.sites}
    if density.deterministic:
        values |= replications.lifted(density.deterministics, given)
    site = model.position.site
    if site not in values:
        rest = {name: array[:, 1:] for name, array in values.items()}
        z = replications.lifted(lambda sites, arrays: model.latents(arrays, **sites).sample(), rest)
        values[site] = np.concatenate([truth[site][:, None].astype(z.dtype), z], axis=1)
    names, columns = chosen(identified(values, {n: tuple(model.dims[n]) for n in values}, model.exchanges, site), values)
    if model.dims[site][0] == datasets[0].dims[datasets[0].observed][0] == "unit":
        names.append(f"|{site}' x|^2")
        columns.append(_positions_with_data(values[site], np.stack([dataset.x for dataset in datasets])))
    sides = np.sign(moments(datasets) - np.median(moments(datasets), axis=0))
    for i in range(min(N_JOINT, len(names))):
        for moment, side in zip(MOMENTS, sides.T, strict=True):
            names.append(f"{names[i]} by {moment}")
            columns.append(columns[i] * side[:, None])
    marginal = {s.name: values[s.name] for s in likelihood.sites}
    columns.append(replications.lifted(lambda sites, arrays: likelihood.log_likelihood(sites, arrays).sum(), marginal))
    columns.append(replications.lifted(lambda sites, arrays: _total(density.log_prior(sites, arrays)), given))
    names += ["log likelihood", "log prior"]
    for name, column in zip(names, columns, strict=True):
        if not np.isfinite(column).all():
            raise InferenceError(f"sbc: {name!r} is not finite in {int((~np.isfinite(column)).sum())} of {column.size} draws.")
    both = np.stack(columns, axis=-1)
    return names, both[:, :1], both[:, 1:]


def _positions_with_data(z: np.ndarray, x: np.ndarray) -> np.ndarray:
    """|Z' X|^2 `(replication, draw)`, X centred, Z the positions (of labels their indicators)."""
    rows = np.nan_to_num(x - np.nanmean(x, axis=1, keepdims=True)).reshape(*x.shape[:2], -1)
    columns = z[..., None] == np.unique(z) if z.dtype.kind in "iub" else z
    return np.asarray((np.einsum("rknq,rnd->rkqd", columns.reshape(*z.shape[:3], -1).astype(float), rows) ** 2).sum(axis=(2, 3)))


def _total(terms: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack([*terms.values()]).sum()


# -- Geweke's test


def geweke(
    model: LatentModel,
    method: NUTS,
    *,
    n_chains: Several = 200,
    n_sweeps: Several = 50,
    n_units: Count = 5,
    seed: int = 0,
    level: float = LEVEL,
    progress: bool = True,
) -> Geweke:
    """Geweke's joint-distribution test of the program, its simulator and the NUTS transition.

    The tuning is found beforehand by the method's warm-up on `N_PILOTS` data sets and is then fixed; the second half of the
    sweeps counts, since the chains start where they should be and a fault needs time to show.

    Args:
        model: The model; its `simulate` gives data sets of one shape.
        method: NUTS; its warm-up and target acceptance find the tuning.
        n_chains: Independent chains; the standard errors come from them, so that a hundred are few.
        n_sweeps: Of each chain: a transition, and a data set drawn anew.
        n_units: Units of each data set; fewer let the parameters move further in a sweep.
        seed: Root of the seed tree.
        level: False-alarm rate of the whole table.
        progress: A bar on a terminal.

    Raises:
        ModelError: The method is no NUTS, the model cannot simulate, or an observed site is no array of the data set.
        ConfigError: A number is out of its range.
        DataError: `simulate` gives data sets of different shapes.
    """
    if not isinstance(method, NUTS):
        raise ModelError(f"Geweke's test is for the method 'nuts', whose transitions can be frozen; got {method!r:.60}.")
    checked("geweke", keyword_types(geweke), {"n_chains": n_chains, "n_sweeps": n_sweeps, "n_units": n_units})
    _check(model, method)  # type: ignore[arg-type]
    seeds = Seeds(seed).child("geweke")
    datasets = simulated(model, n_chains, n_units, seeds.child("data"))
    reference = simulated(model, N_REFERENCE, n_units, seeds.child("reference"))
    with one_thread():
        tunings = _tunings(model, method, simulated(model, N_PILOTS, n_units, seeds.child("pilots")), seeds.child("pilots"))
        replications = Replications(model, datasets)
        names = _observed_arrays(replications, datasets[0])
        depth = min(method.max_tree_depth, GEWEKE_DEPTH)
        u, s = _sweeps(replications, names, stacked_truth(model, datasets), tunings, depth, n_sweeps, seeds, progress=progress)
        sites = {site.name for site in replications.density.sites}
        truth = {name: value[None] for name, value in stacked_truth(model, reference).items() if name in sites}
        values = constrain_draws(replications.density, u)
    dims = {name: tuple(model.dims[name]) for name in values}
    both = {name: _joined(truth[name], value) for name, value in values.items()}
    entries, columns = chosen(identified(both, dims, model.exchanges, model.position.site), both)
    columns += [*_joined(moments(reference)[None], s).T[..., None].swapaxes(1, 2)]
    return Geweke(_compared([*entries, *MOMENTS], np.stack([c.reshape(-1) for c in columns]), n_chains, level), level)


def _joined(reference: np.ndarray, chains: np.ndarray) -> np.ndarray:
    """Draws of `simulate` and of all chains on one axis, `(1, draw, ...)`, so that the same entries are taken of both."""
    return np.concatenate([reference, chains.reshape(1, -1, *chains.shape[2:])], axis=1)


def _compared(names: list[str], columns: np.ndarray, n_chains: int, level: float) -> pd.DataFrame:
    """The table, from the reference draws and then those of all chains, `(quantity, draw)`, the last two the data's moments."""
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


def _sweeps(
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
    """`u` `(chain, sweep, size)` and the data's moments `(chain, sweep, moment)` in the second half of the sweeps."""
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
                kept_moments.append(_moments(_seen(replications, next(iter(names.values())))))
            new = replications.lifted(density.predict, constrain_draws(density, np.stack(u)[:, None]))
            for site, name in names.items():
                replications.data[name] = _shaped(new[site][:, 0], replications.data[name], name)
    return np.stack(kept_u, axis=1), np.stack(kept_moments, axis=1)


def _move(u: np.ndarray, tunings: Sequence[Tuning], depth: int, rng: np.random.Generator) -> Any:
    """A transition by one of the tunings, taken at random whatever the state, so that the density is kept."""
    log_prob, gradient = yield u
    state = State(u, np.zeros_like(u), gradient, log_prob)
    new = yield from transition(state, tunings[int(rng.integers(len(tunings)))], depth, rng)
    return new.state.u


def _seen(replications: Replications, name: str) -> np.ndarray:
    """An observed array of all data sets, NaN where it is missing."""
    x = replications.data[name].numpy()
    return np.where(replications.data["mask"].numpy(), x, np.nan) if "mask" in replications.data else x


def _shaped(new: np.ndarray, old: torch.Tensor, name: str) -> torch.Tensor:
    """New data in the shape of the array, where they differ by axes of size 1 only (a program that observes a column)."""
    if [n for n in new.shape if n > 1] != [n for n in old.shape if n > 1]:
        raise ModelError(
            f"Geweke's test draws the data anew: the site {name!r} has shape {new.shape[1:]}, its array {tuple(old.shape[1:])}; "
            "observe the whole array."
        )
    return torch.from_numpy(new.reshape(tuple(old.shape))).to(old.dtype)


def _observed_arrays(replications: Replications, dataset: Dataset) -> dict[str, str]:
    """Array of each observed site: the one of its name."""
    strange = next((name for name in replications.density.observed if name not in replications.data), None)
    if strange is not None or dataset.observed not in replications.density.observed:
        raise ModelError(
            f"Geweke's test draws the data anew: each observed site must have the name of an array "
            f"({', '.join(dataset.arrays)}), {dataset.observed!r} among them; "
            f"the program observes {', '.join(replications.density.observed)}."
        )
    others = [name for name in replications.density.observed if name != dataset.observed]
    return {name: name for name in (dataset.observed, *others)}


# -- what both share


def _check(model: LatentModel, method: Method) -> None:
    if model.parameters:
        raise ModelError(f"calibration is of a posterior under a prior, and the parameters of {model.name!r} have neither.")
    if method.kind == "point":
        raise ModelError(f"calibration is of draws from a posterior; {method.name!r} gives a point, which has no spread.")
    if method.name not in model.methods:
        raise ModelError(f"method {method.name!r} does not go with model {model.name!r}; methods: {', '.join(model.methods)}.")


def simulated(model: LatentModel, n_datasets: int, n_units: int, seeds: Seeds) -> list[Dataset]:
    """Data sets from `simulate`, each by its own branch of the seeds; with `N_FEATURES` features where it asks how many.

    Raises:
        ModelError: The model cannot simulate.
    """
    options = {"n_features": N_FEATURES} if "n_features" in inspect.signature(model.simulate).parameters else {}
    try:
        return [model.simulate(seeds.child("data", i).numpy(), n_units, **options) for i in range(n_datasets)]
    except NotImplementedError as error:
        raise ModelError(f"{model.name!r} cannot be checked against itself: it has no `simulate`.") from error


def stacked_truth(model: LatentModel, datasets: Sequence[Dataset]) -> dict[str, np.ndarray]:
    """The true values of all sites, `(data set, *site)`.

    Raises:
        ModelError: `simulate` gives none for a site.
    """
    lacking = [name for name in model.dims if name not in datasets[0].truth]
    if lacking:
        raise ModelError(f"`simulate` of {model.name!r} gives no true value of {', '.join(lacking)}.")
    return {name: np.stack([np.asarray(dataset.truth[name]) for dataset in datasets]) for name in model.dims}


def chosen(quantities: Mapping[str, np.ndarray], sites: Iterable[str]) -> tuple[list[str], list[np.ndarray]]:
    """Names and values `(chain, draw)` of `N_ENTRIES` entries that vary.

    The sites take turns, and after them the pairs of sites; a site gives the first entry of each of its quantities, then the
    second of each, and so on.
    """
    turns: dict[tuple[str, ...], list[tuple[int, int, str, tuple[int, ...]]]] = {}
    for order, (name, array) in enumerate(quantities.items()):
        about = tuple(site for site in sites if site in re.findall(r"\w+", name))
        indices = np.argwhere(~is_constant(array)).tolist()  # of a number, one empty index
        turns.setdefault(about, []).extend((k, order, name, tuple(index)) for k, index in enumerate(indices))
    queues = [sorted(turns[about]) for about in sorted(turns, key=len)]
    rounds = itertools.chain.from_iterable(itertools.zip_longest(*queues))
    taken = [one for one in rounds if one is not None][:N_ENTRIES]
    names = [entry(name, index, {}) for _, _, name, index in taken]
    return names, [quantities[name].astype(np.float64)[:, :, *index] for _, _, name, index in taken]


def moments(datasets: Sequence[Dataset]) -> np.ndarray:
    """The `MOMENTS` of each data set, over what was observed, `(data set, moment)`."""
    return _moments(np.stack([dataset.x for dataset in datasets]))


def _moments(x: np.ndarray) -> np.ndarray:
    table = x.reshape(*x.shape[:2], -1)
    found = [_mean(table[..., 0]), _mean(table**2), _mean(np.diff(table, axis=1) ** 2)]
    return np.stack(found, axis=-1)


def _mean(x: np.ndarray) -> np.ndarray:
    """Of each data set's entries that are no NaN; 0 where there are none."""
    flat = x.reshape(len(x), -1)
    return np.asarray(np.nansum(flat, axis=1) / np.maximum((~np.isnan(flat)).sum(axis=1), 1))


# -- uniformity of ranks


def added_variance(true: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    r"""$2 (\tau - 1) / L$: the share that the dependence of draws adds to the variance of ranks among them.

    A rank is the sum of whether each draw is below the truth; $\tau$ is the autocorrelation time of these, pooled over the
    replications, with lags up to the first that is negative. A chain's own mean takes about $\tau / L$ from each
    autocorrelation, which is given back.

    Args:
        true: The truths `(replication, 1, quantity)`.
        drawn: The draws `(replication, draw, quantity)`.
    """
    n = drawn.shape[1]
    below = (drawn < true) + 0.5 * (drawn == true)
    centered = below - below.mean(axis=1, keepdims=True)
    variance = np.mean(centered**2, axis=(0, 1))
    scale = np.where(variance > 0, variance, 1.0)
    lags = np.array([(centered[:, lag:] * centered[:, : n - lag]).mean(axis=(0, 1)) / scale for lag in range(1, max(n // 2, 2))])
    time = np.ones(drawn.shape[2])
    for _ in range(10):  # a fixed point
        share = lags * (1 - time / n) + time / n
        time = np.minimum(1 + 2 * np.sum(share * np.logical_and.accumulate(share > 0), axis=0), n)
    return np.asarray(2 * (time - 1) / n)


def _most_added(n_replications: int) -> float:
    return float(0.5 * np.sqrt(0.8 / n_replications))


def _counts(ranks: np.ndarray, n_ranks: int) -> np.ndarray:
    """How many ranks are below 1, ..., `n_ranks`."""
    return np.asarray(np.searchsorted(np.sort(ranks), np.arange(1, n_ranks + 1), side="left"))


def ecdf_p_value(counts: np.ndarray, n: int) -> float:
    r"""p-value that n ranks on 0, ..., L are uniform, from how many are below 1, ..., L.

    The statistic is the smallest over i of the two-sided tail $2 \min(P(C_i \le c_i), P(C_i \ge c_i))$, $C_i \sim
    \text{Binomial}(n, i / (L + 1))$; its distribution is exact.

    Example:
        >>> even = np.arange(1, 10) * 10
        >>> round(ecdf_p_value(even, 100), 6), ecdf_p_value(np.full(9, 50), 100) < 1e-12
        (1.0, True)
    """
    tails = _tails(n, len(counts))
    least = tails[np.arange(len(counts)), counts].min()
    return max(1.0 - _inside(tails > least * (1 + 1e-9)), 0.0)


def ecdf_band(n: int, n_ranks: int, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Fewest and most of n uniform ranks that are below 1, ..., L, all at once with probability `1 - level` or more."""
    tails = _tails(n, n_ranks)
    low, high = np.log(level) - 10.0, np.log(level)
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if 1.0 - _inside(tails > np.exp(middle)) <= level else (low, middle)
    allowed = tails > np.exp(low)
    return allowed.argmax(axis=1), n - allowed[:, ::-1].argmax(axis=1)


def _tails(n: int, n_ranks: int) -> np.ndarray:
    """Two-sided tails of 0, ..., n ranks below 1, ..., L: `(L, n + 1)`."""
    share = np.arange(1, n_ranks + 1)[:, None] / (n_ranks + 1)
    counts = np.arange(n + 1)
    return np.minimum(2 * np.minimum(binom.cdf(counts, n, share), binom.sf(counts - 1, n, share)), 1.0)


def _inside(allowed: np.ndarray) -> float:
    """Probability that the counts of uniform ranks below 1, ..., L are all allowed, `(L, n + 1)`; each row one interval.

    From i - 1 to i each of the ranks that are left falls below i with probability 1 / (L + 2 - i).
    """
    n_ranks, n = allowed.shape[0], allowed.shape[1] - 1
    log_factorial = gammaln(np.arange(n + 1) + 1.0)
    before, weight = np.array([0]), np.array([1.0])
    for i in range(1, n_ranks + 1):
        after = np.flatnonzero(allowed[i - 1])
        new, left, p = after[:, None] - before, n - before, 1.0 / (n_ranks + 2 - i)
        log_ways = log_factorial[left] - log_factorial[np.maximum(new, 0)] - log_factorial[n - after][:, None]
        step = np.where(new >= 0, np.exp(log_ways + new * np.log(p) + (n - after)[:, None] * np.log1p(-p)), 0.0)
        before, weight = after, step @ weight
    return float(weight.sum())


def _text(table: pd.DataFrame) -> str:
    formats: dict[str, Callable[[float], str]] = {"p": "{:.2g}".format, "z": "{:.1f}".format}
    return str(table.to_string(index=False, formatters=formats, float_format="{:.3g}".format))
