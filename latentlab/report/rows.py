"""Compared arrays of positions, names of their alignments, and the matching of clusters with labels."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from latentlab.compare.label_units import as_labels
from latentlab.symmetry.labels import indicators

ALIGNMENTS = {
    "fixed": "no transformation",
    "orthogonal": "rotation, reflection and translation",
    "similarity": "rotation, reflection, translation and scaling",
    "affine": "affine map",
    "labels": "one-to-one matching of clusters",
}
"""Alignment of an embedding before its verdict -> the transformation in words."""


@dataclass(frozen=True)
class Row:
    """A compared array of positions: one seed of an embedding, raw or mapped.

    `label` is its name in comparison.nc, `title` its name on the page.
    """

    label: str
    embedding: str
    seed: str
    map: str
    values: np.ndarray
    title: str

    @property
    def labels(self) -> np.ndarray | None:
        """Labels `(unit,)` of a clustering; None otherwise."""
        return as_labels(self.values)


def matched(codes: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Rename clusters `(unit,)` by a one-to-one match with labels.

    The match has the largest total probability, from `probabilities` `(unit, label)`. Surplus clusters get further numbers.

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
