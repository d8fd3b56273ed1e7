r"""Coverage of true coordinates that are known up to a smooth map only.

A smooth map g from the true coordinates to the posterior mean positions is fitted by penalised regression splines: the
polyharmonic spline with kernel $|t - t'|^3$ and linear functions, which minimises

$$ \sum_n |m_n - g(t_n)|^2 + \lambda J(g) $$

with a roughness penalty J that is 0 for affine maps. The smoothness $\lambda$ minimises the squared error of cross-validation.
The map of each unit is fitted without its fold, so that its position is a prediction $\hat g(t_n)$. The mapped coordinate is
then compared with the credible ellipsoid of the unit (`latentlab.compare.coverage`).

The predictions have errors of their own: $\hat g(t_n) = \sum_m s_{nm} m_m$ has variance `map_variance`, the mean of
$\sum_m s_{nm}^2$, relative to that of a position. If it is not small, coverage is below the level for a calibrated posterior too.

Errors of neighbouring units are dependent. Standard errors are therefore clustered by blocks of neighbouring units, and at least
binomial.

References:
    Duchon (1977), Splines minimizing rotation-invariant semi-norms in Sobolev spaces, Lecture Notes in Mathematics 571:85.
    Wahba (1990), Spline Models for Observational Data, SIAM. Liang & Zeger (1986), Biometrika 73:13 (clustered variance).
"""

from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import cdist

from latentlab.compare.align import aligner, mean_of
from latentlab.compare.chains import joined, split
from latentlab.compare.coverage import LEVELS, Coverage, Regions, positions
from latentlab.compare.procrustes import procrustes_similarity
from latentlab.errors import DataError

N_FOLDS = 5
FEWEST = 20
"""Fewest units for which a map is fitted."""
FITTED = 1500
"""Largest number of units to which a map is fitted; time grows with its cube."""
SMOOTHNESS = np.geomspace(1e-9, 1e3, 25)
"""Values of lambda that cross-validation compares, relative to the largest eigenvalue of the kernel."""
BLOCKS = 16
"""Number of blocks of neighbouring units for the standard errors."""


@dataclass(frozen=True)
class SmoothMapCoverage:
    """Coverage of true coordinates after a smooth map, and its quality.

    Attributes:
        coverage: Shares of units whose mapped coordinates are in their credible regions, beside those of held-out draws.
        standard_errors: Standard error of each share, clustered by blocks of neighbouring units, and at least binomial.
        mapped: Predicted position of each unit, `(unit, latent)`, in the frame of `mean`.
        mean: Posterior mean positions, `(unit, latent)`.
        similarity_r2: Share of the mean positions' variance that the true coordinates explain after a similarity transformation.
        smooth_r2: The same after the smooth map, by predictions for left-out folds.
        map_variance: Variance of a prediction, relative to that of a position.
        smoothness: Chosen lambda, relative to the largest eigenvalue of the kernel.
    """

    coverage: Coverage
    standard_errors: tuple[float, ...]
    mapped: np.ndarray
    mean: np.ndarray
    similarity_r2: float
    smooth_r2: float
    map_variance: float
    smoothness: float


def smooth_map_coverage(
    draws: np.ndarray, truth: np.ndarray, *, alignment: str = "orthogonal", levels: tuple[float, ...] = LEVELS
) -> SmoothMapCoverage:
    """Compute the coverage of true coordinates by the posterior after a cross-fitted smooth map to the posterior mean.

    Args:
        draws: Posterior draws of the positions, `(chain, draw, unit, latent)`.
        truth: True coordinates, `(unit, p)`, in units in which distances are comparable between columns.
        alignment: Transformation that aligns draws and mapped coordinates with the mean: `fixed`, `orthogonal` or `similarity`.
        levels: Nominal levels, between 0 and 1.

    Raises:
        DataError: There are fewer than 20 units, the numbers of units differ, or the true coordinates are linearly dependent.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> t, errors = rng.uniform(size=(300, 1)), 0.1 * rng.normal(size=(2, 101, 300, 1))
        >>> mean = np.exp(t) + errors[0, 0]
        >>> found = smooth_map_coverage(mean + errors[:, 1:], t)
        >>> found.smooth_r2 > 0.9, found.coverage.levels
        (True, (0.5, 0.8, 0.95))
    """
    truth = positions(truth)
    reference, held_out = split(draws)
    if len(truth) != draws.shape[2]:
        raise DataError(f"`truth` must have the {draws.shape[2]} units of the draws; got {len(truth)}.")
    if len(truth) < FEWEST:
        raise DataError(f"a smooth map needs at least {FEWEST} units; got {len(truth)}.")
    centred = truth - truth.mean(axis=0)
    if np.linalg.matrix_rank(centred) < truth.shape[1]:
        raise DataError(f"`truth` must have {truth.shape[1]} linearly independent columns that vary; drop or combine columns.")
    mean_position = mean_of(joined(reference), alignment)
    regions = Regions(reference, held_out, aligner(alignment, mean_position), levels)
    mapped, weights, smoothness = _cross_fitted(centred, regions.mean)
    found = regions.coverage(mapped)
    inside = found.distances[:, None] <= regions.radii
    blocks, error = _blocks(centred), regions.mean - mapped
    return SmoothMapCoverage(
        coverage=found,
        standard_errors=tuple(_standard_error(column, blocks) for column in inside.T),
        mapped=mapped,
        mean=regions.mean,
        similarity_r2=1 - procrustes_similarity(truth, regions.mean),
        smooth_r2=float(1 - (error**2).sum() / ((regions.mean - regions.mean.mean(axis=0)) ** 2).sum()),
        map_variance=float(weights.mean()),
        smoothness=smoothness,
    )


def _cross_fitted(t: np.ndarray, m: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Predictions of m `(unit, latent)` from the other folds, their sums of squared weights `(unit,)`, and the smoothness."""
    order = np.random.default_rng(0).permutation(len(t))
    predictions = np.empty((len(SMOOTHNESS), *m.shape))
    weights = np.empty((len(SMOOTHNESS), len(m)))
    for k in range(N_FOLDS):
        left_out = order[k::N_FOLDS]
        training = np.setdiff1d(order, left_out)
        training = training[:: -(-len(training) // FITTED)]
        fitted = _fits(t[training], t[left_out], m[training])
        predictions[:, left_out], weights[:, left_out] = fitted
    best = int(((predictions - m) ** 2).sum(axis=(1, 2)).argmin())
    return predictions[best], weights[best], float(SMOOTHNESS[best])


def _fits(t: np.ndarray, new: np.ndarray, m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    r"""Predictions `(smoothness, new, latent)` at new coordinates, and their sums of squared weights `(smoothness, new)`.

    With P the linear functions at t and B an orthonormal basis of their complement for which $B^T K B$ = diag(v), the kernel's
    coefficients are $c = B (v + \lambda)^{-1} B^T m$. The linear functions have $b = (P^T P)^{-1} P^T (m - K c)$.
    """
    p = t.shape[1] + 1
    linear, new_linear = (np.column_stack([np.ones(len(at)), at]) for at in (t, new))
    kernel, cross = cdist(t, t) ** 3, cdist(new, t) ** 3
    q, r = np.linalg.qr(linear, mode="complete")
    values, vectors = np.linalg.eigh(q[:, p:].T @ kernel @ q[:, p:])
    values, basis = np.maximum(values, 0.0), q[:, p:] @ vectors
    hat = new_linear @ np.linalg.solve(r[:p], q[:, :p].T)
    wiggly = cross @ basis - hat @ (kernel @ basis)
    shrinkage = 1 / (values + SMOOTHNESS[:, None] * max(values[-1], 1e-300))
    predictions = wiggly @ (shrinkage[..., None] * (basis.T @ m)) + hat @ m
    return predictions, shrinkage**2 @ (wiggly**2).T + (hat**2).sum(axis=1)


def _blocks(t: np.ndarray) -> list[np.ndarray]:
    """Split units into `BLOCKS` blocks of neighbours, halving the widest column at its median."""
    blocks = [np.arange(len(t))]
    while len(blocks) < BLOCKS:
        halves = []
        for block in blocks:
            widest = np.ptp(t[block], axis=0).argmax()
            halves += np.array_split(block[np.argsort(t[block, widest], kind="stable")], 2)
        blocks = halves
    return blocks


def _standard_error(inside: np.ndarray, blocks: list[np.ndarray]) -> float:
    """Standard error of a share, clustered by block, and at least binomial; above 0 also for shares of 0 and 1."""
    share, n = inside.mean(), len(inside)
    sums = np.array([(inside[block] - share).sum() for block in blocks])
    clustered = np.sqrt(len(blocks) / (len(blocks) - 1) * (sums**2).sum()) / n
    corrected = (inside.sum() + 1) / (n + 2)
    return float(max(clustered, np.sqrt(corrected * (1 - corrected) / n)))
