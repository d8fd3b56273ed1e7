r"""Coverage of true coordinates that are known up to a smooth map only.

A smooth map g from the true coordinates to the posterior mean positions $m_n$ is fitted, for each latent dimension, by a linear
function and a Gaussian process with a lengthscale for each coordinate,

$$ m_n = b_0 + b^T t_n + h(t_n) + \varepsilon_n, \quad h \sim GP\Big(0, a^2 e^{-\sum_j (t_j - t'_j)^2 / 2 \ell_j^2}\Big), \quad
   \varepsilon_n \sim N(0, \tau^2), $$

whose parameters maximise the marginal likelihood. The map of each unit is fitted without its fold, so that its position is a
prediction $\hat g(t_n)$ with a variance $v_n$ of its own. The mapped coordinate is then compared with the credible ellipsoid of
the unit (`latentlab.compare.coverage`), whose covariance is increased by $v_n$ in each dimension.

Errors of neighbouring units are dependent. Standard errors are therefore clustered by blocks of neighbouring units, and at least
binomial.

References:
    Rasmussen & Williams (2006), Gaussian Processes for Machine Learning, chapters 2 and 5.
    Liang & Zeger (1986), Biometrika 73:13 (clustered variance).
"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

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
TUNED = 400
"""Largest number of units from which the kernel's parameters are estimated."""
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
        map_variance: Share of the squared errors of the predictions that is their own variance.
    """

    coverage: Coverage
    standard_errors: tuple[float, ...]
    mapped: np.ndarray
    mean: np.ndarray
    similarity_r2: float
    smooth_r2: float
    map_variance: float


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
    mapped, variance = _cross_fitted(centred, regions.mean)
    found = regions.coverage(mapped, variance)
    inside = found.distances[:, None] <= regions.radii
    blocks, error = _blocks(centred), regions.mean - mapped
    return SmoothMapCoverage(
        coverage=found,
        standard_errors=tuple(_standard_error(column, blocks) for column in inside.T),
        mapped=mapped,
        mean=regions.mean,
        similarity_r2=1 - procrustes_similarity(truth, regions.mean),
        smooth_r2=float(1 - (error**2).sum() / ((regions.mean - regions.mean.mean(axis=0)) ** 2).sum()),
        map_variance=float(variance.sum() / max((error**2).sum(), np.finfo(float).tiny)),
    )


def _cross_fitted(t: np.ndarray, m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Predictions of positions m `(unit, latent)` from the other folds, and their variances `(unit, latent)`."""
    t = t / t.std(axis=0)
    order = np.random.default_rng(0).permutation(len(t))
    thinned = order[:: -(-len(t) // TUNED)]
    predictions, variances = np.empty_like(m), np.empty_like(m)
    for j, column in enumerate(m.T):
        if column.std() == 0:
            predictions[:, j], variances[:, j] = column, 0.0
            continue
        kernel = _fitted_kernel(t[thinned], column[thinned])
        for k in range(N_FOLDS):
            left_out = order[k::N_FOLDS]
            training = np.setdiff1d(order, left_out)
            training = training[:: -(-len(training) // FITTED)]
            predictions[left_out, j], variances[left_out, j] = _predicted(kernel, t[training], column[training], t[left_out])
    return predictions, variances


def _residuals(t: np.ndarray, y: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Residuals of y after a linear function of t, and this function at new coordinates."""
    linear, at_new = (np.column_stack([np.ones(len(at)), at]) for at in (t, new))
    slopes = np.linalg.lstsq(linear, y, rcond=None)[0]
    return y - linear @ slopes, at_new @ slopes


def _fitted_kernel(t: np.ndarray, y: np.ndarray) -> Any:
    """Kernel with the largest marginal likelihood, in units of the residuals of a linear function."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    residuals, _ = _residuals(t, y, t)
    smooth = ConstantKernel(1.0, (1e-4, 1e6)) * RBF(np.full(t.shape[1], 0.5), (0.02, 1e3))
    process = GaussianProcessRegressor(smooth + WhiteKernel(0.1, (1e-9, 10.0)))
    with warnings.catch_warnings():  # a parameter at its bound: a linear map, or no error
        warnings.simplefilter("ignore", ConvergenceWarning)
        return process.fit(t, residuals / max(residuals.std(), np.finfo(float).tiny)).kernel_


def _predicted(kernel: Any, t: np.ndarray, y: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Predictions of the map at new coordinates from units (t, y), and their variances, those of the errors left out."""
    from sklearn.gaussian_process import GaussianProcessRegressor

    residuals, trend = _residuals(t, y, new)
    scale = max(residuals.std(), np.finfo(float).tiny)
    mean, sd = GaussianProcessRegressor(kernel, optimizer=None).fit(t, residuals / scale).predict(new, return_std=True)
    return trend + scale * mean, scale**2 * np.maximum(sd**2 - kernel.k2.noise_level, 0.0)


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
