r"""Point estimates and credible balls of a posterior over partitions.

Draws are labels `(chain, draw, unit)`; results do not depend on the values of the labels. Distances between partitions x and y
of N units are functions of the counts n_kl of their contingency table, and differ in a function phi and a factor c:

    d(x, y) = c (sum_k phi(n_k.) + sum_l phi(n_.l) - 2 sum_kl phi(n_kl)).

* `vi`, the variation of information in nats: phi(n) = n log n, c = 1 / N;
* `binder`, the share of pairs that are together in one partition only: phi(n) = n^2, c = 1 / (N (N - 1)).

The expected loss of a partition is its mean distance to the draws.

References:
    Binder (1978), Bayesian cluster analysis, Biometrika 65:31. Wade and Ghahramani (2018), Bayesian cluster analysis: point
    estimation and credible balls, Bayesian Analysis 13:559.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from latentlab.compare.co_assignment import BATCHED, CELLS, SAME, flat_labels, label_indicators, together
from latentlab.compare.partition import Labels, partitions
from latentlab.data.memory import blocks, by_row, place_of, release
from latentlab.errors import ConfigError, DataError, unknown

Distance = Literal["vi", "binder"]
SPARSE = 4
"""Cells per unit above which contingency tables are stored as lists of non-empty cells."""
MOST_CELLS = 2**26
"""Number of cells of all contingency tables above which an estimate is not improved by moves (512 MB)."""
N_SWEEPS = 20


@dataclass(frozen=True)
class CredibleBall:
    """Smallest ball around a partition that contains a given share of the posterior, with the partitions at its edge.

    Attributes:
        radius: Radius of the ball, in the unit of the distance.
        mass: Share of the draws inside; at least the level.
        upper: Draws farthest from the centre among those inside with the fewest clusters, `(bound, unit)`, codes from 0.
        lower: Draws farthest from the centre among those inside with the most clusters, `(bound, unit)`.
        horizontal: Draws farthest from the centre among all draws inside, `(bound, unit)`.
    """

    radius: float
    mass: float
    upper: np.ndarray
    lower: np.ndarray
    horizontal: np.ndarray


def misplaced(codes: np.ndarray, mean: np.ndarray) -> np.ndarray:
    r"""Compute the sum over the other units j of |1[y_i = y_j] - pi_ij|, for each unit i of each partition y.

    Args:
        codes: Partitions `(draw, unit)`, codes from 0.
        mean: Co-assignment pi, `(unit, unit)`.

    Returns:
        Sums `(draw, unit)`; their sum over units, divided by N (N - 1), is the expected Binder loss.
    """
    weight = 1 - 2 * mean
    np.fill_diagonal(weight, 0.0)
    base = mean.sum(axis=1) - np.diag(mean)
    units, sums = np.arange(len(mean)), place_of(codes).empty(codes.shape)
    for block, columns, draws in label_indicators(codes):
        sums[draws] = base + (block.T @ weight)[columns, units]
    return sums


def distances(y: Any, codes: np.ndarray, distance: Distance = "vi") -> np.ndarray:
    """Compute the distance of a partition to each of several others.

    Args:
        y: Labels, `(unit,)`, or a `Labels` object.
        codes: Partitions `(draw, unit)`, codes from 0.
        distance: `vi` or `binder`.

    Returns:
        Distances, `(draw,)`.
    """
    y = y if isinstance(y, Labels) else Labels(y, "y")
    phi, factor = _formula(distance, y.n_units)
    n_clusters = int(codes.max()) + 1
    width = y.n_clusters * n_clusters
    own_sum = phi[y.sizes].sum()
    if width > SPARSE * y.n_units:
        return np.array([_sparse(y, draw, phi, own_sum) for draw in codes]) * factor
    parts = []
    for part in np.array_split(codes, math.ceil(len(codes) * max(width, y.n_units) / CELLS)):
        counts = tables(y.codes, part, y.n_clusters, n_clusters)
        parts.append(own_sum + phi[counts.sum(axis=1)].sum(axis=1) - 2 * phi[counts].sum(axis=(1, 2)))
        release()
    return np.maximum(np.concatenate(parts), 0.0) * factor


def expected_loss(y: Any, draws: Any, distance: Distance = "vi") -> float:
    """Mean distance of a partition `(unit,)` to draws `(chain, draw, unit)`."""
    codes = flat_labels(draws)
    y = Labels(y, "y")
    if y.n_units != codes.shape[1]:
        raise DataError(
            f"a partition and the draws must have the same units; got {y.n_units} units in y and {codes.shape[1]} in the draws."
        )
    return float(distances(y, codes, distance).mean())


def least_binder(draws: Any, candidates: Any = None) -> np.ndarray:
    """Return the candidate partition of least expected Binder loss, `(unit,)`, codes from 0; the first in case of ties.

    Args:
        draws: Labels, `(chain, draw, unit)`.
        candidates: Partitions, `(candidate, unit)`; by default the draws.

    Raises:
        DataError: The draws or candidates are not labels of the required shape.

    Example:
        >>> least_binder([[[0, 0, 1], [1, 1, 0], [0, 1, 1], [2, 2, 0]]])
        array([0, 0, 1])
    """
    codes = flat_labels(draws)
    pool = codes if candidates is None else flat_labels(np.asarray(candidates)[None])
    return np.array(pool[_first(_losses(codes, pool, "binder"))])


def minimum_binder(draws: Any, n_sweeps: int = N_SWEEPS) -> np.ndarray:
    """Return a partition of small posterior expected Binder loss, found by the searches of `minimum_vi`.

    Moves do not open new clusters. Otherwise units with several probable clusters would become singletons that no draw has.
    """
    return _local_minimum(flat_labels(draws), "binder", n_sweeps)


def unsettled(draws: Any, centre: np.ndarray) -> np.ndarray:
    """Find the units for which another cluster of a point estimate is as good within two Monte Carlo standard errors.

    The difference in expected Binder loss between the second-best cluster and a unit's own is a mean over draws. Its standard
    error is computed from the means of the chains. With fewer than `BATCHED` chains, the larger of this and the standard error
    from batch means is used, with about sqrt(draws) batches per chain.

    Args:
        draws: Labels, `(chain, draw, unit)`.
        centre: Estimate by `minimum_binder`, codes from 0, `(unit,)`.

    Returns:
        Indices of the units; empty if the tables would take more than 512 MB, or if there is a single cluster or batch.
    """
    codes = partitions(draws)
    n_chains, n_draws, n = codes.shape
    n_batches = 1 if n_chains >= BATCHED else min(max(2, math.isqrt(n_draws)), n_draws)
    flat, n_own, n_other = codes.reshape(-1, n), int(centre.max()) + 1, int(codes.max()) + 1
    if n_own < 2 or n_chains * n_batches < 2 or len(flat) * n_own * n_other > MOST_CELLS:
        return np.zeros(0, dtype=int)
    step, draw_indices = np.diff(_formula("binder", n)[0], append=0.0), np.arange(len(flat))
    counts, sizes = _all_tables(centre, flat, n_own, n_other), np.bincount(centre, minlength=n_own)
    ties, columns = [], _by_unit(flat)
    for i, current in enumerate(centre):
        shared = counts[draw_indices, :, columns[i]]
        shared[:, current] -= 1
        gain = 2 * step[shared] - step[sizes - (np.arange(n_own) == current)]
        mean = gain.mean(axis=0)
        mean[current] = -np.inf
        saved = (gain[:, current] - gain[:, int(mean.argmax())]).reshape(n_chains, n_draws)
        batches = np.concatenate([part.mean(axis=1) for part in np.array_split(saved, n_batches, axis=1)])
        error = batches.std(ddof=1) / math.sqrt(len(batches))
        if n_chains > 1:
            error = max(error, saved.mean(axis=1).std(ddof=1) / math.sqrt(n_chains))
        if saved.mean() <= 2 * error + n * SAME:
            ties.append(i)
    return np.array(ties, dtype=int)


def minimum_vi(draws: Any, n_sweeps: int = N_SWEEPS) -> np.ndarray:
    """Return a partition of small posterior expected variation of information, `(unit,)`, codes from 0.

    Two searches move single units between the clusters of a draw while a move lowers the loss. One starts at the best draw, the
    other at the best draw with the most probable number of clusters. The better local minimum is returned; it is never worse than
    any draw. The second search is needed because the best of many draws is an extreme value, and its number of clusters is partly
    random. No moves are made if the tables would take more than 512 MB. Overlapping clusters tend to be merged.

    Args:
        draws: Labels, `(chain, draw, unit)`.
        n_sweeps: Largest number of sweeps of moves over the units.

    Raises:
        DataError: The draws are not labels of this shape.
    """
    return _local_minimum(flat_labels(draws), "vi", n_sweeps)


def improved(y: np.ndarray, codes: np.ndarray, distance: Distance, n_sweeps: int = N_SWEEPS) -> np.ndarray:
    """Improve a partition by moves of single units between its clusters, until no move lowers the expected loss.

    Args:
        y: Codes from 0, `(unit,)`.
        codes: Partitions `(draw, unit)`, codes from 0.
        distance: `vi` or `binder`.
        n_sweeps: Largest number of sweeps over the units.

    Returns:
        Codes from 0, `(unit,)`; a copy of y if the tables would take more than 512 MB.
    """
    phi, _ = _formula(distance, len(y))
    step = np.diff(phi, append=0.0)
    y, draws = y.copy(), np.arange(len(codes))
    n_own, n_other = int(y.max()) + 1, int(codes.max()) + 1
    if len(codes) * n_own * n_other > MOST_CELLS:
        return y
    counts, columns = _all_tables(y, codes, n_own, n_other), _by_unit(codes)
    for _ in range(n_sweeps):
        moved = False
        for i, old in enumerate(y):
            sizes = np.bincount(y, minlength=n_own)
            shared = counts[draws, :, columns[i]]
            shared[:, old] -= 1
            sizes[old] -= 1
            gain = 2 * step[shared].mean(axis=0) - step[sizes]
            new = int((gain >= gain.max() - len(y) * SAME).argmax())
            if gain[new] <= gain[old] + len(y) * SAME:
                continue
            counts[draws, old, columns[i]] -= 1
            counts[draws, new, columns[i]] += 1
            y[i], moved = new, True
        release()
        if not moved:
            break
    return np.unique(y, return_inverse=True)[1]


def credible_ball(draws: Any, centre: Any, level: float = 0.95, distance: Distance = "vi") -> CredibleBall:
    """Compute the smallest ball around a partition that contains a share `level` of the draws (Wade and Ghahramani 2018).

    Args:
        draws: Labels, `(chain, draw, unit)`.
        centre: Labels, `(unit,)`, for example from `minimum_vi`.
        level: Share of the posterior inside the ball.
        distance: `vi` or `binder`.

    Raises:
        DataError: The draws or the centre are not labels, or their numbers of units differ.
        ConfigError: The level is outside (0, 1], or the distance does not exist.
    """
    if not 0 < level <= 1:
        raise ConfigError(f"`level` must be above 0 and at most 1; got {level!r}.")
    codes, middle = flat_labels(draws), Labels(centre, "centre")
    if middle.n_units != codes.shape[1]:
        raise DataError(f"`centre` must label the {codes.shape[1]} units of the draws; got {middle.n_units} labels.")
    distance_to_centre = distances(middle, codes, distance)
    radius = float(np.sort(distance_to_centre)[math.ceil(level * len(codes) - SAME) - 1])
    inside = distance_to_centre <= radius + SAME
    members, member_distances = np.flatnonzero(inside), distance_to_centre[inside]
    n_clusters = by_row(lambda part: part.max(axis=1), codes)[members] + 1

    def farthest(subset: np.ndarray) -> np.ndarray:
        edge = members[subset & (member_distances >= member_distances[subset].max() - SAME)]
        found = codes[edge[:0]]
        for s in blocks(len(edge), codes.shape[1]):
            found = np.unique(np.concatenate([found, [canonical(partition) for partition in codes[edge[s]]]]), axis=0)
        return found

    return CredibleBall(
        radius=radius,
        mass=float(inside.mean()),
        upper=farthest(n_clusters == n_clusters.min()),
        lower=farthest(n_clusters == n_clusters.max()),
        horizontal=farthest(np.ones(len(members), dtype=bool)),
    )


def n_clusters(draws: Any) -> np.ndarray:
    """Number of occupied clusters in each draw, `(chain, draw)`."""
    codes = partitions(draws)
    return by_row(lambda part: part.max(axis=1), codes.reshape(-1, codes.shape[2])).reshape(codes.shape[:2]) + 1


def n_clusters_probabilities(draws: Any) -> np.ndarray:
    """Posterior probability of each number of occupied clusters, from 0 to the largest; entry k is for k clusters.

    Example:
        >>> n_clusters_probabilities([[[0, 0, 1], [1, 1, 1], [0, 4, 4], [2, 2, 0]]])
        array([0.  , 0.25, 0.75])
    """
    counts = np.bincount(n_clusters(draws).ravel())
    return counts / counts.sum()


def _formula(distance: str, n: int) -> tuple[np.ndarray, float]:
    """Values of phi at 0 to n, `(n + 1,)`, and the factor c."""
    counts = np.arange(n + 1.0)
    if distance == "vi":
        return counts * np.log(np.maximum(counts, 1.0)), 1 / n
    if distance == "binder":
        return counts**2, 1 / (n * (n - 1))
    raise ConfigError(unknown("distance", distance, get_args(Distance)))


def tables(y: np.ndarray, codes: np.ndarray, n_rows: int, n_columns: int) -> np.ndarray:
    """Contingency tables of y `(unit,)` with each of the partitions `(draw, unit)`, `(draw, cluster of y, cluster)`."""
    width = n_rows * n_columns
    cells = y * n_columns + codes + width * np.arange(len(codes))[:, None]
    return np.bincount(cells.ravel(), minlength=len(codes) * width).reshape(len(codes), n_rows, n_columns)


def _all_tables(y: np.ndarray, codes: np.ndarray, n_rows: int, n_columns: int) -> np.ndarray:
    """Contingency tables as by `tables`, block by block."""
    return by_row(lambda part: tables(y, part, n_rows, n_columns), codes)


def _by_unit(codes: np.ndarray) -> np.ndarray:
    """Partitions `(draw, unit)` by unit, `(unit, draw)`, so that the draws of a unit are read together."""
    columns = place_of(codes).empty(codes.shape[::-1], codes.dtype)
    for s in blocks(*codes.shape):
        columns[:, s] = codes[s].T
    return columns


def _sparse(y: Labels, draw: np.ndarray, phi: np.ndarray, own_sum: float) -> float:
    cells = np.unique(y.codes * (int(draw.max()) + 1) + draw, return_counts=True)[1]
    return max(float(own_sum + phi[np.bincount(draw)].sum() - 2 * phi[cells].sum()), 0.0)


def _losses(codes: np.ndarray, candidates: np.ndarray, distance: Distance) -> np.ndarray:
    """Expected loss of each candidate, `(candidate,)`."""
    n = candidates.shape[1]
    if distance == "binder":
        return by_row(lambda part: part.sum(axis=1), misplaced(candidates, together(codes))) / (n * (n - 1))
    return np.array([distances(one, codes, distance).mean() for one in candidates])


def _first(losses: np.ndarray) -> int:
    """Index of the least loss; the first in case of ties."""
    return int(np.flatnonzero(losses <= losses.min() + SAME)[0])


def _local_minimum(codes: np.ndarray, distance: Distance, n_sweeps: int) -> np.ndarray:
    """Better local minimum of the two searches described in `minimum_vi`, codes from 0, `(unit,)`."""
    losses, sizes = _losses(codes, codes, distance), by_row(lambda part: part.max(axis=1), codes)
    usual = np.flatnonzero(sizes == np.bincount(sizes).argmax())
    starts = codes[[_first(losses), usual[_first(losses[usual])]]]
    ends = np.stack([improved(start, codes, distance, n_sweeps) for start in np.unique(starts, axis=0)])
    return np.asarray(ends[_first(np.array([distances(end, codes, distance).mean() for end in ends]))])


def canonical(codes: np.ndarray) -> np.ndarray:
    """Renumber codes in order of first appearance, so that equal partitions have equal codes."""
    first = np.unique(codes, return_index=True)[1]
    return np.argsort(np.argsort(first))[codes]
