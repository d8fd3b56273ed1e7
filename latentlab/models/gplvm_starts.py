"""Starting positions of the Gaussian process latent variable model: embeddings scaled to the prior."""

import warnings

import numpy as np

STARTS = ("pca", "isomap", "spectral", "random")
N_NEIGHBORS = 6
"""Number of neighbours of the graphs of Isomap and the spectral embedding; few, so that no edge leaves a folded sheet."""


def start(x: np.ndarray, mask: np.ndarray | None, n_latent: int, names: tuple[str, ...], rng: np.random.Generator) -> np.ndarray:
    """Return positions `(unit, latent)` of one of the embeddings, with uncorrelated columns of variance 1, randomly rotated.

    Missing entries are at the mean of their column. Columns that an embedding does not have are random.
    """
    observed = np.isfinite(x) if mask is None else mask
    means = np.where(observed, x, 0.0).sum(0) / np.maximum(observed.sum(0), 1)
    filled = np.where(observed, x, means)
    name = names[int(rng.integers(len(names)))]
    z = embedding(name, filled - means, n_latent, rng)
    z = (z - z.mean(0)) / np.maximum(z.std(0), 1e-12)
    turn, _ = np.linalg.qr(rng.standard_normal((n_latent, n_latent)))
    return (z + 0.01 * rng.standard_normal(z.shape)) @ turn


def embedding(name: str, x: np.ndarray, n_latent: int, rng: np.random.Generator) -> np.ndarray:
    """Compute an embedding `(unit, latent)` of centred data `(unit, feature)`, one of `STARTS`."""
    n_units = len(x)
    if name == "pca":
        return _scores(x, n_latent, rng)
    if name == "random" or n_units <= n_latent + 2:
        return rng.standard_normal((n_units, n_latent))
    from sklearn.manifold import Isomap, SpectralEmbedding

    n_neighbors = min(N_NEIGHBORS, n_units - 1)
    with warnings.catch_warnings():  # of a graph that is not connected; the start is then rough
        warnings.simplefilter("ignore")
        if name == "isomap":
            return np.asarray(Isomap(n_components=n_latent, n_neighbors=n_neighbors, eigen_solver="dense").fit_transform(x))
        spectral = SpectralEmbedding(n_components=n_latent, n_neighbors=n_neighbors, eigen_solver="arpack", random_state=0)
        return np.asarray(spectral.fit_transform(x))


def _scores(centred: np.ndarray, n_latent: int, rng: np.random.Generator) -> np.ndarray:
    """Scores of principal components from the smaller of the two products of the table; further columns are random."""
    is_long = len(centred) >= centred.shape[1]
    levels, vectors = np.linalg.eigh(centred.T @ centred if is_long else centred @ centred.T)
    k = min(n_latent, int((levels > 1e-10 * max(levels[-1], 1e-300)).sum()))
    z = rng.standard_normal((len(centred), n_latent))
    if k:
        leading = vectors[:, ::-1][:, :k]
        z[:, :k] = centred @ leading if is_long else leading * np.sqrt(levels[::-1][:k])
    return z


def n_components(x: np.ndarray) -> int:
    """Number of components of the graph of neighbours of rows `(unit, feature)`; missing entries are at their column's mean."""
    from scipy.sparse.csgraph import connected_components
    from sklearn.neighbors import kneighbors_graph

    filled = np.where(np.isfinite(x), x, np.nanmean(x, axis=0))
    graph = kneighbors_graph(filled, min(N_NEIGHBORS, len(x) - 1))
    return int(connected_components(graph, directed=False)[0])
