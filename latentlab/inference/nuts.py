"""The No-U-Turn sampler on the flat density of the program, its chains run in lock step."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from tqdm.auto import tqdm

from latentlab.errors import ConfigError
from latentlab.inference.density import constrain_draws, start
from latentlab.inference.draws import Draws, Problem, finished
from latentlab.inference.trajectory import chain, drive
from latentlab.seeds import isolated


@dataclass(frozen=True)
class NUTS:
    """Hamiltonian Monte Carlo with the No-U-Turn criterion, multinomial sampling, diagonal metric, dual averaging.

    The chains are independent, and their gradients are evaluated together in one batched call. Every chain starts at the
    model's `initialize` plus Uniform(-2, 2) noise in each unconstrained coordinate, so that the
    starts are over-dispersed, and has its own branch of the seed tree.

    Args:
        n_chains: Chains; at least 2 for R-hat, 4 for a sound one.
        n_warmup: Iterations that adapt step size and metric, not kept.
        n_draws: Kept iterations a chain.
        target_accept: Mean acceptance that the step size is adapted to, in (0, 1).
        max_tree_depth: At most `2**max_tree_depth - 1` leapfrog steps an iteration.

    References:
        Hoffman & Gelman 2014, The No-U-Turn Sampler, JMLR 15:1593.
    """

    n_chains: int = 4
    n_warmup: int = 500
    n_draws: int = 1000
    target_accept: float = 0.8
    max_tree_depth: int = 10

    name: ClassVar[str] = "nuts"
    kind: ClassVar[str] = "mcmc"

    def __post_init__(self) -> None:
        for field, least in (("n_chains", 1), ("n_warmup", 0), ("n_draws", 1), ("max_tree_depth", 1)):
            require_whole(f"NUTS.{field}", getattr(self, field), least)
        if not 0 < self.target_accept < 1:
            raise ConfigError(f"NUTS.target_accept must be between 0 and 1; got {self.target_accept!r}.")

    def run(self, problem: Problem) -> Draws:
        arrays = finished(problem, "chains", lambda: self._chains(problem))
        stats = {name: array for name, array in arrays.items() if name != "u"}
        stats["diverging"] = stats["diverging"].astype(bool)
        return Draws(constrain_draws(problem.density, arrays["u"]), stats, attrs={"max_tree_depth": self.max_tree_depth})

    def _chains(self, problem: Problem) -> dict[str, np.ndarray]:
        density, seeds = problem.density, [problem.seeds.child("chain", chain) for chain in range(self.n_chains)]
        starts = []
        for seed in seeds:
            with isolated(seed):
                starts.append(start(density, seed.child("start").numpy(), jitter=2.0).numpy())
        coroutines = [
            chain(
                u,
                n_warmup=self.n_warmup,
                n_draws=self.n_draws,
                target_accept=self.target_accept,
                max_depth=self.max_tree_depth,
                rng=seed.child("trajectory").numpy(),
            )
            for u, seed in zip(starts, seeds, strict=True)
        ]
        total = self.n_chains * (self.n_warmup + self.n_draws)
        disable = None if problem.progress else True
        with tqdm(total=total, desc=f"NUTS, {self.n_chains} chains", disable=disable, leave=False) as bar:

            def count(_: int) -> None:
                bar.update()

            chains = drive(coroutines, density.batch_value_and_grad, count)
        stats = {name: np.stack([c.stats[name] for c in chains]) for name in chains[0].stats}
        return {"u": np.stack([c.u for c in chains]), **stats}


def require_whole(name: str, value: object, least: int) -> None:
    """Refuses what is not a whole number of at least `least`.

    Raises:
        ConfigError: Names the setting, the range and the value.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}; got {value!r}.")
