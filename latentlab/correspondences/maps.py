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
    x = np.where(np.isnan(dataset.x), np.nanmean(dataset.x, axis=0), dataset.x)
    q = scores.shape[1]
    noise = max(float(x.var(axis=0).sum() - variances.sum()), 0.0) / max(x.shape[1] - q, 1)
    safe = np.where(variances > 0, variances, 1.0)
    return scores * np.sqrt(np.maximum(variances - noise, 0.0)) / safe


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
