"""Maps from embedding coordinates to latent coordinates."""

import numpy as np

from latentlab.compare.align import principal_axes
from latentlab.data.dataset import Dataset


def shrunk_axes(values: np.ndarray, dataset: Dataset) -> np.ndarray:
    r"""Maps PCA scores to PPCA's posterior mean at the maximum of the likelihood.

    $$ E[z_{nj} \mid x_n] = t_{nj} \sqrt{\lambda_j - \sigma^2} / \lambda_j, \quad
       \sigma^2 = \frac{1}{D - q} \Big( \mathrm{tr}\, S - \sum_{j \le q} \lambda_j \Big) $$
    with t the centred scores in principal axes and $\lambda_j$ their variances (ddof 0). Missing entries are replaced by the
    mean of their column, as they are for the scores.

    Args:
        values: Scores `(unit, q)`, in any rotation.
        dataset: Data from which the scores were computed; without noise where it has q columns.
    """
    scores = principal_axes(values)
    variances = scores.var(axis=0)
    x = _filled(dataset)
    q = scores.shape[1]
    noise = max(float(x.var(axis=0).sum() - variances.sum()), 0.0) / max(x.shape[1] - q, 1)
    safe = np.where(variances > 0, variances, 1.0)
    return scores * np.sqrt(np.maximum(variances - noise, 0.0)) / safe


def dual_axes(values: np.ndarray, dataset: Dataset) -> np.ndarray:
    r"""Maps PCA scores to the positions at the maximum of the likelihood of a linear GPLVM, the dual of PPCA.

    $$ z_{nj} \propto t_{nj} \sqrt{\lambda_j - \sigma^2} / s_j, \quad \lambda_j = s_j^2 / D, \quad
       \sigma^2 = \frac{1}{N - q} \Big( |X|^2 / D - \sum_{j \le q} \lambda_j \Big) $$
    with t the centred scores in principal axes and $s_j$ their singular values. The likelihood determines the amplitude times the
    positions; their scale is that of the prior, with a mean square of 1. Missing entries are replaced by their column's mean.

    Args:
        values: Scores `(unit, q)`, in any rotation.
        dataset: Data from which the scores were computed.
    """
    scores, x = principal_axes(values), _filled(dataset)
    squares, (n, q) = (scores**2).sum(axis=0), scores.shape
    spread = float(((x - x.mean(axis=0)) ** 2).sum())
    noise = max(spread - squares.sum(), 0.0) / (n - q)
    found = scores * np.sqrt(np.maximum(squares - noise, 0.0) / np.where(squares > 0, squares, 1.0))
    return found / max(float(np.sqrt((found**2).mean())), 1e-300)


def _filled(dataset: Dataset) -> np.ndarray:
    return np.where(np.isnan(dataset.x), np.nanmean(dataset.x, axis=0), dataset.x)


def centred_values(values: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Returns the coordinates, centred."""
    return values - values.mean(axis=0)


def nearest(values: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Maps distances to centres `(unit, k)` to one-hot labels of the nearest centre, the first one in a tie."""
    return np.eye(values.shape[1])[values.argmin(axis=1)]


def soft_assignments(distances: np.ndarray, sigma: float) -> np.ndarray:
    r"""Computes $\exp(-d_{nk}^2 / 2 \sigma^2)$ from distances to centres `(unit, k)`, each row normalised to sum to 1."""
    logs = -(distances**2) / (2 * sigma**2)
    return np.exp(logs - np.logaddexp.reduce(logs, axis=1)[:, None])
