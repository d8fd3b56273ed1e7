r"""Many chains at once: Hamiltonian Monte Carlo whose step size, metric and trajectory length all chains adapt together.

All chains make the same number of leapfrog steps in an iteration, so that one batched gradient serves them all. In the
coordinates v that the metric makes round, with v', p' the end of a trajectory of length $t = h T$, h of a Halton sequence, T
ascends, by stochastic gradients, how much the distance to the centre changes, for a price on the trajectory: with
D coordinates and $f(v) = \log(1 + \|v - \bar v\|^2 / D)$,
$$ T^{-1/2} \, C, \qquad C = \tfrac12 \, \mathbb E \big(f(v') - f(v)\big)^2, \qquad
\frac{d}{dt} f(v') = \frac{2 \, (v' - \bar v)' p'}{D + \|v' - \bar v\|^2} . $$
The published criterion has the squared distance itself: with heavy tails a few chains far out then decide alone, and T runs away.
Without a price T grows without end where some direction is slow (seen for PPCA: 23 sds, a sixth of the effective draws a
gradient); with the full price, C / T, it is short of what the slowest quantity needs. A normal density has its optimum at 1.95.
With each metric T begins anew: where it ran away under an early one, an iteration would take a hundred steps from then on.

Why this one: MEADS adapts without trajectories, and makes many correlated draws of which each has to be kept or thinned; the
microcanonical sampler (MCLMC) is without a correction biased by its step size, and with one needs another tuning of its own.
Here draws are few, nearly independent and exact, and the statistics above are means over chains, which are ready after a few
iterations where one chain needs hundreds.

References:
    Hoffman, Radul & Sountsov 2021, An Adaptive-MCMC Scheme for Setting Trajectory Lengths in Hamiltonian Monte Carlo, AISTATS.
    Sountsov & Hoffman 2021, Focusing on Difficult Directions for Learning HMC Trajectory Lengths, arXiv:2110.11576.
    Margossian, Hoffman, Sountsov, Riou-Durand, Vehtari & Gelman 2024, Nested R-hat, Bayesian Analysis.
    Hoffman & Sountsov 2022, Tuning-Free Generalized Hamiltonian Monte Carlo (MEADS), AISTATS.
"""

import time
from dataclasses import replace
from typing import ClassVar

import numpy as np
from tqdm.auto import tqdm

from latentlab.errors import ConfigError
from latentlab.inference.capture import Plan
from latentlab.inference.draws import Draws, Problem, finished, keep, kept
from latentlab.inference.lift import constrain_draws
from latentlab.inference.many_chains import STATISTICS, STEPS, State, sample
from latentlab.inference.nuts import SAVED_EVERY, UNDER_WAY, starting_point
from latentlab.settings import Count, Fraction, Several, Whole, frozen_settings


@frozen_settings
class ChEES:
    """Hamiltonian Monte Carlo with many chains in one batch, adapted together, for many short chains.

    The chains of a superchain start at one point, and superchains at over-dispersed ones (as NUTS's chains do), so that nested
    R-hat tells whether the chains have forgotten their starts: plain R-hat needs long chains.

    Args:
        n_chains: Chains, a multiple of `n_superchains`.
        n_superchains: Starting points.
        n_warmup: Iterations that adapt, not kept.
        n_draws: Kept iterations a chain.
        target_accept: Harmonic mean of the chains' acceptance that the step size is adapted to, in (0, 1).
        max_steps: At most this many leapfrog steps an iteration.
        compiled: Whether to compile the density to machine code, which takes some ten seconds the first time and is kept for
            later processes; where None, if the run is long enough to gain by it. It changes the last digits.
    """

    n_chains: Several = 64
    n_superchains: Count = 8
    n_warmup: Whole = 400
    n_draws: Count = 200
    target_accept: Fraction = 0.8
    max_steps: Count = 256
    compiled: bool | None = None

    name: ClassVar[str] = "chees"
    kind: ClassVar[str] = "mcmc"

    def __post_init__(self) -> None:
        if self.n_chains % self.n_superchains:
            raise ConfigError(
                f"ChEES: `n_chains` must be a multiple of `n_superchains`; got {self.n_chains} and {self.n_superchains}."
            )

    def plan(self) -> Plan:
        """What the density is used for."""
        return Plan(STEPS * (self.n_warmup + self.n_draws), self.compiled)

    def run(self, problem: Problem) -> Draws:
        arrays = finished(problem, "chains", lambda: self._chains(problem))
        stats = {name: array for name, array in arrays.items() if name in STATISTICS}
        stats["diverging"] = stats["diverging"].astype(bool)
        attrs = {"n_superchains": self.n_superchains, "trajectory_length": float(arrays["length"])}
        return Draws(constrain_draws(problem.density, arrays["u"]), stats, attrs=attrs)

    def _chains(self, problem: Problem) -> dict[str, np.ndarray]:
        found = kept(problem, UNDER_WAY)
        rng = problem.seeds.child("trajectories").numpy()
        if found:
            state = State.from_arrays(found, rng)
        else:
            seeds = [problem.seeds.child("chain", i) for i in range(self.n_superchains)]
            starts = np.stack([starting_point(problem.density, seed) for seed in seeds])
            state = State.at(np.repeat(starts, self.n_chains // self.n_superchains, axis=0), self.target_accept)
        n, saved, first = self.n_warmup + self.n_draws, time.monotonic(), state.n_draws
        pieces = [kept(problem, _piece(at)) or {} for at in state.pieces]
        rows: list[dict[str, np.ndarray]] = []
        latest = state.still(rng)
        bar = tqdm(
            total=n, initial=state.iteration, desc=f"ChEES, {self.n_chains} chains", leave=False,
            disable=None if problem.progress else True,
        )  # fmt: skip

        def save() -> None:
            nonlocal first
            if rows:
                pieces.append(_stacked(rows))
                keep(problem, _piece(first), pieces[-1])
                state.pieces.append(first)
                first += len(rows)
                rows.clear()
            keep(problem, UNDER_WAY, replace(latest, pieces=state.pieces).arrays())

        with bar:
            try:
                for row in sample(state, problem.density.batch_value_and_grad, rng, self):
                    bar.update()
                    latest = state.still(rng)
                    if row is not None:
                        rows.append(row)
                    if time.monotonic() - saved > SAVED_EVERY:
                        save()
                        saved = time.monotonic()
            except KeyboardInterrupt:
                if latest.iteration:
                    save()
                raise
        if rows:
            pieces.append(_stacked(rows))
        arrays = {name: np.concatenate([piece[name] for piece in pieces], axis=1) for name in pieces[0]}
        return {**arrays, "length": np.array(state.length)}


def _piece(first: int) -> str:
    return f"draws-from-{first}"


def _stacked(rows: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Draws `(chain, draw, ...)` by name."""
    return {name: np.stack([row[name] for row in rows], axis=1) for name in rows[0]}
