r"""Which units an embedding disagrees about with the posterior, and whether the posterior knew.

All of it in one frame: the embedding a and the draws have been aligned by one function. With M_i and V_i the mean and
covariance of unit i's draws z_is, s = 1..S, and V the mean of the V_i,

    mahalanobis_i = sqrt((a_i - M_i)' W_i^-1 (a_i - M_i) / d),   W_i = ((S - 1) V_i + (d + 2) c_i V) / (S + d + 1),
    distance_i    = |a_i - M_i|,                                 c_i = tr(V^-1 V_i) / d,
    spread_i      = sqrt(tr V_i / d),
    neighbors_i   = 1 - mean_s |N_i^a(k) and N_i^s(k)| / k,      neighbors_own_i: the same between draws.

V_i is shrunk to the shape that the V_i have in common, not to their size: units of which the posterior is sure, beside others
of which it is not, would otherwise seem less sure.

`mahalanobis` is 0 at the posterior mean and about 1 (root mean square) at a draw. The posterior knew if its spread is larger
for the units about which it and the embedding disagree more: the rank correlation of the two.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from latentlab.compare.coverage import inverse_root, moments, whitened
from latentlab.compare.lift import draw_pairs, draw_positions, shape
from latentlab.compare.neighbors import N_NEIGHBORS, Search, neighbors, overlap
from latentlab.compare.positions import Positions
from latentlab.errors import DataError

N_PAIRS = 100
SAME = 1e-9
"""Relative range at or below which all units count as equally spread."""
KEPT = 2**26
"""Numbers up to which the draws' lists of neighbours are kept (256 MB); above, a pair's are made anew."""


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's correlation.

    Attributes:
        value: In [-1, 1]; 0 by definition where one side is constant.
        p: Chance of one as large or larger if the two had nothing to do with each other, by the t approximation, units taken as
            exchangeable.
    """

    value: float
    p: float


@dataclass(frozen=True)
class Disagreement:
    """Per unit, `(unit,)` each (formulas in `latentlab.compare.units`), and whether the posterior knew.

    Attributes:
        mahalanobis: Distance from the posterior mean in the posterior's own units, per dimension: 1 is a draw's.
        distance: The same in latent units.
        spread: The posterior's standard deviation, root mean square over dimensions.
        neighbors: Share of neighbours in the draws that are none in the embedding.
        neighbors_own: Share of neighbours in one draw that are none in another: what `neighbors` is measured against.
        knew_distance: Of spread with distance.
        knew_neighbors: Of spread with neighbors.
    """

    mahalanobis: np.ndarray
    distance: np.ndarray
    spread: np.ndarray
    neighbors: np.ndarray
    neighbors_own: np.ndarray
    knew_distance: RankCorrelation
    knew_neighbors: RankCorrelation


def disagreement(
    y: Any, draws: Any, rng: np.random.Generator, *, n_neighbors: int = N_NEIGHBORS, n_pairs: int = N_PAIRS
) -> Disagreement:
    r"""Per-unit disagreement of an aligned embedding with aligned draws.

    Args:
        y: The embedding in the draws' frame, `(unit, latent)`.
        draws: Aligned positions, `(chain, draw, unit, latent)`.
        rng: Chooses the pairs of draws of `neighbors_own`.
        n_neighbors: How many nearest units count as neighbours.
        n_pairs: How many pairs of draws.

    Raises:
        DataError: Not positions of the same units and dimensions; fewer than 2 draws, or a unit that does not vary.
        ConfigError: `n_neighbors` is not from 1 to below half of the units.
    """
    return UnitsOfPositions(draws, rng, n_neighbors=n_neighbors, n_pairs=n_pairs).disagreement(y)


class UnitsOfPositions:
    """What the embeddings that are compared with the same aligned draws have in common.

    Args:
        draws: Aligned positions, `(chain, draw, unit, latent)`.
        rng: Chooses the pairs of draws of `neighbors_own`.
        n_neighbors: How many nearest units count as neighbours.
        n_pairs: How many pairs of draws.
        neighbor_search: Whether neighbours are `exact` or `approximate`.

    Raises:
        DataError: Not positions; fewer than 2 draws.
        ConfigError: `n_neighbors` is not from 1 to below half of the units.
    """

    def __init__(
        self,
        draws: Any,
        rng: np.random.Generator,
        *,
        n_neighbors: int = N_NEIGHBORS,
        n_pairs: int = N_PAIRS,
        neighbor_search: Search = "exact",
    ) -> None:
        self._draws = draws
        self._sizes = shape(draws)
        self._near: Callable[[Positions], np.ndarray] = partial(neighbors, n_neighbors=n_neighbors, search=neighbor_search)
        self._lists: dict[tuple[int, int], np.ndarray] = {}
        self._keeps = math.prod(self._sizes) * np.shape(draws)[2] * n_neighbors <= KEPT
        own = np.zeros(np.shape(draws)[2])
        for pair in draw_pairs(*self._sizes, rng, n_pairs):
            own += overlap(*(self._of_draw(*one) for one in pair))
        self._own = own / n_pairs
        self._mean, self._covariance = moments(np.asarray(draws), lambda x: x)
        self._spread = np.sqrt(np.trace(self._covariance, axis1=1, axis2=2) / self._mean.shape[1])

    def _of_draw(self, chain: int, draw: int) -> np.ndarray:
        key = (int(chain), int(draw))
        if key in self._lists:
            return self._lists[key]
        found = self._near(draw_positions(self._draws, *key))
        if self._keeps:
            self._lists[key] = found
        return found

    def disagreement(self, y: Any) -> Disagreement:
        """Of an embedding in the draws' frame, `(unit, latent)`, with the draws.

        Raises:
            DataError: Not positions of the same units and dimensions, or a unit of the draws does not vary.
        """
        embedding = Positions(y, "the embedding")
        if embedding.values.shape != self._mean.shape:
            found = self._mean.shape
            raise DataError(f"an aligned embedding has the draws' shape (unit, latent) = {found}; got {embedding.values.shape}.")
        near = self._near(embedding)
        n_draws = math.prod(self._sizes)
        shared = np.zeros(embedding.n_units)
        for one in np.ndindex(*self._sizes):
            shared += overlap(near, self._of_draw(*one))
        errors = _whitened(embedding.values - self._mean, self._covariance, n_draws)
        distance = np.linalg.norm(embedding.values - self._mean, axis=1)
        missed = 1.0 - shared / n_draws
        return Disagreement(
            mahalanobis=np.sqrt((errors**2).mean(axis=1)),
            distance=distance,
            spread=self._spread,
            neighbors=missed,
            neighbors_own=1.0 - self._own,
            knew_distance=rank_correlation(self._spread, distance),
            knew_neighbors=rank_correlation(self._spread, missed),
        )


def rank_correlation(spread: np.ndarray, disagreement: np.ndarray) -> RankCorrelation:
    """Spearman's correlation of two quantities `(unit,)`, with its one-sided p.

    Example:
        >>> rank_correlation(np.arange(20.0), np.arange(20.0) ** 3).value
        1.0
        >>> rank_correlation(np.ones(20), np.arange(20.0))
        RankCorrelation(value=0.0, p=1.0)
    """
    if any(np.ptp(side) <= SAME * np.abs(side).max() for side in (spread, disagreement)):
        return RankCorrelation(0.0, 1.0)
    found = spearmanr(spread, disagreement, alternative="greater")
    return RankCorrelation(float(found.statistic), float(found.pvalue))


def _whitened(deviation: np.ndarray, covariance: np.ndarray, n_draws: int) -> np.ndarray:
    """W_i^(-1/2) (a_i - M_i), `(unit, latent)`."""
    d = deviation.shape[1]
    pooled = covariance.mean(axis=0)
    root = inverse_root(pooled[None])[0]
    size = np.trace(root @ covariance @ root, axis1=1, axis2=2)[:, None, None] / d
    return whitened(inverse_root(((n_draws - 1) * covariance + (d + 2) * size * pooled) / (n_draws + d + 1)), deviation)
