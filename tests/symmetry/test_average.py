"""Tests of densities averaged over a group against quadrature, full sums and Monte Carlo."""

import numpy as np
import pytest
from scipy.special import logsumexp

from latentlab.errors import InferenceError, ModelError
from latentlab.symmetry.average import antisymmetric, compact, log_average, log_haar
from latentlab.symmetry.groups import Euclidean, GeneralLinear, Identity, Orthogonal, Permutation, SignedPermutation

DIMS = {"W": ("feature", "latent"), "sigma": ()}


def gaussian(center, scale):
    def log_q(values):
        e = (values["W"] - center) / scale
        own = -0.5 * (e**2).sum(axis=(-2, -1)) - e[0].size * np.log(scale * np.sqrt(2 * np.pi))
        return own - 0.5 * values["sigma"] ** 2 if "sigma" in values else own

    return log_q


def average(group, log_q, W, center, **options):
    return log_average(group, log_q, {"W": W}, DIMS, on="W", center={"W": center}, rng=np.random.default_rng(0), **options)


def over_circle(log_q, W, n=20_001):
    """The mean over O(2) by a dense grid of angles, both determinants."""
    angle = 2 * np.pi * np.arange(n) / n
    turns = np.stack([np.cos(angle), np.sin(angle), -np.sin(angle), np.cos(angle)], -1).reshape(n, 2, 2)
    both = np.concatenate([turns, turns @ np.diag([1.0, -1.0])])
    return np.array([logsumexp(log_q({"W": w @ both})) - np.log(2 * n) for w in W])


@pytest.mark.parametrize("scale", [1.0, 0.2, 0.02])
def test_average_over_two_axes_matches_quadrature(rng, scale):
    center = rng.standard_normal((4, 2))
    W = center @ Orthogonal().random(rng, 2, (6,)) + scale * rng.standard_normal((6, 4, 2))
    log_q = gaussian(center, scale)
    expected = over_circle(log_q, W)
    np.testing.assert_allclose(average(Orthogonal(), log_q, W, center), expected, atol=1e-6)
    one_side = average(Orthogonal(), log_q, W, center) + np.log(2.0)  # a determinant left out, as a planted fault
    assert np.abs(one_side - expected).min() > 0.1


def test_one_axis_is_the_mean_of_both_signs(rng):
    center = np.array([[2.0], [1.0]])
    W = rng.standard_normal((5, 2, 1))
    log_q = gaussian(center, 0.7)
    expected = np.logaddexp(log_q({"W": W}), log_q({"W": -W})) - np.log(2)
    np.testing.assert_allclose(average(Orthogonal(), log_q, W, center), expected, atol=1e-12)


def test_haar_measure_integrates_to_1():
    """Three axes by quadrature over the angle; four by 400 000 uniform draws within 6 standard errors (2e-9 false alarms)."""
    angle = (np.arange(2000) + 0.5) * np.pi / 2000
    density = np.exp(log_haar(angle[:, None] * np.array([-1.0, 0.0, 1.0]), 3))
    assert np.sum(4 * np.pi * angle**2 * density) * np.pi / 2000 == pytest.approx(1, rel=1e-6)
    a = antisymmetric(np.random.default_rng(0).uniform(-np.pi, np.pi, (400_000, 6)), 4)
    pfaffian = a[:, 0, 1] * a[:, 2, 3] - a[:, 0, 2] * a[:, 1, 3] + a[:, 0, 3] * a[:, 1, 2]
    square = (a**2).sum(axis=(1, 2)) / 2  # sum of the two angles' squares, whose product is the Pfaffian's size
    sums = np.sqrt(np.stack([square + 2 * np.abs(pfaffian), np.maximum(square - 2 * np.abs(pfaffian), 0)]))
    high, low = (sums[0] + sums[1]) / 2, (sums[0] - sums[1]) / 2
    mass = (2 * np.pi) ** 6 * np.exp(log_haar(np.stack([-high, -low, low, high], axis=-1), 4))
    assert abs(mass.mean() - 1) < 6 * mass.std() / np.sqrt(len(mass))


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_average_over_three_axes_matches_monte_carlo(rng, scale):
    """For a broad density, compared with 200 000 draws from Haar measure within 5 standard errors."""
    center = rng.standard_normal((4, 3))
    W = center @ Orthogonal().random(rng, 3, (3,)) + 0.5 * rng.standard_normal((3, 4, 3))
    log_q = gaussian(center, scale)
    found = average(Orthogonal(), log_q, W, center, n=4096)
    turns = Orthogonal().random(rng, 3, (200_000,))
    for w, value in zip(W, found, strict=True):
        q = np.exp(log_q({"W": w @ turns}))
        assert abs(np.exp(value) - q.mean()) < 5 * q.std() / np.sqrt(len(q)) + 0.02 * q.mean()


def test_reflected_draws_have_the_same_average(rng):
    center = np.array([[3.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    W = center + 0.1 * rng.standard_normal((8, 3, 2))
    mirrored = np.concatenate([W[:4], W[4:] @ np.diag([1.0, -1.0])])
    np.testing.assert_allclose(
        average(Orthogonal(), gaussian(center, 0.1), mirrored, center),
        average(Orthogonal(), gaussian(center, 0.1), W, center),
        atol=1e-8,
    )


@pytest.mark.parametrize("group", [Permutation(), SignedPermutation()], ids=lambda g: type(g).__name__)
def test_averages_over_finite_groups_are_sums(rng, group):
    center = rng.standard_normal((4, 3))
    W = rng.standard_normal((5, 4, 3))
    log_q = gaussian(center, 0.8)
    terms = np.stack([log_q({"W": W @ g}) for g in group.elements(3)])
    expected = logsumexp(terms, axis=0) - np.log(len(terms))
    np.testing.assert_allclose(average(group, log_q, W, center), expected, atol=1e-10)


def test_sums_over_large_groups_are_restricted_to_near_elements(rng):
    """Permutations of 7 axes that need more than two transpositions are negligible in the sum over all 5040."""
    center = 3 * rng.standard_normal((6, 7))
    W = center @ Permutation().random(rng, 7, (3,)) + 0.3 * rng.standard_normal((3, 6, 7))
    log_q = gaussian(center, 0.5)
    elements = Permutation().elements(7)
    expected = [logsumexp(log_q({"W": w @ elements})) - np.log(5040) for w in W]
    np.testing.assert_allclose(average(Permutation(), log_q, W, center), expected, atol=1e-6)


@pytest.mark.parametrize("q", [2, 3])
def test_an_invariant_density_is_unchanged(rng, q):
    W = rng.standard_normal((5, 4, q))
    log_q = gaussian(np.zeros((4, q)), 1.3)
    np.testing.assert_allclose(average(Orthogonal(), log_q, W, W[0]), log_q({"W": W}), atol=1e-6)


def test_identity_has_no_effect_and_infinite_groups_are_refused(rng):
    W = rng.standard_normal((5, 4, 2))
    log_q = gaussian(W[0], 1.0)
    np.testing.assert_array_equal(average(Identity(), log_q, W, W[0]), log_q({"W": W}))
    for group in (Euclidean(), GeneralLinear()):
        with pytest.raises(ModelError, match="no finite invariant measure"):
            average(group, log_q, W, W[0])


def test_a_nan_density_is_refused(rng):
    W = rng.standard_normal((5, 4, 2))
    with pytest.raises(InferenceError, match="NaN or"):
        average(Orthogonal(), lambda v: np.full(len(v["W"]), np.nan), W, W[0])


def test_a_degenerate_density_is_refused(rng):
    """For a singular covariance, log q changes by 1e30 within a rotation."""
    center = rng.standard_normal((4, 2))
    with pytest.raises(InferenceError, match=r"guide's covariance is close to singular"):
        average(Orthogonal(), gaussian(center, 1e-15), center[None], center)


def test_groups_without_a_finite_measure_are_averaged_over_their_rotations():
    assert compact(GeneralLinear("axis")) == compact(Euclidean("axis")) == Orthogonal("axis")
    assert compact(Permutation("axis")) == Permutation("axis")
