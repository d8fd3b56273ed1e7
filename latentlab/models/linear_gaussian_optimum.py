r"""Maximum likelihood of the linear-Gaussian models: in closed form, or by EM followed by Newton's method.

Closed form (PPCA, nothing missing): with $\lambda_1 \ge \dots \ge \lambda_D$ and $U$ the eigenvalues and eigenvectors of
$S = \frac1N \sum_n (x_n - \hat\mu)(x_n - \hat\mu)^T$,
$$ \hat\mu = \bar x, \quad \hat\sigma^2 = \frac{1}{D - q} \sum_{j > q} \lambda_j, \quad
   \hat W = U_q (\Lambda_q - \hat\sigma^2 I)^{1/2} R, $$
for any orthogonal R. W is reported in principal axes with the largest loading of each axis positive.

EM (missing entries, or a noise variance for each feature): with $\tilde z = (z, 1)$ and sums over the units in which feature d
was observed, $(w_d, \mu_d) = \sum_n x_{nd} E[\tilde z_n]^T (\sum_n E[\tilde z_n \tilde z_n^T])^{-1}$, and the noise variance is
the mean of $E[(x_{nd} - w_d^T z_n - \mu_d)^2]$. EM converges slowly, so a damped Newton iteration on $(W, \mu, \log\psi)$
follows. The gradient is 0 along rotations of W, so that Newton steps do not rotate W.

References:
    Tipping & Bishop (1999), Probabilistic Principal Component Analysis, JRSS B 61:611.
    Rubin & Thayer (1982), EM algorithms for ML factor analysis, Psychometrika 47:69.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from latentlab.distributions.low_rank_gaussian import LowRankGaussian
from latentlab.errors import InferenceError
from latentlab.models.base import MaximumLikelihood

Derivative = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Function from a vector to gradient and value."""

TOLERANCE = 1e-8
"""Largest derivative of the mean log likelihood per unit at the end."""
ROUNDING = 1e-10
"""Largest predicted gain of a further Newton step, in nats per unit; with small noise the derivative is rounded to more than
`TOLERANCE`."""
FLOOR = 1e-6
"""Lower bound on the noise variance, as a share of the feature's variance (a Heywood case ends there)."""
N_STARTS = 5
N_EM = 400
N_NEWTON = 200


@dataclass(frozen=True)
class _Problem:
    """Data and the choice of parameters: `x` with 0 for missing entries, `mask` or None."""

    x: torch.Tensor
    mask: torch.Tensor | None
    n_latent: int
    noise_per_feature: bool
    fixed_mean: bool

    def observed(self) -> torch.Tensor:
        return torch.ones_like(self.x) if self.mask is None else self.mask.to(self.x.dtype)

    def mean(self) -> torch.Tensor:
        observed = self.observed()
        return torch.zeros(self.x.shape[1]) if self.fixed_mean else (observed * self.x).sum(0) / observed.sum(0)

    def variance(self) -> torch.Tensor:
        """Variance of each feature over its observed entries."""
        observed = self.observed()
        return (observed * (self.x - self.mean()) ** 2).sum(0) / observed.sum(0)

    def floor(self) -> torch.Tensor:
        variance = self.variance()
        return FLOOR * (variance if self.noise_per_feature else variance.mean())

    def mean_log_likelihood(self, point: "_Point") -> torch.Tensor:
        return LowRankGaussian(point.mu, point.W, torch.sqrt(point.variance), self.mask).log_prob(self.x).mean()


@dataclass(frozen=True)
class _Point:
    """Parameters; `variance` is that of the noise: one number, or `(feature,)`."""

    W: torch.Tensor
    mu: torch.Tensor
    variance: torch.Tensor


def best_optimum(
    x: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    n_latent: int,
    noise: str,
    noise_per_feature: bool,
    fixed_mean: bool,
    rng: np.random.Generator,
) -> MaximumLikelihood:
    """Maximise the likelihood over W, mu and the noise; W has principal axes.

    Features are first divided by their standard deviations, or by the root mean square of these if they share one variance. The
    derivative refers to these units, so that a change of a column's unit affects only the parameters of this column.

    Args:
        x: Data `(unit, feature)`.
        mask: True for observed entries, or None.
        n_latent: Number of columns of W.
        noise: Name of the noise site.
        noise_per_feature: Whether each feature has a separate noise variance.
        fixed_mean: Whether mu is fixed at 0.
        rng: Random generator of the starts.

    Raises:
        InferenceError: The likelihood is unbounded (noise variance 0), or the iterations did not converge; gives the derivative.
    """
    middle = _Problem(x, mask, n_latent, noise_per_feature, fixed_mean).mean()  # avoids rounding errors from large offsets
    raw = _Problem(x - middle, mask, n_latent, noise_per_feature, fixed_mean)
    scale = torch.sqrt(raw.variance() if noise_per_feature else raw.variance().mean().expand(x.shape[1]))
    problem = replace(raw, x=raw.x / scale)
    log_volume = float((problem.observed().sum(0) * torch.log(scale)).sum())
    if mask is None and not noise_per_feature:
        point = _closed_form(problem)
        trace, how, gradient = [_total(problem, point)], "closed form", _gradient(problem, point)
        notes: tuple[str, ...] = ()
    else:
        runs = [_climb(problem, start) for start in _starts(problem, rng)]
        point, trace = max(runs, key=lambda run: run[1][-1])
        point, gradient, gain, n_newton = _newton(problem, point)
        trace = [*trace, _total(problem, point)]
        notes = _notes(problem, point, [run[1][-1] for run in runs])
        if not (gradient < TOLERANCE or gain < ROUNDING):
            raise InferenceError(
                f"maximum likelihood did not converge in {len(trace) - 1} EM and {n_newton} Newton steps. The largest derivative "
                f"of the mean log likelihood is {gradient:.2g} (limit {TOLERANCE:g}). The predicted gain of a further step is "
                f"{gain:.2g} nats per unit (limit {ROUNDING:g})."
            )
        how = f"EM, {len(trace) - 1} steps, then Newton, {n_newton} steps; best of {len(runs)} starts"
    noise_scale = scale if noise_per_feature else scale[0]
    values = {
        "W": principal_axes((point.W * scale[:, None]).numpy()),
        "mu": (point.mu * scale + middle).numpy(),
        noise: (torch.sqrt(point.variance) * noise_scale).numpy(),
    }
    return MaximumLikelihood(values, how, gradient, np.asarray(trace) - log_volume, notes, unique=True)


def principal_axes(W: np.ndarray) -> np.ndarray:
    """Rotate W to orthogonal columns, longest first, each with its largest loading positive."""
    rotated = W @ np.linalg.svd(W, full_matrices=False)[2].T  # keeps the precision of each row for any scale of the others
    largest = np.take_along_axis(rotated, np.abs(rotated).argmax(axis=0)[None], axis=0)
    return rotated * np.where(largest < 0, -1.0, 1.0)


def _closed_form(problem: _Problem) -> _Point:
    mu, q = problem.mean(), problem.n_latent
    _, s, vt = torch.linalg.svd(problem.x - mu, full_matrices=False)
    values = torch.zeros(problem.x.shape[1])
    values[: len(s)] = s**2 / len(problem.x)
    rest = values[q:].mean()
    if not rest > 1e-14 * values[0]:
        rank = int((values > 1e-14 * values[0]).sum())
        raise InferenceError(
            f"the data lie exactly in {q} dimensions (rank {rank}), so the noise variance is 0 and the likelihood is unbounded; "
            f"use an n_latent below {q}, or a method with priors (nuts, svi, map)."
        )
    W = vt[:q].mT * torch.sqrt(values[:q] - rest)
    return _Point(W, mu, rest)


def _starts(problem: _Problem, rng: np.random.Generator) -> list[_Point]:
    """Starts: the principal subspace of the data with missing entries at their mean, and `N_STARTS` - 1 noisy variants."""
    mu, observed = problem.mean(), problem.observed()
    filled = observed * (problem.x - mu)
    _, s, vt = torch.linalg.svd(filled, full_matrices=False)
    values = s**2 / len(filled)
    q = problem.n_latent
    W = vt[:q].mT * torch.sqrt(torch.clamp(values[:q] - values[q:].mean(), min=1e-3 * values[0]))
    size = torch.sqrt(problem.variance())
    starts = []
    for i in range(N_STARTS):
        jitter = torch.from_numpy(rng.standard_normal(W.shape)) * size[:, None]
        loadings = W if i == 0 else (0.5 * W + 0.5 * jitter if i < N_STARTS - 1 else 0.5 * jitter)
        spread = torch.maximum(problem.variance() - (loadings**2).sum(1), 0.2 * problem.variance())
        starts.append(_Point(loadings, mu, spread if problem.noise_per_feature else spread.mean()))
    return starts


def _climb(problem: _Problem, point: _Point) -> tuple[_Point, list[float]]:
    """Run EM; return the last point and the log likelihoods. It ends early if a step gains less than 1e-9 of the total."""
    trace = [_total(problem, point)]
    for _ in range(N_EM):
        point = _em_step(problem, point)
        trace.append(_total(problem, point))
        if abs(trace[-1] - trace[-2]) < 1e-9 * abs(trace[-1]):
            break
    return point, trace


def _em_step(problem: _Problem, point: _Point) -> _Point:
    x, observed, q = problem.x, problem.observed(), problem.n_latent
    scale = torch.sqrt(point.variance)
    conditional = LowRankGaussian(point.mu, point.W, scale, problem.mask).conditional(x)
    mean = conditional.mean
    covariance = conditional.covariance_matrix.expand(len(x), q, q)
    ones = torch.ones(len(x), 1)
    first = mean if problem.fixed_mean else torch.cat([mean, ones], 1)
    second = first[:, :, None] * first[:, None, :]
    second[:, :q, :q] += covariance
    k = first.shape[1]
    cross = (observed * x).mT @ first
    moments = (observed.mT @ second.reshape(len(x), -1)).reshape(-1, k, k)
    solution = torch.linalg.solve(moments, cross)
    squares = (observed * x**2).sum(0) - (solution * cross).sum(1)
    variance = squares / observed.sum(0) if problem.noise_per_feature else squares.sum() / observed.sum()
    W = solution[:, :q]
    mu = point.mu if problem.fixed_mean else solution[:, q]
    return _Point(W, mu, torch.maximum(variance, problem.floor()))


def _total(problem: _Problem, point: _Point) -> float:
    return float(problem.mean_log_likelihood(point)) * len(problem.x)


class _Flat:
    """Conversion between points and vectors of (W, mu unless fixed, log noise variances above the floor)."""

    def __init__(self, problem: _Problem, point: _Point) -> None:
        self.problem, self.like = problem, point
        self.at_floor = point.variance <= 1.001 * problem.floor()

    def pack(self, point: _Point) -> torch.Tensor:
        log_variance = torch.log(point.variance)[~self.at_floor].reshape(-1)
        return torch.cat([point.W.reshape(-1), *([] if self.problem.fixed_mean else [point.mu]), log_variance])

    def unpack(self, v: torch.Tensor) -> _Point:
        n = self.like.W.numel()
        W, rest = v[:n].reshape(self.like.W.shape), v[n:]
        d = 0 if self.problem.fixed_mean else len(self.like.mu)
        mu = rest[:d] if d else self.like.mu
        if self.at_floor.dim() == 0:
            variance = self.like.variance if self.at_floor else torch.exp(rest[d])
        else:
            free = torch.exp(rest[d:])
            variance = self.like.variance.clone().index_put((torch.nonzero(~self.at_floor)[:, 0],), free)
        return _Point(W, mu, variance)

    def objective(self, v: torch.Tensor) -> torch.Tensor:
        return self.problem.mean_log_likelihood(self.unpack(v))


def _gradient(problem: _Problem, point: _Point) -> float:
    flat = _Flat(problem, point)
    v = flat.pack(point).requires_grad_()
    (gradient,) = torch.autograd.grad(flat.objective(v), v)  # torch.func would import torch's compiler, which takes a second
    return float(gradient.abs().max())


def _newton(problem: _Problem, point: _Point) -> tuple[_Point, float, float, int]:
    """Run damped Newton ascent to 1% of `TOLERANCE`, or until no step gains.

    Returns:
        The point, its largest derivative, the predicted gain of the last Newton step, and the number of steps.
    """
    flat = _Flat(problem, point)
    v = flat.pack(point)
    derivative = torch.func.grad_and_value(flat.objective)
    hessian = torch.func.jacrev(torch.func.grad(flat.objective), chunk_size=64)
    gradient, value = derivative(v)
    step, gain = 0, math.inf
    while step < N_NEWTON and float(gradient.abs().max()) >= 0.01 * TOLERANCE:
        step += 1
        values, vectors = torch.linalg.eigh(hessian(v))
        curvature = torch.clamp(values.abs(), min=1e-9 * float(values.abs().max()))
        direction = vectors @ ((vectors.mT @ gradient) / curvature)
        gain = 0.5 * float(gradient @ direction)
        v_new, found = _search(derivative, v, direction, float(value))
        if found is None:
            break
        v, (gradient, value) = v_new, found
        if flat.at_floor.numel() > 1 and bool((flat.unpack(v).variance < problem.floor()).any()):
            clipped = flat.unpack(v)
            clipped = replace(clipped, variance=torch.maximum(clipped.variance, problem.floor()))
            flat = _Flat(problem, clipped)
            v = flat.pack(clipped)
            derivative = torch.func.grad_and_value(flat.objective)
            hessian = torch.func.jacrev(torch.func.grad(flat.objective), chunk_size=64)
            gradient, value = derivative(v)
    return flat.unpack(v), float(gradient.abs().max()), gain, step


def _search(
    derivative: Derivative, v: torch.Tensor, direction: torch.Tensor, value: float
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor] | None]:
    """Backtracking line search: the longest step 1, 1/2, 1/4, ... along `direction` that does not decrease the value, or None."""
    for shift in range(30):
        candidate = v + direction * 0.5**shift
        gradient, new = derivative(candidate)
        if torch.isfinite(gradient).all() and float(new) >= value - 1e-14 * abs(value):
            return candidate, (gradient, new)
    return v, None


def _notes(problem: _Problem, point: _Point, ends: list[float]) -> tuple[str, ...]:
    notes = []
    at_floor = torch.nonzero(point.variance.reshape(-1) <= 1.001 * problem.floor().reshape(-1))[:, 0].tolist()
    if at_floor:
        which = f" of feature {', '.join(map(str, at_floor))}" if problem.noise_per_feature else ""
        notes.append(f"Heywood case: the noise variance{which} is at its lower bound, {FLOOR:g} of the feature's variance")
    if max(ends) - min(ends) > 1e-3 * abs(max(ends)):
        notes.append(f"starts ended at different log likelihoods, {min(ends):.2f} to {max(ends):.2f}: there are local maxima")
    return tuple(notes)
