"""Symmetry of a model: a group that acts on sites along a dim and leaves the joint density unchanged.

Values are numpy arrays by site name, with any number of leading axes (chain, draw) before the dims of the site. `dims` contains
the names of the latter, e.g. `{"W": ("feature", "latent"), "z": ("unit", "latent"), "sigma": ()}`.

An element is an array of square matrices `(..., k, k)` that act on rows from the right: the action of `g` followed by that of `h`
is the action of `g @ h`. Its leading axes broadcast with those of the values. k is the size of the dim (one more for `Euclidean`,
whose last row is the translation).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

Values = Mapping[str, np.ndarray]
Dims = Mapping[str, tuple[str, ...]]

NEXT = "next_"
"""Prefix of a second dim of the same kind. A matrix over `state` has the dims `state` and `next_state`; a group acts on both."""


@dataclass(frozen=True)
class Aligned:
    """Draws after alignment.

    Attributes:
        values: Aligned sites by name.
        elements: Element applied to each draw, `(chain, draw, k, k)`. `group.act(elements, ...)` aligns other sites of the same
            draws, such as the positions of held-out units.
        reference: Consensus of the site on which the draws were aligned, in the shape of that site.
    """

    values: dict[str, np.ndarray]
    elements: np.ndarray
    reference: np.ndarray


class Group(ABC):
    """Symmetry group that acts along one dim of every site with that dim."""

    dim: str = "latent"
    units: tuple[str, ...] = ("unit",)
    """Dims of units. A site with one of these dims is a position; some groups act differently on positions."""

    def is_position(self, dims: Iterable[str]) -> bool:
        """Check whether a site with these dims is a position."""
        return not set(self.units).isdisjoint(dims)

    @abstractmethod
    def random(self, rng: np.random.Generator, size: int, shape: tuple[int, ...] = ()) -> np.ndarray:
        """Draw random elements for a dim of `size`, `(*shape, k, k)`; from Haar measure if the group is compact."""

    def compose(self, first: np.ndarray, then: np.ndarray) -> np.ndarray:
        """Return the element whose action is that of `first` followed by that of `then`."""
        return first @ then

    def inverse(self, element: np.ndarray) -> np.ndarray:
        """Return the inverse of an element."""
        return np.linalg.inv(element)

    @abstractmethod
    def act(self, element: np.ndarray, values: Values, dims: Dims) -> dict[str, np.ndarray]:
        """Apply an element to the sites; sites without the group's dim are unchanged."""

    @abstractmethod
    def align(self, values: Values, dims: Dims, *, on: str) -> Aligned:
        """Align draws `(chain, draw, ...)` with their consensus of site `on`, which does not depend on a reference draw."""

    @abstractmethod
    def align_to(self, reference: np.ndarray, values: Values, dims: Dims, *, on: str) -> Aligned:
        """Align each draw by the element that brings site `on` closest to a `reference` of that site's shape."""

    @abstractmethod
    def invariants(self, values: Values, dims: Dims) -> dict[str, np.ndarray]:
        """Compute invariants of the group by name; leading axes are preserved."""

    def is_trivial(self) -> bool:
        """Check whether the identity is the only element."""
        return False

    @abstractmethod
    def __contains__(self, other: object) -> bool:
        """Check whether the group `other` is a subgroup of this one (a group contains itself)."""
