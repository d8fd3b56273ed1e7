"""Hard clusterings as embeddings: a column for each cluster, 1 where the unit belongs to it and 0 elsewhere.

Clusters are in the order of their sizes, the largest first, so that a column means the same in every run as far as it can; of
clusters of one size the one with the earlier first unit comes first.
"""

from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge

from latentlab.embeddings.entry import all_pairs, at_most, clustering
from latentlab.embeddings.manifold import neighbors, note_pieces

MAX_ITER = 10_000
"""Steps of k-means, which ends by itself when no unit changes its cluster."""


@clustering
def kmeans(
    x: np.ndarray,
    n_latent: int,
    *,
    seed: int,
    output: Literal["labels", "distances"] = "labels",
    n_init: Annotated[int, Ge(1)] = 10,
) -> np.ndarray:
    r"""K-means: clusters around centres, each unit in that of the nearest one.

    $\min_{c, \mu} \sum_n |x_n - \mu_{c_n}|^2$ by Lloyd's steps until no unit moves, the best of `n_init` starts by k-means++. It
    is the limit of maximum likelihood under a mixture of spherical Gaussians with equal weights and one variance, as that
    variance tends to 0; it keeps which group a unit is in, and with `distances` how far it is from each.

    Args:
        x: Table `(unit, feature)`.
        n_latent: Clusters, no more than there are distinct units.
        seed: Of the starts.
        output: A unit's cluster as 0 and 1 (`labels`), or its Euclidean distance to each centre (`distances`).
        n_init: Starts.

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

    The graph is that of `spectral`: an edge weighs 1 between units that are nearest neighbours of each other, 1/2 where only one
    is of the other. The first `n_latent` eigenvectors of its normalised Laplacian, the constant one included, are clustered,
    which relaxes the least normalised cut. It keeps groups that are connected, whatever their shape.

    Args:
        x: Table `(unit, feature)`.
        n_latent: Clusters, no more than there are distinct units.
        seed: Of k-means' starts.
        n_neighbors: Neighbours of each unit, the unit itself not counted; 10, or all others where they are fewer, if None.
        notes: Is told if the graph is in pieces, and if so many clusters were not found.

    References:
        Shi & Malik (2000), IEEE Trans. PAMI 22:888. von Luxburg (2007), A tutorial on spectral clustering, Stat. Comput. 17:395.
    """
    from sklearn.cluster import SpectralClustering
    from sklearn.neighbors import kneighbors_graph

    distinct("spectral_clustering", x, n_latent)
    n_neighbors = neighbors("spectral_clustering", x, n_latent, n_neighbors, notes)
    note_pieces(x, n_neighbors, notes)
    near = kneighbors_graph(x, n_neighbors)
    with _one_thread():
        found = SpectralClustering(n_latent, affinity="precomputed", random_state=seed).fit(0.5 * (near + near.T))
    labels = np.unique(found.labels_, return_inverse=True)[1]
    if labels.max() + 1 < n_latent:
        notes.append(f"{labels.max() + 1} clusters were found where {n_latent} were asked for: the other columns are 0")
    return one_hot(labels, n_latent)


@clustering
def agglomerative(
    x: np.ndarray, n_latent: int, *, linkage: Literal["ward", "average", "complete", "single"] = "ward"
) -> np.ndarray:
    r"""Agglomerative clustering: the two nearest clusters are joined until `n_latent` are left.

    How far clusters A and B are apart is the linkage: the growth of the sum of squares within them,
    $\frac{|A| |B|}{|A| + |B|} |\bar x_A - \bar x_B|^2$ (`ward`), or the mean (`average`), the largest (`complete`) or the least
    (`single`) Euclidean distance of their units. Nothing is random.

    Args:
        x: Table `(unit, feature)`.
        n_latent: Clusters, no more than there are distinct units.
        linkage: `ward`, `average`, `complete` or `single`.

    References:
        Ward (1963), J. Am. Stat. Assoc. 58:236. Murtagh & Legendre (2014), J. Classif. 31:274.
    """
    from sklearn.cluster import AgglomerativeClustering

    distinct("agglomerative", x, n_latent)
    all_pairs("agglomerative", len(x))
    return one_hot(AgglomerativeClustering(n_latent, linkage=linkage).fit_predict(x), n_latent)


# -- what clusterings share


def lloyd(x: np.ndarray, n_clusters: int, seed: int, n_init: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and centres of k-means, the clusters in the order of their sizes."""
    from sklearn.cluster import KMeans

    # Several threads would add up in an order of their own, and change the last digits.
    with _one_thread():
        # The seed is 32 bits, as scikit-learn takes it; a tolerance of 0 goes on until no unit moves.
        found = KMeans(n_clusters, n_init=n_init, max_iter=MAX_ITER, tol=0.0, random_state=seed).fit(x)
    order = _by_size(found.labels_, n_clusters)
    labels = np.argsort(order)[found.labels_]
    return labels, np.stack([x[labels == k].mean(axis=0) for k in range(n_clusters)])


def one_hot(labels: np.ndarray, n_clusters: int) -> np.ndarray:
    """A column for each cluster, `(unit, n_clusters)`, the largest first.

    Example:
        >>> one_hot(np.array([2, 0, 2]), 3).tolist()
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
    """
    return np.eye(n_clusters)[labels][:, _by_size(labels, n_clusters)]


def distinct(name: str, x: np.ndarray, n_clusters: int, what: str = "units") -> None:
    """Refuses more clusters than there are rows that differ."""
    n_distinct = len(np.unique(x, axis=0))
    at_most(name, "n_latent", n_clusters, n_distinct, f"{n_distinct} of the {len(x)} {what} are distinct")


def _by_size(labels: np.ndarray, n_clusters: int) -> np.ndarray:
    """The clusters in decreasing order of size, of one size by their first unit."""
    sizes = np.bincount(labels, minlength=n_clusters)
    first = np.full(n_clusters, len(labels))
    np.minimum.at(first, labels, np.arange(len(labels)))
    return np.lexsort((first, -sizes))


def _one_thread() -> Any:
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1)
