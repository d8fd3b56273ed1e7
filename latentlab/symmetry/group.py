"""What a symmetry is: a group that acts on sites along a dim and leaves the joint density as it is.

Arrays in, arrays out: values are numpy arrays by site name with any number of leading axes (chain, draw) in front of
the site's own dims; `dims` names the latter, e.g. `{"W": ("feature", "latent"), "z": ("unit", "latent"), "sigma": ()}`.

An element is an array of square matrices `(..., k, k)` that act from the right on rows, so that acting with `g` and
then with `h` is acting with `g @ h`; its leading axes broadcast with those of the values. k is the size of the dim (one
more for `Euclidean`, whose last row is the translation).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

Values = Mapping[str, np.ndarray]
Dims = Mapping[str, tuple[str, ...]]

NEXT = "next_"
"""Arrays cannot have one dim twice: a matrix over `state` has the dims `state` and `next_state`, and a group acts on both."""


@dataclass(frozen=True)
class Aligned:
    """Draws after alignment.

    Attributes:
        values: The sites by name, turned.
        elements: What was applied to each draw, `(chain, draw, k, k)`; `group.act(elements, ...)` turns other sites of
            the same draws, such as the positions of held-out units.
        reference: The consensus of the site that the draws were aligned on, of that site's own shape.
    """

    values: dict[str, np.ndarray]
    elements: np.ndarray
    reference: np.ndarray


class Group(ABC):
    """A symmetry acting along one dim of every site that has it."""

    dim: str = "latent"
    units: tuple[str, ...] = ("unit",)
    """Dims of units. A site with one of these dims is a position; some groups act differently on positions."""

    def is_position(self, dims: Iterable[str]) -> bool:
        """Whether a site with these dims is a position."""
        return not set(self.units).isdisjoint(dims)

    @abstractmethod
    def random(self, rng: np.random.Generator, size: int, shape: tuple[int, ...] = ()) -> np.ndarray:
        """A random element for a dim of `size` (Haar measure where the group is compact), `shape` of them."""

    def compose(self, first: np.ndarray, then: np.ndarray) -> np.ndarray:
        """The element that acts like `first` followed by `then`."""
        return first @ then

    def inverse(self, element: np.ndarray) -> np.ndarray:
        """The element that undoes `element`."""
        return np.linalg.inv(element)

    @abstractmethod
    def act(self, element: np.ndarray, values: Values, dims: Dims) -> dict[str, np.ndarray]:
        """The sites after the group's element has acted; sites without the group's dim are passed on."""

    @abstractmethod
    def align(self, values: Values, dims: Dims, *, on: str) -> Aligned:
        """Draws `(chain, draw, ...)` turned to a consensus of site `on` that does not depend on a reference draw."""

    @abstractmethod
    def align_to(self, reference: np.ndarray, values: Values, dims: Dims, *, on: str) -> Aligned:
        """Draws each turned as close as the group can bring site `on` to a given `reference` of that site's shape."""

    @abstractmethod
    def invariants(self, values: Values, dims: Dims) -> dict[str, np.ndarray]:
        """Functions of the draws that the group leaves as they are, by name; leading axes are kept."""

    def is_trivial(self) -> bool:
        """Whether the identity is the only element, along whatever dim."""
        return False

    @abstractmethod
    def __contains__(self, other: object) -> bool:
        """Whether the group `other` is a subgroup of this one (a group contains itself)."""
