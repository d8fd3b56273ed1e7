"""Many chains in one batch: their state, metric, step size and trajectory length."""

import copy
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from scipy.linalg import solve_triangular

from latentlab.inference.trajectory import MAX_ENERGY_ERROR, BatchGradient, DualAveraging

STATISTICS = ("lp", "energy", "diverging", "acceptance_rate", "n_steps", "step_size")
"""Statistics of each kept draw and chain, under ArviZ's names."""
FIRST_LENGTH = 2.25
"""Initial trajectory length T, in standard deviations: the optimum for a normal density and `COST_POWER` 0 (tan 2T = 2T)."""
RATE = 0.05
"""Step size of the gradient ascent in log T."""
LEAST_ACCEPT = 0.01
"""Lower bound on each chain's acceptance in the harmonic mean."""
EARLY_STEPS = 16
"""Largest number of leapfrog steps in an iteration before the metric is set for the second time."""
METRIC_AT = (0.1, 0.2, 0.4, 0.7)
"""Fractions of the warm-up at which the metric is set to the chains' covariance since the previous one."""
DENSE = 200
"""Largest number of coordinates for which the metric is dense."""
MIN_ITERATIONS = 5
"""Smallest number of iterations from which a metric is estimated."""
COST_POWER = 0.5
"""Power of T by which the criterion is divided: 0 ignores the cost of a trajectory, 1 maximises the value per gradient."""
STEPS = 10
"""Approximate number of leapfrog steps in an iteration."""
DECAY = 0.9
"""Decay factor of the running means of the criterion and of its slope."""


class Settings(Protocol):
    """Settings of a method that the chains use."""

    @property
    def n_warmup(self) -> int: ...

    @property
    def n_draws(self) -> int: ...

    @property
    def target_accept(self) -> float: ...

    @property
    def max_steps(self) -> int: ...


@dataclass
class State:
    """State of all chains between two iterations, with the adapted quantities.

    `u`, `gradient`: `(chain, size)`; `lp`: `(chain,)`, NaN before the first gradient; `root`: a factor of the covariance,
    `(size, size)`, or the standard deviations `(size,)`; `slope`, `level`: running means of the criterion's slope in log T and of
    the criterion; `log_length`: running mean of log T; `moments`: count, mean and scatter of the points of the current window.
    """

    u: np.ndarray
    gradient: np.ndarray
    lp: np.ndarray
    root: np.ndarray
    averaging: DualAveraging
    iteration: int = 0
    n_draws: int = 0
    step_size: float = 0.0
    length: float = FIRST_LENGTH
    slope: float = 0.0
    level: float = 0.0
    log_length: float = 0.0
    moments: "Moments" = field(default_factory=lambda: Moments((0, 0)))
    pieces: list[int] = field(default_factory=list)
    random: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def at(cls, u: np.ndarray, target_accept: float) -> "State":
        """Return the initial state of chains that start at `u`, `(chain, size)`."""
        size = u.shape[1]
        missing = np.full(len(u), np.nan)
        root = np.eye(size) if size <= DENSE else np.ones(size)
        return cls(u, np.zeros_like(u), missing, root, DualAveraging(target_accept, 1.0), moments=Moments(u.shape))

    def snapshot(self, rng: np.random.Generator) -> "State":
        """Return a snapshot that later iterations leave unchanged; arrays are shared, since they are never written to."""
        return replace(
            self, averaging=replace(self.averaging), moments=copy.copy(self.moments), random=dict(rng.bit_generator.state)
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the whole state as arrays by name."""
        random = json.dumps(self.random).encode()
        return {
            "chains": np.stack([self.u, self.gradient]),
            "lp": self.lp,
            "root": self.root,
            "averaging": np.array(self.averaging.numbers()),
            "numbers": np.array([self.step_size, self.length, self.slope, self.level, self.log_length]),
            "counts": np.array([self.iteration, self.n_draws, self.moments.n, *self.pieces]),
            "means": self.moments.mean,
            "scatter": self.moments.scatter,
            "random": np.frombuffer(random, dtype=np.uint8),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], rng: np.random.Generator) -> "State":
        """Restore the state from its arrays, and set `rng` to its saved random state."""
        rng.bit_generator.state = json.loads(arrays["random"].tobytes())
        u, gradient = arrays["chains"]
        averaging = DualAveraging.from_numbers(arrays["averaging"].tolist())
        iteration, n_draws, n, *pieces = arrays["counts"].tolist()
        step_size, length, slope, level, log_length = arrays["numbers"].tolist()
        moments = Moments(u.shape)
        moments.n, moments.mean, moments.scatter = n, arrays["means"], arrays["scatter"]
        adapted = (arrays["root"], averaging, iteration, n_draws, step_size, length, slope, level, log_length)
        return cls(u, gradient, arrays["lp"], *adapted, moments, pieces)


class Moments:
    """Scatter matrix about each chain's mean, summed over chains; only the diagonal above `DENSE` coordinates.

    About a common mean, chains in different modes would look like one wide distribution. A symmetry causes many such modes.

    Args:
        shape: `(chain, size)`.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        size = shape[-1]
        self.n = 0
        self.mean = np.zeros(shape)
        self.scatter = np.zeros((size, size) if size <= DENSE else size)

    def add(self, points: np.ndarray) -> None:
        """Update the moments by one point of each chain, `(chain, size)`."""
        self.n += 1
        before = points - self.mean
        self.mean = self.mean + before / self.n
        after = points - self.mean
        self.scatter = self.scatter + (before.T @ after if self.scatter.ndim == 2 else (before * after).sum(axis=0))

    def root(self) -> np.ndarray:
        """Return the Cholesky factor of the covariance, `(size, size)`, or the standard deviations, `(size,)`.

        Variances are shrunk towards 0.001 by 5 pseudo-observations, correlations towards 0 by `size` pseudo-observations.
        """
        n = len(self.mean) * (self.n - 1)
        variance = np.diag(self.scatter) if self.scatter.ndim == 2 else self.scatter
        sd = np.sqrt((variance + 5e-3) / (n + 5))
        if self.scatter.ndim == 1:
            return sd
        correlation = self.scatter / (n + 5) / np.outer(sd, sd) * (n / (n + len(sd)))
        np.fill_diagonal(correlation, 1.0)
        return sd[:, None] * np.linalg.cholesky(correlation)


def sample(
    state: State, value_and_grad: BatchGradient, rng: np.random.Generator, settings: Settings
) -> Iterator[dict[str, np.ndarray] | None]:
    """Run the iterations after `state`, which is updated in place; yield draw and statistics, or None during warm-up."""
    n_warmup = settings.n_warmup
    shares = halton(n_warmup + settings.n_draws)
    with np.errstate(all="ignore"):  # diverging trajectories may overflow; their energy is then infinite, and they are rejected
        if not state.step_size:
            state.lp, state.gradient = value_and_grad(state.u)
            _restart_step(state, value_and_grad, rng, settings)
        ends = {round(share * n_warmup) for share in METRIC_AT}
        settled = round(METRIC_AT[1] * n_warmup)
        for iteration in range(state.iteration, n_warmup + settings.n_draws):
            if iteration == n_warmup and n_warmup:
                state.step_size, state.length = state.averaging.final, math.exp(state.log_length)
            most = settings.max_steps if iteration >= settled else min(EARLY_STEPS, settings.max_steps)
            n_steps = min(max(math.ceil(shares[iteration] * state.length / state.step_size), 1), most)
            p = rng.standard_normal(state.u.shape)
            before = state.u
            end, momentum, lp, gradient = leapfrog(state, p, n_steps, value_and_grad)
            energy = 0.5 * (p * p).sum(axis=1) - state.lp
            error = 0.5 * (momentum * momentum).sum(axis=1) - lp - energy
            error = np.where(np.isfinite(error), error, np.inf)
            accept = np.exp(-np.maximum(error, 0.0))
            taken = rng.random(len(p)) < accept
            state.u = np.where(taken[:, None], end, state.u)
            state.gradient = np.where(taken[:, None], gradient, state.gradient)
            state.lp = np.where(taken, lp, state.lp)
            state.iteration = iteration + 1
            if iteration < n_warmup:
                _adapt_length(state, before, end, momentum, accept, n_steps, iteration - n_warmup // 2, whole=n_steps < most)
                state.step_size = state.averaging.update(_mean(accept))
                state.moments.add(state.u)
                if iteration + 1 in ends and state.moments.n >= MIN_ITERATIONS:
                    state.root, state.moments = state.moments.root(), Moments(state.u.shape)
                    state.length, state.slope, state.level = FIRST_LENGTH, 0.0, 0.0
                    _restart_step(state, value_and_grad, rng, settings)
                yield None
            else:
                state.n_draws += 1
                n, step = np.full(len(p), float(n_steps)), np.full(len(p), state.step_size)
                diverging = (error > MAX_ENERGY_ERROR).astype(np.float64)
                values = (state.lp, energy, diverging, accept, n, step)
                yield {"u": state.u, **dict(zip(STATISTICS, values, strict=True))}


def leapfrog(
    state: State, p: np.ndarray, n_steps: int, value_and_grad: BatchGradient
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Compute the ends of trajectories of `n_steps` leapfrog steps: points, momenta, log densities and gradients.

    With root R, momenta are those of v = R^-1 u. A chain that becomes non-finite gets log density -inf, and is then rejected.
    """
    step, root = state.step_size, state.root
    u, gradient, lp = state.u, state.gradient, state.lp
    non_finite = np.zeros(len(u), dtype=bool)
    momentum = p + 0.5 * step * _momentum_change(gradient, root)
    for i in range(n_steps):
        u = u + step * _position_change(momentum, root)
        non_finite |= ~np.isfinite(u).all(axis=1)
        if non_finite.any():
            u = np.where(non_finite[:, None], state.u, u)
        lp, gradient = value_and_grad(u)
        non_finite |= ~(np.isfinite(lp) & np.isfinite(gradient).all(axis=1))
        share = 1.0 if i < n_steps - 1 else 0.5
        momentum = momentum + share * step * _momentum_change(gradient, root)
    return u, momentum, np.where(non_finite, -np.inf, lp), gradient


def _position_change(momentum: np.ndarray, root: np.ndarray) -> np.ndarray:
    return momentum @ root.T if root.ndim == 2 else momentum * root


def _momentum_change(gradient: np.ndarray, root: np.ndarray) -> np.ndarray:
    return gradient @ root if root.ndim == 2 else gradient * root


def _whitened(u: np.ndarray, root: np.ndarray) -> np.ndarray:
    """Compute v = R^-1 u for each chain."""
    return solve_triangular(root, u.T, lower=True, check_finite=False).T if root.ndim == 2 else u / root


def _adapt_length(  # one argument for each part of a trajectory that the criterion depends on
    state: State,
    before: np.ndarray,
    end: np.ndarray,
    momentum: np.ndarray,
    accept: np.ndarray,
    n_steps: int,
    late: int,
    *,
    whole: bool,
) -> None:
    """Take one step of the gradient ascent in log T, except after trajectories that were cut short (`whole` is False).

    The final log T is its mean over the second half of the warm-up, whose iterations are numbered by `late` from 0 on.
    """
    valid = np.isfinite(end).all(axis=1) & np.isfinite(momentum).all(axis=1) & (accept > 0)
    if whole and valid.sum() > 1:
        v, w, p, weight = _whitened(before[valid], state.root), _whitened(end[valid], state.root), momentum[valid], accept[valid]
        v, w = v - v.mean(axis=0), w - (weight @ w) / weight.sum()
        at_start, at_end = (v * v).mean(axis=1) + 1, (w * w).mean(axis=1) + 1  # exp(f)
        change, derivative = np.log(at_end / at_start), 2 * (w * p).mean(axis=1) / at_end
        slope = n_steps * state.step_size * float(weight @ (change * derivative))
        state.slope = DECAY * state.slope + (1 - DECAY) * slope
        state.level = DECAY * state.level + (1 - DECAY) * 0.5 * float(weight @ change**2)
        if math.isfinite(state.slope) and state.level > 0:
            state.length *= math.exp(RATE * min(max(state.slope / state.level - COST_POWER, -1.0), 1.0))
    if late >= 0:
        state.log_length += (math.log(state.length) - state.log_length) / (late + 1)


def _mean(accept: np.ndarray) -> float:
    """Harmonic mean of the chains' acceptance probabilities, to which chains with rare acceptance contribute most."""
    return float(1 / np.mean(1 / np.maximum(accept, LEAST_ACCEPT)))


def _restart_step(state: State, value_and_grad: BatchGradient, rng: np.random.Generator, settings: Settings) -> None:
    """Double or halve the step size until one leapfrog step has acceptance near 0.8, and restart dual averaging there."""
    state.step_size = state.step_size or 1.0
    change = 0
    while 1e-10 < state.step_size < 1e7:
        p = rng.standard_normal(state.u.shape)
        _, momentum, lp, _ = leapfrog(state, p, 1, value_and_grad)
        error = 0.5 * ((momentum * momentum).sum(axis=1) - (p * p).sum(axis=1)) - lp + state.lp
        accept = np.exp(-np.maximum(np.where(np.isfinite(error), error, np.inf), 0.0))
        now = 1 if _mean(accept) > 0.8 else -1
        change = change or now
        if now != change:
            break
        state.step_size *= 2.0**change
    state.averaging = DualAveraging(settings.target_accept, state.step_size)


def halton(n: int) -> np.ndarray:
    """Return the first `n` numbers of the Halton sequence of base 2, without 0: the reversed binary digits of 1, 2, ...

    SciPy's implementation takes a second to import.

    Example:
        >>> halton(5).tolist()
        [0.5, 0.25, 0.75, 0.125, 0.625]
    """
    rest, values, place = np.arange(1, n + 1), np.zeros(n), 0.5
    while rest.any():
        values += place * (rest & 1)
        rest, place = rest >> 1, place / 2
    return values
