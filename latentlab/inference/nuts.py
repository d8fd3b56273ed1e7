"""The No-U-Turn sampler on the flat density of the program, its chains run in lock step."""

import time
from typing import ClassVar

import numpy as np
from tqdm.auto import tqdm

from latentlab.inference.capture import Plan
from latentlab.inference.density import Density
from latentlab.inference.draws import Draws, Problem, finished, keep, kept
from latentlab.inference.lift import constrain_draws
from latentlab.inference.start import start
from latentlab.inference.trajectory import Snapshot, chain, drive
from latentlab.seeds import Seeds, isolated
from latentlab.settings import Count, Fraction, Whole, frozen_settings

UNDER_WAY = "chains-under-way"
STEPS = 15
"""Leapfrog steps an iteration, about."""
SAVED_EVERY = 60.0
"""Seconds between checkpoints of chains that are under way; they are also kept when a run is interrupted."""


@frozen_settings
class NUTS:
    """Hamiltonian Monte Carlo with the No-U-Turn criterion, multinomial sampling, diagonal metric, dual averaging.

    The chains are independent, and their gradients are evaluated together in one batched call. Every chain starts at the
    model's `initialize` plus uniform noise in each unconstrained coordinate, as wide as the model says (`jitter`, mostly 2), so
    that the starts are over-dispersed, and has its own branch of the seed tree.

    Args:
        n_chains: Chains; at least 2 for R-hat, 4 for a sound one.
        n_warmup: Iterations that adapt step size and metric, not kept.
        n_draws: Kept iterations a chain.
        target_accept: Mean acceptance that the step size is adapted to, in (0, 1).
        max_tree_depth: At most `2**max_tree_depth - 1` leapfrog steps an iteration.
        compiled: Whether to compile the density to machine code, which takes some ten seconds the first time and is kept for
            later processes; where None, if the run is long enough to gain by it. It changes the last digits.

    References:
        Hoffman & Gelman 2014, The No-U-Turn Sampler, JMLR 15:1593.
    """

    n_chains: Count = 4
    n_warmup: Whole = 500
    n_draws: Count = 1000
    target_accept: Fraction = 0.8
    max_tree_depth: Count = 10
    compiled: bool | None = None

    name: ClassVar[str] = "nuts"
    kind: ClassVar[str] = "mcmc"

    def plan(self) -> Plan:
        """What the density is used for."""
        return Plan(STEPS * (self.n_warmup + self.n_draws), self.compiled)

    def run(self, problem: Problem) -> Draws:
        arrays = finished(problem, "chains", lambda: self._chains(problem))
        stats = {name: array for name, array in arrays.items() if name != "u"}
        stats["diverging"] = stats["diverging"].astype(bool)
        return Draws(constrain_draws(problem.density, arrays["u"]), stats, attrs={"max_tree_depth": self.max_tree_depth})

    def _chains(self, problem: Problem) -> dict[str, np.ndarray]:
        seeds = [problem.seeds.child("chain", chain) for chain in range(self.n_chains)]
        latest = self._under_way(problem)
        coroutines = [
            chain(
                latest[i] if latest else starting_point(problem.density, seed),
                n_warmup=self.n_warmup,
                n_draws=self.n_draws,
                target_accept=self.target_accept,
                max_depth=self.max_tree_depth,
                rng=seed.child("trajectory").numpy(),
            )
            for i, seed in enumerate(seeds)
        ]
        saved = time.monotonic()
        bar = tqdm(
            total=self.n_chains * (self.n_warmup + self.n_draws),
            initial=sum(snapshot.iteration for snapshot in latest.values()),
            desc=f"NUTS, {self.n_chains} chains",
            disable=None if problem.progress else True,
            leave=False,
        )

        def watch(i: int, snapshot: Snapshot) -> None:
            nonlocal saved
            latest[i] = snapshot
            bar.update()
            if time.monotonic() - saved > SAVED_EVERY:
                save()
                saved = time.monotonic()

        def save() -> None:
            if len(latest) == self.n_chains:
                keep(problem, UNDER_WAY, {f"{i}.{k}": a for i, s in latest.items() for k, a in s.arrays().items()})

        with bar:
            try:
                chains = drive(coroutines, problem.density.batch_value_and_grad, watch)
            except KeyboardInterrupt:
                save()
                raise
        stats = {name: np.stack([c.stats[name] for c in chains]) for name in chains[0].stats}
        return {"u": np.stack([c.u for c in chains]), **stats}

    def _under_way(self, problem: Problem) -> dict[int, Snapshot]:
        """Where an earlier run was stopped, by chain; empty where none was."""
        found = kept(problem, UNDER_WAY) or {}
        of: dict[int, dict[str, np.ndarray]] = {}
        for key, array in found.items():
            chain, _, name = key.partition(".")
            of.setdefault(int(chain), {})[name] = array
        return {i: Snapshot.from_arrays(arrays) for i, arrays in of.items()}


def starting_point(density: Density, seeds: Seeds) -> np.ndarray:
    """Where a chain starts, `(size,)`."""
    with isolated(seeds):
        return start(density, seeds.child("start").numpy(), jitter=density.model.jitter).numpy()
