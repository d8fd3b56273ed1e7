"""Embeddings of distances and of neighbour graphs, none of which starts at random."""

from typing import Literal

import numpy as np
from scipy.spatial.distance import pdist, squareform

from latentlab.embeddings.embedding import whole
from latentlab.errors import ConfigError

SEED = 0
"""For the iterative eigensolvers' starting vector only: their result does not depend on it, but for rounding."""


def isomap(x: np.ndarray, n_latent: int, *, n_neighbors: int = 10, notes: list[str]) -> np.ndarray:
    """Classical MDS on distances along the graph of nearest neighbours.

    Args:
        x: Table `(unit, feature)`.
        n_latent: Columns.
        n_neighbors: Neighbours in the graph; all other units make it PCA.
        notes: Is told if the graph is in pieces, which are then joined at their nearest units.

    References:
        Tenenbaum, de Silva & Langford (2000), Science 290:2319.
    """
    from sklearn.manifold import Isomap

    _neighbors("isomap", x, n_neighbors, n_latent)
    _pieces(x, n_neighbors, notes)
    return Isomap(n_components=n_latent, n_neighbors=n_neighbors, eigen_solver="dense").fit_transform(x)


def lle(x: np.ndarray, n_latent: int, *, n_neighbors: int = 10, notes: list[str]) -> np.ndarray:
    """Locally linear embedding: each unit stays the same mixture of its neighbours.

    Args:
        x: Table `(unit, feature)`.
        n_latent: Columns.
        n_neighbors: Neighbours that a unit is mixed of, more than columns.
        notes: Is told if the graph of neighbours is in pieces.

    References:
        Roweis & Saul (2000), Science 290:2323.
    """
    from sklearn.manifold import LocallyLinearEmbedding

    _neighbors("lle", x, n_neighbors, n_latent)
    _pieces(x, n_neighbors, notes)
    fitted = LocallyLinearEmbedding(n_components=n_latent, n_neighbors=n_neighbors, eigen_solver="dense", random_state=SEED)
    return fitted.fit_transform(x) * np.sqrt(len(x))


def spectral(x: np.ndarray, n_latent: int, *, n_neighbors: int = 10, notes: list[str]) -> np.ndarray:
    """Laplacian eigenmaps: the slowest modes of a random walk on the graph of nearest neighbours.

    Args:
        x: Table `(unit, feature)`.
        n_latent: Columns.
        n_neighbors: Neighbours in the graph.
        notes: Is told if the graph is in pieces: the first columns then only say in which a unit is.

    References:
        Belkin & Niyogi (2003), Neural Computation 15:1373.
    """
    from sklearn.manifold import SpectralEmbedding

    _neighbors("spectral", x, n_neighbors, n_latent)
    _pieces(x, n_neighbors, notes)
    fitted = SpectralEmbedding(n_latent, affinity="nearest_neighbors", n_neighbors=n_neighbors, random_state=SEED)
    values = fitted.fit_transform(x)
    return values / np.linalg.norm(values, axis=0).max() * np.sqrt(len(x))


def mds(x: np.ndarray, n_latent: int, *, method: Literal["stress", "classical"] = "stress", max_iter: int = 300) -> np.ndarray:
    r"""Multidimensional scaling of Euclidean distances.

    `classical`: the eigenvectors of the doubly centred squared distances, times the roots of their eigenvalues; for Euclidean
    distances the PCA scores. `stress`: $\min_Y \sum_{i<j} (|y_i - y_j| - |x_i - x_j|)^2$ by majorisation (SMACOF), from the
    classical solution, so that nothing is random.

    Args:
        x: Table `(unit, feature)`.
        n_latent: Columns.
        method: `stress` or `classical`.
        max_iter: Steps of majorisation.

    References:
        Gower (1966), Biometrika 53:325. Borg & Groenen (2005), Modern Multidimensional Scaling, Springer.
    """
    if method not in ("stress", "classical"):
        raise ConfigError(f"embedding 'mds': `method` must be stress or classical; got {method!r}.")
    whole("mds", "n_latent", n_latent, 1, len(x) - 1, f" (fewer than the {len(x)} units)")
    whole("mds", "max_iter", max_iter, 1)
    distances = squareform(pdist(x))
    centre = np.eye(len(x)) - 1 / len(x)
    values, vectors = np.linalg.eigh(-0.5 * centre @ distances**2 @ centre)
    first = np.argsort(values)[::-1][:n_latent]
    start = vectors[:, first] * np.sqrt(np.maximum(values[first], 0.0))
    if method == "classical":
        return start
    from sklearn.manifold import smacof

    return smacof(distances, n_components=n_latent, init=start, n_init=1, max_iter=max_iter, eps=1e-6, normalized_stress=False)[0]


def _neighbors(name: str, x: np.ndarray, n_neighbors: int, n_latent: int) -> None:
    whole(name, "n_neighbors", n_neighbors, 1, len(x) - 1, f" (fewer than the {len(x)} units)")
    most = n_neighbors - 1 if name == "lle" else len(x) - 2
    whole(name, "n_latent", n_latent, 1, most, f" ({len(x)} units, {n_neighbors} neighbours)")


def _pieces(x: np.ndarray, n_neighbors: int, notes: list[str]) -> None:
    from scipy.sparse.csgraph import connected_components
    from sklearn.neighbors import kneighbors_graph

    n = connected_components(kneighbors_graph(x, n_neighbors), directed=False)[0]
    if n > 1:
        notes.append(f"the graph of {n_neighbors} nearest neighbours is in {n} pieces")
