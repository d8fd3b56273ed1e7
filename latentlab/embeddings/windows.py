"""Embeddings of the steps of series by what is around them: windows of steps, then PCA or k-means.

A window is centred on its step: a position in a model of a series is inferred from what came before and after it, and so is
this. Windows stay within their sequence; beyond its ends the first and the last step are repeated. A window that trails its
step instead would say the same of positions (`window` - 1) / 2 steps earlier.
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
    r"""PCA of windows of a series, a delay embedding: each time step by the steps around it.

    $w_t = (x_{t-h}, ..., x_t, ..., x_{t+h})$ with `window` = 2h + 1, edges repeated, then the principal component scores of all
    windows of all sequences. Singular spectrum analysis does the same: the columns are trends and pairs of waves that fit into
    a window. With a window of 1 it is PCA.

    Args:
        x: Table `(unit, feature)`.
        dataset: Says which units are a sequence.
        n_latent: Columns, fewer than a window has entries.
        window: Steps, an odd number, no more than the longest sequence has.

    References:
        Takens (1981), Detecting strange attractors in turbulence, Springer. Broomhead & King (1986), Physica D 20:217.
    """
    rows = _windows("window_pca", x, dataset, window)
    n_units, n_entries = rows.shape
    because = f"there are {n_units} units and windows of {n_entries} entries"
    at_most("window_pca", "n_latent", n_latent, min(n_units, n_entries) - 1, because)
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
    """K-means of windows of a series: each time step by the cluster of the steps around it, as 0 and 1.

    A window averages over noise, so that clusters last longer than those of single steps do; it also blurs when they change.
    With a window of 1 it is k-means.

    Args:
        x: Table `(unit, feature)`.
        dataset: Says which units are a sequence.
        n_latent: Clusters, no more than there are distinct windows.
        seed: Of the starts.
        window: Steps, an odd number, no more than the longest sequence has.
        n_init: Starts.
    """
    rows = _windows("window_kmeans", x, dataset, window)
    distinct("window_kmeans", rows, n_latent, "windows")
    return one_hot(lloyd(rows, n_latent, seed, n_init)[0], n_latent)


def _windows(name: str, x: np.ndarray, dataset: Dataset, window: int) -> np.ndarray:
    """The window of each step, `(unit, window * feature)`, step by step."""
    if window % 2 == 0:
        raise ConfigError(f"embedding {name!r}: `window` must be odd, since it is centred on its step; got {window}.")
    codes = boundaries(dataset)
    longest = int(np.bincount(codes).max())
    at_most(name, "window", window, longest, f"the longest sequence has {longest} steps")
    starts = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]])
    ends = np.r_[starts[1:], len(codes)] - 1
    steps = np.arange(len(x))[:, None] + np.arange(window) - window // 2
    return x[np.clip(steps, starts[codes][:, None], ends[codes][:, None])].reshape(len(x), -1)
