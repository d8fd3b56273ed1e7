r"""Maximum likelihood of the linear-Gaussian state-space model: EM, then L-BFGS and Newton's method.

EM: with the smoothed moments of the positions,
$A = \sum E[z_t z_{t-1}^T] (\sum E[z_{t-1} z_{t-1}^T])^{-1}$ over the steps with a predecessor. Each feature is regressed on
$(z_t, 1)$ over the steps in which it was observed. EM converges slowly, so descent on $(A, C, \mu, \log\sigma)$ follows.

References:
    Shumway & Stoffer (1982), An approach to time series smoothing and forecasting using the EM algorithm, J. Time Series
    Analysis 3:253.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.optimize
import torch

from latentlab.distributions.linear_gaussian_chain import LinearGaussianChain
from latentlab.errors import InferenceError
from latentlab.models.base import MaximumLikelihood

Values = dict[str, torch.Tensor]
Derivative = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Function from a vector to gradient and value."""

TOLERANCE = 1e-8
"""Largest derivative of the mean log likelihood per step at the end.

Each derivative is multiplied by the absolute value of its parameter if this exceeds 1. A ridge along which A diverges and the
slope vanishes is therefore not accepted as a maximum.
"""
FLOOR = 1e-6
"""Lower bound on a feature's noise variance, as a share of the feature's variance (a Heywood case ends there)."""
LARGE = 5.0
"""Absolute value of an entry of A above which the likelihood is reported as unbounded."""
N_STARTS = 3
N_EM = 100
N_NEWTON = 50


@dataclass(frozen=True)
class Problem:
    """Data `(unit, feature)` with 0 for missing entries, mask or None, starts `(unit,)`, initial scale and fixed sites."""

    x: torch.Tensor
    mask: torch.Tensor | None
    starts: torch.Tensor
    initial_scale: float
    fixed: tuple[str, ...] = ()

    def observed(self) -> torch.Tensor:
        return torch.ones_like(self.x) if self.mask is None else self.mask.to(self.x.dtype)

    def chain(self, values: Values) -> LinearGaussianChain:
        eye = torch.eye(len(values["A"]), dtype=self.x.dtype)
        return LinearGaussianChain(
            values["A"],
            eye,
            values["C"],
            values["mu"],
            values["sigma"],
            torch.zeros_like(eye[0]),
            self.initial_scale**2 * eye,
            self.starts,
            self.mask,
        )

    def log_likelihood(self, values: Values) -> torch.Tensor:
        return self.chain(values).log_prob_sum(self.x)


def best_optimum(
    x: torch.Tensor,
    mask: torch.Tensor | None,
    starts: torch.Tensor,
    *,
    n_latent: int,
    initial_scale: float,
    fixed: tuple[str, ...],
    rng: np.random.Generator,
) -> MaximumLikelihood:
    """Maximise the likelihood over A, C, mu and sigma, rotated so that C has principal axes.

    Features are first divided by their standard deviations; the derivative refers to these units.

    Args:
        x: Data `(unit, feature)`.
        mask: True for observed entries, or None.
        starts: True at the first step of each sequence, `(unit,)`.
        n_latent: Number of latent dimensions.
        initial_scale: Standard deviation of a sequence's first position.
        fixed: Sites that are fixed at 0.
        rng: Random generator of the starts.

    Raises:
        InferenceError: The maximum was not reached; gives the remaining derivative.
    """
    middle, scale = _standard(x, mask)
    if "mu" in fixed:
        middle = torch.zeros_like(middle)
    problem = Problem((x - middle) / scale, mask, starts, initial_scale, fixed)
    runs = []
    for i in range(N_STARTS):
        begin = start(problem.x, mask, starts, n_latent, rng, jitter=0.5 if i else 0.0)
        values, trace = climb(problem, {name: torch.zeros_like(v) if name in fixed else v for name, v in begin.items()})
        descent = _Descent(problem, values)
        u = descent.quasi_newton()
        runs.append((descent, u, [*trace, float(problem.log_likelihood(descent.at(u)))]))
    descent, u, trace = max(runs, key=lambda run: run[2][-1])
    u, gradient, n_newton = descent.newton(u)
    values = descent.at(u)
    if not gradient < TOLERANCE:
        raise InferenceError(
            f"maximum likelihood did not converge in {len(trace) - 2} EM steps, L-BFGS and {n_newton} Newton steps: the largest "
            f"derivative of the mean log likelihood is {gradient:.2g} (limit {TOLERANCE:g}){_unbounded(values)}; use a smaller "
            "n_latent, or a method with priors (nuts, svi, map)."
        )
    trace.append(float(problem.log_likelihood(values)))
    log_volume = float((problem.observed().sum(0) * torch.log(scale)).sum())
    A, C = _principal(values["A"].numpy(), (values["C"] * scale[:, None]).numpy())
    found = {"A": A, "C": C, "mu": (values["mu"] * scale + middle).numpy(), "sigma": (values["sigma"] * scale).numpy()}
    how = f"EM, {len(trace) - 3} steps, then L-BFGS and Newton, {n_newton} steps; best of {len(runs)} starts"
    return MaximumLikelihood(found, how, gradient, np.asarray(trace) - log_volume, _notes(values, [run[2][-1] for run in runs]))


def start(
    x: torch.Tensor,
    mask: torch.Tensor | None,
    starts: torch.Tensor,
    n_latent: int,
    rng: np.random.Generator,
    *,
    jitter: float = 0.0,
) -> Values:
    """Starting values from principal components and their regression on the previous step.

    Loadings of further latent dimensions are random; `jitter` is the scale of random noise added to A and C.
    """
    mu, scale = _standard(x, mask)
    observed = torch.ones_like(x) if mask is None else mask.to(x.dtype)
    filled = observed * (x - mu) / scale
    _, s, vt = torch.linalg.svd(filled, full_matrices=False)
    n = min(n_latent, len(s))
    scores, loadings = filled @ vt[:n].mT, vt[:n].mT
    after, before = scores[~starts], scores[:-1][~starts[1:]]
    if starts[0] and len(after) > n:
        slope = torch.linalg.solve(before.mT @ before + 1e-3 * torch.eye(n, dtype=x.dtype) * len(x), before.mT @ after).mT
        rest = after - before @ slope.mT
    else:
        slope, rest = torch.zeros(n, n, dtype=x.dtype), scores
    values, vectors = torch.linalg.eigh(rest.mT @ rest / max(1, len(rest)))
    values = torch.clamp(values, min=1e-3)
    root = vectors * torch.sqrt(values) @ vectors.mT
    A = torch.zeros(n_latent, n_latent, dtype=x.dtype)
    A[:n, :n] = torch.linalg.solve(root, slope @ root)
    C = 0.1 * torch.from_numpy(rng.standard_normal((x.shape[1], n_latent)))
    C[:, :n] = loadings @ root
    A = A + jitter * 0.3 * torch.from_numpy(rng.standard_normal(A.shape))
    C = C + jitter * torch.from_numpy(rng.standard_normal(C.shape))
    residual_variance = ((filled - scores @ loadings.mT) ** 2).sum(0) / observed.sum(0).clamp(min=1)
    return {"A": A, "C": C * scale[:, None], "mu": mu, "sigma": torch.sqrt(torch.clamp(residual_variance, min=0.1)) * scale}


def _standard(x: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each feature over its observed entries."""
    observed = torch.ones_like(x) if mask is None else mask.to(x.dtype)
    count = observed.sum(0).clamp(min=1)
    mean = (observed * x).sum(0) / count
    return mean, torch.sqrt((observed * (x - mean) ** 2).sum(0) / count).clamp(min=1e-300)


def climb(problem: Problem, values: Values, n_steps: int = N_EM) -> tuple[Values, list[float]]:
    """Run EM; return the last values and the log likelihoods. It ends early if a step gains less than 1e-9 of the total."""
    trace = [float(problem.log_likelihood(values))]
    for _ in range(n_steps):
        values = em_step(problem, values)
        trace.append(float(problem.log_likelihood(values)))
        if abs(trace[-1] - trace[-2]) < 1e-9 * abs(trace[-1]):
            break
    return values, trace


def em_step(problem: Problem, values: Values) -> Values:
    """One step of EM: maximise the expected joint log density under the path's distribution at `values`."""
    x, observed, fixed = problem.x, problem.observed(), problem.fixed
    path = problem.chain(values).conditional(x)
    mean, second = path.mean, path.covariance_matrix + path.mean[:, :, None] * path.mean[:, None, :]
    follows = ~problem.starts
    lag = (path.lag_one_covariance + mean.roll(1, 0)[:, :, None] * mean[:, None, :])[follows].sum(0)
    A = values["A"]
    if "A" not in fixed and bool(follows.any()):
        A = torch.linalg.solve(second.roll(1, 0)[follows].sum(0), lag).mT
    n, q = mean.shape
    first = mean
    if "mu" not in fixed:
        first = torch.cat([mean, torch.ones_like(mean[:, :1])], 1)
        second = torch.cat([torch.cat([second, mean[:, :, None]], 2), first[:, None, :]], 1)
    k = first.shape[1]
    cross = (observed * x).mT @ first
    moments = (observed.mT @ second.reshape(n, -1)).reshape(-1, k, k)
    solution = torch.linalg.solve(moments, cross)
    variance = ((observed * x**2).sum(0) - (solution * cross).sum(1)) / observed.sum(0)
    mu = values["mu"] if "mu" in fixed else solution[:, q]
    return {"A": A, "C": solution[:, :q], "mu": mu, "sigma": torch.sqrt(torch.clamp(variance, min=FLOOR))}


class _Descent:
    """Descent from the result of EM to the maximum; the free values form one vector, which contains log sigma for sigma."""

    def __init__(self, problem: Problem, values: Values) -> None:
        self.problem, self.values = problem, values
        self.names = [name for name in values if name not in problem.fixed]
        self.sizes = [values[name].numel() for name in self.names]
        least = {"sigma": 0.5 * np.log(FLOOR)}
        self.low = np.concatenate([np.full(n, least.get(k, -np.inf)) for k, n in zip(self.names, self.sizes, strict=True)])

    def parts(self, u: torch.Tensor) -> Values:
        return dict(zip(self.names, torch.split(u, self.sizes), strict=True))

    def at(self, u: torch.Tensor) -> Values:
        """Convert a vector to values of the sites."""
        parts = self.parts(u)
        parts["sigma"] = torch.exp(parts["sigma"])
        return {**self.values, **{name: part.reshape(self.values[name].shape) for name, part in parts.items()}}

    def objective(self, u: torch.Tensor) -> torch.Tensor:
        return -self.problem.log_likelihood(self.at(u)) / len(self.problem.x)

    def quasi_newton(self) -> torch.Tensor:
        """Run L-BFGS with the noise bounded below by its floor; return the vector."""
        derivative = torch.func.grad_and_value(self.objective)

        def function(u: np.ndarray) -> tuple[float, np.ndarray]:
            gradient, value = derivative(torch.from_numpy(u))
            return float(value), gradient.numpy()

        begin = torch.cat([(torch.log(self.values[n]) if n == "sigma" else self.values[n]).reshape(-1) for n in self.names])
        optimum = scipy.optimize.minimize(
            function,
            begin.numpy(),
            jac=True,
            method="L-BFGS-B",
            bounds=scipy.optimize.Bounds(self.low, np.inf),
            options={"maxiter": 500, "maxfun": 600, "gtol": 1e-6, "ftol": 0.0, "maxcor": 20},
        )
        return torch.from_numpy(optimum.x)

    def newton(self, u: torch.Tensor) -> tuple[torch.Tensor, float, int]:
        """Run damped Newton steps over the entries above their floor, without directions of zero curvature (rotations).

        Returns:
            The vector, its largest derivative, and the number of steps.
        """
        index = torch.nonzero(u > torch.from_numpy(self.low) + 1e-3)[:, 0]
        restricted = lambda v: self.objective(u.index_put((index,), v))  # noqa: E731
        derivative = torch.func.grad_and_value(restricted)
        hessian = torch.func.jacrev(torch.func.grad(restricted), chunk_size=64)
        v, n_steps = u[index], 0
        gradient, value = derivative(v)
        while n_steps < N_NEWTON and float(gradient.abs().max()) >= 0.01 * TOLERANCE:
            curvature, vectors = torch.linalg.eigh(hessian(v))
            flat = curvature.abs() < 1e-9 * curvature.abs().max()
            weight = torch.where(flat, torch.zeros_like(curvature), 1 / curvature.abs().clamp(min=1e-300))
            direction = vectors @ (weight * (vectors.mT @ gradient))
            found = _search(derivative, v, direction, float(gradient.abs().max()), float(value))
            if found is None:
                break
            v, gradient, value = found
            n_steps += 1
        u = u.index_put((index,), v)
        sizes = torch.cat([torch.ones_like(p) if n == "sigma" else p.abs().clamp(min=1) for n, p in self.parts(u).items()])
        return u, float((gradient * sizes[index]).abs().max()), n_steps


def _search(
    derivative: Derivative, v: torch.Tensor, direction: torch.Tensor, slope: float, value: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """Backtracking line search: the longest step 1, 1/2, 1/4, ... against `direction` that improves.

    A step improves if it decreases the value or, up to rounding errors of the value, the largest derivative to below 0.9 `slope`.
    Returns the point, gradient and value, or None.
    """
    blur = 1e-11 * max(1.0, abs(value))
    for shift in range(20):
        candidate = v - direction * 0.5**shift
        gradient, new = derivative(candidate)
        gains = float(new) < value - blur or (float(new) <= value + blur and float(gradient.abs().max()) < 0.9 * slope)
        if gains and bool(torch.isfinite(gradient).all()):
            return candidate, gradient, new
    return None


def _principal(A: np.ndarray, C: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotate A and C so that C's columns are orthogonal, longest first, each with its largest loading positive."""
    turn = np.linalg.svd(C)[2].T
    rotated = C @ turn
    largest = np.take_along_axis(rotated, np.abs(rotated).argmax(axis=0)[None], axis=0)[0]
    turn = turn * np.where(largest < 0, -1.0, 1.0)
    return turn.T @ A @ turn, C @ turn


def _unbounded(values: Values) -> str:
    """Message on a diverging A if one of its entries exceeds `LARGE`; empty otherwise."""
    largest = float(values["A"].abs().max())
    message = f"; an entry of A has absolute value {largest:.3g}: A diverges if fewer than n_latent dimensions have innovations"
    return message if largest > LARGE else ""


def _notes(values: Values, ends: list[float]) -> tuple[str, ...]:
    notes = []
    at_floor = torch.nonzero(values["sigma"] <= 1.001 * FLOOR**0.5)[:, 0].tolist()
    if at_floor:
        which = ", ".join(map(str, at_floor))
        notes.append(
            f"Heywood case: the noise variance of feature {which} is at its lower bound, {FLOOR:g} of the feature's variance"
        )
    if max(ends) - min(ends) > 1e-3 * abs(max(ends)):
        notes.append(f"starts ended at different log likelihoods, {min(ends):.2f} to {max(ends):.2f}: there are local maxima")
    if _unbounded(values):
        notes.append(_unbounded(values).removeprefix("; "))
    radius = float(torch.linalg.eigvals(values["A"]).abs().max())
    if radius >= 1:
        notes.append(f"the dynamics are unstable: the largest eigenvalue of A has modulus {radius:.4f}")
    return tuple(notes)
