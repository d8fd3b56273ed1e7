"""Base class of groups of matrices: action on sites as rows, and alignment of all sites by one site."""

from abc import abstractmethod
from typing import ClassVar

import numpy as np

from latentlab.data.memory import by_draw
from latentlab.errors import ModelError
from latentlab.symmetry import invariants
from latentlab.symmetry.group import (
    Aligned,
    Dims,
    Group,
    Values,
    finite_rows,
    rows,
    site_dims,
    site_shape,
    sites_with_dim,
    through_axes,
)


class MatrixGroup(Group):
    """Group of matrices; subclasses define the action on rows, the nearest element, and the invariants."""

    subgroups: ClassVar[tuple[type[Group], ...]]
    keeps_diagonals: ClassVar[bool] = False
    """Whether elements map the diagonal of a matrix to that of the transformed matrix, like a site of one row."""

    def __contains__(self, other: object) -> bool:
        if not isinstance(other, Group):
            return False
        return other.is_trivial() or (isinstance(other, (type(self), *self.subgroups)) and other.dim == self.dim)

    @abstractmethod
    def _transformed(self, element: np.ndarray, x: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
        """Rows `(*lead, m, q)` of a site with dims `names` after the action of the element."""

    @abstractmethod
    def _consensus(self, x: np.ndarray, names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Elements `(S, k, k)` that align the draws `(S, m, q)` of a site with dims `names`, and the consensus."""

    @abstractmethod
    def _nearest(self, x: np.ndarray, target: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
        """Elements `(S, k, k)` that bring draws `(S, m, q)` closest to `target` `(m, q)`."""

    def _size(self, element: np.ndarray) -> int:
        return int(element.shape[-1])

    def act(self, element: np.ndarray, values: Values, dims: Dims) -> dict[str, np.ndarray]:
        """Apply an element to the sites, along every axis that is the group's dim.

        Args:
            element: Matrices `(..., k, k)`; leading axes broadcast with those of the values.
            values: Sites by name, `(..., *site)`.
            dims: Dims of each site, without leading axes.

        Returns:
            All sites; those without the dim are unchanged.

        Raises:
            ModelError: The sizes of a site along the dim and of the element differ, or `dims` does not contain the site.
        """
        element = np.asarray(element, dtype=np.float64)
        return {site: self._acted(element, site, value, dims) for site, value in values.items()}

    def _acted(self, element: np.ndarray, site: str, value: np.ndarray, dims: Dims) -> np.ndarray:
        value = np.asarray(value)
        names = site_dims(site, value, dims)
        if self.dim not in names:
            return value

        def act(value: np.ndarray, element: np.ndarray) -> np.ndarray:
            return through_axes(site, value, dims, self.dim, self._size(element), lambda x: self._transformed(element, x, names))

        return by_draw(act, value, element)

    def align(self, values: Values, dims: Dims, *, on: str) -> Aligned:
        """Align draws with their consensus of site `on`; the same elements act on all sites.

        Args:
            values: Sites by name, `(..., *site)`; all leading axes (chain, draw) count as draws.
            dims: Dims of each site, without leading axes.
            on: Site whose agreement is maximised; any site with the group's dim.

        Returns:
            The aligned sites, the elements applied, and the consensus of `on`. Up to rounding, the result depends neither on
            the order of the draws nor on elements of the group applied to each draw before.

        Raises:
            ModelError: `on` is missing or lacks the group's dim.
            InferenceError: `on` is not finite.
        """
        x = finite_rows(on, values, dims, self.dim)
        elements, reference = self._consensus(x.reshape(-1, *x.shape[-2:]), tuple(dims[on]))
        return self._aligned(elements.reshape(*x.shape[:-2], *elements.shape[1:]), reference, values, dims, on)

    def align_to(self, reference: np.ndarray, values: Values, dims: Dims, *, on: str) -> Aligned:
        """Align each draw by the element that brings site `on` closest to `reference`; it acts on all sites.

        Args:
            reference: Value of site `on`, without leading axes.
            values: Sites by name, `(..., *site)`.
            dims: Dims of each site, without leading axes.
            on: Site that is compared with the reference.

        Raises:
            ModelError: `on` is missing, lacks the group's dim, or differs in shape from `reference`.
            InferenceError: `on` or `reference` is not finite.
        """
        x = finite_rows(on, values, dims, self.dim)
        target = finite_rows(on, {on: np.asarray(reference)}, {on: dims[on]}, self.dim)
        if target.shape != x.shape[-2:]:
            raise ModelError(
                f"the reference of site '{on}' must have rows of shape {x.shape[-2:]}, as the draws; got {target.shape}."
            )
        elements = self._nearest(x.reshape(-1, *x.shape[-2:]), target, tuple(dims[on]))
        return self._aligned(elements.reshape(*x.shape[:-2], *elements.shape[1:]), target, values, dims, on)

    def _aligned(self, elements: np.ndarray, reference: np.ndarray, values: Values, dims: Dims, on: str) -> Aligned:
        shaped = site_shape(reference, on, values, dims, self.dim)
        return Aligned(self.act(elements, values, dims), elements, shaped)

    def invariants(self, values: Values, dims: Dims) -> dict[str, np.ndarray]:
        """Compute invariants of the group: name -> `(..., n)`; the module `invariants` lists them.

        Sites on which the group does not act are invariants in their original shape.
        """
        sites = {site: np.asarray(value) for site, value in values.items()}
        moved = sites_with_dim(sites, dims, self.dim)
        result = {site: value for site, value in sites.items() if site not in moved}
        single = {}
        for site in moved:
            names = site_dims(site, sites[site], dims)
            if names.count(self.dim) == 1:
                single[site] = rows(site, sites, dims, self.dim)
            else:
                matrix = self._matrices(site, sites[site], names)
                result |= self._of_matrix(site, matrix)
                if self.keeps_diagonals:
                    single[f"diag {site}"] = np.diagonal(matrix, axis1=-2, axis2=-1)
        return result | self._of_rows(single, {site for site in single if self.is_position(dims.get(site, ()))})

    def _matrices(self, site: str, value: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
        """Reshape a site with two axes of the group to matrices `(*lead, m, q, q)`."""
        if names.count(self.dim) != 2:
            raise ModelError(f"site '{site}' must have the dim '{self.dim}' at most twice; got dims {names}.")
        n_leading = value.ndim - len(names)
        axes = [n_leading + axis for axis, name in enumerate(names) if name == self.dim]
        moved = np.moveaxis(value.astype(np.float64), axes, (-2, -1))
        return moved.reshape(*moved.shape[:n_leading], -1, *moved.shape[-2:])

    def _of_matrix(self, site: str, matrix: np.ndarray) -> dict[str, np.ndarray]:
        """Invariants of a site with two axes of the group, given as matrices `(*lead, m, q, q)`."""
        return invariants.traces(site, matrix)

    @abstractmethod
    def _of_rows(self, sites: dict[str, np.ndarray], positions: set[str]) -> dict[str, np.ndarray]:
        """Invariants of the sites with one axis of the group, given as rows `(*lead, m, q)`."""
