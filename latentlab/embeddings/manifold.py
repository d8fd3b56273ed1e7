r"""Embeddings of distances and of neighbour graphs, none of which starts at random.

With D the distances between units and $H = I - 1 1'/n$, classical scaling takes the first eigenvectors of
$-\frac12 H D^{(2)} H$ (squares entry by entry), each times the root of its eigenvalue: the positions whose inner products are
nearest to those that the distances imply. Isomap does so with distances along a graph; the others minimise a quadratic form
of the graph of nearest neighbours, whose solutions are its last eigenvectors.
"""

from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge
from scipy.linalg import eigh
from scipy.spatial.distance import pdist, squareform

from latentlab.embeddings.entry import all_pairs, at_most, at_most_by_data

N_NEIGHBORS = 10
"""Default number of neighbours; lowered where there are fewer other units."""
SEED = 0
"""Of the iterative eigensolver's starting vector, on which its result depends by rounding only."""
STRESS_TOLERANCE = 1e-6
"""Majorisation stops when a step lowers the stress by less than this share of the layout's sum of squared distances."""


def isomap(x: np.ndarray, n_latent: int, *, n_neighbors: Annotated[int, Ge(1)] | None = None, notes: list[str]) -> np.ndarray:
    r"""Classical scaling of distances along the graph of nearest neighbours.

    The distance of two units is the length of the shortest path between them in the graph that joins each unit with its
    `n_neighbors` nearest ones, edges as long as Euclidean distances. It keeps distances within a curved sheet. With all
    other units as neighbours it is PCA.

    Args:
        x: Table `(unit, feature)`.
        n_latent: Columns.
        n_neighbors: Neighbours of each unit, the unit itself not counted; 10, or all others where they are fewer, if None.
        notes: Is told if the graph is in pieces, which are then joined at their nearest units.

    References:
        Tenenbaum, de Silva & Langford (2000), Science 290:2319.
    """
    from sklearn.manifold import Isomap

    n_neighbors = neighbors("isomap", x, n_latent, n_neighbors, notes)
    note_pieces(x, n_neighbors, notes)
    all_pairs("isomap", len(x))
    return Isomap(n_components=n_latent, n_neighbors=n_neighbors, eigen_solver="dense").fit_transform(x)


def lle(x: np.ndarray, n_latent: int, *, n_neighbors: Annotated[int, Ge(1)] | None = None, notes: list[str]) -> np.ndarray:
    r"""Locally linear embedding: each unit stays the same mixture of its neighbours.

    Weights W, each row summing to 1, minimise $\sum_i |x_i - \sum_j W_{ij} x_j|^2$ over the nearest neighbours j of i (with a
    ridge of 0.001 of the local covariance's trace); positions minimise $\sum_i |y_i - \sum_j W_{ij} y_j|^2$ with columns of
    mean 0 and variance 1, uncorrelated: the last eigenvectors of $(I - W)'(I - W)$ but for the constant one.

    Args:
        x: Table `(unit, feature)`.
        n_latent: Columns, fewer than neighbours.
        n_neighbors: Neighbours that a unit is mixed of, the unit itself not counted; 10, or all others where they are fewer, if
            None.
        notes: Is told if the graph of neighbours is in pieces, or their number was lowered.

    References:
        Roweis & Saul (2000), Science 290:2323.
    """
    from sklearn.manifold import LocallyLinearEmbedding

    n_neighbors = neighbors("lle", x, n_latent, n_neighbors, notes)
    at_most("lle", "n_latent", n_latent, n_neighbors - 1, f"fewer than the {n_neighbors} neighbours")
    note_pieces(x, n_neighbors, notes)
    all_pairs("lle", len(x))
    fitted = LocallyLinearEmbedding(n_components=n_latent, n_neighbors=n_neighbors, eigen_solver="dense")
    return fitted.fit_transform(x) * np.sqrt(len(x))


def spectral(x: np.ndarray, n_latent: int, *, n_neighbors: Annotated[int, Ge(1)] | None = None, notes: list[str]) -> np.ndarray:
    r"""Laplacian eigenmaps: the slowest modes of a random walk on the graph of nearest neighbours.

    Positions minimise $\sum_{ij} A_{ij} |y_i - y_j|^2$ with $Y' \Delta Y = n I$: $A_{ij}$ is 1 if i and j are nearest
    neighbours of each other, 1/2 if one is of the other, and $\Delta$ holds its row sums, scaled to mean 1. They are the
    last eigenvectors of $L y = \lambda \Delta y$, $L = \Delta - A$, but for the constant one. It keeps neighbours together.

    Args:
        x: Table `(unit, feature)`.
        n_latent: Columns.
        n_neighbors: Neighbours of each unit, the unit itself not counted; 10, or all others where they are fewer, if None.
        notes: Is told if the graph is in pieces: the first columns then only say in which a unit is.

    References:
        Belkin & Niyogi (2003), Neural Computation 15:1373.
    """
    from sklearn.manifold import spectral_embedding
    from sklearn.neighbors import kneighbors_graph

    n_neighbors = neighbors("spectral", x, n_latent, n_neighbors, notes)
    note_pieces(x, n_neighbors, notes)
    near = kneighbors_graph(x, n_neighbors)
    weights = 0.5 * (near + near.T)
    modes = spectral_embedding(weights, n_components=n_latent, random_state=SEED)
    degrees = np.asarray(weights.sum(axis=0)).ravel()
    return modes / np.sqrt((degrees[:, None] * modes**2).sum(axis=0) / degrees.sum())


def mds(
    x: np.ndarray,
    n_latent: int,
    *,
    method: Literal["stress", "classical"] = "stress",
    max_iter: Annotated[int, Ge(1)] = 300,
    notes: list[str],
) -> np.ndarray:
    r"""Multidimensional scaling of Euclidean distances.

    `classical`: classical scaling, which for Euclidean distances gives the PCA scores. `stress`: positions that minimise
    $\sum_{i<j} (|y_i - y_j| - |x_i - x_j|)^2$ by majorisation (SMACOF), starting at the classical solution, so that nothing
    is random (on wine, six random starts all ended at a larger stress). Both keep distances, the large ones best.

    Args:
        x: Table `(unit, feature)`.
        n_latent: Columns, fewer than units.
        method: `stress` or `classical`.
        max_iter: Most steps of majorisation.
        notes: Is told if that was not enough.

    References:
        Gower (1966), Biometrika 53:325. Borg & Groenen (2005), Modern Multidimensional Scaling, Springer.
    """
    at_most("mds", "n_latent", n_latent, len(x) - 1, f"fewer than the {len(x)} units")
    all_pairs("mds", len(x))
    distances = squareform(pdist(x))
    start = _classical(distances, n_latent)
    if method == "classical":
        return start
    from sklearn.manifold import smacof

    found, _, n_steps = smacof(
        distances, init=start, n_init=1, max_iter=max_iter, eps=STRESS_TOLERANCE, normalized_stress=False, return_n_iter=True
    )
    if n_steps >= max_iter:
        notes.append(f"majorisation was stopped after {max_iter} steps, before the stress settled")
    return found


def note_pieces(x: np.ndarray, n_neighbors: int, notes: list[str]) -> None:
    """Notes if the graph of nearest neighbours (the unit itself not counted) is in pieces."""
    from scipy.sparse.csgraph import connected_components
    from sklearn.neighbors import kneighbors_graph

    n = connected_components(kneighbors_graph(x, n_neighbors), directed=False)[0]
    if n > 1:
        notes.append(f"the graph of {n_neighbors} nearest neighbours is in {n} pieces")


def _classical(distances: np.ndarray, n_latent: int) -> np.ndarray:
    n = len(distances)
    products = -0.5 * distances**2
    products -= products.mean(axis=0)
    products -= products.mean(axis=1, keepdims=True)
    values, vectors = eigh(products, subset_by_index=(n - n_latent, n - 1))
    return (vectors * np.sqrt(np.maximum(values, 0.0)))[:, ::-1]


def neighbors(name: str, x: np.ndarray, n_latent: int, given: int | None, notes: list[str]) -> int:
    """The number of neighbours of each unit, the unit itself not counted."""
    n_units = len(x)
    because = f"fewer than the {n_units} units"
    found = int(at_most_by_data(name, "n_neighbors", given, N_NEIGHBORS, n_units - 1, because, notes))
    at_most(name, "n_latent", n_latent, n_units - 2, f"{because}, less one")
    return found
