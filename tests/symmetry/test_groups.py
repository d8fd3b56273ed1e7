"""Tests of symmetry groups: action, alignment and invariants."""

import itertools

import numpy as np
import pytest
from scipy.linalg import orthogonal_procrustes
from scipy.spatial.distance import cdist
from scipy.stats import norm

from latentlab.errors import InferenceError, ModelError
from latentlab.symmetry.groups import (
    GROUPS,
    Euclidean,
    GeneralLinear,
    Identity,
    Orthogonal,
    Permutation,
    SignedPermutation,
    larger_groups,
)

DIMS = {"W": ("feature", "latent"), "z": ("unit", "latent"), "s": ("latent",), "S": ("latent", "latent"), "sigma": ()}
Q = 3
FINITE = [Permutation(), SignedPermutation()]
ALL = [Identity(), *FINITE, Orthogonal(), Euclidean(), GeneralLinear()]
ALIGNING = [Permutation(), SignedPermutation(), Orthogonal(), Euclidean()]


def sites(rng, lead=()):
    shapes = {"W": (5, Q), "z": (7, Q), "s": (Q,), "sigma": ()}
    return {name: rng.standard_normal((*lead, *shape)) for name, shape in shapes.items()}


def close(a, b, atol=1e-10):
    return all(np.allclose(a[name], b[name], atol=atol) for name in b)


def noisy(rng, size=0.05):
    """Draws `(2, 6)` of one set of positions with a little noise."""
    center = sites(rng)
    center["z"] = center["z"] * np.array([3.0, 2.0, 1.0]) + np.array([2.0, -1.0, 0.5])
    return {name: value + size * rng.standard_normal((2, 6, *value.shape)) for name, value in center.items()}


@pytest.mark.parametrize("group", ALL, ids=lambda g: type(g).__name__)
def test_groups_act_from_the_right_with_inverses(group, rng):
    values = sites(rng)
    g, h = group.random(rng, Q), group.random(rng, Q)
    one_by_one = group.act(h, group.act(g, values, DIMS), DIMS)
    assert close(one_by_one, group.act(group.compose(g, h), values, DIMS))
    assert close(group.act(group.inverse(g), group.act(g, values, DIMS), DIMS), values)
    assert group.act(g, values, DIMS)["sigma"] == values["sigma"]


@pytest.mark.parametrize("group", [g for g in ALL if not g.is_trivial()], ids=lambda g: type(g).__name__)
def test_each_draw_has_its_own_element(group, rng):
    values = sites(rng, (2, 4))
    elements = group.random(rng, Q, (2, 4))
    together = group.act(elements, values, DIMS)
    for chain, draw in itertools.product(range(2), range(4)):
        alone = group.act(elements[chain, draw], {name: v[chain, draw] for name, v in values.items()}, DIMS)
        assert close({name: v[chain, draw] for name, v in together.items()}, alone)


def test_the_product_of_loadings_and_positions_is_invariant(rng):
    values = sites(rng)
    for group in (SignedPermutation(), Orthogonal(), GeneralLinear()):
        turned = group.act(group.random(rng, Q), values, DIMS)
        np.testing.assert_allclose(turned["z"] @ turned["W"].T, values["z"] @ values["W"].T, atol=1e-9)
    moved = Euclidean().act(Euclidean().random(rng, Q), values, DIMS)
    assert not np.allclose(moved["z"] @ moved["W"].T, values["z"] @ values["W"].T, atol=1e-3)


def test_positions_of_all_kinds_of_units_transform_as_positions(rng):
    """Senders and receivers are translated and rotated by the group; loadings are only rotated."""
    dims = {"s": ("sender", "latent"), "r": ("receiver", "latent"), "W": ("feature", "latent")}
    values = {"s": rng.normal(size=(5, 2)), "r": rng.normal(size=(4, 2)), "W": rng.normal(size=(3, 2))}
    linear = GeneralLinear(units=("sender", "receiver"))
    moved = linear.act(linear.random(rng, 2), values, dims)
    for site in ("s", "r"):
        np.testing.assert_allclose(moved[site] @ moved["W"].T, values[site] @ values["W"].T, rtol=1e-9)
    euclidean = Euclidean(units=("sender", "receiver"))
    moved = euclidean.act(euclidean.random(rng, 2), values, dims)
    np.testing.assert_allclose(cdist(moved["s"], moved["r"]), cdist(values["s"], values["r"]), rtol=1e-9)
    np.testing.assert_allclose(moved["W"] @ moved["W"].T, values["W"] @ values["W"].T, rtol=1e-9)


def test_matrices_along_the_dim_are_transformed_on_both_sides(rng):
    S, g = rng.standard_normal((Q, Q)), Orthogonal().random(rng, Q)
    np.testing.assert_allclose(Orthogonal().act(g, {"S": S}, DIMS)["S"], g.T @ S @ g, atol=1e-12)


def test_random_rotations_have_the_moments_of_haar_measure(rng):
    """E g_ij = 0, E g_ij^2 = 1/q, E det = 0: 19 z-tests, two-sided, at a total of 1e-5."""
    g = Orthogonal().random(rng, Q, (40_000,))
    np.testing.assert_allclose(g @ g.swapaxes(-1, -2), np.broadcast_to(np.eye(Q), g.shape), atol=1e-12)
    limit = norm.isf(1e-5 / 2 / 19)
    for x, mean in ((g, 0.0), (g**2, 1 / Q), (np.linalg.det(g)[:, None, None], 0.0)):
        z = (x.mean(0) - mean) / (x.std(0) / 200)
        assert np.abs(z).max() < limit


@pytest.mark.parametrize("group", FINITE, ids=lambda g: type(g).__name__)
def test_finite_groups_list_each_element_once(group, rng):
    elements = group.elements(Q).reshape(-1, Q * Q)
    assert len(np.unique(elements, axis=0)) == len(elements) == {"Permutation": 6, "SignedPermutation": 48}[type(group).__name__]
    drawn = group.random(rng, Q, (20_000,)).reshape(-1, Q * Q)
    counts = np.unique(drawn, axis=0, return_counts=True)[1]
    assert len(counts) == len(elements)
    expected = 20_000 / len(elements)
    assert np.abs(counts - expected).max() < 5.5 * np.sqrt(expected)


# -- alignment


@pytest.mark.parametrize("group", ALIGNING, ids=lambda g: type(g).__name__)
def test_alignment_ignores_rotation_and_order_of_draws(group, rng):
    draws = noisy(rng)
    aligned = group.align(draws, DIMS, on="z")
    turned = group.act(group.random(rng, Q, (2, 6)), draws, DIMS)
    again = group.align(turned, DIMS, on="z")
    assert close(again.values, aligned.values, 1e-7)
    np.testing.assert_allclose(again.reference, aligned.reference, atol=1e-7)
    order = rng.permutation(12)
    shuffled = {name: v.reshape(12, *v.shape[2:])[order].reshape(v.shape) for name, v in turned.items()}
    mixed = group.align(shuffled, DIMS, on="z")
    np.testing.assert_allclose(mixed.reference, aligned.reference, atol=1e-7)
    assert close(group.act(aligned.elements, draws, DIMS), aligned.values)


@pytest.mark.parametrize("group", ALIGNING, ids=lambda g: type(g).__name__)
def test_aligned_draws_agree_and_keep_invariants(group, rng):
    draws = group.act(group.random(rng, Q, (2, 6)), noisy(rng), DIMS)
    aligned = group.align(draws, DIMS, on="z")
    assert aligned.values["z"].std(axis=(0, 1)).max() < 0.2 < draws["z"].std(axis=(0, 1)).max()
    before, after = group.invariants(draws, DIMS), group.invariants(aligned.values, DIMS)
    assert before.keys() == after.keys()
    assert close(after, before, 1e-8)


@pytest.mark.parametrize("group", ALIGNING, ids=lambda g: type(g).__name__)
def test_the_consensus_is_the_mean_of_the_aligned_draws(group, rng):
    aligned = group.align(noisy(rng), DIMS, on="z")
    np.testing.assert_allclose(aligned.reference, aligned.values["z"].mean(axis=(0, 1)), atol=1e-7)


def test_the_consensus_has_principal_axes_with_positive_largest_entries(rng):
    reference = Orthogonal().align(noisy(rng), DIMS, on="W").reference
    gram = reference.T @ reference
    assert np.abs(gram - np.diag(np.diag(gram))).max() < 1e-8
    assert (np.diff(np.diag(gram)) < 0).all()
    assert (reference[np.abs(reference).argmax(axis=0), range(Q)] > 0).all()


def test_the_nearest_rotation_matches_procrustes(rng):
    x, target = rng.standard_normal((7, Q)), rng.standard_normal((7, Q))
    found = Orthogonal().align_to(target, {"z": x}, DIMS, on="z").values["z"]
    np.testing.assert_allclose(found, x @ orthogonal_procrustes(x, target)[0], atol=1e-10)
    moved = Euclidean().align_to(target, {"z": x}, DIMS, on="z").values["z"]
    a, b = x - x.mean(0), target - target.mean(0)
    np.testing.assert_allclose(moved, a @ orthogonal_procrustes(a, b)[0] + target.mean(0), atol=1e-10)


@pytest.mark.parametrize("group", FINITE, ids=lambda g: type(g).__name__)
def test_the_nearest_permutation_is_the_best_of_all(group, rng):
    for _ in range(20):
        x, target = rng.standard_normal((7, Q)), rng.standard_normal((7, Q))
        found = group.align_to(target, {"z": x}, DIMS, on="z").values["z"]
        best = min(np.linalg.norm(x @ g - target) for g in group.elements(Q))
        assert np.linalg.norm(found - target) == pytest.approx(best, abs=1e-10)


def test_identity_does_not_change_scalar_positions(rng):
    draws = {"theta": rng.standard_normal((2, 5, 8)), "mu": rng.standard_normal((2, 5))}
    aligned = Identity().align(draws, {"theta": ("unit",), "mu": ()}, on="theta")
    np.testing.assert_array_equal(aligned.values["theta"], draws["theta"])
    assert aligned.elements.shape == (2, 5, 1, 1)


# -- sites without signs


UNSIGNED = SignedPermutation(unsigned=("s", "t"))


def with_unsigned(rng, lead=()):
    """Positions, loadings, and two positive sites of the axes."""
    values = sites(rng, lead)
    return {**values, "s": np.exp(values["s"]), "t": np.exp(rng.standard_normal((*lead, Q)))}


def test_unsigned_sites_are_permuted_with_the_axes(rng):
    dims, values = {**DIMS, "t": ("latent",)}, with_unsigned(rng)
    for _ in range(10):
        g, h = UNSIGNED.random(rng, Q, (2,))
        moved = UNSIGNED.act(g, values, dims)
        assert close(moved | {"s": values["s"][np.abs(g).argmax(0)]}, moved)
        np.testing.assert_allclose((moved["z"] / moved["s"]) @ (moved["z"] / moved["s"]).T, _scaled(values), rtol=1e-9)
        assert close(UNSIGNED.act(h, moved, dims), UNSIGNED.act(UNSIGNED.compose(g, h), values, dims))


def _scaled(values):
    return (values["z"] / values["s"]) @ (values["z"] / values["s"]).T


def test_invariants_of_unsigned_sites_tell_their_axes(rng):
    """Invariants do not change under the group, and change if unsigned sites are permuted without the positions."""
    dims, values = {**DIMS, "t": ("latent",)}, with_unsigned(rng)
    found = UNSIGNED.invariants(values, dims)
    for _ in range(10):
        assert close(UNSIGNED.invariants(UNSIGNED.act(UNSIGNED.random(rng, Q), values, dims), dims), found, 1e-8)
    for names in (["s"], ["t"], ["s", "t"]):
        assert not close(UNSIGNED.invariants(values | {name: values[name][::-1] for name in names}, dims), found, 1e-3)


def test_draws_with_unsigned_sites_are_aligned(rng):
    draws = noisy(rng, 0.01)
    draws["s"] = np.exp(draws["s"])
    moved = UNSIGNED.act(UNSIGNED.random(rng, Q, (2, 6)), draws, DIMS)
    aligned = UNSIGNED.align(moved, DIMS, on="z").values
    assert aligned["z"].std(axis=(0, 1)).max() < 0.05
    assert np.log(aligned["s"]).std(axis=(0, 1)).max() < 0.05


# -- invariants


@pytest.mark.parametrize("group", [g for g in ALL if not g.is_trivial()], ids=lambda g: type(g).__name__)
def test_invariants_are_invariant_and_larger_groups_change_them(group, rng):
    values = {name: v for name, v in sites(rng).items() if name != "s"}
    found = group.invariants(values, DIMS)
    for _ in range(5):
        moved = group.invariants(group.act(group.random(rng, Q), values, DIMS), DIMS)
        assert close(moved, found, 1e-7)
    for larger in larger_groups(group, {name: DIMS[name] for name in values}, size=Q):
        every = [group.invariants(larger.act(larger.random(rng, Q), values, DIMS), DIMS) for _ in range(20)]  # some are of both
        assert not all(close(moved, found, 1e-3) for moved in every), f"{type(larger).__name__} leaves all of them as they are"


def test_invariants_of_many_rows_are_spectrum_diagonal_and_projections(rng):
    W = rng.standard_normal((2, 50, 64, 2))
    found = Orthogonal().invariants({"W": W}, DIMS)
    assert max(v.shape[-1] for v in found.values()) <= 64
    spectrum = next(v for name, v in found.items() if "spectrum" in name)
    np.testing.assert_allclose(spectrum[0, 0], np.linalg.eigvalsh(W[0, 0].T @ W[0, 0])[::-1], atol=1e-9)


# -- the lattice


def test_subgroup_relations():
    chain = [Identity(), Permutation(), SignedPermutation(), Orthogonal(), Euclidean()]
    for i, j in itertools.product(range(5), repeat=2):
        assert (chain[i] in chain[j]) == (i <= j), (chain[i], chain[j])
    assert Orthogonal() in GeneralLinear()
    assert GeneralLinear() not in Orthogonal()
    assert Permutation("component") not in Orthogonal("latent")
    assert set(GROUPS) == {"identity", "permutation", "signed_permutation", "orthogonal", "euclidean", "general_linear"}


# -- refusals


def test_invalid_groups_and_sites_are_refused(rng):
    values = sites(rng, (2, 3))
    with pytest.raises(ModelError, match="'W' is not in `dims`"):
        Orthogonal().act(np.eye(Q), {"W": values["W"]}, {"z": ("unit", "latent")})
    with pytest.raises(ModelError, match="'W' has size 3 along 'latent'; the group's element has size 2"):
        Orthogonal().act(np.eye(2), {"W": values["W"]}, DIMS)
    with pytest.raises(ModelError, match=r"the site to align on must be one of .*; got 'y'"):
        Orthogonal().align(values, DIMS, on="y")
    with pytest.raises(ModelError, match="'sigma' must have one axis 'latent'"):
        Orthogonal().align(values, DIMS, on="sigma")
    with pytest.raises(ModelError, match="reference of site 'z'"):
        Orthogonal().align_to(np.zeros((2, Q)), values, DIMS, on="z")
    values["z"][0, 1, 2] = np.nan
    with pytest.raises(InferenceError, match="'z' has values that are not finite"):
        Orthogonal().align(values, DIMS, on="z")
