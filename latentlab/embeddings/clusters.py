"""Hard clusterings as embeddings: one column for each cluster, with 1 for its units and 0 for the others.

Clusters are ordered by size, the largest first, so that columns of different runs correspond as far as possible. Clusters of
equal size are ordered by their first unit.
"""

from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge

from latentlab.embeddings.entry import all_pairs, at_most, clustering
from latentlab.embeddings.manifold import neighbors, note_components

MAX_ITER = 10_000
"""Largest number of k-means steps; the algorithm stops when no unit changes its cluster."""


@clustering
def kmeans(
    x: np.ndarray,
    n_latent: int,
    *,
    seed: int,
    output: Literal["labels", "distances"] = "labels",
    n_init: Annotated[int, Ge(1)] = 10,
) -> np.ndarray:
    r"""K-means: each unit is assigned to the cluster with the nearest centre.

    $\min_{c, \mu} \sum_n |x_n - \mu_{c_n}|^2$ by Lloyd's algorithm until no unit changes its cluster; the best of `n_init`
    restarts with k-means++. K-means is the limit of maximum likelihood under a mixture of spherical Gaussians with equal weights
    and a common variance, as the variance tends to 0. It preserves the cluster of a unit and, with `distances`, its distance to
    each centre.

    Args:
        x: Table `(unit, feature)`.
        n_latent: Number of clusters, at most the number of distinct units.
        seed: Seed of the restarts.
        output: Cluster of a unit as 0 and 1 (`labels`), or its Euclidean distance to each centre (`distances`).
        n_init: Number of restarts.

    References:
        Lloyd (1982), IEEE Trans. Inf. Theory 28:129. Arthur & Vassilvitskii (2007), k-means++, SODA. Kulis & Jordan (2012),
        Revisiting k-means, ICML.
    """
    distinct("kmeans", x, n_latent)
    labels, centres = lloyd(x, n_latent, seed, n_init)
    if output == "labels":
        return one_hot(labels, n_latent)
    return np.linalg.norm(x[:, None, :] - centres, axis=2)


@clustering
def spectral_clustering(
    x: np.ndarray, n_latent: int, *, seed: int, n_neighbors: Annotated[int, Ge(1)] | None = None, notes: list[str]
) -> np.ndarray:
    r"""Spectral clustering: k-means on the slowest modes of a random walk on the graph of nearest neighbours.

    The graph is the same as for `spectral`: an edge has weight 1 if both units are nearest neighbours of each other, and 1/2 if
    only one is. K-means clusters the first `n_latent` eigenvectors of the normalised Laplacian of the graph, including the
    constant one. This is a relaxation of the minimal normalised cut. It preserves connected groups of any shape.

    Args:
        x: Table `(unit, feature)`.
        n_latent: Number of clusters, at most the number of distinct units.
        seed: Seed of the restarts of k-means.
        n_neighbors: Number of neighbours of each unit, without the unit itself; by default 10, or all others if they are fewer.
        notes: List to which a note is appended if the graph is not connected, or fewer clusters were found.

    References:
        Shi & Malik (2000), IEEE Trans. PAMI 22:888. von Luxburg (2007), A tutorial on spectral clustering, Stat. Comput. 17:395.
    """
    from sklearn.cluster import SpectralClustering
    from sklearn.neighbors import kneighbors_graph

    distinct("spectral_clustering", x, n_latent)
    n_neighbors = neighbors("spectral_clustering", x, n_latent, n_neighbors, notes)
    note_components(x, n_neighbors, notes)
    graph = kneighbors_graph(x, n_neighbors)
    with _one_thread():
        found = SpectralClustering(n_latent, affinity="precomputed", random_state=seed).fit(0.5 * (graph + graph.T))
    labels = np.unique(found.labels_, return_inverse=True)[1]
    if labels.max() + 1 < n_latent:
        notes.append(f"only {labels.max() + 1} of {n_latent} requested clusters were found; the other columns are 0")
    return one_hot(labels, n_latent)


@clustering
def agglomerative(
    x: np.ndarray, n_latent: int, *, linkage: Literal["ward", "average", "complete", "single"] = "ward"
) -> np.ndarray:
    r"""Agglomerative clustering: the two nearest clusters are merged until `n_latent` remain.

    The linkage is the distance between clusters A and B: the increase of the sum of squares within clusters,
    $\frac{|A| |B|}{|A| + |B|} |\bar x_A - \bar x_B|^2$ (`ward`), or the mean (`average`), the largest (`complete`) or the
    smallest (`single`) Euclidean distance between their units. The algorithm is deterministic.

    Args:
        x: Table `(unit, feature)`.
        n_latent: Number of clusters, at most the number of distinct units.
        linkage: `ward`, `average`, `complete` or `single`.

    References:
        Ward (1963), J. Am. Stat. Assoc. 58:236. Murtagh & Legendre (2014), J. Classif. 31:274.
    """
    from sklearn.cluster import AgglomerativeClustering

    distinct("agglomerative", x, n_latent)
    all_pairs("agglomerative", len(x))
    return one_hot(AgglomerativeClustering(n_latent, linkage=linkage).fit_predict(x), n_latent)


# -- functions shared by the clusterings


def lloyd(x: np.ndarray, n_clusters: int, seed: int, n_init: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute the labels `(unit,)` and centres `(cluster, feature)` of k-means, with clusters ordered by size."""
    from sklearn.cluster import KMeans

    # With several threads, the order of summation and the last digits vary.
    with _one_thread():
        # The seed has 32 bits, as scikit-learn requires. A tolerance of 0 iterates until no unit changes its cluster.
        found = KMeans(n_clusters, n_init=n_init, max_iter=MAX_ITER, tol=0.0, random_state=seed).fit(x)
    order = _by_size(found.labels_, n_clusters)
    labels = np.argsort(order)[found.labels_]
    return labels, np.stack([x[labels == k].mean(axis=0) for k in range(n_clusters)])


def one_hot(labels: np.ndarray, n_clusters: int) -> np.ndarray:
    """Convert labels to one column for each cluster, `(unit, n_clusters)`, the largest first.

    Example:
        >>> one_hot(np.array([2, 0, 2]), 3).tolist()
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
    """
    return np.eye(n_clusters)[labels][:, _by_size(labels, n_clusters)]


def distinct(name: str, x: np.ndarray, n_clusters: int, what: str = "units") -> None:
    """Raise an error if there are more clusters than distinct rows."""
    n_distinct = len(np.unique(x, axis=0))
    at_most(name, "n_latent", n_clusters, n_distinct, f"{n_distinct} of the {len(x)} {what} are distinct")


def _by_size(labels: np.ndarray, n_clusters: int) -> np.ndarray:
    """Return the clusters in decreasing order of size, `(cluster,)`; clusters of equal size are ordered by their first unit."""
    sizes = np.bincount(labels, minlength=n_clusters)
    first = np.full(n_clusters, len(labels))
    np.minimum.at(first, labels, np.arange(len(labels)))
    return np.lexsort((first, -sizes))


def _one_thread() -> Any:
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1)
