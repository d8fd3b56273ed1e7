"""What was compared, as the page has it."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from latentlab.compare.label_units import as_labels
from latentlab.symmetry.labels import indicators


@dataclass(frozen=True)
class Row:
    """A compared array of positions: an embedding, one of its seeds, raw or mapped; `label` as in comparison.nc, `title` for the page."""

    label: str
    embedding: str
    seed: str
    map: str
    values: np.ndarray
    title: str

    @property
    def labels(self) -> np.ndarray | None:
        """Labels `(unit,)`, if it is a clustering."""
        return as_labels(self.values)


def matched(codes: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Clusters `(unit,)` in the names of labels `(unit, label)`, one to one; clusters beyond them have names of their own.

    The match has the largest total probability.

    Example:
        >>> matched(np.array([0, 0, 1, 2]), np.array([[0.1, 0.9], [0.0, 1.0], [0.8, 0.2], [0.3, 0.7]]))
        array([1, 1, 0, 2])
    """
    n_labels = probabilities.shape[1]
    weight = indicators(codes, int(codes.max()) + 1).T @ probabilities
    rows, columns = linear_sum_assignment(weight, maximize=True)
    names = np.full(len(weight), -1)
    names[rows] = columns
    names[names < 0] = n_labels + np.arange((names < 0).sum())
    return names[codes]
