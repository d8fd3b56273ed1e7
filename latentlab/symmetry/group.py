"""Symmetry of a model: a group that acts on sites along a dim and leaves the joint density unchanged.

Values are numpy arrays by site name, with any number of leading axes (chain, draw) before the dims of the site. `dims` contains
the names of the latter, e.g. `{"W": ("feature", "latent"), "z": ("unit", "latent"), "sigma": ()}`.

An element is an array of square matrices `(..., k, k)` that act on rows from the right: the action of `g` followed by that of `h`
is the action of `g @ h`. Its leading axes broadcast with those of the values. k is the size of the dim (one more for `Euclidean`,
whose last row is the translation).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from latentlab.data.memory import n_not_finite
from latentlab.errors import InferenceError, ModelError

Values = Mapping[str, np.ndarray]
Dims = Mapping[str, tuple[str, ...]]
Transform = Callable[[np.ndarray], np.ndarray]
"""Function from rows `(..., m, q)` to rows; may add leading axes."""

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


def site_dims(site: str, value: np.ndarray, dims: Dims) -> tuple[str, ...]:
    """Return the dims of a site, which are the last axes of its array; `next_state` counts as `state`.

    Raises:
        ModelError: The site has no dims, or its array has fewer axes than dims.
    """
    if site not in dims:
        raise ModelError(f"site '{site}' is not in `dims`; got dims of {', '.join(sorted(dims)) or 'no site'}.")
    if value.ndim < len(dims[site]):
        raise ModelError(f"site '{site}' must have an axis for each of its dims {tuple(dims[site])}; got {value.ndim} axes.")
    return tuple(dim.removeprefix(NEXT) for dim in dims[site])


def sites_with_dim(values: Values, dims: Dims, dim: str) -> list[str]:
    """Return the sites that have `dim`, in the order of `values`."""
    return [site for site, value in values.items() if dim in site_dims(site, np.asarray(value), dims)]


def through_axes(site: str, value: np.ndarray, dims: Dims, dim: str, size: int, transform: Transform) -> np.ndarray:
    """Apply `transform` along every axis of the site that is `dim`, to rows `(*lead, m, q)`.

    Raises:
        ModelError: The sizes of the axis and of the element differ.
    """
    names = site_dims(site, value, dims)
    for axis, name in enumerate(names):
        if name != dim:
            continue
        n_leading = value.ndim - len(names)
        moved = np.moveaxis(value, n_leading + axis, -1)
        if moved.shape[-1] != size:
            raise ModelError(f"site '{site}' has size {moved.shape[-1]} along '{dim}'; the group's element has size {size}.")
        rest = moved.shape[n_leading:-1]
        transformed = transform(moved.reshape(*moved.shape[:n_leading], math.prod(rest), size))
        transformed = transformed.reshape(*transformed.shape[:-2], *rest, size)
        value = np.moveaxis(transformed, -1, transformed.ndim - len(names) + axis)
    return value


def rows(site: str, values: Values, dims: Dims, dim: str) -> np.ndarray:
    """Return a site as float64 rows `(*lead, m, q)`: the axis `dim` last, the other dims flattened.

    Raises:
        ModelError: The site does not exist, or does not have exactly one axis `dim`.
    """
    if site not in values:
        raise ModelError(f"the site to align on must be one of {', '.join(sorted(values)) or 'none'}; got '{site}'.")
    value = np.asarray(values[site], dtype=np.float64)
    names = site_dims(site, value, dims)
    if names.count(dim) != 1:
        raise ModelError(f"site '{site}' must have one axis '{dim}'; got dims {names}.")
    n_leading = value.ndim - len(names)
    moved = np.moveaxis(value, n_leading + names.index(dim), -1)
    return moved.reshape(*moved.shape[:n_leading], math.prod(moved.shape[n_leading:-1]), moved.shape[-1])


def finite_rows(site: str, values: Values, dims: Dims, dim: str) -> np.ndarray:
    """Return a site as `rows` does, and raise an error if a value is not finite.

    Raises:
        InferenceError: The site contains NaN or inf.
    """
    x = rows(site, values, dims, dim)
    if n_not_finite(x):
        raise InferenceError(f"site '{site}' has values that are not finite; draws cannot be aligned on it.")
    return x


def site_shape(x: np.ndarray, site: str, values: Values, dims: Dims, dim: str) -> np.ndarray:
    """Reshape rows `(m, q)` to the shape of the site."""
    names = site_dims(site, np.asarray(values[site]), dims)
    shape = np.asarray(values[site]).shape[-len(names) :]
    rest = [n for n, name in zip(shape, names, strict=True) if name != dim]
    return np.moveaxis(x.reshape(*rest, x.shape[-1]), -1, names.index(dim))
