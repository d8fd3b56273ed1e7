r"""The groups: how each acts on named sites, aligns draws, and what it leaves invariant.

All act along one dim, `latent` unless said. With an element g (a matrix, acting from the right on rows) loadings W
`(feature, latent)` become W g, positions z `(unit, latent)` z g, a vector `(latent,)` v g, a matrix
`(latent, latent)` g' S g. Positions are the sites with a dim of units (`units`, by default `unit`). Two groups act
differently on positions: `Euclidean` translates them only, and `GeneralLinear` maps z to z A and other sites to W A^-T, so that
the product z W' is unchanged.

Subgroups, each contained in those to its right:

    Identity < Permutation < SignedPermutation < Orthogonal < Euclidean,    Orthogonal < GeneralLinear
"""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from latentlab.errors import ModelError
from latentlab.symmetry import action, consensus, invariants
from latentlab.symmetry.group import Aligned, Dims, Group, Values
from latentlab.symmetry.matrix_group import MatrixGroup


@dataclass(frozen=True)
class Identity(Group):
    """No symmetry: nothing is turned, and every site is its own invariant."""

    dim: str = "latent"
    units: tuple[str, ...] = field(default=("unit",), repr=False)

    def is_trivial(self) -> bool:
        """True."""
        return True

    def random(self, rng: np.random.Generator, size: int, shape: tuple[int, ...] = ()) -> np.ndarray:
        """The identity matrix, `shape` of them."""
        return np.broadcast_to(np.eye(size), (*shape, size, size))

    def act(self, element: np.ndarray, values: Values, dims: Dims) -> dict[str, np.ndarray]:
        """The sites as they are."""
        return {site: np.asarray(value) for site, value in values.items()}

    def align(self, values: Values, dims: Dims, *, on: str) -> Aligned:
        """The draws as they are; the reference is the mean of `on`, which need not have the group's dim."""
        value = np.asarray(values[on], dtype=np.float64)
        n_lead = value.ndim - len(action.site_dims(on, value, dims))
        return self.align_to(value.mean(axis=tuple(range(n_lead))), values, dims, on=on)

    def align_to(self, reference: np.ndarray, values: Values, dims: Dims, *, on: str) -> Aligned:
        """The draws as they are."""
        value = np.asarray(values[on])
        names = action.site_dims(on, value, dims)
        n_lead = value.ndim - len(names)
        size = value.shape[n_lead + names.index(self.dim)] if self.dim in names else 1
        elements = np.broadcast_to(np.eye(size), (*value.shape[:n_lead], size, size))
        return Aligned(self.act(elements, values, dims), elements, np.asarray(reference))

    def invariants(self, values: Values, dims: Dims) -> dict[str, np.ndarray]:
        """The sites themselves."""
        return {site: np.asarray(value) for site, value in values.items()}

    def __contains__(self, other: object) -> bool:
        return isinstance(other, Group) and other.is_trivial()


@dataclass(frozen=True)
class Permutation(MatrixGroup):
    """Exchange of the q components: all q! permutations (label switching).

    Example:
        >>> swap = np.array([[0.0, 1.0], [1.0, 0.0]])
        >>> Permutation("component").act(swap, {"weights": np.array([0.2, 0.8])}, {"weights": ("component",)})
        {'weights': array([0.8, 0.2])}
    """

    dim: str = "latent"
    units: tuple[str, ...] = field(default=("unit",), repr=False)
    subgroups: ClassVar[tuple[type[Group], ...]] = (Identity,)
    keeps_diagonals: ClassVar[bool] = True

    def random(self, rng: np.random.Generator, size: int, shape: tuple[int, ...] = ()) -> np.ndarray:
        """Permutation matrices `(*shape, size, size)`, each permutation equally likely."""
        order = rng.permuted(np.broadcast_to(np.arange(size), (*shape, size)), axis=-1)
        return np.eye(size)[order]

    def elements(self, size: int) -> np.ndarray:
        """All `size`! elements `(size!, size, size)`."""
        return consensus.permutation_matrices(size)

    def inverse(self, element: np.ndarray) -> np.ndarray:
        """The transpose."""
        return element.swapaxes(-1, -2)

    def _transformed(self, element: np.ndarray, x: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
        return _gathered(element, x)

    def _consensus(self, x: np.ndarray, names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
        return consensus.matching_consensus(x, consensus.assignment)

    def _nearest(self, x: np.ndarray, target: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
        return consensus.assignment(x.swapaxes(-1, -2) @ target)

    def _of_rows(self, sites: dict[str, np.ndarray], positions: set[str]) -> dict[str, np.ndarray]:
        found = _signed_invariants(sites, positions)
        for site, x in sites.items():
            for power in (1, 3):
                found |= invariants.power_sums(site, x, power, positions=site in positions)
            found |= invariants.sorted_columns(site, x)
        return found


@dataclass(frozen=True)
class SignedPermutation(MatrixGroup):
    """Exchange of the q axes and change of their signs: q! 2^q elements."""

    dim: str = "latent"
    units: tuple[str, ...] = field(default=("unit",), repr=False)
    subgroups: ClassVar[tuple[type[Group], ...]] = (Identity, Permutation)

    def random(self, rng: np.random.Generator, size: int, shape: tuple[int, ...] = ()) -> np.ndarray:
        """Signed permutation matrices `(*shape, size, size)`, each equally likely."""
        return Permutation(self.dim).random(rng, size, shape) * rng.choice([-1.0, 1.0], size=(*shape, 1, size))

    def elements(self, size: int) -> np.ndarray:
        """All size! 2^size elements `(size! 2^size, size, size)`."""
        signs = 1.0 - 2.0 * (np.arange(2**size)[:, None] >> np.arange(size) & 1)
        return (consensus.permutation_matrices(size)[:, None] * signs[None, :, None, :]).reshape(-1, size, size)

    def inverse(self, element: np.ndarray) -> np.ndarray:
        """The transpose."""
        return element.swapaxes(-1, -2)

    def _transformed(self, element: np.ndarray, x: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
        return _gathered(np.abs(element), x) * element.sum(axis=-2)[..., None, :]

    def _consensus(self, x: np.ndarray, names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
        return consensus.matching_consensus(x, consensus.signed_assignment)

    def _nearest(self, x: np.ndarray, target: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
        return consensus.signed_assignment(x.swapaxes(-1, -2) @ target)

    def _of_rows(self, sites: dict[str, np.ndarray], positions: set[str]) -> dict[str, np.ndarray]:
        return _signed_invariants(sites, positions)


@dataclass(frozen=True)
class Orthogonal(MatrixGroup):
    r"""Rotations and reflections, O(q).

    Example:
        >>> rng = np.random.default_rng(0)
        >>> group, dims = Orthogonal(), {"W": ("feature", "latent")}
        >>> draws = {"W": np.array([[2.0, 0.0], [1.0, 1.0], [0.0, -1.0]]) @ group.random(rng, 2, (4, 50))}
        >>> aligned = group.align(draws, dims, on="W")
        >>> aligned.values["W"].shape, float(aligned.values["W"].std(axis=(0, 1)).max().round(12))
        ((4, 50, 3, 2), 0.0)
        >>> group.invariants(draws, dims)["W W'"][0, 0].round(12)
        array([ 4.,  2.,  0.,  2., -1.,  1.])
    """

    dim: str = "latent"
    units: tuple[str, ...] = field(default=("unit",), repr=False)
    subgroups: ClassVar[tuple[type[Group], ...]] = (Identity, Permutation, SignedPermutation)

    def random(self, rng: np.random.Generator, size: int, shape: tuple[int, ...] = ()) -> np.ndarray:
        """Orthogonal matrices `(*shape, size, size)` from Haar measure, both signs of the determinant.

        References:
            Mezzadri (2007), How to generate random matrices from the classical compact groups, Notices AMS 54:592.
        """
        q, r = np.linalg.qr(rng.normal(size=(*shape, size, size)))
        return q * np.where(np.diagonal(r, axis1=-2, axis2=-1) < 0, -1.0, 1.0)[..., None, :]

    def inverse(self, element: np.ndarray) -> np.ndarray:
        """The transpose."""
        return element.swapaxes(-1, -2)

    def _transformed(self, element: np.ndarray, x: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
        return x @ element

    def _consensus(self, x: np.ndarray, names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
        return consensus.rotation_consensus(x)

    def _nearest(self, x: np.ndarray, target: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
        return consensus.polar(x.swapaxes(-1, -2) @ target)

    def _of_rows(self, sites: dict[str, np.ndarray], positions: set[str]) -> dict[str, np.ndarray]:
        return _rotation_invariants(sites, positions)


@dataclass(frozen=True)
class Euclidean(MatrixGroup):
    """Rotations, reflections and translations, E(q).

    The translation moves positions only (sites with a dim of `units`); everything else is rotated. An element is a matrix
    `(..., q + 1, q + 1)`: the rotation, and in its last row the translation that follows it.
    """

    dim: str = "latent"
    units: tuple[str, ...] = field(default=("unit",), repr=False)
    subgroups: ClassVar[tuple[type[Group], ...]] = (Identity, Permutation, SignedPermutation, Orthogonal)

    def random(self, rng: np.random.Generator, size: int, shape: tuple[int, ...] = ()) -> np.ndarray:
        """A Haar rotation and a standard normal translation."""
        return _motion(Orthogonal(self.dim).random(rng, size, shape), rng.normal(size=(*shape, size)))

    def inverse(self, element: np.ndarray) -> np.ndarray:
        """The rotation undone, and the translation."""
        back = element[..., :-1, :-1].swapaxes(-1, -2)
        return _motion(back, -(element[..., -1:, :-1] @ back)[..., 0, :])

    def _size(self, element: np.ndarray) -> int:
        return int(element.shape[-1]) - 1

    def _transformed(self, element: np.ndarray, x: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
        rotated = x @ element[..., :-1, :-1]
        if not self.is_position(names):
            return rotated
        if names.count(self.dim) > 1:
            raise ModelError(f"a translation along '{self.dim}' has no meaning for a position with dims {names}.")
        return rotated + element[..., -1:, :-1]

    def _consensus(self, x: np.ndarray, names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
        centre = self._centre(x, names)
        rotations, reference = consensus.rotation_consensus(x - centre)
        return _motion(rotations, -(centre @ rotations)[..., 0, :]), reference

    def _nearest(self, x: np.ndarray, target: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
        centre, goal = self._centre(x, names), self._centre(target, names)
        rotations = consensus.polar((x - centre).swapaxes(-1, -2) @ (target - goal))
        return _motion(rotations, (goal - centre @ rotations)[..., 0, :])

    def _centre(self, x: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
        if not self.is_position(names):
            units = " or ".join(map(repr, self.units))
            raise ModelError(f"a Euclidean alignment needs a site with the dim {units}; got one with dims {names}.")
        return x.mean(axis=-2, keepdims=True)

    def _of_rows(self, sites: dict[str, np.ndarray], positions: set[str]) -> dict[str, np.ndarray]:
        centred = {site: self._centred(x, site in positions) for site, x in sites.items()}
        return _rotation_invariants(centred, positions)

    def _centred(self, x: np.ndarray, moves: bool) -> np.ndarray:  # noqa: FBT001
        return x - x.mean(axis=-2, keepdims=True) if moves else x


@dataclass(frozen=True)
class GeneralLinear(MatrixGroup):
    """Invertible linear maps, GL(q): positions z (sites with a dim of `units`) to z A, all others W to W A^-T.

    The product z W' stays. Alignment first gives every draw of the site orthogonal columns of mean square 1, so that
    only its span counts, and then rotates; the consensus is an orthogonal basis of the draws' common subspace.
    """

    dim: str = "latent"
    units: tuple[str, ...] = field(default=("unit",), repr=False)
    subgroups: ClassVar[tuple[type[Group], ...]] = (Identity, Permutation, SignedPermutation, Orthogonal)

    def random(self, rng: np.random.Generator, size: int, shape: tuple[int, ...] = ()) -> np.ndarray:
        """Invertible matrices with Haar singular vectors and log-normal singular values (the group is not compact)."""
        rotation = Orthogonal(self.dim).random(rng, size, (2, *shape))
        return rotation[0] * np.exp(0.5 * rng.normal(size=(*shape, 1, size))) @ rotation[1]

    def _transformed(self, element: np.ndarray, x: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
        return x @ self._on(element, names)

    def _on(self, element: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
        return element if self.is_position(names) else np.linalg.inv(element).swapaxes(-1, -2)

    def _consensus(self, x: np.ndarray, names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
        whitening = self._whitening(x, names)
        rotations, reference = consensus.rotation_consensus(x @ whitening)
        return self._on(whitening @ rotations, names), reference

    def _nearest(self, x: np.ndarray, target: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
        self._whitening(x, names)
        return self._on(np.linalg.solve(x.swapaxes(-1, -2) @ x, x.swapaxes(-1, -2) @ target), names)

    def _whitening(self, x: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
        values, vectors = np.linalg.eigh(x.swapaxes(-1, -2) @ x / x.shape[-2])
        if (values[..., 0] <= 1e-12 * values[..., -1]).any():
            raise ModelError(f"a site with dims {names} has linearly dependent columns in a draw: no basis.")
        return vectors / np.sqrt(values)[..., None, :]

    def _of_matrix(self, site: str, matrix: np.ndarray) -> dict[str, np.ndarray]:
        return {}

    def _of_rows(self, sites: dict[str, np.ndarray], positions: set[str]) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        for site, x in sites.items():
            found |= invariants.projector(site, x, positions=site in positions)
        for position in (site for site in sites if site in positions):
            for other in (site for site in sites if site not in positions):
                found |= invariants.cross(position, sites[position], other, sites[other], positions=True)
        return found


GROUPS: dict[str, type[Group]] = {
    "identity": Identity,
    "permutation": Permutation,
    "signed_permutation": SignedPermutation,
    "orthogonal": Orthogonal,
    "euclidean": Euclidean,
    "general_linear": GeneralLinear,
}
"""The groups by name."""


def larger_groups(group: Group, dims: Dims, *, size: int = 2) -> list[Group]:
    """The groups of the table that contain `group`, along the same dim, and do more to sites with these dims.

    A translation does nothing to a model without explicit positions, so there `Euclidean` is no larger than
    `Orthogonal`; with one latent axis a rotation is no more than a sign.

    Args:
        group: The group that is declared.
        dims: The own dims of the sites.
        size: The number of latent axes.

    Example:
        >>> [type(g).__name__ for g in larger_groups(Orthogonal(), {"W": ("feature", "latent"), "sigma": ()})]
        ['GeneralLinear']
    """
    if not any(group.dim in names for names in dims.values()):
        return []
    candidates = [entry(group.dim, group.units) for entry in GROUPS.values()]  # type: ignore[call-arg]
    reach = _reach(group, dims, size)
    return [g for g in candidates if group in g and g not in group and _reach(g, dims, size) != reach]


def _reach(group: Group, dims: Dims, size: int) -> str:
    """A name for what a group does to sites with these dims; equal names, equal action."""
    moves = any(group.is_position(names) and group.dim in names for names in dims.values())
    name = type(group).__name__
    if name == "Euclidean" and not moves:
        name = "Orthogonal"
    if size == 1:
        name = {"Permutation": "Identity", "Orthogonal": "SignedPermutation"}.get(name, name)
    return name


def _gathered(permutation: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Rows times a permutation matrix, by picking columns: exact, and safe for infinite values."""
    source = permutation.argmax(axis=-2)[..., None, :]
    lead = np.broadcast_shapes(x.shape[:-2], source.shape[:-2])
    return np.take_along_axis(
        np.broadcast_to(x, (*lead, *x.shape[-2:])), np.broadcast_to(source, (*lead, *source.shape[-2:])), axis=-1
    )


def _motion(rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    q = rotation.shape[-1]
    element = np.zeros((*rotation.shape[:-2], q + 1, q + 1))
    element[..., :q, :q], element[..., q, :q], element[..., q, q] = rotation, translation, 1.0
    return element


def _rotation_invariants(sites: dict[str, np.ndarray], positions: set[str]) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for site, x in sites.items():
        found |= invariants.gram(site, x, positions=site in positions)
    return found | invariants.crosses(sites, positions)


def _signed_invariants(sites: dict[str, np.ndarray], positions: set[str]) -> dict[str, np.ndarray]:
    found = _rotation_invariants(sites, positions)
    for site, x in sites.items():
        found |= invariants.power_sums(site, x, 4, positions=site in positions) | invariants.sorted_norms(site, x)
    return found
