r"""Unit by unit: which units a clustering puts elsewhere than the posterior does, and whether the posterior knew.

With $\pi_{ij}$ the share of draws in which units i and j are together, and $e_i(y) = \sum_{j \ne i} |1[y_i = y_j] - \pi_{ij}|$,

    distance_i     e_i(y) / (n - 1), the share of the other units about which y is wrong, on average over draws
    mahalanobis_i  e_i(y) over the mean of e_i over draws: 0 where the posterior is sure and y agrees, about 1 for a draw
    spread_i       the mean of e_i over draws, over (n - 1): how unsure the posterior is of the unit
    neighbors_i    the mean share of a unit's companions in a draw that are not its companions in y

A unit's credible set at a level holds its most probable labels until their probabilities sum to the level.
"""

import numpy as np
from scipy.optimize import linear_sum_assignment

from latentlab.compare.clustering import misplaced
from latentlab.compare.coverage import LEVELS, Coverage
from latentlab.compare.partition import Labels, partitions
from latentlab.compare.units import Disagreement, rank_correlation
from latentlab.symmetry.labels import indicators

N_DRAWS = 200
"""Draws over which a unit's own misplacement is averaged."""
SURE = 1e-9
"""Mean misplacement of draws below which the posterior has no doubt of a unit."""


class UnitsOfLabels:
    """What the clusterings that are compared with one posterior have in common.

    Args:
        draws: Labels with the symmetry removed, `(chain, draw, unit)`.
        co_assignment: How often each pair of units is together `(unit, unit)`.
        n_labels: How many values a label can have.
    """

    def __init__(self, draws: np.ndarray, co_assignment: np.ndarray, n_labels: int) -> None:
        self.draws, self.pi = draws, co_assignment
        flat = draws.reshape(-1, draws.shape[-1])
        self.probabilities = np.stack([(flat == k).mean(axis=0) for k in range(n_labels)], axis=1)
        self._others = self.pi - np.diag(np.diag(self.pi))
        every = partitions(draws).reshape(-1, draws.shape[-1])
        self._some = np.unique(np.linspace(0, len(every) - 1, min(len(every), N_DRAWS)).astype(int))
        self._own = misplaced(every[self._some], self.pi).mean(axis=0)
        self._own_lost = np.mean([self._lost(codes) for codes in every[self._some]], axis=0)
        order = np.argsort(-self.probabilities, axis=1, kind="stable")
        before = np.take_along_axis(self.probabilities, order, axis=1).cumsum(axis=1)
        before = np.concatenate([np.zeros((len(before), 1)), before[:, :-1]], axis=1)
        self._before = np.empty_like(before)
        np.put_along_axis(self._before, order, before, axis=1)

    def _lost(self, codes: np.ndarray) -> np.ndarray:
        """Share of a unit's companions over draws that are not its companions in a partition `(unit,)`."""
        together = codes[:, None] == codes[None]
        return ((self._others * ~together).sum(axis=1)) / np.maximum(self._others.sum(axis=1), 1e-300)

    def disagreement(self, y: np.ndarray) -> Disagreement:
        """Of a clustering `(unit,)` with the draws."""
        codes = Labels(y).codes
        error, n = misplaced(codes[None], self.pi)[0], len(codes)
        spread, lost = self._own / (n - 1), self._lost(codes)
        return Disagreement(
            mahalanobis=error / np.maximum(self._own, SURE * n),
            distance=error / (n - 1),
            spread=spread,
            neighbors=lost,
            neighbors_own=self._own_lost,
            knew_distance=rank_correlation(spread, error / (n - 1)),
            knew_neighbors=rank_correlation(spread, lost),
        )

    def coverage(self, y: np.ndarray) -> Coverage:
        """Shares of units whose label is in the unit's credible set, clusters being matched to labels one to one."""
        own = self._shares(self._matched(y)[None])[0]
        drawn = self._shares(self.draws.reshape(-1, self.draws.shape[-1])[self._some]).mean(axis=0)
        nothing = np.full(len(y), np.nan)
        return Coverage(LEVELS, tuple(own.tolist()), tuple(drawn.tolist()), tuple(bool(share == 1) for share in own), nothing)

    def _shares(self, labels: np.ndarray) -> np.ndarray:
        """Share of units in their credible sets, `(draw, level)`; labels that are none of the posterior's are outside."""
        known = labels < self._before.shape[1]
        before = np.where(known, self._before[np.arange(labels.shape[1]), np.where(known, labels, 0)], np.inf)
        return np.stack([(before < level).mean(axis=1) for level in LEVELS], axis=1)

    def _matched(self, y: np.ndarray) -> np.ndarray:
        """Labels of a clustering in the posterior's names; clusters beyond the match have names of their own."""
        codes = Labels(y).codes
        weight = indicators(codes, int(codes.max()) + 1).T @ self.probabilities
        names = self.probabilities.shape[1] + np.arange(len(weight))
        rows, columns = linear_sum_assignment(weight, maximize=True)
        names[rows] = columns
        return names[codes]


def as_labels(values: np.ndarray) -> np.ndarray | None:
    """Labels `(unit,)` of an embedding that is a clustering: rows of zeros and a one, or one column of whole numbers; else None.

    Example:
        >>> as_labels(np.array([[0.0, 1.0], [1.0, 0.0]])), as_labels(np.array([[0.5], [2.0]]))
        (array([1, 0]), None)
    """
    if values.shape[1] == 1 and (values == np.floor(values)).all():
        return np.unique(values[:, 0], return_inverse=True)[1]
    if np.isin(values, (0.0, 1.0)).all() and (values.sum(axis=1) == 1).all():
        return np.asarray(values.argmax(axis=1))
    return None
