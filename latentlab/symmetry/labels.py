"""Labels of units: indices of the components along a group's dim, the values of discrete positions."""

import numpy as np


def renamed(elements: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Rename labels `(..., unit)` after permutation matrices `(..., k, k)` have permuted the components.

    Example:
        >>> swap = np.array([[0, 1], [1, 0]])
        >>> renamed(swap, np.array([0, 0, 1]))
        array([1, 1, 0])
    """
    to = np.asarray(elements).argmax(axis=-1)
    codes = np.asarray(labels).astype(np.int64)
    to = np.broadcast_to(to, (*codes.shape[:-1], to.shape[-1]))
    return np.take_along_axis(to, codes, axis=-1)


def indicators(labels: np.ndarray, n_labels: int) -> np.ndarray:
    """Convert labels `(..., unit)` to one-hot rows `(..., unit, n_labels)`."""
    return np.eye(n_labels)[np.asarray(labels).astype(np.int64)]
