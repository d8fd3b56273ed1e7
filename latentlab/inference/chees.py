r"""Hamiltonian Monte Carlo with many chains, whose step size, metric and trajectory length are adapted across all chains.

All chains make the same number of leapfrog steps in an iteration, so that their gradients are one batched call. Let v be the
coordinates whitened by the metric, D their number, and v', p' the end of a trajectory of length $t = h T$, with h from a Halton
sequence. With $f(v) = \log(1 + \|v - \bar v\|^2 / D)$, stochastic gradient ascent in T maximises
$$ T^{-1/2} \, C, \qquad C = \tfrac12 \, \mathbb E \big(f(v') - f(v)\big)^2, \qquad
\frac{d}{dt} f(v') = \frac{2 \, (v' - \bar v)^T p'}{D + \|v' - \bar v\|^2} . $$
The published criterion uses the squared distance instead of f. With heavy tails a few distant chains then dominate it, and T
diverges. Without the factor $T^{-1/2}$, T grows without bound if some direction mixes slowly. (For PPCA it reached 23 standard
deviations, with a sixth of the effective draws per gradient.) With the factor $1 / T$, T is too short for the slowest quantity.
The optimum for a normal density is 1.93. T is reset with each metric. Otherwise a T that diverged under an early metric would
cost a hundred steps in every later iteration.

Alternatives: MEADS adapts without trajectories, and makes many correlated draws that have to be stored or thinned. The
microcanonical sampler (MCLMC) is biased by its step size without a correction, and with one needs further tuning. Here draws are
few, nearly independent and unbiased. The statistics above are means over chains, and need a few iterations instead of hundreds.

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

from latentlab.data.memory import release
from latentlab.errors import ConfigError, StoreError
from latentlab.inference.capture import Plan
from latentlab.inference.draws import Draws, Problem, from_checkpoint, read_checkpoint, write_checkpoint
from latentlab.inference.lift import constrain_draws
from latentlab.inference.many_chains import STATISTICS, STEPS, State, sample
from latentlab.inference.nuts import CHAINS_CHECKPOINT, CHECKPOINT_SECONDS, RECENT, starting_point
from latentlab.progress import tqdm
from latentlab.settings import Count, Fraction, Several, Whole, frozen_settings


@frozen_settings
class ChEES:
    """Hamiltonian Monte Carlo with many short chains in one batch, adapted jointly.

    The chains of a superchain start at one point, and the points of the superchains are over-dispersed, like the starts of
    NUTS's chains. Nested R-hat then detects chains that still depend on their starts; plain R-hat needs long chains.

    Args:
        n_chains: Chains, a multiple of `n_superchains`.
        n_superchains: Number of starting points.
        n_warmup: Number of warm-up iterations, which are not kept.
        n_draws: Number of draws of each chain.
        target_accept: Target for the harmonic mean of the chains' acceptance probabilities, to which the step size is adapted,
            in (0, 1).
        max_steps: Largest number of leapfrog steps in an iteration.
        compiled: Whether to compile the density to machine code. This takes about twelve seconds the first time, is cached for
            later processes, and changes the last digits. If None, the density is compiled when the run is long enough.
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
    streams: ClassVar[bool] = True
    """Whether draws are written to their place as they are made."""

    def __post_init__(self) -> None:
        if self.n_chains % self.n_superchains:
            raise ConfigError(
                f"ChEES: `n_chains` must be a multiple of `n_superchains`; got {self.n_chains} and {self.n_superchains}."
            )

    def plan(self) -> Plan:
        """Return the intended use of the density's graphs."""
        return Plan(STEPS * (self.n_warmup + self.n_draws), self.compiled)

    def run(self, problem: Problem) -> Draws:
        arrays = from_checkpoint(problem, "chains", lambda: self._chains(problem))
        stats = {name: array for name, array in arrays.items() if name in STATISTICS}
        stats["diverging"] = stats["diverging"].astype(bool)
        attrs = {"n_superchains": self.n_superchains, "trajectory_length": float(arrays["length"])}
        return Draws(constrain_draws(problem.density, arrays["u"], problem.place), stats, attrs=attrs)

    def _chains(self, problem: Problem) -> dict[str, np.ndarray]:
        checkpoint = read_checkpoint(problem, CHAINS_CHECKPOINT)
        rng = problem.seeds.child("trajectories").numpy()
        if checkpoint:
            state = State.from_arrays(checkpoint, rng)
        else:
            seeds = [problem.seeds.child("chain", i) for i in range(self.n_superchains)]
            starts = np.stack([starting_point(problem.density, seed) for seed in seeds])
            state = State.at(np.repeat(starts, self.n_chains // self.n_superchains, axis=0), self.target_accept)
        n, saved, first = self.n_warmup + self.n_draws, time.monotonic(), state.n_draws
        arrays: dict[str, np.ndarray] = {}

        def keep(piece: dict[str, np.ndarray], at: int) -> None:
            for name, values in piece.items():
                if name not in arrays:
                    arrays[name] = problem.place.empty((self.n_chains, self.n_draws, *values.shape[2:]), values.dtype)
                arrays[name][:, at : at + values.shape[1]] = values

        for at in state.pieces:
            keep(_read_piece(problem, at), at)
        latest = state.snapshot(rng)
        bar = tqdm(
            total=n, initial=state.iteration, desc=f"ChEES, {self.n_chains} chains", leave=False,
            disable=None if problem.progress else True,
        )  # fmt: skip

        def save() -> None:
            nonlocal first
            if latest.n_draws > first:
                write_checkpoint(problem, _piece(first), {k: v[:, first : latest.n_draws] for k, v in arrays.items()})
                state.pieces.append(first)
                first = latest.n_draws
                release()
            write_checkpoint(problem, CHAINS_CHECKPOINT, replace(latest, pieces=state.pieces).arrays())

        def live() -> tuple[int, dict[str, float]]:
            n = state.n_draws
            accept = arrays["acceptance_rate"][:, max(0, n - RECENT) : n].mean() if n else state.averaging.acceptance
            n_divergent = float(arrays["diverging"][:, :n].sum()) if n else 0.0
            return state.iteration, {"acceptance_rate": float(accept), "divergences": n_divergent, "step_size": state.step_size}

        with bar:
            try:
                for row in sample(state, problem.density.batch_value_and_grad, rng, self):
                    bar.update()
                    if row is not None:
                        keep({name: values[:, None] for name, values in row.items()}, state.n_draws - 1)
                    latest = state.snapshot(rng)
                    if problem.monitor is not None:
                        problem.monitor(live)
                    if time.monotonic() - saved > CHECKPOINT_SECONDS:
                        save()
                        saved = time.monotonic()
            except KeyboardInterrupt:
                if latest.iteration:
                    save()
                raise
        if problem.monitor is not None:
            problem.monitor(live, last=True)
        return {**arrays, "length": np.array(state.length)}


def _piece(first: int) -> str:
    return f"draws-from-{first}"


def _read_piece(problem: Problem, first: int) -> dict[str, np.ndarray]:
    piece = read_checkpoint(problem, _piece(first))
    if piece is None:
        remedy = f"remove {CHAINS_CHECKPOINT}.safetensors to sample the chains again"
        raise StoreError(f"{problem.checkpoint}: the checkpoint {_piece(first)} is missing or damaged; {remedy}.")
    return piece
