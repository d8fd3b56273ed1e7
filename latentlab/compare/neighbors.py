r"""Agreement of neighbourhoods.

N_i(k) are the k nearest units of unit i, and r_ij is the rank of j among all units by distance from i, from 1.

| metric | formula |
|---|---|
| `neighbor_overlap` | mean_i abs(N_i^x(k) and N_i^y(k)) / k: the share, Q_NX(k), not the Jaccard index |
| `trustworthiness` | 1 - 2 / (n k (2n - 3k - 1)) sum_i sum_{j in N_i^x(k)} max(r_ij^y - k, 0) |
| `continuity` | the same with x and y exchanged |
| `co_ranking` | sum_K R(K) / K over sum_K 1 / K, R(K) = ((n - 1) Q_NX(K) - K) / (n - 1 - K), K = 1, ..., n - 2 |

Trustworthiness is low if units that are near in the embedding are far apart in the draw. Continuity is low if units that are near
in the draw are far apart in the embedding. Co-ranking does not depend on k: R(K) is the overlap above chance relative to its
largest possible value, and small neighbourhoods have more weight. The overlap uses all units. The other three use a subsample of
the units if there are more than 1024 (`latentlab.compare.positions.ranked`).

By default neighbours are exact. For many units in at most two columns they are found by strips (`latentlab.compare.plane`).
Otherwise a k-d tree is used in up to 6 columns, and all distances in more. For many units in many columns the search can be
`approximate`: nearest-neighbour descent, with the same seed for all positions. `recall` computes the share of true neighbours
that it finds.

References:
    Venna and Kaski (2001), Neighborhood preservation in nonlinear projection methods, ICANN (trustworthiness, continuity).
    Lee and Verleysen (2009), Quality assessment of dimensionality reduction: rank-based criteria, Neurocomputing 72:1431.
    Lee, Peluffo-Ordóñez and Verleysen (2015), Multi-scale similarities in stochastic neighbour embedding, Neurocomputing 169:246.
    Bentley (1975), Multidimensional binary search trees used for associative searching, Communications of the ACM 18:509.
    Dong, Charikar and Li (2011), Efficient k-nearest neighbor graph construction for generic similarity measures, WWW.
"""

from typing import Any, Literal, get_args

import numpy as np
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from latentlab.compare.metric import metric
from latentlab.compare.positions import EQUAL, Positions, n_ranked, ranked
from latentlab.data import memory
from latentlab.distributions import loops
from latentlab.errors import ConfigError, MissingDependencyError, unknown
from latentlab.seeds import one_thread

Search = Literal["exact", "approximate"]
SEARCHES: tuple[Search, ...] = get_args(Search)

N_NEIGHBORS = 15
TREE_COLUMNS = 6
"""Number of columns up to which a k-d tree is faster than all distances (for 2000 and 10 000 normal units)."""
LEAF = 32
MANY = 1000
"""Number of units from which compiled loops save more time than they take to load, over some hundred draws."""
N_RECALLED = 500
"""Largest number of units for which approximate neighbours are compared with exact ones."""
_IGNORES = ("rotation", "translation", "scale")


@metric(direction="higher", range=(0.0, 1.0), ignores=_IGNORES, void=0.0)
def neighbor_overlap(x: Positions, y: Positions, *, n_neighbors: int = N_NEIGHBORS, neighbor_search: Search = "exact") -> float:
    """Mean share of a unit's nearest neighbours in the draw that are also its nearest neighbours in the embedding.

    Higher is closer, in [0, 1]; k / (n - 1) for unrelated positions. With `approximate` neighbours it is biased downwards by
    about the share of neighbours that the search misses.

    Raises:
        ConfigError: `n_neighbors` is below 1, or not below half of the units, or the search does not exist.
        MissingDependencyError: Approximate neighbours need pynndescent, which is not installed.
    """
    found = (side.derived(neighbors, n_neighbors, neighbor_search) for side in (x, y))
    return float(overlap(*found).mean())


@metric(direction="higher", range=(0.0, 1.0), ignores=_IGNORES, void=0.0, n_used=n_ranked, symmetric=False)
def trustworthiness(x: Positions, y: Positions, *, n_neighbors: int = N_NEIGHBORS) -> float:
    """Trustworthiness: penalises neighbours in the embedding by how far their rank in the draw exceeds k.

    Higher is closer, in [0, 1]; about 1/2 for unrelated positions.

    Raises:
        ConfigError: `n_neighbors` is below 1, or not below half of the units.
    """
    return _rank_penalty_score(x, y, n_neighbors)


@metric(direction="higher", range=(0.0, 1.0), ignores=_IGNORES, void=0.0, n_used=n_ranked, symmetric=False)
def continuity(x: Positions, y: Positions, *, n_neighbors: int = N_NEIGHBORS) -> float:
    """Continuity: penalises neighbours in the draw by how far their rank in the embedding exceeds k.

    Higher is closer, in [0, 1]; about 1/2 for unrelated positions.

    Raises:
        ConfigError: `n_neighbors` is below 1, or not below half of the units.
    """
    return _rank_penalty_score(y, x, n_neighbors)


@metric(direction="higher", range=(-1.0, 1.0), ignores=_IGNORES, void=0.0, n_used=n_ranked)
def co_ranking(x: Positions, y: Positions) -> float:
    """Agreement above chance of neighbourhoods of all sizes: area under the co-ranking curve R_NX over log K.

    Higher is closer, in [-1, 1], 0 for unrelated positions.
    """
    first, second = x.derived(ranks), y.derived(ranks)
    m, n = first.shape
    within = np.bincount(np.maximum(first, second).ravel(), minlength=n)[1:]
    size = np.arange(1, n - 1)
    common = within.cumsum()[: n - 2] / m
    above = ((n - 1) * common / size - size) / (n - 1 - size)
    return float((above / size).sum() / (1.0 / size).sum())


def neighbors(x: Positions, n_neighbors: int, search: Search = "exact") -> np.ndarray:
    """Find the nearest units of each unit, without the unit itself, `(unit, n_neighbors)`, in arbitrary order.

    Ties are broken arbitrarily.

    Raises:
        ConfigError: `n_neighbors` is below 1, or not below half of the units, or the search does not exist.
        MissingDependencyError: Approximate neighbours need pynndescent, which is not installed.
    """
    check_neighbors(n_neighbors, x.n_units)
    if search not in SEARCHES:
        raise ConfigError(unknown("neighbor search", search, SEARCHES))
    rows = x.centered
    if search == "exact" and rows.shape[1] <= 2 and (plane := _plane(rows)):
        return np.asarray(plane.nearest(rows, n_neighbors))
    found = (_nearest(rows, rows, n_neighbors + 1) if search == "exact" else _approximate(rows, n_neighbors + 1)).astype(np.int32)
    return _without_self(found, np.arange(x.n_units))


def nearest_to(x: Positions, units: np.ndarray, n_neighbors: int) -> np.ndarray:
    """Find the exact nearest units of some units, without these units themselves, `(len(units), n_neighbors)`.

    Raises:
        ConfigError: `n_neighbors` is below 1, or not below half of the units.
    """
    check_neighbors(n_neighbors, x.n_units)
    return _without_self(_nearest(x.centered, x.centered[units], n_neighbors + 1), units)


def recall(x: Positions, n_neighbors: int) -> float:
    """Compute the share of the nearest neighbours that the approximate search finds, for at most 500 units."""
    subset = ranked(x.n_units)[1][:N_RECALLED]
    exact = nearest_to(x, subset, n_neighbors)
    return float(overlap(exact, x.derived(neighbors, n_neighbors, "approximate")[subset]).mean())


def _plane(lists: np.ndarray) -> Any:
    """Return the module of compiled loops; None for fewer than `MANY` units or without Numba."""
    return loops.load("compare.plane") if len(lists) >= MANY else None


def _without_self(found: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Remove each unit from its own list of nearest units `(unit, k + 1)`."""
    others = found != units[:, None]
    # Among more than k units at one point, a unit may be missing in its own list; then the last neighbour is removed.
    others[others.all(axis=1), -1] = False
    return found[others].reshape(len(found), -1)


def _nearest(rows: np.ndarray, points: np.ndarray, k: int) -> np.ndarray:
    """Find the k rows nearest to each point, nearest first, without a matrix of all distances."""
    if rows.shape[1] <= TREE_COLUMNS:
        return np.asarray(cKDTree(rows, leafsize=LEAF).query(points, k=k)[1])
    from sklearn.neighbors import NearestNeighbors  # takes a second to import, and is not needed to check a config

    found = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(rows).kneighbors(points, return_distance=False)
    return np.asarray(found)


@one_thread()  # Numba changes the number of threads of torch, which uses the same library
def _approximate(rows: np.ndarray, k: int) -> np.ndarray:
    try:
        from pynndescent import NNDescent
    except ImportError as error:
        raise MissingDependencyError("the approximate search for neighbours", "pynndescent", "embed") from error
    found = np.array(NNDescent(rows, n_neighbors=k, random_state=0, n_jobs=1).neighbor_graph[0])
    incomplete = (found < 0).any(axis=1)
    if incomplete.any():
        found[incomplete] = _nearest(rows, rows[incomplete], k)
    return found


def overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Compute the share of common entries of two lists of neighbours `(unit, k)`, without repeated entries, for each unit.

    Example:
        >>> overlap(np.array([[1, 2], [0, 2]]), np.array([[2, 1], [3, 0]]))
        array([1. , 0.5])
    """
    if plane := _plane(first):
        common = np.empty(len(first), dtype=np.int64)
        plane.shared(first, second, common)
        return common / first.shape[1]
    both = np.concatenate([first, second], axis=1)
    both.sort(axis=1)
    return (both[:, 1:] == both[:, :-1]).sum(axis=1) / first.shape[1]


def ranks(x: Positions) -> np.ndarray:
    """Compute the rank of each unit by its distance from each anchor, `(anchor, unit)`: 0 for the anchor itself, then 1, 2, ...

    Ties are broken by the shuffled order of the units.
    """
    anchors, others = ranked(x.n_units)
    rows = x.centered[others]
    table = np.empty((len(anchors), len(others)), dtype=np.int32)
    in_order = np.arange(len(others), dtype=np.int32)
    for part in memory.blocks(len(anchors), len(others)):
        squared = cdist(rows[part], rows, "sqeuclidean")
        squared += EQUAL * 2.0 * x.size / x.n_units
        squared[np.arange(part.stop - part.start), np.arange(part.start, part.stop)] = 0.0
        for row, order in zip(table[part], _argsort(squared), strict=True):
            row[order] = in_order
    return table


def _argsort(values: np.ndarray) -> np.ndarray:
    """Sort order of each row of values >= 0, with ties broken by column; overwrites the values.

    The bit patterns of non-negative floats, read as integers, have the order of the floats. Their lowest bits are replaced by the
    column, so that one sort of integers is sufficient, in a third of the time of `argsort`. Numbers that agree to 12 digits are
    ties (for 1024 columns; 10 digits for 65536).
    """
    keys = values.view(np.int64)
    columns = np.int64((1 << (values.shape[1] - 1).bit_length()) - 1)
    keys &= ~columns
    keys |= np.arange(values.shape[1])
    keys.sort(axis=1)
    keys &= columns
    return keys


def _rank_penalty_score(x: Positions, y: Positions, k: int) -> float:
    check_neighbors(k, x.n_units)
    x_ranks, y_ranks = x.derived(ranks), y.derived(ranks)
    m, n = x_ranks.shape
    penalty = np.maximum(y_ranks[x_ranks <= k] - k, 0).sum(dtype=np.int64)
    return float(1.0 - 2.0 * penalty / (m * k * (2 * n - 3 * k - 1)))


def check_neighbors(n_neighbors: int, n_units: int) -> None:
    """Check the number of neighbours.

    Raises:
        ConfigError: `n_neighbors` is below 1, or not below half of the units.
    """
    if not 1 <= n_neighbors < n_units / 2:
        raise ConfigError(f"`n_neighbors` must be at least 1 and below half of the {n_units} units; got {n_neighbors}.")
