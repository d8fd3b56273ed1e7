"""Embeddings of the steps of series by PCA or k-means of windows around them.

A window is centred on its step, since the position of a step in a model of a series depends on both earlier and later steps.
Windows stay within their sequence; the first and the last step are repeated beyond its ends. A window that ends at its step would
give the positions of (`window` - 1) / 2 steps earlier.
"""

from typing import Annotated

import numpy as np
from annotated_types import Ge

from latentlab.data.dataset import Dataset
from latentlab.data.series import boundaries
from latentlab.embeddings.clusters import distinct, lloyd, one_hot
from latentlab.embeddings.entry import at_most, clustering
from latentlab.embeddings.linear import pca
from latentlab.errors import ConfigError


def window_pca(x: np.ndarray, dataset: Dataset, n_latent: int, *, window: Annotated[int, Ge(1)] = 5) -> np.ndarray:
    r"""PCA of windows of a series around each time step, a delay embedding.

    The windows are $w_t = (x_{t-h}, ..., x_t, ..., x_{t+h})$ with `window` = 2h + 1 and repeated edges. The columns are the
    principal component scores of all windows of all sequences. As in singular spectrum analysis, they are trends and pairs of
    waves with periods within a window. With a window of 1 it is PCA.

    Args:
        x: Table `(unit, feature)`.
        dataset: Data, with the sequence of each unit.
        n_latent: Number of columns, smaller than the number of entries of a window and the number of units.
        window: Number of steps, odd and at most the length of the longest sequence.

    References:
        Takens (1981), Detecting strange attractors in turbulence, Springer. Broomhead & King (1986), Physica D 20:217.
    """
    rows = _windows("window_pca", x, dataset, window)
    n_units, n_entries = rows.shape
    reason = f"there are {n_units} units and windows of {n_entries} entries"
    at_most("window_pca", "n_latent", n_latent, min(n_units, n_entries) - 1, reason)
    return pca(rows, n_latent)


@clustering
def window_kmeans(
    x: np.ndarray,
    dataset: Dataset,
    n_latent: int,
    *,
    seed: int,
    window: Annotated[int, Ge(1)] = 5,
    n_init: Annotated[int, Ge(1)] = 10,
) -> np.ndarray:
    """K-means of windows of a series: the cluster of the window around each time step, as 0 and 1.

    A window averages over noise, so that clusters persist longer than clusters of single steps. It also blurs the times of
    transitions. With a window of 1 it is k-means.

    Args:
        x: Table `(unit, feature)`.
        dataset: Data, with the sequence of each unit.
        n_latent: Number of clusters, at most the number of distinct windows.
        seed: Seed of the restarts.
        window: Number of steps, odd and at most the length of the longest sequence.
        n_init: Number of restarts.
    """
    rows = _windows("window_kmeans", x, dataset, window)
    distinct("window_kmeans", rows, n_latent, "windows")
    return one_hot(lloyd(rows, n_latent, seed, n_init)[0], n_latent)


def _windows(name: str, x: np.ndarray, dataset: Dataset, window: int) -> np.ndarray:
    """Return the window of each step, `(unit, window * feature)`, ordered by step and then by feature."""
    if window % 2 == 0:
        raise ConfigError(f"embedding {name!r}: `window` must be odd, since it is centred on its step; got {window}.")
    codes = boundaries(dataset)
    longest = int(np.bincount(codes).max())
    at_most(name, "window", window, longest, f"the longest sequence has {longest} steps")
    starts = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]])
    ends = np.r_[starts[1:], len(codes)] - 1
    steps = np.arange(len(x))[:, None] + np.arange(window) - window // 2
    return x[np.clip(steps, starts[codes][:, None], ends[codes][:, None])].reshape(len(x), -1)
