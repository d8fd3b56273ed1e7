r"""Embeddings of distances and of neighbour graphs, all without random starts.

With D the distances between units and $H = I - 1 1^T / n$, classical scaling uses the first eigenvectors of
$-\frac12 H D^{(2)} H$ (squares entry by entry), each times the square root of its eigenvalue. These are the positions whose inner
products are closest to those implied by the distances. Isomap applies classical scaling to distances along a graph. The other
graph methods minimise a quadratic form of the graph of nearest neighbours. The solutions are its eigenvectors with the smallest
eigenvalues.
"""

from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge
from scipy.linalg import eigh
from scipy.spatial.distance import pdist, squareform

from latentlab.embeddings.entry import all_pairs, at_most, at_most_by_data

N_NEIGHBORS = 10
"""Default number of neighbours; lowered if there are fewer other units."""
JOINED = "; they were joined at their nearest units"
SEPARATED = "; the first columns only separate them"
"""Effects of a graph that is not connected."""
RIDGE = 1e-3
"""Ridge of the reconstruction weights of LLE, relative to the trace of the local covariance."""
SEED = 0
"""Seed of the starting vector of the iterative eigensolver; the result depends on it by rounding error only."""
STRESS_TOLERANCE = 1e-6
"""Majorisation stops when a step lowers the stress by less than this share of the layout's sum of squared distances."""


def isomap(x: np.ndarray, n_latent: int, *, n_neighbors: Annotated[int, Ge(1)] | None = None, notes: list[str]) -> np.ndarray:
    r"""Classical scaling of distances along the graph of nearest neighbours.

    The graph connects each unit with its `n_neighbors` nearest units by edges whose lengths are Euclidean distances. The distance
    of two units is the length of the shortest path between them. It preserves geodesic distances within a manifold. With all
    other units as neighbours, the result equals the PCA scores.

    Args:
        x: Table `(unit, feature)`.
        n_latent: Number of columns.
        n_neighbors: Number of neighbours of each unit, without the unit itself; by default 10, or all others if they are fewer.
        notes: List to which a note is appended if the graph is not connected; its components are then joined at their nearest
            units.

    References:
        Tenenbaum, de Silva & Langford (2000), Science 290:2319.
    """
    from sklearn.manifold import Isomap

    n_neighbors = neighbors("isomap", x, n_latent, n_neighbors, notes)
    note_components(x, n_neighbors, notes, JOINED)
    all_pairs("isomap", len(x))
    return Isomap(n_components=n_latent, n_neighbors=n_neighbors, eigen_solver="dense").fit_transform(x)


def lle(x: np.ndarray, n_latent: int, *, n_neighbors: Annotated[int, Ge(1)] | None = None, notes: list[str]) -> np.ndarray:
    r"""Locally linear embedding: positions that preserve the linear reconstruction of each unit from its neighbours.

    Weights W, with rows that sum to 1, minimise $\sum_i |x_i - \sum_j W_{ij} x_j|^2$ over the nearest neighbours j of i (with a
    ridge of 0.001 times the trace of the local covariance). Positions minimise $\sum_i |y_i - \sum_j W_{ij} y_j|^2$ with
    uncorrelated columns of mean 0 and variance 1. They are the eigenvectors of $(I - W)^T (I - W)$ with the smallest eigenvalues,
    except the constant one.

    Args:
        x: Table `(unit, feature)`.
        n_latent: Number of columns, smaller than the number of neighbours.
        n_neighbors: Number of neighbours that reconstruct a unit, without the unit itself; by default 10, or all others if they
            are fewer.
        notes: List to which a note is appended if the graph of neighbours is not connected, or their number was lowered. The
            first columns of a graph that is not connected only indicate the component of a unit.

    References:
        Roweis & Saul (2000), Science 290:2323.
    """
    n_neighbors = neighbors("lle", x, n_latent, n_neighbors, notes)
    at_most("lle", "n_latent", n_latent, n_neighbors - 1, f"fewer than the {n_neighbors} neighbours")
    labels = note_components(x, n_neighbors, notes, SEPARATED)
    all_pairs("lle", len(x))
    rest = np.eye(len(x)) - _reconstruction_weights(x, n_neighbors)
    null = _component_basis(labels, np.ones(len(x)), n_latent + 1)
    separating = null[:, 1:]
    n_others = n_latent - separating.shape[1]
    if not n_others:
        return separating * np.sqrt(len(x))
    form = rest.T @ rest
    form += null @ null.T * (np.trace(form) + 1)  # beyond all other eigenvalues
    others = eigh(form, subset_by_index=(0, n_others - 1))[1]
    return np.column_stack([separating, others]) * np.sqrt(len(x))


def spectral(x: np.ndarray, n_latent: int, *, n_neighbors: Annotated[int, Ge(1)] | None = None, notes: list[str]) -> np.ndarray:
    r"""Laplacian eigenmaps: the slowest modes of a random walk on the graph of nearest neighbours.

    Positions minimise $\sum_{ij} A_{ij} |y_i - y_j|^2$ with $Y^T \Delta Y = n I$. $A_{ij}$ is 1 if i and j are nearest neighbours
    of each other, and 1/2 if only one is. The diagonal matrix $\Delta$ contains its row sums, scaled to mean 1. The positions are
    the eigenvectors of $L y = \lambda \Delta y$, $L = \Delta - A$, with the smallest eigenvalues, except the constant one. It
    preserves neighbourhoods.

    Args:
        x: Table `(unit, feature)`.
        n_latent: Number of columns.
        n_neighbors: Number of neighbours of each unit, without the unit itself; by default 10, or all others if they are fewer.
        notes: List to which a note is appended if the graph is not connected; the first columns then only indicate the component
            of a unit.

    References:
        Belkin & Niyogi (2003), Neural Computation 15:1373.
    """
    from sklearn.manifold import spectral_embedding
    from sklearn.neighbors import kneighbors_graph

    n_neighbors = neighbors("spectral", x, n_latent, n_neighbors, notes)
    labels = note_components(x, n_neighbors, notes, SEPARATED)
    graph = kneighbors_graph(x, n_neighbors)
    weights = 0.5 * (graph + graph.T)
    degrees = np.asarray(weights.sum(axis=0)).ravel()
    separating = _component_basis(labels, degrees, n_latent + 1)[:, 1:]
    n_null = 1 + separating.shape[1]
    modes = separating
    if n_null <= n_latent:
        found = spectral_embedding(weights, n_components=n_latent + 1, random_state=SEED, drop_first=False)
        modes = np.column_stack([separating, found[:, n_null:]])
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

    `classical` is classical scaling, which equals the PCA scores for Euclidean distances. `stress` minimises
    $\sum_{i<j} (|y_i - y_j| - |x_i - x_j|)^2$ by majorisation (SMACOF). It starts at the classical solution and is therefore
    deterministic (on wine, six random starts all had a larger final stress). Both preserve distances, large ones best.

    Args:
        x: Table `(unit, feature)`.
        n_latent: Number of columns, smaller than the number of units.
        method: `stress` or `classical`.
        max_iter: Largest number of majorisation steps.
        notes: List to which a note is appended if `max_iter` steps are not sufficient.

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
        notes.append(f"majorisation stopped after {max_iter} steps, before the stress converged")
    return found


def note_components(x: np.ndarray, n_neighbors: int, notes: list[str], effect: str = "") -> np.ndarray:
    """Return the component of each unit in the graph of nearest neighbours (without the unit itself).

    If the graph is not connected, a note with the number of components and the effect on the embedding is appended.
    """
    from scipy.sparse.csgraph import connected_components
    from sklearn.neighbors import kneighbors_graph

    n, labels = connected_components(kneighbors_graph(x, n_neighbors), directed=False)
    if n > 1:
        notes.append(f"the graph of {n_neighbors} nearest neighbours has {n} connected components{effect}")
    return np.asarray(labels)


def _component_basis(labels: np.ndarray, weights: np.ndarray, most: int) -> np.ndarray:
    """Basis of the functions that are constant on each component, the constant first, with at most `most` columns.

    The columns are orthonormal in the inner product with the weights.
    """
    kept = np.arange(min(labels.max(), most - 1))
    indicators = np.column_stack([np.ones(len(labels)), labels[:, None] == kept])
    roots = np.sqrt(weights)[:, None]
    return np.asarray(np.linalg.qr(roots * indicators)[0] / roots)


def _reconstruction_weights(x: np.ndarray, n_neighbors: int) -> np.ndarray:
    """Weights W `(unit, unit)` by which each unit is reconstructed from its neighbours, with rows that sum to 1."""
    from sklearn.neighbors import NearestNeighbors

    nearest = NearestNeighbors(n_neighbors=n_neighbors).fit(x).kneighbors(return_distance=False)
    away = x[nearest] - x[:, None]
    gram = away @ away.swapaxes(1, 2)
    trace = np.trace(gram, axis1=1, axis2=2)
    gram += RIDGE * np.where(trace > 0, trace, 1.0)[:, None, None] * np.eye(n_neighbors)
    local = np.linalg.solve(gram, np.ones((len(x), n_neighbors, 1)))[..., 0]
    found = np.zeros((len(x), len(x)))
    np.put_along_axis(found, nearest, local / local.sum(axis=1, keepdims=True), axis=1)
    return found


def _classical(distances: np.ndarray, n_latent: int) -> np.ndarray:
    n = len(distances)
    products = -0.5 * distances**2
    products -= products.mean(axis=0)
    products -= products.mean(axis=1, keepdims=True)
    values, vectors = eigh(products, subset_by_index=(n - n_latent, n - 1))
    return (vectors * np.sqrt(np.maximum(values, 0.0)))[:, ::-1]


def neighbors(name: str, x: np.ndarray, n_latent: int, requested: int | None, notes: list[str]) -> int:
    """Return the checked number of neighbours of each unit, without the unit itself."""
    n_units = len(x)
    reason = f"fewer than the {n_units} units"
    n_neighbors = int(at_most_by_data(name, "n_neighbors", requested, N_NEIGHBORS, n_units - 1, reason, notes))
    at_most(name, "n_latent", n_latent, n_units - 2, f"at least 2 fewer than the {n_units} units")
    return n_neighbors
