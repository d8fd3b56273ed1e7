"""What the groups of matrices have in common: sites as rows, alignment by the elements found on one site."""

from abc import abstractmethod
from typing import ClassVar

import numpy as np

from latentlab.errors import ModelError
from latentlab.symmetry import action, invariants
from latentlab.symmetry.group import Aligned, Dims, Group, Values


class MatrixGroup(Group):
    """A group of matrices; a subclass says how they act on rows, which element is nearest, and the invariants."""

    subgroups: ClassVar[tuple[type[Group], ...]]
    keeps_diagonals: ClassVar[bool] = False
    """Whether the diagonal of a matrix goes to that of the turned one, so that it is acted on like a site of one row."""

    def __contains__(self, other: object) -> bool:
        if not isinstance(other, Group):
            return False
        return other.is_trivial() or (isinstance(other, (type(self), *self.subgroups)) and other.dim == self.dim)

    @abstractmethod
    def _transformed(self, element: np.ndarray, x: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
        """Rows `(*lead, m, q)` of a site with dims `names` after the element."""

    @abstractmethod
    def _consensus(self, x: np.ndarray, names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Elements `(S, k, k)` that align the draws `(S, m, q)` of a site with dims `names`, and the consensus."""

    @abstractmethod
    def _nearest(self, x: np.ndarray, target: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
        """Elements `(S, k, k)` that bring draws `(S, m, q)` closest to `target` `(m, q)`."""

    def _size(self, element: np.ndarray) -> int:
        return int(element.shape[-1])

    def act(self, element: np.ndarray, values: Values, dims: Dims) -> dict[str, np.ndarray]:
        """The sites after the element has acted through every axis that is the group's dim.

        Args:
            element: Matrices `(..., k, k)`; leading axes broadcast with those of the values.
            values: Sites by name, `(..., *site's own)`.
            dims: The own dims of each site.

        Returns:
            All sites; those without the dim as they were.

        Raises:
            ModelError: A site's size along the dim is not the element's, or `dims` does not name it.
        """
        element = np.asarray(element, dtype=np.float64)
        return {site: self._acted(element, site, value, dims) for site, value in values.items()}

    def _acted(self, element: np.ndarray, site: str, value: np.ndarray, dims: Dims) -> np.ndarray:
        value = np.asarray(value)
        names = action.site_dims(site, value, dims)
        if self.dim not in names:
            return value
        return action.through_axes(
            site, value, dims, self.dim, self._size(element), lambda x: self._transformed(element, x, names)
        )

    def align(self, values: Values, dims: Dims, *, on: str) -> Aligned:
        """Draws turned to their consensus on site `on`; all sites go along.

        Args:
            values: Sites by name, `(..., *site's own)`; all leading axes (chain, draw) count as draws.
            dims: The own dims of each site.
            on: The site whose agreement decides; any site with the group's dim.

        Returns:
            The sites turned, the elements applied, and the consensus of `on`. The same, to rounding, for draws that
            were turned beforehand, each by an element of its own, and for draws in any order.

        Raises:
            ModelError: `on` is missing or lacks the group's dim.
            InferenceError: `on` is not finite.
        """
        x = action.finite_rows(on, values, dims, self.dim)
        elements, reference = self._consensus(x.reshape(-1, *x.shape[-2:]), tuple(dims[on]))
        return self._aligned(elements.reshape(*x.shape[:-2], *elements.shape[1:]), reference, values, dims, on)

    def align_to(self, reference: np.ndarray, values: Values, dims: Dims, *, on: str) -> Aligned:
        """Draws each turned as close as the group can bring site `on` to `reference`; all sites go along.

        Args:
            reference: A value of site `on`, without leading axes.
            values: Sites by name, `(..., *site's own)`.
            dims: The own dims of each site.
            on: The site that is compared.

        Raises:
            ModelError: `on` is missing, lacks the group's dim, or has another shape than `reference`.
            InferenceError: `on` or `reference` is not finite.
        """
        x = action.finite_rows(on, values, dims, self.dim)
        target = action.finite_rows(on, {on: np.asarray(reference)}, {on: dims[on]}, self.dim)
        if target.shape != x.shape[-2:]:
            raise ModelError(f"the reference of site '{on}' has rows {target.shape}; the draws have {x.shape[-2:]}.")
        elements = self._nearest(x.reshape(-1, *x.shape[-2:]), target, tuple(dims[on]))
        return self._aligned(elements.reshape(*x.shape[:-2], *elements.shape[1:]), target, values, dims, on)

    def _aligned(self, elements: np.ndarray, reference: np.ndarray, values: Values, dims: Dims, on: str) -> Aligned:
        shaped = action.site_shape(reference, on, values, dims, self.dim)
        return Aligned(self.act(elements, values, dims), elements, shaped)

    def invariants(self, values: Values, dims: Dims) -> dict[str, np.ndarray]:
        """Functions of the draws that the group leaves as they are: name -> `(..., n)`; `invariants.py` lists them.

        Sites that the group does not act on stand for themselves, in their own shape.
        """
        sites = {site: np.asarray(value) for site, value in values.items()}
        moved = action.acted(sites, dims, self.dim)
        found = {site: value for site, value in sites.items() if site not in moved}
        single = {}
        for site in moved:
            names = action.site_dims(site, sites[site], dims)
            if names.count(self.dim) == 1:
                single[site] = action.rows(site, sites, dims, self.dim)
            else:
                matrix = self._matrices(site, sites[site], names)
                found |= self._of_matrix(site, matrix)
                if self.keeps_diagonals:
                    single[f"diag {site}"] = np.diagonal(matrix, axis1=-2, axis2=-1)
        return found | self._of_rows(single, {site for site in single if self.is_position(dims.get(site, ()))})

    def _matrices(self, site: str, value: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
        """A site with two axes of the group as matrices `(*lead, m, q, q)`."""
        if names.count(self.dim) != 2:
            raise ModelError(f"site '{site}' has the dim '{self.dim}' more than twice: {names}; no invariants are known.")
        n_lead = value.ndim - len(names)
        axes = [n_lead + axis for axis, name in enumerate(names) if name == self.dim]
        moved = np.moveaxis(value.astype(np.float64), axes, (-2, -1))
        return moved.reshape(*moved.shape[:n_lead], -1, *moved.shape[-2:])

    def _of_matrix(self, site: str, matrix: np.ndarray) -> dict[str, np.ndarray]:
        """Invariants of a site with two axes of the group, given as matrices `(*lead, m, q, q)`."""
        return invariants.traces(site, matrix)

    @abstractmethod
    def _of_rows(self, sites: dict[str, np.ndarray], positions: set[str]) -> dict[str, np.ndarray]:
        """Invariants of the sites with one axis of the group, given as rows `(*lead, m, q)`."""
