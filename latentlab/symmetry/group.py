"""What a symmetry is: a group that acts on sites along a dim and leaves the joint density as it is.

Arrays in, arrays out: values are numpy arrays by site name with any number of leading axes (chain, draw) in front of the
site's own dims; `dims` names the latter, e.g. `{"W": ("feature", "latent"), "z": ("unit", "latent"), "sigma": ()}`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Values = Mapping[str, np.ndarray]
Dims = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Aligned:
    """Draws after alignment: `values` by site, the `elements` applied to each draw, the consensus `reference`."""

    values: dict[str, np.ndarray]
    elements: Any
    reference: np.ndarray


class Group(ABC):
    """A symmetry acting along one dim of every site that has it."""

    dim: str = "latent"

    @abstractmethod
    def random(self, rng: np.random.Generator, size: int, shape: tuple[int, ...] = ()) -> Any:
        """A random element for a dim of `size` (Haar measure where the group is compact), `shape` of them."""

    @abstractmethod
    def act(self, element: Any, values: Values, dims: Dims) -> dict[str, np.ndarray]:
        """The sites after the group's element has acted; sites without the group's dim are passed on."""

    @abstractmethod
    def align(self, values: Values, dims: Dims, *, on: str) -> Aligned:
        """Draws `(chain, draw, ...)` turned to a consensus of site `on` that does not depend on a reference draw."""

    @abstractmethod
    def invariants(self, values: Values, dims: Dims) -> dict[str, np.ndarray]:
        """Functions of the draws that the group leaves as they are, by name; leading axes are kept."""

    @abstractmethod
    def __contains__(self, other: object) -> bool:
        """Whether the group `other` is a subgroup of this one (a group contains itself)."""
