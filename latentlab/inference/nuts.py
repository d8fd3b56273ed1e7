"""The No-U-Turn sampler on the flat density of the program, with its chains in lock step."""

import time
from collections.abc import Callable, Generator, Sequence
from typing import ClassVar, TypeVar

import numpy as np

from latentlab.data.memory import BLOCK, release
from latentlab.inference.capture import Plan
from latentlab.inference.density import Density
from latentlab.inference.draws import Draws, Problem, from_checkpoint, read_checkpoint, write_checkpoint
from latentlab.inference.lift import constrain_draws
from latentlab.inference.start import start
from latentlab.inference.trajectory import STATISTICS, Answer, BatchGradient, Snapshot, chain
from latentlab.progress import tqdm
from latentlab.seeds import Seeds, isolated
from latentlab.settings import Count, Fraction, Whole, frozen_settings

ActiveGradient = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Points `(active, size)` and chain numbers `(active,)` -> log densities `(active,)` and gradients `(active, size)`."""
Result = TypeVar("Result")
RECENT = 50
"""Number of draws of each chain over which a monitor's acceptance is averaged."""
ACCEPT, DIVERGING = (STATISTICS.index(name) for name in ("acceptance_rate", "diverging"))
"""Columns of a snapshot's statistics."""
CHAINS_CHECKPOINT = "chains-under-way"
STEPS = 15
"""Approximate number of leapfrog steps in an iteration."""
CHECKPOINT_SECONDS = 60.0
"""Seconds between checkpoints of a run; a further one is saved when the run is interrupted."""


@frozen_settings
class NUTS:
    """Hamiltonian Monte Carlo with the No-U-Turn criterion, multinomial sampling, diagonal metric and dual averaging.

    The chains are independent, and their gradients are evaluated in one batched call. Each chain starts at the model's
    `initialize` plus uniform noise in each unconstrained coordinate. The width of the noise is the model's `jitter`, mostly 2, so
    that the starts are over-dispersed. Each chain has a separate branch of the seed tree.

    Args:
        n_chains: Number of chains; at least 2 for R-hat, 4 for a reliable one.
        n_warmup: Number of iterations that adapt step size and metric, and are not kept.
        n_draws: Number of draws of each chain.
        target_accept: Target for the mean acceptance probability, to which the step size is adapted, in (0, 1).
        max_tree_depth: Largest tree depth; an iteration has at most `2**max_tree_depth - 1` leapfrog steps.
        compiled: Whether to compile the density to machine code. This takes about twelve seconds the first time, is cached for
            later processes, and changes the last digits. If None, the density is compiled when the run is long enough.

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
    streams: ClassVar[bool] = True
    """Whether draws are written to their place as they are made."""

    def plan(self) -> Plan:
        """Return the intended use of the density's graphs."""
        return Plan(STEPS * (self.n_warmup + self.n_draws), self.compiled)

    def parts(self) -> list[str]:
        """Return the names of the chains."""
        return [f"chain-{i}" for i in range(self.n_chains)]

    def part(self, problem: Problem, i: int) -> dict[str, np.ndarray]:
        """Return the arrays of a chain that is sampled alone, from its checkpoint or computed."""
        name = f"chain-{i}"
        return from_checkpoint(problem, name, lambda: self._chains(problem, range(i, i + 1), f"{name}-under-way"))

    def run(self, problem: Problem) -> Draws:
        if problem.separate:
            chains = [self.part(problem, i) for i in range(self.n_chains)]
            n_draws = chains[0]["u"].shape[1:]
            u = np.concatenate([chain["u"] for chain in chains], out=problem.place.empty((self.n_chains, *n_draws)))
            arrays = {name: np.concatenate([chain[name] for chain in chains]) for name in chains[0] if name != "u"} | {"u": u}
        else:
            arrays = from_checkpoint(problem, "chains", lambda: self._chains(problem, range(self.n_chains), CHAINS_CHECKPOINT))
        stats = {name: array for name, array in arrays.items() if name != "u"}
        stats["diverging"] = stats["diverging"].astype(bool)
        return Draws(
            constrain_draws(problem.density, arrays["u"], problem.place), stats, attrs={"max_tree_depth": self.max_tree_depth}
        )

    def _chains(self, problem: Problem, numbers: range, part: str) -> dict[str, np.ndarray]:
        """Sample the chains with these numbers in lock step; `part` is the checkpoint of their state."""
        seeds = [problem.seeds.child("chain", number) for number in numbers]
        latest = _under_way(problem, part)
        u = problem.place.empty((len(numbers), self.n_draws, problem.density.size))
        coroutines = [
            chain(
                latest[i] if latest else starting_point(problem.density, seed),
                u[i],
                n_warmup=self.n_warmup,
                target_accept=self.target_accept,
                max_depth=self.max_tree_depth,
                rng=seed.child("trajectory").numpy(),
            )
            for i, seed in enumerate(seeds)
        ]
        saved, n_iterations = time.monotonic(), 0
        bar = tqdm(
            total=len(numbers) * (self.n_warmup + self.n_draws),
            initial=sum(snapshot.iteration for snapshot in latest.values()),
            desc=f"NUTS, {len(numbers)} chains",
            disable=None if problem.progress else True,
            leave=False,
        )

        def watch(i: int, snapshot: Snapshot) -> None:
            nonlocal saved, n_iterations
            latest[i] = snapshot
            bar.update()
            n_iterations += 1
            if n_iterations % max(1, BLOCK // u.shape[2]) == 0:
                release()
            if problem.monitor is not None:
                problem.monitor(live)
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                save()
                saved = time.monotonic()

        def live() -> tuple[int, dict[str, float]]:
            snapshots = latest.values()
            return sum(s.iteration for s in snapshots) // self.n_chains, _live_values(list(snapshots))

        def save() -> None:
            if len(latest) == len(numbers):
                write_checkpoint(problem, part, {f"{i}.{k}": a for i, s in latest.items() for k, a in s.arrays().items()})

        with bar:
            try:
                chains = drive(coroutines, problem.density.batch_value_and_grad, watch)
            except KeyboardInterrupt:
                save()
                raise
        if problem.monitor is not None:
            problem.monitor(live, last=True)
        return {"u": u, **{name: np.stack([c.stats[name] for c in chains]) for name in chains[0].stats}}


def _under_way(problem: Problem, part: str) -> dict[int, Snapshot]:
    """Return the snapshots of an interrupted run by chain; empty if there are none."""
    checkpoint = read_checkpoint(problem, part) or {}
    by_chain: dict[int, dict[str, np.ndarray]] = {}
    for key, array in checkpoint.items():
        chain, _, name = key.partition(".")
        by_chain.setdefault(int(chain), {})[name] = array
    return {i: Snapshot.from_arrays(arrays) for i, arrays in by_chain.items()}


def _live_values(snapshots: Sequence[Snapshot]) -> dict[str, float]:
    """Return the mean acceptance over chains of the last `RECENT` draws or of the warm-up, all divergences, and the step size."""
    rows = [s.statistics[: s.n_rows] for s in snapshots]
    accept = [of[-RECENT:, ACCEPT].mean() if len(of) else s.averaging.acceptance for of, s in zip(rows, snapshots, strict=True)]
    return {
        "acceptance_rate": float(np.mean(accept)),
        "divergences": float(sum(of[:, DIVERGING].sum() for of in rows)),
        "step_size": float(np.mean([s.tuning.step_size for s in snapshots])),
    }


def starting_point(density: Density, seeds: Seeds) -> np.ndarray:
    """Return the starting point of a chain, `(size,)`."""
    with isolated(seeds):
        return start(density, seeds.child("start").numpy(), jitter=density.model.jitter).numpy()


def drive(
    chains: Sequence[Generator[np.ndarray | Snapshot, Answer, Result]],
    value_and_grad: BatchGradient,
    watch: Callable[[int, Snapshot], None] | None = None,
) -> list[Result]:
    """Run chains in lock step, with one batched gradient call for all of them; the row of a finished chain is a filler.

    Args:
        chains: Results of `chain`, or other coroutines that request gradients.
        value_and_grad: Log densities and gradients at one point for each chain.
        watch: Called with the number of a chain and its snapshot after each of its iterations.
    """

    def whole(points: np.ndarray, active: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if len(active) == len(chains):
            return value_and_grad(points)
        rows = np.broadcast_to(points[0], (len(chains), points.shape[1])).copy()
        rows[active] = points
        values, gradients = value_and_grad(rows)
        return values[active], gradients[active]

    return drive_active(chains, whole, watch)


def drive_active(
    chains: Sequence[Generator[np.ndarray | Snapshot, Answer, Result]],
    value_and_grad: ActiveGradient,
    watch: Callable[[int, Snapshot], None] | None = None,
) -> list[Result]:
    """Run chains in lock step, like `drive`, but request gradients of the running chains only, with their numbers."""
    points: dict[int, np.ndarray] = {}
    results: dict[int, Result] = {}

    def advance(i: int, answer: Answer | None) -> None:
        try:
            request = next(chains[i]) if answer is None else chains[i].send(answer)
            while isinstance(request, Snapshot):
                if watch is not None:
                    watch(i, request)
                request = next(chains[i])
            points[i] = request
        except StopIteration as stop:
            results[i] = stop.value
            points.pop(i, None)

    with np.errstate(all="ignore"):  # a diverging trajectory may overflow; its energy is then infinite, and it is rejected
        for i in range(len(chains)):
            advance(i, None)
        while points:
            active = np.fromiter(points, dtype=np.intp, count=len(points))
            values, gradients = value_and_grad(np.array([*points.values()]), active)
            for i, value, gradient in zip(active.tolist(), values.tolist(), gradients, strict=True):
                advance(i, (value, gradient))
    return [results[i] for i in range(len(chains))]
