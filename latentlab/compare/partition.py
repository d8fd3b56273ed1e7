"""Labels of units as a partition into clusters, independent of the values of the labels.

Codes number the labels that occur from 0, in sorted order. Any whole number is a label. The label -1, often used for noise, is
an ordinary cluster.
"""

from collections.abc import Callable, Hashable
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from latentlab.data.memory import blocks, place_of
from latentlab.errors import DataError

T = TypeVar("T")

MIN_UNITS = 2
"""Fewest units; partitions are compared by pairs of units."""
LARGEST = 2**53
"""Bound on the absolute value of a label; larger whole numbers cannot all be represented as floating-point numbers."""


class Labels:
    """Checked labels `(unit,)`, as a partition.

    Attributes:
        values: Labels as int64, `(unit,)`.
        codes: Labels renumbered as 0, 1, ..., without gaps, `(unit,)`.
        n_units: Number of units.
        n_clusters: Number of different labels.
        dims: Dims of the values.

    Example:
        >>> x = Labels([7, 7, -1, 3, 3, 3])
        >>> x.codes, x.sizes, x.n_clusters
        (array([2, 2, 0, 1, 1, 1]), array([1, 3, 2]), 3)
    """

    dims = ("unit",)

    def __init__(self, values: Any, what: str = "x") -> None:
        r"""Check labels.

        Args:
            values: Whole numbers, `(unit,)`.
            what: Name of the labels in error messages.

        Raises:
            DataError: The values are not a one-dimensional array of `MIN_UNITS` or more whole numbers.
        """
        array = np.asarray(values)
        if array.ndim != 1:
            raise DataError(f"{what}: labels must have shape (unit,); got {array.shape}.")
        if len(array) < MIN_UNITS:
            raise DataError(f"{what}: at least {MIN_UNITS} units are needed; got {len(array)}.")
        self.values = whole_numbers(array, what)
        found, self.codes = np.unique(self.values, return_inverse=True)
        self.n_units, self.n_clusters = len(array), len(found)
        self._derived: dict[Hashable, Any] = {}

    def derived(self, quantity: Callable[..., T], *arguments: Hashable) -> T:
        """Return `quantity(self, *arguments)`, computed at the first call and cached."""
        key = (quantity, *arguments)
        if key not in self._derived:
            self._derived[key] = quantity(self, *arguments)
        return self._derived[key]

    @cached_property
    def sizes(self) -> np.ndarray:
        """Number of units in each cluster, `(cluster,)`."""
        return np.bincount(self.codes)

    @cached_property
    def entropy(self) -> float:
        """Entropy -sum_k n_k/n log n_k/n in nats."""
        return entropy(self.sizes)

    @cached_property
    def n_pairs(self) -> float:
        """Number of pairs of units in the same cluster, sum_k n_k (n_k - 1) / 2."""
        return pairs(self.sizes)


def whole_numbers(array: np.ndarray, what: str, first: tuple[int, ...] = (0,)) -> np.ndarray:
    """Return an array of whole numbers as int64.

    Args:
        array: The array.
        what: Its name in error messages.
        first: Index of its first entry in a larger array, for error messages; it may leave out further zeros.

    Raises:
        DataError: A value is not a number, not whole, or not below `LARGEST` in absolute value.
    """
    if array.dtype.kind not in "biuf":
        raise DataError(f"{what}: labels must be whole numbers; got {array.dtype}.")
    with np.errstate(invalid="ignore"):
        invalid = ~((np.abs(array.astype(np.float64)) < LARGEST) & (array == np.floor(array)))
    if invalid.any():
        index = np.argwhere(invalid)[0]
        value = array[tuple(index)]
        index[: len(first)] += first
        place = f"unit {index[-1]}" if len(index) == 1 else f"{tuple(index.tolist())}"
        raise DataError(f"{what}: labels must be whole numbers; got {value} for {place}.")
    return array.astype(np.int64)


def contingency(x: Labels, y: Labels) -> np.ndarray:
    """Contingency table: the number of units in cluster k of x and l of y, `(cluster of x, cluster of y)`.

    Example:
        >>> contingency(Labels([0, 0, 1, 1]), Labels([5, 6, 6, 6]))
        array([[1, 1],
               [0, 2]])
    """
    cells = x.codes * y.n_clusters + y.codes
    return np.bincount(cells, minlength=x.n_clusters * y.n_clusters).reshape(x.n_clusters, y.n_clusters)


def overlaps(x: Labels, y: Labels) -> np.ndarray:
    """Counts above 0 of the contingency table, `(cell,)`, computed without the table, which is large for many clusters."""
    return np.unique(x.codes * y.n_clusters + y.codes, return_counts=True)[1]


def entropy(sizes: np.ndarray) -> float:
    """Entropy in nats of the distribution given by counts, all above 0."""
    share = sizes / sizes.sum()
    return float(np.abs((share * np.log(share)).sum()))


def pairs(sizes: np.ndarray) -> float:
    """Number of pairs within clusters: the sum of m (m - 1) / 2 over counts m."""
    return float((sizes * (sizes - 1) // 2).sum())


def partitions(draws: Any) -> np.ndarray:
    """Return draws of labels `(chain, draw, unit)` as codes that start at 0 in each draw, in a file if the draws are in one.

    Raises:
        DataError: The shape differs, there are fewer than `MIN_UNITS` units, or a label is not a whole number.
    """
    array = np.asarray(draws)
    if array.ndim != 3 or 0 in array.shape or array.shape[2] < MIN_UNITS:
        raise DataError(
            f"draws of labels must have shape (chain, draw, unit) with at least {MIN_UNITS} units; got {array.shape}."
        )
    codes = place_of(array).empty(array.shape, np.int64)
    for chain in range(len(array)):
        for s in blocks(array.shape[1], array.shape[2]):
            block = whole_numbers(array[chain : chain + 1, s], "draws", (chain, s.start))[0]
            codes[chain, s] = [np.unique(draw, return_inverse=True)[1] for draw in block]
    return codes
