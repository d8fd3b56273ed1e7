r"""Disagreement of a clustering with posterior draws of labels, unit by unit, and its correlation with the posterior spread.

With $\pi_{ij}$ the share of draws in which units i and j are together, and $e_i(y) = \sum_{j \ne i} |1[y_i = y_j] - \pi_{ij}|$,

    distance_i     e_i(y) / (n - 1), the mean share of the other units whose co-assignment with unit i differs from a draw's
    mahalanobis_i  e_i(y) over the mean of e_i over draws; 0 if the posterior is certain and y agrees, about 1 for a draw
    spread_i       the mean of e_i over draws, over (n - 1): posterior uncertainty about the unit
    neighbors_i    share of the co-members of unit i, over all draws, that are not in its cluster in y

The credible set of a unit at a level contains its most probable labels, in descending order, until their probabilities sum to
the level.
"""

import numpy as np
from scipy.optimize import linear_sum_assignment

from latentlab.compare.clustering import misplaced
from latentlab.compare.coverage import LEVELS, Coverage
from latentlab.compare.partition import Labels, partitions
from latentlab.compare.units import Disagreement, rank_correlation
from latentlab.data.memory import by_quantity
from latentlab.symmetry.labels import indicators

N_DRAWS = 200
"""Largest number of draws over which the misplacement e_i of a unit is averaged."""
SURE = 1e-9
"""Least mean misplacement of draws, as a share of the units; smaller values are raised to it in the denominator."""
ROUNDING = 1e-9
"""Tolerance below the level within which the probabilities of a credible set reach it."""


class UnitsOfLabels:
    """Quantities of the draws of labels that are shared by all clusterings compared with them.

    Args:
        draws: Labels after removal of the label-switching symmetry, `(chain, draw, unit)`.
        co_assignment: Share of draws in which each pair of units is in the same cluster, `(unit, unit)`.
        n_labels: Number of values that a label can have.
    """

    def __init__(self, draws: np.ndarray, co_assignment: np.ndarray, n_labels: int) -> None:
        self.pi = co_assignment
        flat = draws.reshape(-1, draws.shape[-1])
        self.probabilities = by_quantity(lambda p: np.stack([(p == k).mean(axis=0) for k in range(n_labels)]), flat).T.copy()
        self._others = self.pi - np.diag(np.diag(self.pi))
        self._selected = flat[np.unique(np.linspace(0, len(flat) - 1, min(len(flat), N_DRAWS)).astype(int))]
        codes = partitions(self._selected[None])[0]
        self._mean_misplaced = misplaced(codes, self.pi).mean(axis=0)
        self._mean_lost = np.mean([self._lost(draw) for draw in codes], axis=0)
        order = np.argsort(-self.probabilities, axis=1, kind="stable")
        before = np.take_along_axis(self.probabilities, order, axis=1).cumsum(axis=1)
        before = np.concatenate([np.zeros((len(before), 1)), before[:, :-1]], axis=1)
        self._before = np.empty_like(before)
        np.put_along_axis(self._before, order, before, axis=1)

    def _lost(self, codes: np.ndarray) -> np.ndarray:
        """Share of each unit's co-members, over all draws, that are not in its cluster in a partition `(unit,)`."""
        together = codes[:, None] == codes[None]
        return ((self._others * ~together).sum(axis=1)) / np.maximum(self._others.sum(axis=1), 1e-300)

    def disagreement(self, y: np.ndarray) -> Disagreement:
        """Compute the disagreement of a clustering `(unit,)` with the draws."""
        codes = Labels(y).codes
        error, n = misplaced(codes[None], self.pi)[0], len(codes)
        spread, lost = self._mean_misplaced / (n - 1), self._lost(codes)
        return Disagreement(
            mahalanobis=error / np.maximum(self._mean_misplaced, SURE * n),
            distance=error / (n - 1),
            spread=spread,
            neighbors=lost,
            neighbors_own=self._mean_lost,
            uncertainty_correlation=rank_correlation(spread, error / (n - 1)),
            uncertainty_correlation_of_neighbors=rank_correlation(spread, lost),
        )

    def coverage(self, y: np.ndarray) -> Coverage:
        """Compute the share of units whose label is in their credible set, after one-to-one matching of clusters to labels."""
        shares = self._shares(self._matched(y)[None])[0]
        draw_shares = self._shares(self._selected).mean(axis=0)
        simultaneous = tuple(bool(share == 1) for share in shares)
        return Coverage(
            LEVELS, tuple(shares.tolist()), tuple(draw_shares.tolist()), simultaneous, distances=np.full(len(y), np.nan)
        )

    def _shares(self, labels: np.ndarray) -> np.ndarray:
        """Share of units in their credible sets, `(draw, level)`; labels that the posterior does not have are outside."""
        known = labels < self._before.shape[1]
        before = np.where(known, self._before[np.arange(labels.shape[1]), np.where(known, labels, 0)], np.inf)
        return np.stack([(before < level - ROUNDING).mean(axis=1) for level in LEVELS], axis=1)

    def _matched(self, y: np.ndarray) -> np.ndarray:
        """Labels of a clustering `(unit,)`, matched to the labels of the posterior; unmatched clusters get new labels."""
        codes = Labels(y).codes
        weight = indicators(codes, int(codes.max()) + 1).T @ self.probabilities
        names = self.probabilities.shape[1] + np.arange(len(weight))
        rows, columns = linear_sum_assignment(weight, maximize=True)
        names[rows] = columns
        return names[codes]


def as_labels(values: np.ndarray) -> np.ndarray | None:
    """Return the labels `(unit,)` of an embedding of one-hot rows or of one column of whole numbers; None for other embeddings.

    Example:
        >>> as_labels(np.array([[0.0, 1.0], [1.0, 0.0]])), as_labels(np.array([[0.5], [2.0]]))
        (array([1, 0]), None)
    """
    if values.shape[1] == 1 and (values == np.floor(values)).all():
        return np.unique(values[:, 0], return_inverse=True)[1]
    if np.isin(values, (0.0, 1.0)).all() and (values.sum(axis=1) == 1).all():
        return np.asarray(values.argmax(axis=1))
    return None
