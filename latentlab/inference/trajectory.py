r"""The No-U-Turn transition and its adaptation for one chain, as coroutines that request gradients.

A coroutine yields a point $u$ and is sent $(\log p(u), \nabla \log p(u))$. A driver can therefore evaluate the points of several
chains in one batched call. The chains stay independent: each has separate random numbers, step size and metric. Between two
iterations a chain yields a snapshot of its state, from which it can be resumed.

The transition samples multinomially from the trajectory with Stan's biased progressive scheme and its U-turn checks across
subtrees (Betancourt 2017, A Conceptual Introduction to Hamiltonian Monte Carlo, arXiv:1701.02434, appendix A). Warm-up is
Stan's: dual averaging of the step size (Hoffman & Gelman 2014, JMLR 15:1593, section 3.2), and a diagonal metric from
doubling windows, shrunk towards 1e-3 by five pseudo-draws.
"""

import json
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from latentlab.data.memory import by_quantity, place_of

Answer = tuple[float, np.ndarray]
TreeCoroutine = Generator[np.ndarray, Answer, "Tree"]
BatchGradient = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Points `(chain, size)` -> log densities `(chain,)` and gradients `(chain, size)`."""

MAX_ENERGY_ERROR = 1000.0


class State(NamedTuple):
    """A point of phase space with the gradient there; the momentum belongs to the coordinates whitened by the metric."""

    u: np.ndarray
    p: np.ndarray
    gradient: np.ndarray
    log_prob: float


class Tree(NamedTuple):
    """A piece of trajectory: its ends, momentum sum, log weight, one state drawn from it, and its statistics."""

    left: State
    right: State
    rho: np.ndarray
    log_weight: float
    proposal: State
    stop: bool
    diverging: bool
    accept: float
    n_steps: int


class Transition(NamedTuple):
    """One iteration: the new state and its statistics."""

    state: State
    energy: float
    diverging: bool
    acceptance_rate: float
    n_steps: int
    tree_depth: int


@dataclass
class Tuning:
    """Adapted quantities: the step size and the diagonal of the inverse metric (the posterior variances)."""

    step_size: float
    variance: np.ndarray

    def leap(self, *, forward: bool) -> "Leap":
        """Return a leapfrog step forward or back in time."""
        push = (self.step_size if forward else -self.step_size) * np.sqrt(self.variance)
        return Leap(forward, push, 0.5 * push)


class Leap(NamedTuple):
    """A leapfrog step: the factors of the momentum in the point's update, and of the gradient in half a momentum update."""

    forward: bool
    push: np.ndarray
    half_pull: np.ndarray


def transition(
    state: State, tuning: Tuning, max_depth: int, rng: np.random.Generator
) -> Generator[np.ndarray, Answer, Transition]:
    """Make one NUTS iteration from `state`, with a new momentum."""
    p = rng.standard_normal(len(state.u))
    first = state._replace(p=p)
    energy = _energy(first)
    leaps = [tuning.leap(forward=forward) for forward in (True, False)]
    whole = Tree(first, first, p, 0.0, first, stop=False, diverging=False, accept=0.0, n_steps=0)
    depth = 0
    while depth < max_depth:
        leap = leaps[rng.random() >= 0.5]
        new = yield from _build(whole.right if leap.forward else whole.left, depth, leap, energy, rng)
        accept, n_steps = whole.accept + new.accept, whole.n_steps + new.n_steps
        if new.stop:
            whole = whole._replace(diverging=new.diverging, accept=accept, n_steps=n_steps)
            break
        depth += 1
        proposal = new.proposal if math.log(rng.random()) < new.log_weight - whole.log_weight else whole.proposal
        whole = _join(whole, new, proposal, _log_sum(whole.log_weight, new.log_weight), forward=leap.forward)
        if whole.stop:
            break
    rate = whole.accept / max(whole.n_steps, 1)
    return Transition(whole.proposal, energy, whole.diverging, rate, whole.n_steps, depth)


def _build(start: State, depth: int, leap: Leap, energy: float, rng: np.random.Generator) -> TreeCoroutine:
    """Build the piece of 2**depth steps that begins one step from `start`; it is shorter if it stops early."""
    if depth == 0:
        return (yield from _leaf(start, leap, energy))
    near = yield from _build(start, depth - 1, leap, energy, rng)
    if near.stop:
        return near
    far = yield from _build(near.right if leap.forward else near.left, depth - 1, leap, energy, rng)
    if far.stop:
        return far._replace(accept=near.accept + far.accept, n_steps=near.n_steps + far.n_steps)
    log_weight = _log_sum(near.log_weight, far.log_weight)
    proposal = far.proposal if math.log(rng.random()) < far.log_weight - log_weight else near.proposal
    return _join(near, far, proposal, log_weight, forward=leap.forward)


def _leaf(start: State, leap: Leap, energy: float) -> TreeCoroutine:
    """Make one leapfrog step."""
    p = start.p + leap.half_pull * start.gradient
    u = start.u + leap.push * p
    log_prob, gradient = yield u
    state = State(u, p + leap.half_pull * gradient, gradient, log_prob)
    error = _energy(state) - energy
    error = error if math.isfinite(error) else math.inf
    diverging = error > MAX_ENERGY_ERROR
    return Tree(state, state, state.p, -error, state, diverging, diverging, math.exp(min(0.0, -error)), 1)


def _join(near: Tree, far: Tree, proposal: State, log_weight: float, *, forward: bool) -> Tree:
    """Join two neighbouring pieces; stop if the whole, or a piece with the adjacent end of the other, makes a U-turn."""
    left, right = (near, far) if forward else (far, near)
    first, last, rho = left.left.p, right.right.p, left.rho + right.rho
    turning = not (first.dot(rho) > 0 and last.dot(rho) > 0)
    if not turning and not (near.left is near.right and far.left is far.right):  # for two points the three checks are equal
        begin, end = right.left.p, left.right.p
        rho_left, rho_right = left.rho + begin, right.rho + end
        inside = first.dot(rho_left) > 0 and begin.dot(rho_left) > 0 and end.dot(rho_right) > 0 and last.dot(rho_right) > 0
        turning = not inside
    accept, n_steps = near.accept + far.accept, near.n_steps + far.n_steps
    return Tree(left.left, right.right, rho, log_weight, proposal, turning, False, accept, n_steps)


def _log_sum(one: float, other: float) -> float:
    """Compute log(exp(one) + exp(other)) of numbers that are not both minus infinity."""
    return max(one, other) + math.log1p(math.exp(-abs(one - other)))


def _energy(state: State) -> float:
    return 0.5 * float(state.p.dot(state.p)) - state.log_prob


def reasonable_step_size(state: State, tuning: Tuning, rng: np.random.Generator) -> Generator[np.ndarray, Answer, float]:
    """Double or halve the step size until a single leapfrog step has acceptance probability near 0.8."""
    change = 0
    while True:
        first = state._replace(p=rng.standard_normal(len(state.u)))
        leaf = yield from _leaf(first, tuning.leap(forward=True), _energy(first))
        now = 1 if leaf.log_weight > math.log(0.8) else -1
        change = change or now
        if now != change or not 1e-10 < tuning.step_size < 1e7:
            return tuning.step_size
        tuning.step_size *= 2.0**change


@dataclass
class DualAveraging:
    """Dual averaging of the step size, so that the acceptance approaches `target`."""

    target: float
    step_size: float
    gamma: float = 0.05
    t0: float = 10.0
    kappa: float = 0.75
    _count: int = 0
    _error: float = 0.0
    _log_average: float = 0.0
    _mu: float = field(init=False)

    def __post_init__(self) -> None:
        self._mu = math.log(10 * self.step_size)

    def update(self, acceptance: float) -> float:
        """Return the step size of the next iteration."""
        self._count += 1
        weight = 1 / (self._count + self.t0)
        self._error = (1 - weight) * self._error + weight * (self.target - acceptance)
        log_step = self._mu - math.sqrt(self._count) / self.gamma * self._error
        share = self._count**-self.kappa
        self._log_average = share * log_step + (1 - share) * self._log_average
        return math.exp(log_step)

    @property
    def acceptance(self) -> float:
        """Mean acceptance since the start of the averaging, shrunk towards the target by `t0` pseudo-iterations."""
        return self.target - self._error

    @property
    def final(self) -> float:
        """Return the averaged step size, for use after warm-up."""
        return math.exp(self._log_average) if self._count else self.step_size

    def numbers(self) -> list[float]:
        """Return the state as numbers, for `from_numbers`."""
        return [self.target, self.step_size, self._count, self._error, self._log_average]

    @classmethod
    def from_numbers(cls, numbers: Sequence[float]) -> "DualAveraging":
        """Restore the state from its numbers."""
        target, step_size, count, error, log_average = numbers
        return cls(target, step_size, _count=int(count), _error=error, _log_average=log_average)


def windows(n_warmup: int) -> list[int]:
    """Return the iterations after which the metric is updated.

    There are 75 initial iterations, doubling windows from 25 on, and 50 final ones. A warm-up of fewer than 150 iterations has
    one window and shorter phases. With fewer than 20 there is no window.
    """
    if n_warmup < 20:
        return []
    begin, end, size = (75, 50, 25) if n_warmup >= 150 else (int(0.15 * n_warmup), int(0.1 * n_warmup), 0)
    if not size:
        return [n_warmup - end]
    ends, at = [], begin
    while at < n_warmup - end:
        following = at + size + 2 * size
        at = at + size if following <= n_warmup - end else n_warmup - end
        ends.append(at)
        size *= 2
    return ends


STATISTICS = ("lp", "energy", "diverging", "acceptance_rate", "n_steps", "tree_depth", "step_size")
"""Statistics of each kept draw, under ArviZ's names."""


class Chain(NamedTuple):
    """A finished chain: `u` `(draw, size)` and its statistics by name, `(draw,)`."""

    u: np.ndarray
    stats: dict[str, np.ndarray]


class Snapshot(NamedTuple):
    """State of a chain between two iterations, from which it is resumed bit for bit.

    The chain goes on writing to `window`, `u` and `statistics`; the snapshot consists of the first `n_window` rows of the first,
    and the first `n_rows` of the others.
    """

    iteration: int
    state: State
    tuning: Tuning
    averaging: DualAveraging
    window: np.ndarray
    n_window: int
    u: np.ndarray
    statistics: np.ndarray
    n_rows: int
    random: dict[str, Any]

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the whole state as arrays by name, which are valid until the chain goes on."""
        return {
            "iteration": np.array(self.iteration),
            "state": np.stack([self.state.u, self.state.gradient]),
            "log_prob": np.array(self.state.log_prob),
            "step_size": np.array(self.tuning.step_size),
            "variance": self.tuning.variance,
            "averaging": np.array(self.averaging.numbers()),
            "window": self.window[: self.n_window],
            "u": self.u[: self.n_rows],
            "statistics": self.statistics[: self.n_rows].T,
            "random": np.frombuffer(json.dumps(self.random).encode(), dtype=np.uint8),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Snapshot":
        """Restore a snapshot from its arrays."""
        u, gradient = arrays["state"]
        return cls(
            int(arrays["iteration"]),
            State(u, np.zeros_like(u), gradient, float(arrays["log_prob"])),
            Tuning(float(arrays["step_size"]), arrays["variance"]),
            DualAveraging.from_numbers(arrays["averaging"].tolist()),
            arrays["window"],
            len(arrays["window"]),
            arrays["u"],
            arrays["statistics"].T,
            len(arrays["u"]),
            json.loads(arrays["random"].tobytes()),
        )


def chain(
    start: np.ndarray | Snapshot, u: np.ndarray, *, n_warmup: int, target_accept: float, max_depth: int, rng: np.random.Generator
) -> Generator[np.ndarray | Snapshot, Answer, Chain]:
    """Run a chain from a point, or resume one from a snapshot; yield a snapshot after each iteration.

    Draws are written to `u`, `(draw, size)`. If it is kept in a file, so are the states from which the metric is computed.
    """
    n_draws, size = u.shape
    ends = windows(n_warmup)
    begin = 75 if n_warmup >= 150 else int(0.15 * n_warmup)
    statistics = np.empty((n_draws, len(STATISTICS)))
    window = place_of(u).empty((max(np.diff([begin, *ends]), default=0), size))
    if isinstance(start, Snapshot):
        done, state, tuning, averaging = start.iteration, start.state, start.tuning, start.averaging
        n_window, n_rows = start.n_window, min(start.n_rows, n_draws)
        window[:n_window], u[:n_rows], statistics[:n_rows] = start.window[:n_window], start.u[:n_rows], start.statistics[:n_rows]
        rng.bit_generator.state = start.random
    else:
        log_prob, gradient = yield start
        done, state = 0, State(start, np.zeros_like(start), gradient, log_prob)
        tuning = Tuning(1.0, np.ones_like(start))
        tuning.step_size = yield from reasonable_step_size(state, tuning, rng)
        averaging = DualAveraging(target_accept, tuning.step_size)
        n_window, n_rows = 0, 0
    for iteration in range(done, n_warmup + n_draws):
        if iteration == n_warmup:
            tuning.step_size = averaging.final
        new = yield from transition(state, tuning, max_depth, rng)
        state = new.state
        if iteration >= n_warmup:
            u[n_rows], statistics[n_rows] = state.u, (state.log_prob, *new[1:], tuning.step_size)
            n_rows += 1
        else:
            tuning.step_size = averaging.update(new.acceptance_rate)
            if iteration >= begin and iteration < max(ends, default=0):
                window[n_window] = state.u
                n_window += 1
            if iteration + 1 in ends:
                variance = by_quantity(lambda states: states.var(axis=0, ddof=1), window[:n_window])
                tuning.variance = variance * n_window / (n_window + 5) + 1e-3 * 5 / (n_window + 5)
                n_window = 0
                tuning.step_size = yield from reasonable_step_size(state, tuning, rng)
                averaging = DualAveraging(target_accept, tuning.step_size)
        random = dict(rng.bit_generator.state)
        written = window, n_window, u, statistics, n_rows
        yield Snapshot(iteration + 1, state, replace(tuning), replace(averaging), *written, random)
    return Chain(u, dict(zip(STATISTICS, statistics.T, strict=True)))
