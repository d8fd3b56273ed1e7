r"""Agreement of distances along the manifold: lengths of shortest paths in the neighbour graphs of embedding and draw.

With g_ij the length of the shortest path between units i and j in the neighbour graph of x, and h_ij that in the graph of y,

    geodesic_distance_correlation = corr(g_ij, h_ij) over pairs i, j   (Pearson).

One minus its square is the residual variance by which Isomap is judged, with path lengths on both sides. The Pearson correlation
is 1 only for proportional distances, an isometry up to scale. A rank correlation would also be 1 for a monotone distortion.
Paths on both sides make the score valid for sheets with holes or bays, where the straight line between units leaves the sheet,
and for positions in more columns than the manifold has dimensions.

The graph connects each unit with its `n_neighbors` nearest units. If it has several connected components, these are joined by
their shortest connecting edges (a minimum spanning tree over components), so that every distance is finite. Units at one point
are joined by edges of length 0. For many units, a fixed subsample of at most 1000 units is used, with paths from 100 of them.

References:
    Tenenbaum, de Silva & Langford (2000), A global geometric framework for nonlinear dimensionality reduction, Science 290:2319
    (note 42: residual variance).
"""

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components, dijkstra, minimum_spanning_tree
from scipy.spatial.distance import cdist

from latentlab.compare.metric import metric
from latentlab.compare.neighbors import check_neighbors
from latentlab.compare.positions import ANCHORS, Positions, shuffled

GRAPH = 1000
"""Largest number of units in the neighbour graph."""
N_NEIGHBORS = 10


def n_in_graph(n_units: int) -> int:
    """Return the number of units in the neighbour graph."""
    return min(n_units, GRAPH)


@metric(
    direction="higher",
    range=(-1.0, 1.0),
    ignores=("rotation", "translation", "scale"),
    void=0.0,
    by_default=False,
    n_used=n_in_graph,
)
def geodesic_distance_correlation(x: Positions, y: Positions, *, n_neighbors: int = N_NEIGHBORS) -> float:
    """Pearson correlation of the distances along the neighbour graphs of embedding and draw.

    Higher is closer, in [-1, 1], about 0 for unrelated positions; 0 if all distances on one side only are equal. It is computed
    only if requested by name.

    Raises:
        ConfigError: `n_neighbors` is below 1, or not below half of the units of the graph.
    """
    g, h = (side.derived(path_lengths, n_neighbors) for side in (x, y))
    g, h = g - g.mean(), h - h.mean()
    sizes = np.linalg.norm(g), np.linalg.norm(h)
    if min(sizes) == 0:
        return float(max(sizes) == 0)
    return float(g @ h / (sizes[0] * sizes[1]))


def path_lengths(x: Positions, n_neighbors: int) -> np.ndarray:
    """Compute lengths of shortest paths from the first 100 units of the subsample to its other units, `(pair,)`.

    Each pair occurs once.
    """
    units = shuffled(x.n_units)[:GRAPH]
    check_neighbors(n_neighbors, len(units))
    rows = x.centered[units] / np.sqrt(x.size / x.n_units)
    n = len(rows)
    found = dijkstra(neighbor_graph(cdist(rows, rows), n_neighbors), indices=np.arange(min(n, ANCHORS)))
    return found[np.arange(n) > np.arange(len(found))[:, None]]


def neighbor_graph(distances: np.ndarray, n_neighbors: int) -> csr_matrix:
    """Return the symmetric, connected graph of nearest neighbours, with lengths as entries; lengths of 0 are stored.

    Args:
        distances: Distances between units, `(unit, unit)`.
        n_neighbors: Number of neighbours of each unit, without the unit itself.
    """
    n = len(distances)
    others = distances + np.diag(np.full(n, np.inf))
    nearest = np.argpartition(others, n_neighbors - 1, axis=1)[:, :n_neighbors]
    edges = np.zeros((n, n), dtype=bool)
    np.put_along_axis(edges, nearest, values=True, axis=1)
    edges |= edges.T
    if connected_components(edges, directed=False)[0] > 1:
        # With edges of the graph shorter than all others, a minimum spanning tree has the fewest, shortest further edges.
        tree = minimum_spanning_tree(np.where(edges, 0.5, 1.0 + distances / max(float(distances.max()), 1e-300))).toarray() > 0
        edges |= tree | tree.T
    rows, columns = np.nonzero(edges)
    return csr_matrix((distances[rows, columns], (rows, columns)), shape=(n, n))
