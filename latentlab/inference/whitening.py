"""Coordinates in which the target of a Gaussian guide is about as wide in every direction."""

import math
from collections.abc import Callable

import torch

from latentlab.inference.density import Density
from latentlab.inference.guides import Frame, GaussianGuide
from latentlab.inference.lift import over_draws

N_CURVATURES = 8
"""Number of draws at which the gradient is evaluated, and the curvature too if there are few coordinates."""
N_DIRECTIONS = 400
"""Largest number of coordinates times pairs of draws for the curvature; with many coordinates one pair of draws suffices."""
NEWTON_GAIN = 0.1
"""Predicted gain of a Newton step, in nats, below which the curvature is not computed again."""
N_NEWTON = 4
STEP = 1e-5
"""Step of the one-sided differences of the gradient."""
LEAST_CURVATURE = 1e-4


def log_p_of(density: Density, rows: tuple[torch.Tensor, ...]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the flat log density; with the rows of a minibatch, its unbiased estimate from them."""
    arrays = density.with_points(rows) if rows else None
    scale = density.n_points / len(rows[0]) if rows else 1.0

    def log_p(u: torch.Tensor) -> torch.Tensor:
        return density.log_joint(density.constrain(u), arrays, scale) + density.log_jacobian(u)

    return log_p


def whitening_frame(density: Density, guide: GaussianGuide, random: torch.Generator, rows: tuple[torch.Tensor, ...]) -> Frame:
    r"""Compute coordinates about the guide's mean in which $\mathbb E_q[-\nabla^2 \log \tilde p]$ is the identity.

    The absolute values of the curvatures are used. A curvature is at least 1e-4 of the median. Unidentified directions, such
    as those of a symmetry, are then at most 100 times as wide as the median one. Without minibatches, the centre is first moved
    by Newton steps as long as they raise log p. A point near the mode in the program's coordinates can otherwise be many standard
    deviations away in the new coordinates.

    Args:
        density: The density.
        guide: The guide.
        random: Generator of the draws of the guide.
        rows: Rows of a minibatch; `()` for all the data.
    """
    log_p = log_p_of(density, rows)
    center, root = guide.loc.detach(), torch.eye(len(guide.loc), dtype=guide.loc.dtype)
    half = guide.sample(N_CURVATURES // 2, random) - center
    spread = torch.cat([half, -half])  # of mean 0: otherwise the Newton step would undo the draws' random mean
    n_pairs = max(1, min(len(half), N_DIRECTIONS // len(center)))
    for _ in range(1 if rows else N_NEWTON):
        gradient, curvature = _derivatives(log_p, center + spread, n_pairs)
        if not bool(torch.isfinite(curvature).all()):
            break
        values, vectors = torch.linalg.eigh(curvature)
        largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
        vectors = vectors * torch.sign(largest)  # the signs that LAPACK returns depend on rounding
        least = LEAST_CURVATURE * float(values.abs().median())
        root = vectors / torch.sqrt(torch.clamp(values.abs(), min=least))
        if rows:
            break
        step = root @ (root.mT @ gradient)
        candidates = torch.stack([center + share * step for share in (0.0, 0.1, 0.3, 1.0)])
        level = torch.from_numpy(over_draws(lambda at: log_p(at["u"]), {"u": candidates.numpy()})).nan_to_num(nan=-math.inf)
        center = candidates[int(level.argmax())]
        if int(level.argmax()) == 0 or float(gradient @ step) < 2 * NEWTON_GAIN:
            break
    return Frame(center, root)


def _derivatives(
    log_p: Callable[[torch.Tensor], torch.Tensor], draws: torch.Tensor, n_pairs: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the mean gradient `(size,)` at all draws, and the mean of minus the Hessian `(size, size)` at the first pairs.

    Draws i and n/2 + i are a pair. The Hessian is computed by one-sided differences of the gradient.
    """
    size, half = draws.shape[1], len(draws) // 2
    steps = STEP * torch.eye(size, dtype=draws.dtype)
    slope = torch.func.grad(log_p)

    def slopes(points: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(over_draws(lambda at: slope(at["u"]), {"u": points.numpy()}))

    at = slopes(draws)
    chosen = [*range(n_pairs), *range(half, half + n_pairs)]
    curvature = sum((at[i] - slopes(draws[i] + steps) for i in chosen), torch.zeros_like(steps)) / (STEP * len(chosen))
    return at.mean(0), (curvature + curvature.mT) / 2
