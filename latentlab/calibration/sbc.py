"""Simulation-based calibration: true values ranked among posterior draws."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from latentlab.calibration.simulated import (
    LEVEL,
    MOMENTS,
    N_JOINT,
    check_simulated,
    moments,
    select_entries,
    simulated,
    stacked_truth,
)
from latentlab.calibration.uniformity import ecdf_band, ecdf_p_value, rank_counts
from latentlab.data.dataset import Dataset
from latentlab.errors import InferenceError, ModelError
from latentlab.inference.draws import Method, Problem
from latentlab.inference.lift import constrain_draws
from latentlab.inference.nuts import NUTS
from latentlab.inference.replications import Chains, Replications
from latentlab.models.base import LatentModel
from latentlab.progress import tqdm
from latentlab.results.quantities import identified
from latentlab.seeds import Seeds, isolated, one_thread
from latentlab.settings import Count, Fraction, Several, checked, keyword_types

N_RANKS = 50
"""Posterior draws L among which a true value is ranked."""
THIN = 2
MOST_THIN = 16
"""Initial and largest thinning interval of a chain, in iterations."""


@dataclass(frozen=True, repr=False)
class SBC:
    """Result of simulation-based calibration.

    Attributes:
        table: One row per quantity: quantity, p, autocorrelation (fraction by which it increases the ranks' variance), verdict
            (pass, fail, or autocorrelated: the draws are too dependent for a valid test).
        ranks: Ranks of the true values, 0 to `n_ranks`, `(replication, quantity)`.
        n_ranks: Posterior draws L among which a true value was ranked.
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
        """Plots each quantity's rank ECDF minus the uniform CDF, with a simultaneous band; returns a Matplotlib figure."""
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
            axes.step(z, rank_counts(self.ranks[:, i], self.n_ranks) / n - z, where="mid", color=color)
            axes.set_title(f"{row.quantity}: p = {row.p:.2g}", fontsize=8, parse_math=False)
            axes.tick_params(labelsize=7)
        title = f"ECDF of {n} ranks minus the uniform CDF, with simultaneous bands (overall false-alarm rate {self.level:g})"
        figure.suptitle(title, fontsize=9)
        return figure


def sbc(  # one keyword for each user option
    model: LatentModel,
    method: Method,
    *,
    n_replications: Several = 200,
    n_units: Count = 10,
    n_ranks: Several = N_RANKS,
    seed: int = 0,
    level: Fraction = LEVEL,
    progress: bool = True,
) -> SBC:
    """Runs simulation-based calibration: tests whether ranks of true values among posterior draws are uniform.

    With `NUTS`, each data set has one chain, and all chains run in lock step. They use the method's warm-up, target acceptance
    and tree depth, and are extended as thinning requires. Other methods run on one data set at a time; `n_ranks` equally
    spaced draws of each run are used.

    Args:
        model: The model; its `simulate` must return data sets of one shape.
        method: The method.
        n_replications: Data sets R; 200 usually suffice to detect a posterior sd that is wrong by a factor of 1.5.
        n_units: Units of each data set.
        n_ranks: Posterior draws L among which each true value is ranked.
        seed: Root of the seed tree.
        level: False-alarm rate of the whole table.
        progress: Whether to show a progress bar on a terminal.

    Raises:
        ModelError: The model cannot simulate, gives no true value of a site, or does not support the method; or the method
            gives a point estimate or too few draws.
        ConfigError: A number is out of range.
        DataError: `simulate` returns data sets of different shapes.
        InferenceError: A quantity is not finite, or the method failed.
    """
    numbers = {"n_replications": n_replications, "n_units": n_units, "n_ranks": n_ranks, "level": level}
    checked("sbc", keyword_types(sbc), numbers)
    check_simulated(model, method)
    seeds = Seeds(seed).child("sbc")
    datasets = simulated(model, n_replications, n_units, seeds.child("data"))
    truth = stacked_truth(model, datasets)
    with one_thread():
        replications = Replications(model, datasets)

        def quantities_of(draws: Mapping[str, np.ndarray]) -> tuple[list[str], np.ndarray, np.ndarray]:
            with isolated(seeds.child("quantities")):
                return _quantities(model, replications, datasets, truth, draws)

        if isinstance(method, NUTS):
            names, true, draws = _by_chains(replications, method, seeds, n_ranks, quantities_of, progress=progress)
        else:
            values = _one_by_one(model, method, datasets, replications, seeds, n_ranks, progress=progress)
            names, true, draws = quantities_of(values)
    rng = seeds.child("ties").numpy()
    less, ties = (draws < true).sum(axis=1), (draws == true).sum(axis=1)
    ranks = less + rng.integers(0, ties + 1)
    p = [ecdf_p_value(rank_counts(ranks[:, i], n_ranks), n_replications) for i in range(len(names))]
    added = added_variance(true, draws) if isinstance(method, NUTS) else np.zeros(len(names))
    verdicts = np.where(added > 2 * _most_added(n_replications), "autocorrelated", "pass")
    verdicts = np.where(np.array(p) < level / len(names), "fail", verdicts)
    table = pd.DataFrame({"quantity": names, "p": p, "autocorrelation": added, "verdict": verdicts})
    return SBC(table, ranks, n_ranks, level)


def _by_chains(
    replications: Replications,
    method: NUTS,
    seeds: Seeds,
    n_ranks: int,
    quantities_of: Callable[[Mapping[str, np.ndarray]], tuple[list[str], np.ndarray, np.ndarray]],
    *,
    progress: bool,
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Returns names, true values and draws of the quantities; extends the chains until thinned draws are nearly independent."""
    chains, thin = Chains(replications, method, seeds), THIN
    while True:
        u = chains.draws(n_ranks * thin, what=f"SBC, {len(replications)} chains", progress=progress)[:, thin - 1 :: thin]
        names, true, draws = quantities_of(constrain_draws(replications.density, u))
        if thin >= MOST_THIN or (added_variance(true, draws) <= _most_added(len(replications))).all():
            return names, true, draws
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
            raise ModelError(
                f"`n_draws` of {method.name!r} must be at least {n_ranks}, the number of draws for each rank; got {n_draws}."
            )
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
    """Computes the ranked quantities.

    Returns:
        Their names, true values `(replication, 1, quantity)` and posterior draws `(replication, draw, quantity)`.
    """
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
    names, columns = select_entries(identified(values, {n: tuple(model.dims[n]) for n in values}, model.exchanges, site), values)
    if model.dims[site][0] == datasets[0].dims[datasets[0].observed][0] == "unit":
        names.append(f"|{site}^T x|^2")
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
    """Computes |Z^T X|^2 `(replication, draw)`, with centred data X and positions Z (one-hot indicators for labels)."""
    rows = np.nan_to_num(x - np.nanmean(x, axis=1, keepdims=True)).reshape(*x.shape[:2], -1)
    columns = z[..., None] == np.unique(z) if z.dtype.kind in "iub" else z
    return np.asarray((np.einsum("rknq,rnd->rkqd", columns.reshape(*z.shape[:3], -1).astype(float), rows) ** 2).sum(axis=(2, 3)))


def _total(terms: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack([*terms.values()]).sum()


def added_variance(true: np.ndarray, draws: np.ndarray) -> np.ndarray:
    r"""Computes $2 (\tau - 1) / L$, the fraction by which autocorrelation of the L draws increases the variance of ranks.

    A rank is a sum of indicators: draw below the true value, ties counted as 1/2. $\tau$ is their autocorrelation time,
    pooled over the replications and truncated before the first lag that is not positive. Centring a chain at its own mean
    biases each autocorrelation by about $-\tau / L$, which is corrected.

    Args:
        true: True values `(replication, 1, quantity)`.
        draws: Posterior draws `(replication, draw, quantity)`.

    Returns:
        The fractions, `(quantity,)`.
    """
    n = draws.shape[1]
    below = (draws < true) + 0.5 * (draws == true)
    centered = below - below.mean(axis=1, keepdims=True)
    variance = np.mean(centered**2, axis=(0, 1))
    scale = np.where(variance > 0, variance, 1.0)
    lags = np.array([(centered[:, lag:] * centered[:, : n - lag]).mean(axis=(0, 1)) / scale for lag in range(1, max(n // 2, 2))])
    time = np.ones(draws.shape[2])
    for _ in range(10):  # fixed-point iteration: the bias correction depends on the time itself
        share = lags * (1 - time / n) + time / n
        time = np.minimum(1 + 2 * np.sum(share * np.logical_and.accumulate(share > 0), axis=0), n)
    return np.asarray(2 * (time - 1) / n)


def _most_added(n_replications: int) -> float:
    return float(0.5 * np.sqrt(0.8 / n_replications))
