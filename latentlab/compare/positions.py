"""Checked positions of units, with a cache of quantities that several metrics use.

A metric of pairs of n units needs n^2 numbers. For many units, two fixed subsamples bound memory and time. They depend on n
only, so that the same units are used for an embedding and every draw:

* `paired`: the units whose pairwise distances are used, at most `PAIRED`;
* `ranked`: units (anchors) whose distances to all others are ranked. The table of n_anchors x n has at most `TABLE` numbers (all
  units are anchors up to n = 1024), but at least `ANCHORS` rows. The others are all units, at most `OTHERS`.

The subsamples are in shuffled order, so that ties are not broken by the order of the data.
"""

from collections.abc import Callable, Hashable
from functools import cache, cached_property
from typing import Any, TypeVar

import numpy as np
from scipy.spatial.distance import cdist

from latentlab.errors import DataError

T = TypeVar("T")

MIN_UNITS = 4
"""Fewest units for which every metric is defined (the unbiased estimators divide by n - 3)."""
LARGEST = 1e70
"""Bound on the absolute value of a coordinate, since fourth powers are summed."""
PAIRED = 500
TABLE = 2**20
ANCHORS = 100
OTHERS = 2**16
CONSTANT = 1e-12
"""Largest deviation from the mean, relative to the largest value, up to which all units count as one point."""
EQUAL = 1e-12
"""Relative tolerance within which squared distances are ties, as a share of their mean; rounding must not break ties."""


class Positions:
    """Checked positions `(unit, p)` in float64.

    Attributes:
        values: Positions as given, `(unit, p)`.
        n_units: Number of units.
        dims: Dims of the values.

    Example:
        >>> x = Positions([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]])
        >>> x.size, x.is_constant
        (8.0, False)
    """

    dims = ("unit", "latent")

    def __init__(self, values: Any, what: str = "x") -> None:
        r"""Check positions.

        Args:
            values: Positions, `(unit, p)`.
            what: Name of the positions in error messages.

        Raises:
            DataError: The values are not a table of numbers with at least one column and `MIN_UNITS` units, or a number is not
                finite and below `LARGEST` in absolute value.
        """
        try:
            array = np.asarray(values, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise DataError(f"{what}: positions must be numbers; {error}.") from error
        if array.ndim != 2 or array.shape[1] == 0:
            raise DataError(f"{what}: positions must have shape (unit, p) with p at least 1; got {array.shape}.")
        if len(array) < MIN_UNITS:
            raise DataError(f"{what}: at least {MIN_UNITS} units are needed; got {len(array)}.")
        invalid = ~(np.abs(array) < LARGEST)
        if invalid.any():
            row, column = np.argwhere(invalid)[0]
            value = f"{array[row, column]} for unit {row}, column {column}"
            raise DataError(f"{what}: positions must be finite and below {LARGEST:g} in absolute value; got {value}.")
        self.values = array
        self.n_units = len(array)
        self._derived: dict[Hashable, Any] = {}

    def derived(self, quantity: Callable[..., T], *arguments: Hashable) -> T:
        """Return `quantity(self, *arguments)`, computed at the first call and cached."""
        key = (quantity, *arguments)
        if key not in self._derived:
            self._derived[key] = quantity(self, *arguments)
        return self._derived[key]

    @cached_property
    def centered(self) -> np.ndarray:
        """Positions minus their mean over units, `(unit, p)`."""
        mean = np.ones(self.n_units) @ self.values / self.n_units  # a tenth of the time of `mean(axis=0)`
        return np.asarray(self.values - mean)

    @cached_property
    def size(self) -> float:
        """Sum of squares about the mean, sum_i |x_i - mean|^2."""
        return float(np.einsum("ij,ij->", self.centered, self.centered))

    @cached_property
    def is_constant(self) -> bool:
        """Whether all units are at one point, up to rounding."""
        return self.size == 0 or float(np.abs(self.centered).max()) <= CONSTANT * float(np.abs(self.values).max())


@cache
def shuffled(n_units: int) -> np.ndarray:
    """Return the indices of the units in a fixed shuffled order, whose first ones are the subsamples."""
    return np.random.default_rng(0).permutation(n_units)


def paired(n_units: int) -> np.ndarray:
    """Return the indices of the units whose pairwise distances are used, at most `PAIRED`."""
    return shuffled(n_units)[:PAIRED]


def n_paired(n_units: int) -> int:
    """Return the number of units whose pairwise distances are used."""
    return len(paired(n_units))


def n_ranked(n_units: int) -> int:
    """Return the number of units whose neighbours are ranked."""
    return len(ranked(n_units)[0])


def ranked(n_units: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the units whose neighbours are ranked (anchors), and of all ranked units, anchors first.

    Example:
        >>> [[len(part) for part in ranked(n)] for n in (150, 1797, 20_000)]
        [[150, 150], [583, 1797], [100, 20000]]
    """
    others = shuffled(n_units)[:OTHERS]
    return others[: max(ANCHORS, TABLE // len(others))], others


def squared_distances(x: Positions) -> np.ndarray:
    """Compute squared distances between the `paired` units, `(m, m)`."""
    rows = x.centered[paired(x.n_units)]
    return cdist(rows, rows, "sqeuclidean")
