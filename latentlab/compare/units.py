r"""Disagreement of an embedding with the posterior, unit by unit, and its correlation with the posterior spread.

The embedding a and the draws have been aligned by the same function. With M_i and V_i the mean and covariance of unit i's
draws z_is, s = 1..S, and V the mean of the V_i,

    mahalanobis_i = sqrt((a_i - M_i)^T W_i^-1 (a_i - M_i) / d),   W_i = ((S - 1) V_i + (d + 2) c_i V) / (S + d + 1),
    distance_i    = |a_i - M_i|,                                 c_i = tr(V^-1 V_i) / d,
    spread_i      = sqrt(tr V_i / d),
    neighbors_i   = 1 - mean_s |N_i^a(k) and N_i^s(k)| / k,      neighbors_own_i: the same between draws.

V_i is shrunk to the common shape of the V_i, but not to their common size. Shrinking the size would inflate the covariance of
units with a small posterior spread if other units have a large spread.

`mahalanobis` is 0 at the posterior mean and about 1 (root mean square) at a draw. `uncertainty_correlation` and
`uncertainty_correlation_of_neighbors` are rank correlations over units. They show whether the posterior spread is larger for
units with more disagreement.
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
"""Relative range at or below which a quantity counts as constant over the units."""
MOST_CACHED = 2**26
"""Largest total size of the draws' neighbour lists that are cached (256 MB); larger ones are recomputed at each use."""


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rank correlation with its one-sided p-value.

    Attributes:
        value: Correlation in [-1, 1]; 0 by definition if one of the two quantities is constant.
        p: One-sided p-value of independence, by the t approximation with exchangeable units; 1 if a quantity is constant.
    """

    value: float
    p: float


@dataclass(frozen=True)
class Disagreement:
    """Disagreement of an embedding with the draws by unit, `(unit,)` each; formulas in `latentlab.compare.units`.

    Attributes:
        mahalanobis: Mahalanobis distance from the posterior mean per dimension; 0 at the mean, about 1 for a draw.
        distance: Euclidean distance from the posterior mean, in latent units.
        spread: Posterior standard deviation, root mean square over dimensions.
        neighbors: Share of neighbours in the draws that are not neighbours in the embedding, averaged over draws.
        neighbors_own: Share of neighbours in one draw that are not neighbours in another, the baseline of `neighbors`.
        uncertainty_correlation: Rank correlation of `spread` with `distance`.
        uncertainty_correlation_of_neighbors: Rank correlation of `spread` with `neighbors`.
    """

    mahalanobis: np.ndarray
    distance: np.ndarray
    spread: np.ndarray
    neighbors: np.ndarray
    neighbors_own: np.ndarray
    uncertainty_correlation: RankCorrelation
    uncertainty_correlation_of_neighbors: RankCorrelation


def disagreement(
    y: Any, draws: Any, rng: np.random.Generator, *, n_neighbors: int = N_NEIGHBORS, n_pairs: int = N_PAIRS
) -> Disagreement:
    r"""Compute the disagreement of an aligned embedding with aligned draws, unit by unit.

    Args:
        y: Embedding aligned with the draws, `(unit, latent)`.
        draws: Aligned positions, `(chain, draw, unit, latent)`.
        rng: Random generator for the pairs of draws of `neighbors_own`.
        n_neighbors: Number of nearest units that count as neighbours.
        n_pairs: Number of pairs of draws.

    Raises:
        DataError: The units or dimensions differ, there are fewer than 2 draws, or a unit does not vary over the draws.
        ConfigError: `n_neighbors` is below 1, or not below half of the units.
    """
    return UnitsOfPositions(draws, rng, n_neighbors=n_neighbors, n_pairs=n_pairs).disagreement(y)


class UnitsOfPositions:
    """Quantities of aligned draws that are shared by all embeddings compared with them.

    Args:
        draws: Aligned positions, `(chain, draw, unit, latent)`.
        rng: Random generator for the pairs of draws of `neighbors_own`.
        n_neighbors: Number of nearest units that count as neighbours.
        n_pairs: Number of pairs of draws.
        neighbor_search: Search for neighbours, `exact` or `approximate`.

    Raises:
        DataError: The draws are not positions, or there are fewer than 2.
        ConfigError: `n_neighbors` is below 1, or not below half of the units.
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
        self._neighbors_of: Callable[[Positions], np.ndarray] = partial(
            neighbors, n_neighbors=n_neighbors, search=neighbor_search
        )
        self._lists: dict[tuple[int, int], np.ndarray] = {}
        self._is_cached = math.prod(self._sizes) * np.shape(draws)[2] * n_neighbors <= MOST_CACHED
        total = np.zeros(np.shape(draws)[2])
        for pair in draw_pairs(*self._sizes, rng, n_pairs):
            total += overlap(*(self._draw_neighbors(*draw) for draw in pair))
        self._draw_overlap = total / n_pairs
        self._mean, self._covariance = moments(np.asarray(draws), lambda x: x)
        self._spread = np.sqrt(np.trace(self._covariance, axis1=1, axis2=2) / self._mean.shape[1])

    def _draw_neighbors(self, chain: int, draw: int) -> np.ndarray:
        key = (int(chain), int(draw))
        if key in self._lists:
            return self._lists[key]
        lists = self._neighbors_of(draw_positions(self._draws, *key))
        if self._is_cached:
            self._lists[key] = lists
        return lists

    def disagreement(self, y: Any) -> Disagreement:
        """Compute the disagreement of an aligned embedding `(unit, latent)` with the draws.

        Raises:
            DataError: The units or dimensions differ from those of the draws, or a unit does not vary over the draws.
        """
        embedding = Positions(y, "the embedding")
        if embedding.values.shape != self._mean.shape:
            raise DataError(
                f"an aligned embedding must have the shape of the draws, (unit, latent) = {self._mean.shape}; got "
                f"{embedding.values.shape}."
            )
        embedding_neighbors = self._neighbors_of(embedding)
        n_draws = math.prod(self._sizes)
        shared = np.zeros(embedding.n_units)
        for draw in np.ndindex(*self._sizes):
            shared += overlap(embedding_neighbors, self._draw_neighbors(*draw))
        errors = _whitened(embedding.values - self._mean, self._covariance, n_draws)
        distance = np.linalg.norm(embedding.values - self._mean, axis=1)
        missed = 1.0 - shared / n_draws
        return Disagreement(
            mahalanobis=np.sqrt((errors**2).mean(axis=1)),
            distance=distance,
            spread=self._spread,
            neighbors=missed,
            neighbors_own=1.0 - self._draw_overlap,
            uncertainty_correlation=rank_correlation(self._spread, distance),
            uncertainty_correlation_of_neighbors=rank_correlation(self._spread, missed),
        )


def rank_correlation(spread: np.ndarray, disagreement: np.ndarray) -> RankCorrelation:
    """Compute Spearman's correlation of two quantities `(unit,)` and its one-sided p-value; 0 and 1 if one is constant.

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
    """Compute the whitened deviations W_i^(-1/2) (a_i - M_i), `(unit, latent)`."""
    d = deviation.shape[1]
    pooled = covariance.mean(axis=0)
    root = inverse_root(pooled[None])[0]
    size = np.trace(root @ covariance @ root, axis1=1, axis2=2)[:, None, None] / d
    return whitened(inverse_root(((n_draws - 1) * covariance + (d + 2) * size * pooled) / (n_draws + d + 1)), deviation)
