r"""Symmetry groups: their action on named sites, alignment of draws, and invariants.

A group acts along one dim, by default `latent`. An element g is a matrix that acts on rows from the right. It maps loadings W
`(feature, latent)` to W g, positions z `(unit, latent)` to z g, a vector v `(latent,)` to v g, and a matrix S
`(latent, latent)` to g^T S g. Positions are the sites with a dim of units (`units`, by default `unit`). Two groups act
differently on positions: `Euclidean` translates only positions, and `GeneralLinear` maps z to z A and other sites to W A^-T, so
that the product z W^T is unchanged.

Subgroups, each contained in those to its right:

    Identity < Permutation < SignedPermutation < Orthogonal < Euclidean,    Orthogonal < GeneralLinear
"""

import itertools
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from latentlab.errors import ModelError
from latentlab.symmetry import consensus, invariants
from latentlab.symmetry.group import Aligned, Dims, Group, Values, site_dims
from latentlab.symmetry.matrix_group import MatrixGroup


@dataclass(frozen=True)
class Identity(Group):
    """Trivial group of a model without symmetry: draws are unchanged, and every site is invariant."""

    dim: str = "latent"
    units: tuple[str, ...] = field(default=("unit",), repr=False)

    def is_trivial(self) -> bool:
        """Return True."""
        return True

    def random(self, rng: np.random.Generator, size: int, shape: tuple[int, ...] = ()) -> np.ndarray:
        """Return identity matrices `(*shape, size, size)`."""
        return np.broadcast_to(np.eye(size), (*shape, size, size))

    def act(self, element: np.ndarray, values: Values, dims: Dims) -> dict[str, np.ndarray]:
        """Return the sites unchanged."""
        return {site: np.asarray(value) for site, value in values.items()}

    def align(self, values: Values, dims: Dims, *, on: str) -> Aligned:
        """Return the draws unchanged; the reference is the mean of `on`, which need not have the group's dim."""
        value = np.asarray(values[on], dtype=np.float64)
        n_leading = value.ndim - len(site_dims(on, value, dims))
        return self.align_to(value.mean(axis=tuple(range(n_leading))), values, dims, on=on)

    def align_to(self, reference: np.ndarray, values: Values, dims: Dims, *, on: str) -> Aligned:
        """Return the draws unchanged."""
        value = np.asarray(values[on])
        names = site_dims(on, value, dims)
        n_leading = value.ndim - len(names)
        size = value.shape[n_leading + names.index(self.dim)] if self.dim in names else 1
        elements = np.broadcast_to(np.eye(size), (*value.shape[:n_leading], size, size))
        return Aligned(self.act(elements, values, dims), elements, np.asarray(reference))

    def invariants(self, values: Values, dims: Dims) -> dict[str, np.ndarray]:
        """Return the sites."""
        return {site: np.asarray(value) for site, value in values.items()}

    def __contains__(self, other: object) -> bool:
        return isinstance(other, Group) and other.is_trivial()


@dataclass(frozen=True)
class Permutation(MatrixGroup):
    """Permutations of the q components, q! elements (label switching).

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
        """Draw permutation matrices `(*shape, size, size)` uniformly."""
        order = rng.permuted(np.broadcast_to(np.arange(size), (*shape, size)), axis=-1)
        return np.eye(size)[order]

    def elements(self, size: int) -> np.ndarray:
        """Return all `size`! elements, `(size!, size, size)`."""
        return consensus.permutation_matrices(size)

    def inverse(self, element: np.ndarray) -> np.ndarray:
        """Return the inverse, which is the transpose."""
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
    """Permutations and sign changes of the q axes, q! 2^q elements.

    The sites `unsigned`, such as a lengthscale of each axis, are permuted without sign changes.

    Example:
        >>> group, dims = SignedPermutation(unsigned=("scale",)), {"v": ("latent",), "scale": ("latent",)}
        >>> group.act(np.array([[0.0, -1.0], [1.0, 0.0]]), {"v": np.array([1.0, 2.0]), "scale": np.array([3.0, 4.0])}, dims)
        {'v': array([ 2., -1.]), 'scale': array([4., 3.])}
    """

    dim: str = "latent"
    units: tuple[str, ...] = field(default=("unit",), repr=False)
    unsigned: tuple[str, ...] = ()
    subgroups: ClassVar[tuple[type[Group], ...]] = (Identity, Permutation)

    def random(self, rng: np.random.Generator, size: int, shape: tuple[int, ...] = ()) -> np.ndarray:
        """Draw signed permutation matrices `(*shape, size, size)` uniformly."""
        return Permutation(self.dim).random(rng, size, shape) * rng.choice([-1.0, 1.0], size=(*shape, 1, size))

    def elements(self, size: int) -> np.ndarray:
        """Return all size! 2^size elements, `(size! 2^size, size, size)`."""
        signs = 1.0 - 2.0 * (np.arange(2**size)[:, None] >> np.arange(size) & 1)
        return (consensus.permutation_matrices(size)[:, None] * signs[None, :, None, :]).reshape(-1, size, size)

    def inverse(self, element: np.ndarray) -> np.ndarray:
        """Return the inverse, which is the transpose."""
        return element.swapaxes(-1, -2)

    def _acted(self, element: np.ndarray, site: str, value: np.ndarray, dims: Dims) -> np.ndarray:
        return super()._acted(np.abs(element) if site in self.unsigned else element, site, value, dims)

    def _transformed(self, element: np.ndarray, x: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
        return _gathered(np.abs(element), x) * element.sum(axis=-2)[..., None, :]

    def _consensus(self, x: np.ndarray, names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
        return consensus.matching_consensus(x, consensus.signed_assignment)

    def _nearest(self, x: np.ndarray, target: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
        return consensus.signed_assignment(x.swapaxes(-1, -2) @ target)

    def _of_rows(self, sites: dict[str, np.ndarray], positions: set[str]) -> dict[str, np.ndarray]:
        unsigned = {site: x for site, x in sites.items() if site in self.unsigned}
        signed = {site: x for site, x in sites.items() if site not in unsigned}
        found = _signed_invariants(signed, positions)
        if unsigned:
            squares = {f"{site}^2": x**2 for site, x in signed.items()}
            squared = {f"{site}^2" for site in positions}
            found |= Permutation(self.dim, self.units)._of_rows(unsigned, positions)
            for (name, x), (other, y) in itertools.product(squares.items(), unsigned.items()):
                found |= invariants.cross(name, x, other, y, positions=name in squared)
        return found


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
        >>> group.invariants(draws, dims)["W W^T"][0, 0].round(12)
        array([ 4.,  2.,  0.,  2., -1.,  1.])
    """

    dim: str = "latent"
    units: tuple[str, ...] = field(default=("unit",), repr=False)
    subgroups: ClassVar[tuple[type[Group], ...]] = (Identity, Permutation, SignedPermutation)

    def random(self, rng: np.random.Generator, size: int, shape: tuple[int, ...] = ()) -> np.ndarray:
        """Draw orthogonal matrices `(*shape, size, size)` from Haar measure, with both signs of the determinant.

        References:
            Mezzadri (2007), How to generate random matrices from the classical compact groups, Notices AMS 54:592.
        """
        q, r = np.linalg.qr(rng.normal(size=(*shape, size, size)))
        return q * np.where(np.diagonal(r, axis1=-2, axis2=-1) < 0, -1.0, 1.0)[..., None, :]

    def inverse(self, element: np.ndarray) -> np.ndarray:
        """Return the inverse, which is the transpose."""
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

    The translation acts on positions only (sites with a dim of `units`); other sites are only rotated. An element is a matrix
    `(..., q + 1, q + 1)` of the rotation and, in its last row, the translation that follows it.
    """

    dim: str = "latent"
    units: tuple[str, ...] = field(default=("unit",), repr=False)
    subgroups: ClassVar[tuple[type[Group], ...]] = (Identity, Permutation, SignedPermutation, Orthogonal)

    def random(self, rng: np.random.Generator, size: int, shape: tuple[int, ...] = ()) -> np.ndarray:
        """Draw Haar rotations with standard normal translations, `(*shape, size + 1, size + 1)`."""
        return _motion(Orthogonal(self.dim).random(rng, size, shape), rng.normal(size=(*shape, size)))

    def inverse(self, element: np.ndarray) -> np.ndarray:
        """Return the inverse rigid motion: the transposed rotation with the opposite translation, rotated back."""
        back = element[..., :-1, :-1].swapaxes(-1, -2)
        return _motion(back, -(element[..., -1:, :-1] @ back)[..., 0, :])

    def _size(self, element: np.ndarray) -> int:
        return int(element.shape[-1]) - 1

    def _transformed(self, element: np.ndarray, x: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
        rotated = x @ element[..., :-1, :-1]
        if not self.is_position(names):
            return rotated
        if names.count(self.dim) > 1:
            raise ModelError(f"a translation along '{self.dim}' needs a position with that dim once; got dims {names}.")
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
            raise ModelError(f"a Euclidean alignment needs a site with the dim {units}; got dims {names}.")
        return x.mean(axis=-2, keepdims=True)

    def _of_rows(self, sites: dict[str, np.ndarray], positions: set[str]) -> dict[str, np.ndarray]:
        centred = {site: self._centred(x, site in positions) for site, x in sites.items()}
        return _rotation_invariants(centred, positions)

    def _centred(self, x: np.ndarray, moves: bool) -> np.ndarray:  # noqa: FBT001
        return x - x.mean(axis=-2, keepdims=True) if moves else x


@dataclass(frozen=True)
class GeneralLinear(MatrixGroup):
    """Invertible linear maps, GL(q): they map positions z (sites with a dim of `units`) to z A, other sites W to W A^-T.

    The product z W^T is unchanged. Alignment first transforms every draw of the site to orthogonal columns of mean square 1, so
    that only its column space matters, and then rotates. The consensus is an orthogonal basis of the draws' common subspace.
    """

    dim: str = "latent"
    units: tuple[str, ...] = field(default=("unit",), repr=False)
    subgroups: ClassVar[tuple[type[Group], ...]] = (Identity, Permutation, SignedPermutation, Orthogonal)

    def random(self, rng: np.random.Generator, size: int, shape: tuple[int, ...] = ()) -> np.ndarray:
        """Draw invertible matrices with Haar singular vectors and log-normal singular values (the group is not compact)."""
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
            raise ModelError(
                f"the columns of a site with dims {names} are linearly dependent in a draw, so it cannot be aligned under GL(q)."
            )
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
"""Groups by name."""


def larger_groups(group: Group, dims: Dims, *, size: int = 2) -> list[Group]:
    """Return the groups of the table that contain `group` and act differently on sites with these dims.

    Without explicit positions, translations have no effect, and `Euclidean` is equivalent to `Orthogonal`. With one latent axis,
    rotations are equivalent to sign changes.

    Args:
        group: The declared group.
        dims: Dims of each site, without leading axes.
        size: Number of latent axes.

    Example:
        >>> [type(g).__name__ for g in larger_groups(Orthogonal(), {"W": ("feature", "latent"), "sigma": ()})]
        ['GeneralLinear']
    """
    if not any(group.dim in names for names in dims.values()):
        return []
    candidates = [entry(group.dim, group.units) for entry in GROUPS.values()]  # type: ignore[call-arg]
    action = _action(group, dims, size)
    return [g for g in candidates if group in g and g not in group and _action(g, dims, size) != action]


def _action(group: Group, dims: Dims, size: int) -> str:
    """Name of a group's action on sites with these dims; equal names mean equal actions."""
    moves = any(group.is_position(names) and group.dim in names for names in dims.values())
    name = type(group).__name__
    if name == "Euclidean" and not moves:
        name = "Orthogonal"
    if size == 1:
        name = {"Permutation": "Identity", "Orthogonal": "SignedPermutation"}.get(name, name)
    return name


def _gathered(permutation: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Product of rows and a permutation matrix by indexing of columns: exact, also for infinite values."""
    source = permutation.argmax(axis=-2)[..., None, :]
    leading = np.broadcast_shapes(x.shape[:-2], source.shape[:-2])
    return np.take_along_axis(
        np.broadcast_to(x, (*leading, *x.shape[-2:])), np.broadcast_to(source, (*leading, *source.shape[-2:])), axis=-1
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
