r"""What a posterior over partitions says: who is together, one partition that sums it up, and a ball around it.

Draws are labels `(chain, draw, unit)`; their names mean nothing. Distances between partitions x and y of N units come from
the counts n_kl of their contingency table, and differ in one function phi:

    d(x, y) = c (sum_k phi(n_k.) + sum_l phi(n_.l) - 2 sum_kl phi(n_kl)),

`vi`, the variation of information in nats: phi(n) = n log n, c = 1 / N; `binder`, the share of pairs that are together in one
and not in the other: phi(n) = n^2, c = 1 / (N (N - 1)). The expected loss of a partition is its mean distance to the draws.

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
from latentlab.errors import ConfigError, DataError, unknown

Distance = Literal["vi", "binder"]
SPARSE = 4
"""Cells per unit above which tables are kept as lists of the cells that are not empty."""
MOST_CELLS = 2**26
"""Cells of all tables above which an estimate is not improved by moves."""
N_SWEEPS = 20


@dataclass(frozen=True)
class CredibleBall:
    """The smallest ball about a partition that holds a share of the posterior, and the partitions at its edge.

    Attributes:
        radius: Its radius.
        mass: Share of the draws inside; at least the level.
        upper: Of the draws inside with the fewest clusters those farthest out, `(bound, unit)`, codes from 0.
        lower: Of the draws inside with the most clusters those farthest out.
        horizontal: Of all draws inside those farthest out.
    """

    radius: float
    mass: float
    upper: np.ndarray
    lower: np.ndarray
    horizontal: np.ndarray


def misplaced(codes: np.ndarray, mean: np.ndarray) -> np.ndarray:
    r"""Sum over the others j of |1[y_i = y_j] - pi_ij| for each unit i of partitions y.

    Args:
        codes: Partitions `(draw, unit)`, codes from 0.
        mean: Co-assignment pi, `(unit, unit)`.

    Returns:
        `(draw, unit)`; its sum over units, over N (N - 1), is the expected Binder loss.
    """
    weight = 1 - 2 * mean
    np.fill_diagonal(weight, 0.0)
    base = mean.sum(axis=1) - np.diag(mean)
    units = np.arange(len(mean))
    return base + np.concatenate([(block.T @ weight)[columns, units] for block, columns in label_indicators(codes)])


def distances(y: Any, codes: np.ndarray, distance: Distance = "vi") -> np.ndarray:
    """Distance of a partition to each of others.

    Args:
        y: Labels, `(unit,)`, or `Labels`.
        codes: Partitions `(draw, unit)`, codes from 0.
        distance: `vi` or `binder`.

    Returns:
        `(draw,)`.
    """
    y = y if isinstance(y, Labels) else Labels(y, "y")
    phi, factor = _formula(distance, y.n_units)
    n_clusters = int(codes.max()) + 1
    width = y.n_clusters * n_clusters
    own = phi[y.sizes].sum()
    if width > SPARSE * y.n_units:
        return np.array([_sparse(y, draw, phi, own) for draw in codes]) * factor
    found = []
    for part in np.array_split(codes, math.ceil(len(codes) * width / CELLS)):
        counts = tables(y.codes, part, y.n_clusters, n_clusters)
        found.append(own + phi[counts.sum(axis=1)].sum(axis=1) - 2 * phi[counts].sum(axis=(1, 2)))
    return np.maximum(np.concatenate(found), 0.0) * factor


def expected_loss(y: Any, draws: Any, distance: Distance = "vi") -> float:
    """Mean distance of a partition `(unit,)` to draws `(chain, draw, unit)`."""
    codes = flat_labels(draws)
    y = Labels(y, "y")
    if y.n_units != codes.shape[1]:
        raise DataError(f"a partition and draws need the same units; got {y.n_units} in y and {codes.shape[1]} in the draws.")
    return float(distances(y, codes, distance).mean())


def least_binder(draws: Any, candidates: Any = None) -> np.ndarray:
    """The partition of least expected Binder loss among candidates, `(unit,)`, codes from 0; the first of equals.

    Args:
        draws: Labels, `(chain, draw, unit)`.
        candidates: Partitions, `(candidate, unit)`; the draws where None.

    Raises:
        DataError: Not draws of labels.

    Example:
        >>> least_binder([[[0, 0, 1], [1, 1, 0], [0, 1, 1], [2, 2, 0]]])
        array([0, 0, 1])
    """
    codes = flat_labels(draws)
    among = codes if candidates is None else flat_labels(np.asarray(candidates)[None])
    return _first(among, _losses(codes, among, "binder"))


def minimum_binder(draws: Any, n_sweeps: int = N_SWEEPS) -> np.ndarray:
    """A partition of small posterior expected Binder loss; as `minimum_vi`.

    Were units free to be alone, those that could be in several clusters would be: pieces that no draw has.
    """
    return _local_minimum(flat_labels(draws), "binder", n_sweeps)


def unsettled(draws: Any, centre: np.ndarray) -> np.ndarray:
    """The units `(n,)` for which another cluster of a point estimate is as good within two Monte Carlo standard errors.

    What a unit's own cluster saves in expected Binder loss against the next best is a mean over draws. Its standard error is that
    of the chains' means; with fewer than `BATCHED` chains the larger of this and that of batches of the square root of a chain's
    length.

    Args:
        draws: Labels, `(chain, draw, unit)`.
        centre: The estimate by `minimum_binder`, codes from 0.

    Returns:
        Numbers of the units; none where the tables would take more than 512 MB, or there is a single cluster or batch.
    """
    codes = partitions(draws)
    n_chains, n_draws, n = codes.shape
    n_batches = 1 if n_chains >= BATCHED else min(max(2, math.isqrt(n_draws)), n_draws)
    flat, n_own, n_other = codes.reshape(-1, n), int(centre.max()) + 1, int(codes.max()) + 1
    if n_own < 2 or n_chains * n_batches < 2 or len(flat) * n_own * n_other > MOST_CELLS:
        return np.zeros(0, dtype=int)
    step, every = np.diff(_formula("binder", n)[0], append=0.0), np.arange(len(flat))
    counts, sizes = tables(centre, flat, n_own, n_other), np.bincount(centre, minlength=n_own)
    near = []
    for i, own in enumerate(centre):
        shared = counts[every, :, flat[:, i]]
        shared[:, own] -= 1
        gain = 2 * step[shared] - step[sizes - (np.arange(n_own) == own)]
        mean = gain.mean(axis=0)
        mean[own] = -np.inf
        saved = (gain[:, own] - gain[:, int(mean.argmax())]).reshape(n_chains, n_draws)
        batches = np.concatenate([part.mean(axis=1) for part in np.array_split(saved, n_batches, axis=1)])
        error = batches.std(ddof=1) / math.sqrt(len(batches))
        if n_chains > 1:
            error = max(error, saved.mean(axis=1).std(ddof=1) / math.sqrt(n_chains))
        if saved.mean() <= 2 * error + n * SAME:
            near.append(i)
    return np.array(near, dtype=int)


def minimum_vi(draws: Any, n_sweeps: int = N_SWEEPS) -> np.ndarray:
    """A partition of small posterior expected variation of information, `(unit,)`, codes from 0.

    Two searches move single units between the clusters of a draw while a move lowers the loss: from the best draw, and from the
    best of those with the most probable number of clusters. The better local minimum is returned. It is never worse than any
    draw. The second search is there since the best of many draws is an extreme, whose number of clusters is partly chance.
    Moves are left out where the tables would take more than 512 MB. Clusters that overlap tend to be merged.

    Args:
        draws: Labels, `(chain, draw, unit)`.
        n_sweeps: Most sweeps of moves over the units.

    Raises:
        DataError: Not draws of labels.
    """
    return _local_minimum(flat_labels(draws), "vi", n_sweeps)


def improved(y: np.ndarray, codes: np.ndarray, distance: Distance, n_sweeps: int = N_SWEEPS) -> np.ndarray:
    """A partition after moves of single units between its clusters that lower its expected loss, until none does.

    Args:
        y: Codes from 0, `(unit,)`.
        codes: Partitions `(draw, unit)`, codes from 0.
        distance: `vi` or `binder`.
        n_sweeps: Most sweeps over the units.

    Returns:
        Codes from 0, `(unit,)`; y itself where the tables would take more than 512 MB.
    """
    phi, _ = _formula(distance, len(y))
    step = np.diff(phi, append=0.0)
    y, draws = y.copy(), np.arange(len(codes))
    n_own, n_other = int(y.max()) + 1, int(codes.max()) + 1
    if len(codes) * n_own * n_other > MOST_CELLS:
        return y
    counts = tables(y, codes, n_own, n_other)
    for _ in range(n_sweeps):
        moved = False
        for i, old in enumerate(y):
            sizes = np.bincount(y, minlength=n_own)
            shared = counts[draws, :, codes[:, i]]
            shared[:, old] -= 1
            sizes[old] -= 1
            gain = 2 * step[shared].mean(axis=0) - step[sizes]
            new = int((gain >= gain.max() - len(y) * SAME).argmax())
            if gain[new] <= gain[old] + len(y) * SAME:
                continue
            counts[draws, old, codes[:, i]] -= 1
            counts[draws, new, codes[:, i]] += 1
            y[i], moved = new, True
        if not moved:
            break
    return np.unique(y, return_inverse=True)[1]


def credible_ball(draws: Any, centre: Any, level: float = 0.95, distance: Distance = "vi") -> CredibleBall:
    """The smallest ball about a partition that holds `level` of the draws, with its bounds (Wade and Ghahramani 2018).

    Args:
        draws: Labels, `(chain, draw, unit)`.
        centre: Labels, `(unit,)`, as from `minimum_vi`.
        level: Share of the posterior.
        distance: `vi` or `binder`.

    Raises:
        DataError: Not labels of the same units.
        ConfigError: A level outside (0, 1], or no such distance.
    """
    if not 0 < level <= 1:
        raise ConfigError(f"`level` must be above 0 and at most 1; got {level!r}.")
    codes, middle = flat_labels(draws), Labels(centre, "centre")
    if middle.n_units != codes.shape[1]:
        raise DataError(f"a centre needs the draws' units; got {middle.n_units} of {codes.shape[1]}.")
    away = distances(middle, codes, distance)
    radius = float(np.sort(away)[math.ceil(level * len(away) - SAME) - 1])
    inside = away <= radius + SAME
    held, away = codes[inside], away[inside]
    n_clusters = held.max(axis=1) + 1

    def farthest(those: np.ndarray) -> np.ndarray:
        edge = those & (away >= away[those].max() - SAME)
        return np.unique(np.stack([canonical(one) for one in held[edge]]), axis=0)

    return CredibleBall(
        radius=radius,
        mass=float(inside.mean()),
        upper=farthest(n_clusters == n_clusters.min()),
        lower=farthest(n_clusters == n_clusters.max()),
        horizontal=farthest(np.ones(len(held), dtype=bool)),
    )


def n_clusters(draws: Any) -> np.ndarray:
    """How many clusters are occupied in each draw, `(chain, draw)`."""
    return partitions(draws).max(axis=2) + 1


def n_clusters_probabilities(draws: Any) -> np.ndarray:
    """Posterior probability of each number of occupied clusters; entry k is that of k clusters.

    Example:
        >>> n_clusters_probabilities([[[0, 0, 1], [1, 1, 1], [0, 4, 4], [2, 2, 0]]])
        array([0.  , 0.25, 0.75])
    """
    counts = np.bincount(n_clusters(draws).ravel())
    return counts / counts.sum()


def _formula(distance: str, n: int) -> tuple[np.ndarray, float]:
    """phi of 0 to n, and the factor c."""
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


def _sparse(y: Labels, draw: np.ndarray, phi: np.ndarray, own: float) -> float:
    cells = np.unique(y.codes * (int(draw.max()) + 1) + draw, return_counts=True)[1]
    return max(float(own + phi[np.bincount(draw)].sum() - 2 * phi[cells].sum()), 0.0)


def _losses(codes: np.ndarray, candidates: np.ndarray, distance: Distance) -> np.ndarray:
    """Expected loss of each candidate, `(candidate,)`."""
    n = candidates.shape[1]
    if distance == "binder":
        return misplaced(candidates, together(codes)).sum(axis=1) / (n * (n - 1))
    return np.array([distances(one, codes, distance).mean() for one in candidates])


def _first(candidates: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """The candidate of least loss; the first of equals."""
    return candidates[np.flatnonzero(losses <= losses.min() + SAME)[0]]


def _local_minimum(codes: np.ndarray, distance: Distance, n_sweeps: int) -> np.ndarray:
    """The better end of the two searches that `minimum_vi` describes, codes from 0."""
    losses, sizes = _losses(codes, codes, distance), codes.max(axis=1)
    usual = sizes == np.bincount(sizes).argmax()
    starts = np.stack([_first(codes, losses), _first(codes[usual], losses[usual])])
    ends = np.stack([improved(start, codes, distance, n_sweeps) for start in np.unique(starts, axis=0)])
    return _first(ends, np.array([distances(end, codes, distance).mean() for end in ends]))


def canonical(codes: np.ndarray) -> np.ndarray:
    """Codes in order of first appearance: the same for the same partition."""
    first = np.unique(codes, return_index=True)[1]
    return np.argsort(np.argsort(first))[codes]
